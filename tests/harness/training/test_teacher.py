"""Three scorers behind one contract: exact here, exact in a process, top-k and a tail from a server."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import harness.training.scorer as scorer_module
from harness.config.schema import ModelConfig, UpdateConfig
from harness.errors import RunInterrupted, UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.training.batching import pad
from harness.training.models import open_scorer
from harness.training.scorer import ProcessScorer
from harness.training.teacher import LocalScorer, ServerScorer, TeacherScorer, check_same
from harness.training.update import Updater
from harness.types import TrainingSample
from methods import registry
from methods.base import jsd_loss, jsd_topk_loss

TEACHER = ModelConfig(name="teacher", path="tiny:teacher", dtype="float32")
CPU = torch.device("cpu")
TEMPERATURE = 0.7
pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def teacher(make_student: Any) -> LanguageModel:
    return make_student("teacher")


@pytest.fixture
def micro_batches(make_samples: Any) -> list[list[TrainingSample]]:
    """Three micro-batches; in each, one sample has another prompt for the teacher."""
    samples = make_samples(8)
    for sample in samples[::3]:
        sample.teacher_prompt_ids = [40, 41, *sample.token_ids[: sample.num_prompt]]
    return [samples[:3], samples[3:6], samples[6:]]


def pid_of(scorer: ProcessScorer) -> int:
    assert scorer.pid is not None  # signals to 0 would reach this process's own group
    return scorer.pid


def open_process(chat: Any, **changes: Any) -> ProcessScorer:
    options = {"temperature": TEMPERATURE, "timeout": 60.0} | changes
    scorer = open_scorer(TEACHER, chat, "process", **options)
    assert isinstance(scorer, ProcessScorer)
    return scorer


@pytest.fixture(scope="module")
def process(forked: None) -> Iterator[ProcessScorer]:
    """Starting one takes seconds: tests that leave it alive share it."""
    scorer = open_process(Chat(load_tokenizer(TEACHER), TEACHER))
    yield scorer
    scorer.close()


def update(student: LanguageModel, scorer: TeacherScorer, samples: list[TrainingSample], temperature: float) -> Any:
    """(loss and gradient norm, the weights after it) of one step of on-policy distillation."""
    method = registry.build({"name": "on_policy_kd", "class": "on_policy_kd"})
    assert method is not None
    config = UpdateConfig(learning_rate=1e-3, micro_batch_tokens=100, logit_memory_mb=0.01)
    row = Updater(student=student, teacher=scorer, method=method, config=config, temperature=temperature).update(
        samples
    )
    return row, [p.detach().clone() for p in student.module.parameters()]


# beside the student


@pytest.mark.clause("C075", "C077")
def test_a_local_teacher_scores_each_position_as_a_plain_forward_pass(teacher: Any, micro_batches: Any) -> None:
    scorer = LocalScorer(teacher, TEMPERATURE)
    for samples, scores in zip(micro_batches, scorer.score(micro_batches), strict=True):
        check_same(scores, pad(samples, CPU))
        rows = []
        for sample in samples:
            prompt = sample.teacher_prompt_ids or sample.token_ids[: sample.num_prompt]
            ids = torch.tensor([[*prompt, *sample.token_ids[sample.num_prompt :]]])
            with torch.no_grad():
                rows.append(teacher.logits(teacher.hidden(ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]))
        expected_NV = torch.cat(rows) / TEMPERATURE
        torch.testing.assert_close(scores.between(2, 7).logits_NV, expected_NV[2:7], rtol=1e-4, atol=1e-4)


# in a process of its own


def test_the_process_gives_the_local_distributions_bit_for_bit(
    process: ProcessScorer, teacher: Any, micro_batches: Any
) -> None:
    local = LocalScorer(teacher, TEMPERATURE)
    for samples, ours, theirs in zip(
        micro_batches, local.score(micro_batches), process.score(micro_batches), strict=True
    ):
        check_same(theirs, pad(samples, CPU))
        num_tokens = len(ours.ids_N)
        assert num_tokens == sum(sample.num_trained for sample in samples)
        assert torch.equal(ours.between(0, num_tokens).logits_NV, theirs.between(0, num_tokens).logits_NV)
    assert process.num_parameters == sum(p.numel() for p in teacher.module.parameters())


def test_an_update_is_the_same_with_either(process: Any, teacher: Any, make_student: Any, make_samples: Any) -> None:
    rows = [
        update(make_student("s"), scorer, make_samples(8), TEMPERATURE)
        for scorer in (LocalScorer(teacher, TEMPERATURE), process)
    ]
    assert rows[0][0] == rows[1][0] and rows[0][0]["loss"] > 0
    assert all(torch.equal(a, b) for a, b in zip(rows[0][1], rows[1][1], strict=True))


def test_a_changed_id_stops_the_update(
    process: Any, make_student: Any, make_samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One completion id on its way to the process: it echoes what it scored, and the trainer compares."""
    request = scorer_module._request

    def altered(*args: Any, **kwargs: Any) -> Any:
        made = request(*args, **kwargs)
        arrays = made.arrays
        arrays["ids_BT"][arrays["rows_N"][-1], arrays["columns_N"][-1] + 1] += 1
        return made

    monkeypatch.setattr(scorer_module, "_request", altered)
    with pytest.raises(RuntimeError, match="teacher and student were given different completions"):
        update(make_student("s"), process, make_samples(4), TEMPERATURE)


