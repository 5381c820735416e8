from dataclasses import replace

import pytest

from harness.evaluation.store import Sample, SampleStore, sample_key
from harness.evaluation.student import _Progress
from harness.rollout.base import Sampling
from harness.types import MediaLimits, Prompt, Question


class Picture:
    """A reference that is nothing but its name."""

    def __init__(self, name):
        self.name = name


def prompt(**changes):
    question = Question(id="q", text="Compute 1+1.", answer="2", images=(Picture("a.png"),), limits=MediaLimits(4, 9))
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
    first = sample_key("model", Sampling(), prompt())
    others = [
        sample_key("other", Sampling(), prompt()),
        sample_key("model", Sampling(temperature=0.5), prompt()),
        sample_key("model", Sampling(seed=1), prompt()),
        sample_key("model", Sampling(), prompt(uid="eval/sums/1")),
        sample_key("model", Sampling(), prompt(messages=({"role": "user", "content": "Compute 1 + 1."},))),
        sample_key("model", Sampling(), prompt(images=(Picture("b.png"),))),
        sample_key("model", Sampling(), prompt(video=Picture("a.mp4"))),
        sample_key("model", Sampling(), prompt(limits=MediaLimits(4, 10))),
    ]
    assert len({first, *others}) == 9
    assert sample_key("model", Sampling(), prompt(answer="3")) == first  # what is right does not change what is said


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


def test_progress_says_how_fast_and_how_long_yet(caplog):
    caplog.set_level("INFO")
    now = [0.0]
    progress = _Progress(100, clock=lambda: now[0])
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
