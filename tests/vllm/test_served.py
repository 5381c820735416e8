"""`vllm serve` of the tiny teacher, started by the harness, against the transformers engine on the same weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from harness.config.engines import ServerConfig
from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer, resolve_path
from harness.rollout.base import Sampling
from harness.rollout.server_engine import ServerEngine
from harness.rollout.transformers_engine import TransformersEngine
from harness.serving.keeper import _descendants
from harness.serving.server import opened
from harness.types import Prompt, Question

pytestmark = pytest.mark.vllm

MODEL = ModelConfig(name="teacher", path="tiny:teacher", serve=True, dtype="float32")
ARGUMENTS = (
    "--enforce-eager",
    "--max-model-len=512",
    f"--kv-cache-memory-bytes={64 * 2**20}",
    "--max-num-seqs=16",
    "--no-enable-prefix-caching",  # vLLM takes the tiny family for a hybrid, whose prefixes it cannot cache
    "--no-enable-chunked-prefill",
)
TEXTS = [f"Compute {a}+{b}." for a in (3, 17, 45) for b in (8, 26)] + ["Why is 817*293 what it is?"]


def asked(text: str, prefix_ids: tuple[int, ...] = ()) -> Prompt:
    question = Question(id=text, text=text, answer="1")
    messages = ({"role": "user", "content": text},)
    return Prompt(uid=f"{text}/{len(prefix_ids)}", question=question, messages=messages, prefix_ids=prefix_ids)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(load_tokenizer(MODEL), MODEL)


@pytest.fixture(scope="module")
def model(chat) -> LanguageModel:
    return LanguageModel.for_chat(load_model(MODEL, "cpu"), chat)


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1"), ("OMP_NUM_THREADS", "1")):
            patch.setenv(name, value)
        log = tmp_path_factory.mktemp("logs") / "teacher.log"
        config = ServerConfig(start_timeout=300.0, max_wait=60.0, concurrency=4)
        with opened(MODEL, resolve_path(MODEL), config, role="teacher", log=log, arguments=ARGUMENTS) as endpoints:
            assert endpoints.check() == 512
            yield endpoints
    assert not [pid for pid in _descendants(os.getpid()) if "vllm" in command_of(pid).lower()]


@pytest.fixture
def served(endpoints, chat, model) -> ServerEngine:
    rows = model.module.get_output_embeddings().weight.shape[0]
    return ServerEngine(endpoints, chat, "teacher", context_window=512, vocab_size=rows)


def test_greedy_is_that_of_the_transformers_engine(served, chat, model):
    local = TransformersEngine(model, chat, "teacher", 16)
    prompts = [asked(text, prefix) for text in TEXTS for prefix in ((), tuple(chat.encode_text("Let us")))]
    sampling = Sampling(num_rollouts=2, temperature=0.0, max_new_tokens=32)
    groups = {group.uid: group.rollouts for group in served.generate(prompts, sampling)}
    assert len(groups) == len(prompts)
    for group in local.generate(prompts, sampling):
        for ours, theirs in zip(groups[group.uid], group.rollouts, strict=True):
            assert ours.completion_ids == theirs.completion_ids
            assert (ours.finish_reason, ours.num_prefix) == (theirs.finish_reason, theirs.num_prefix)
            assert ours.rollout_logprobs == pytest.approx(theirs.rollout_logprobs, abs=1e-3)


def test_logprobs_are_those_of_logits_over_temperature_and_draws_are_repeatable(served, model):
    import torch

    sampling = Sampling(num_rollouts=4, seed=3, temperature=0.7, max_new_tokens=24)
    prompts = [asked(TEXTS[-1])]
    (group,), (again,) = (list(served.generate(prompts, sampling)) for _ in range(2))
    assert [r.completion_ids for r in group.rollouts] == [r.completion_ids for r in again.rollouts]
    assert len({tuple(r.completion_ids) for r in group.rollouts}) > 1
    for rollout in group.rollouts:
        ids_1T = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
        with torch.no_grad():
            hidden_1TH = model.hidden(ids_1T, torch.ones_like(ids_1T))
            logits_NV = model.logits(hidden_1TH[0, len(rollout.prompt_ids) - 1 : -1]) / 0.7
        ids_N = ids_1T[0, len(rollout.prompt_ids) :]
        expected_N = logits_NV.float().log_softmax(-1).gather(1, ids_N[:, None])[:, 0]
        assert rollout.rollout_logprobs == pytest.approx(expected_N.tolist(), abs=1e-3)


def test_a_server_that_is_killed_midway_is_started_again_and_all_arrives(endpoints):
    bodies = [{"prompt": [105 + i, 120, 130], "max_tokens": 64, "ignore_eos": True, "return_token_ids": True}
              for i in range(24)]  # fmt: skip
    before = processes()
    answers = {}
    for number, (position, answer) in enumerate(endpoints.map("completions", bodies)):
        assert position not in answers
        answers[position] = answer["choices"][0]
        if number == 3:
            os.kill(server(), signal.SIGKILL)
    assert sorted(answers) == list(range(24))
    assert all(answers[i]["prompt_token_ids"][0] == 105 + i for i in answers)
    assert not before & processes(), "something of the killed server is still there"


def processes() -> set[int]:
    """The keeper and all that is below it."""
    return {below for pid in _descendants(os.getpid()) if "harness.serving.keeper" in command_of(pid)
            for below in (pid, *_descendants(pid))}  # fmt: skip


def server() -> int:
    return next(
        pid
        for pid in processes()
        if "--served-model-name" in command_of(pid) and "serving.keeper" not in command_of(pid)
    )


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