def test_the_next_micro_batch_is_under_way_while_one_is_trained_on(process: Any, micro_batches: Any) -> None:
    scores = process.score(micro_batches)
    next(scores)
    assert process._connection.poll(60.0)  # the second one's reply, which nobody has asked for yet
    assert [s.ids_N for s in scores] == [pad(samples, CPU).tokens.ids_N.tolist() for samples in micro_batches[1:]]


def test_an_iterator_may_be_dropped(process: Any, micro_batches: Any) -> None:
    """Its outstanding replies are not taken for those of the next one."""
    next(process.score(micro_batches))
    again = list(process.score(micro_batches[::-1]))
    assert [s.ids_N for s in again] == [pad(samples, CPU).tokens.ids_N.tolist() for samples in micro_batches[::-1]]


@pytest.mark.slow
def test_a_process_that_hangs_meets_its_deadline(chat: Any, micro_batches: Any) -> None:
    scorer = open_process(chat, timeout=0.5)
    os.kill(pid_of(scorer), signal.SIGSTOP)
    with pytest.raises(RunInterrupted, match=r"took more than 0\.5 s to score a micro-batch: raise server\.timeout"):
        next(scorer.score(micro_batches))
    pid = pid_of(scorer)
    scorer.close()
    assert not psutil.pid_exists(pid)


def test_a_process_that_dies_is_one_line(chat: Any, micro_batches: Any) -> None:
    process = open_process(chat)
    scores = process.score(micro_batches)
    next(scores)
    os.kill(pid_of(process), signal.SIGKILL)
    with pytest.raises(RunInterrupted, match=r"^the teacher's process has died \(exit code -9; [^\n]*\Z"):
        list(scores)
    with pytest.raises(RunInterrupted, match="has died"):
        next(process.score(micro_batches))
    process.close()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_the_users_error(chat: Any) -> None:
    missing = ModelConfig(name="t", path="/nowhere/model", dtype="float32")
    with pytest.raises(UserError, match="no model folder /nowhere/model"):
        open_scorer(missing, chat, "process", temperature=1.0)


