"""A teacher at endpoints: its likeliest tokens, and a tail."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.batching import pad
from harness.models.forward import LanguageModel
from harness.teacher.base import TeacherScorer, check_same
from harness.teacher.local import LocalScorer
from harness.teacher.server import ServerScorer
from harness.training.models import open_scorer
from methods.base import jsd_loss, jsd_topk_loss
from tests.support.samples import distilled

TEACHER = ModelConfig(name="teacher", path="tiny:teacher", dtype="float32")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("forked")


class TinyServer:
    """Endpoints whose server is a tiny model: answers in the shape of vLLM's `/v1/completions`, last request first.

    Like a server, it bans nothing and gives the rows after the tokenizer's vocabulary, too.
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
    row, _ = distilled(make_student("s"), served(TinyServer(teacher), chat, 32), make_samples(8), 1.0)
    exact, _ = distilled(make_student("s"), LocalScorer(teacher, 1.0), make_samples(8), 1.0)
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
