import json
from dataclasses import replace

import pytest

from harness.config.schema import EvalConfig
from harness.evaluation.evaluate import evaluate
from harness.evaluation.store import Sample, SampleStore, sample_key
from harness.evaluation.student import Progress
from harness.rollout.base import Sampling
from harness.types import MediaLimits, Prompt, Question

ANSWERED = {"engine": "transformers", "dtype": "float32", "versions": {"sympy": "1.14.0"}}


def key(identity="model", answered=ANSWERED, sampling=None, asked=None, media=("a1",)):
    return sample_key(identity, answered, sampling or Sampling(), asked or prompt(), media)


def prompt(**changes):
    question = Question(id="q", text="Compute 1+1.", answer="2", limits=MediaLimits(4, 9))
    question = replace(question, **{key: value for key, value in changes.items() if key not in ("uid", "messages")})
    messages = changes.get("messages", ({"role": "user", "content": "Compute 1+1."},))
    return Prompt(uid=changes.get("uid", "eval/sums/0"), question=question, messages=messages)


def sample(key, response="<think>ü\n</think> 2"):
    return Sample(
        key=key,
        benchmark="sums",
        uid="eval/sums/0",
        question_id="q",
        response=response,
        num_tokens=3,
        finish_reason="stop",
    )


def test_a_key_changes_with_everything_that_a_response_depends_on():
    others = [
        key("other"),
        key(answered=ANSWERED | {"engine": "vllm"}),
        key(answered=ANSWERED | {"dtype": "bfloat16"}),
        key(answered=ANSWERED | {"versions": {"sympy": "1.13.3"}}),
        key(sampling=Sampling(temperature=0.5)),
        key(sampling=Sampling(seed=1)),
        key(asked=prompt(uid="eval/sums/1")),
        key(asked=prompt(messages=({"role": "user", "content": "Compute 1 + 1."},))),
        key(asked=prompt(limits=MediaLimits(4, 10))),
        key(media=("b2",)),
        key(media=("a1", "b2")),
        key(media=()),
    ]
    assert len({key(), *others}) == 13
    assert key(asked=prompt(answer="3")) == key()  # what is right does not change what is said


def test_what_was_added_is_there_again(tmp_path):
    path = tmp_path / "eval" / "responses.jsonl"
    with SampleStore(path) as store:
        assert store.get("a") is None
        store.add(sample("a"))
        assert store.get("a") == sample("a")
        assert SampleStore(path).get("a") == sample("a")  # before the first one is closed
    with SampleStore(path) as store:
        store.add(sample("b", "three"))
    again = SampleStore(path)
    assert (again.get("a"), again.get("b")) == (sample("a"), sample("b", "three"))


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_line_that_was_cut_off_is_dropped_and_the_file_goes_on_behind_the_last_whole_one(tmp_path, cut):
    path = tmp_path / "responses.jsonl"
    with SampleStore(path) as store:
        store.add(sample("a"))
        store.add(sample("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with SampleStore(path) as store:
        assert store.get("a") is not None and store.get("b") is None
        store.add(sample("b"))
    assert path.read_bytes() == whole


DAMAGE = {
    "half a line": lambda line: line[: len(line) // 2] + b"\n",
    "zeros, as after a power cut": lambda line: b"\0" * 50 + b"\n",
    "no UTF-8": lambda line: line.replace(b"stop", b"\xff\xfe"),
    "another object": lambda line: b'{"key": "k"}\n',
    "no object": lambda line: b"[1, 2]\n",
    "a text where a number belongs": lambda line: line.replace(b'"num_tokens": ', b'"num_tokens": "9", "x": '),
    "no text": lambda line: line.replace(b'"response": ', b'"response": 9, "x": '),
    "deeper than can be read": lambda line: b"[" * 100_000 + b"\n",
}


def test_lines_that_are_no_sample_are_passed_over_counted_and_asked_again(make_engine, grader, tmp_path, caplog):
    config = EvalConfig(
        suite="mini", mini_tasks=["arithmetic"], levels=[1], num_questions=2 * len(DAMAGE), temperature=0.0
    )

    def run():
        engine = make_engine()
        rows = evaluate(config, engine, grader, out_dir=tmp_path, model_name="scripted", identity="a")
        return rows, [prompt.uid for prompts, _ in engine.calls for prompt in prompts]

    rows, asked = run()
    path = tmp_path / "responses.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 * len(DAMAGE) == len(asked)
    broken = lines[: len(DAMAGE)]
    lost = [json.loads(line)["uid"] for line in broken]
    damaged = [damage(line) for damage, line in zip(DAMAGE.values(), broken, strict=True)]
    later = [line[:-2] + b', "seed": 0}\n' for line in lines[len(DAMAGE) :]]  # as a later version may write them
    path.write_bytes(b"".join([*damaged, b"\n", *later]))
    assert SampleStore(path).num_damaged == len(DAMAGE)
    caplog.clear()
    again, asked = run()
    assert again == rows and sorted(asked) == sorted(lost)
    warned = f"{path}: damaged lines are passed over ({len(DAMAGE)}, the first is line 1)"
    assert any(record.getMessage().startswith(warned) for record in caplog.records)


def test_progress_says_how_fast_and_how_long_yet(caplog):
    caplog.set_level("INFO")
    now = [0.0]
    progress = Progress(100, clock=lambda: now[0])
    progress.skip(40)
    for _ in range(20):
        now[0] += 2.0
        progress.add(num_tokens=50)
    # At 30 seconds: 15 new rows, 0.5 a second, 25 tokens a second, 45 rows left: 90 seconds. Then nothing for 30 more.
    assert [record.getMessage() for record in caplog.records] == [
        "evaluation: 55 of 100 rows, 0.5 rows/s, 25 tokens/s, 1.5 min left"
    ]
    progress.report()
    assert caplog.records[-1].getMessage() == "evaluation: 60 of 100 rows, 0.5 rows/s, 25 tokens/s, 1.3 min left"