PARENT = """
import os, sys
from harness.config.schema import ModelConfig
from harness.training.scorer import ProcessScorer
if __name__ == "__main__":
    config = ModelConfig(name="teacher", path="tiny:teacher", dtype="float32")
    scorer = ProcessScorer(config, num_tokens=100, banned_ids=[], device="cpu", head_device="cpu", temperature=1.0,
                           timeout=60.0)
    print(scorer.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()  # kill -9: nothing of the parent's runs any more
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=30)
    assert gone


# behind a server


class TinyServer:
    """Endpoints whose server is a tiny model: answers in the shape of vLLM's `/v1/completions`, last request first.

    Like a server, it bans nothing and gives the rows behind the tokenizer's vocabulary, too.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = LanguageModel(model.module)
        self.bodies: list[dict[str, Any]] = []

    def map(self, path: str, bodies: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        assert path == "completions"
        self.bodies = list(bodies)
        for position in reversed(range(len(self.bodies))):
            yield position, json.loads(json.dumps(self._answer(self.bodies[position])))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return next(self.map(path, [body]))[1]

    @torch.no_grad()
    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        ids_BT = torch.tensor([ids])
        logprobs_TV = torch.log_softmax(self._model.logits(self._model.hidden(ids_BT, torch.ones_like(ids_BT))[0]), -1)
        entries: list[Any] = [None]
        for row_V, actual in zip(logprobs_TV[:-1], ids[1:], strict=True):
            listed = [actual, *(i for i in row_V.topk(body["prompt_logprobs"]).indices.tolist() if i != actual)]
            entries.append({str(i): {"logprob": row_V[i].item(), "rank": 1, "decoded_token": "?"} for i in listed})
        assert body["max_tokens"] == 1 and body["return_token_ids"]
        return {"choices": [{"index": 0, "text": "?", "prompt_logprobs": entries, "prompt_token_ids": ids}]}


class Altered(TinyServer):
    """A server whose every choice goes through `change` first."""

    def __init__(self, model: LanguageModel, change: Any) -> None:
        super().__init__(model)
        self._change = change

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = super()._answer(body)
        self._change(answer["choices"][0])
        return answer


def served(server: TinyServer, chat: Any, top_k: int = 8) -> TeacherScorer:
    return open_scorer(TEACHER, chat, "server", temperature=1.0, endpoints=server, top_k=top_k)


def test_a_server_lists_what_the_model_says(teacher: Any, chat: Any, micro_batches: Any) -> None:
    server, unbanned = TinyServer(teacher), LocalScorer(LanguageModel(teacher.module), 1.0)
    for samples, ours, theirs in zip(
        micro_batches, unbanned.score(micro_batches), served(server, chat).score(micro_batches), strict=True
    ):
        check_same(theirs, pad(samples, CPU))
        num_tokens = len(ours.ids_N)
        listed, logprobs_NV = (
            theirs.between(0, num_tokens),
            torch.log_softmax(ours.between(0, num_tokens).logits_NV, -1),
        )
        assert listed.is_partial and listed.topk_ids_NK.shape == listed.topk_logprobs_NK.shape == (num_tokens, 9)
        assert listed.topk_logprobs_NK.dtype == torch.float32
        given_NK = listed.topk_ids_NK >= 0
        expected_NK = logprobs_NV.gather(-1, listed.topk_ids_NK.clamp(min=0))
        torch.testing.assert_close(listed.topk_logprobs_NK[given_NK], expected_NK[given_NK], rtol=1e-4, atol=1e-4)
        for n in range(num_tokens):
            possible = [i for i in logprobs_NV[n].topk(8).indices.tolist() if i not in chat.banned_ids]
            wanted = {i for i in possible if i < chat.num_tokens} | {ours.ids_N[n]}
            assert set(listed.topk_ids_NK[n][given_NK[n]].tolist()) == wanted
    assert [isinstance(body["prompt"][0], int) for body in server.bodies] == [True] * 8


def test_banned_ids_and_padding_rows_count_as_tail(teacher: Any, chat: Any, make_samples: Any) -> None:
    """Everything is asked for: the list has every possible token and no other, each with the server's mass."""
    rows = LanguageModel(teacher.module).num_tokens
    (scores,) = served(TinyServer(teacher), chat, top_k=rows).score([make_samples(2)])
    listed = scores.between(0, 1)
    ids = [i for i in listed.topk_ids_NK[0].tolist() if i >= 0]
    assert sorted(ids) == [i for i in range(chat.num_tokens) if i not in chat.banned_ids]
    assert 0 < len(ids) < rows
    mass = float(listed.topk_logprobs_NK[0][listed.topk_ids_NK[0] >= 0].double().exp().sum())
    assert mass < 1 + 1e-6
    few = ServerScorer(TinyServer(teacher), top_k=rows, temperature=1.0, num_tokens=100)
    (scores,) = few.score([make_samples(2)])
    assert max(scores.between(0, 1).topk_ids_NK[0].tolist()) == 99  # rows from num_tokens on are no tokens


def test_the_coarse_loss_of_a_server_grows_to_the_exact_one(
    teacher: Any, chat: Any, make_student: Any, make_samples: Any
) -> None:
    student, samples = make_student("s"), make_samples(4)
    (exact,) = LocalScorer(LanguageModel(teacher.module), 1.0).score([samples])
    num_tokens, batch = len(exact.ids_N), pad(samples, CPU)
    # neither side bans anything here, so that the two distributions are over the same ids
    bare = LanguageModel(student.module)
    with torch.no_grad():
        hidden_NH = bare.hidden(batch.ids_BT, batch.mask_BT)[batch.rows_N, batch.columns_N]
        logits_NV = bare.logits(hidden_NH)
    losses = []
    for top_k in (1, 4, 32, bare.num_tokens):
        scorer = ServerScorer(TinyServer(teacher), top_k=top_k, temperature=1.0, num_tokens=bare.num_tokens)
        (scores,) = scorer.score([samples])
        listed = scores.between(0, num_tokens)
        losses.append(jsd_topk_loss(logits_NV, listed.topk_ids_NK, listed.topk_logprobs_NK, 0.5))
    assert all((coarse <= finer + 1e-5).all() for coarse, finer in itertools.pairwise(losses))
    assert losses[0].mean() < losses[-1].mean()
    torch.testing.assert_close(losses[-1], jsd_loss(logits_NV, exact.between(0, num_tokens).logits_NV, 0.5))


def test_a_student_is_trained_by_a_server(teacher: Any, chat: Any, make_student: Any, make_samples: Any) -> None:
    row, _ = update(make_student("s"), served(TinyServer(teacher), chat, 32), make_samples(8), 1.0)
    exact, _ = update(make_student("s"), LocalScorer(teacher, 1.0), make_samples(8), 1.0)
    assert row["loss"] > 0 and row["loss"] == pytest.approx(exact["loss"], rel=0.1)


def test_what_a_server_cannot_do_is_refused(teacher: Any, chat: Any, make_samples: Any) -> None:
    with pytest.raises(UserError, match=r"rollout\.temperature=0\.7: a served teacher gives its distribution at"):
        open_scorer(TEACHER, chat, "server", temperature=0.7, endpoints=TinyServer(teacher))


def every_entry(choice: dict[str, Any], change: Any) -> None:
    """Changes what is listed at each position of a prompt."""
    for entry in filter(None, choice["prompt_logprobs"]):
        change(entry)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c: c.update(prompt_logprobs=None),
            UserError,
            "returns no prompt_logprobs with token ids: serve it with",
        ),
        (lambda c: c.pop("prompt_token_ids"), UserError, "returns no prompt_logprobs with token ids: serve it with"),
        (lambda c: c.update(prompt_token_ids=[7, *c["prompt_token_ids"][1:]]), UserError, "scored other token ids"),
        (lambda c: c.update(prompt_logprobs=c["prompt_logprobs"][:-1]), UserError, "scored other token ids"),
        (lambda c: c["prompt_logprobs"].insert(0, c["prompt_logprobs"].pop()), UserError, "gives no log-probability"),
        (lambda c: c.update(prompt_logprobs=[None] * len(c["prompt_logprobs"])), UserError, "does not list at most 2"),
        (
            lambda c: every_entry(c, lambda e: e.update({"7": {"logprob": -9.0}, "8": {"logprob": -9.0}})),
            UserError,
            "does not list at most 2 tokens",
        ),
        (lambda c: every_entry(c, lambda e: e.update({next(iter(e)): {"logprob": 0.5}})), UserError, "above 0"),
        (lambda c: every_entry(c, lambda e: e.update({next(iter(e)): {"logprob": math.nan}})), UserError, "no numbers"),
        (lambda c: every_entry(c, lambda e: e.update({next(iter(e)): {"logprob": "x"}})), UserError, "no numbers"),
        (lambda c: every_entry(c, lambda e: e.update({next(iter(e)): None})), UserError, "by what is no id"),
        (lambda c: every_entry(c, lambda e: e.update({"-1": e.pop(next(iter(e)))})), UserError, "by what is no id"),
        (lambda c: every_entry(c, lambda e: e.update({key: {"logprob": -0.1} for key in e})), UserError, "more than 1"),
        (lambda c: every_entry(c, lambda e: e.update({"0" + k: v for k, v in e.items()})), UserError, "at most 2"),
    ],
)
def test_answers_to_something_else_are_refused(
    teacher: Any, chat: Any, make_samples: Any, change: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        list(served(Altered(teacher, change), chat, top_k=1).score([make_samples(4)]))
