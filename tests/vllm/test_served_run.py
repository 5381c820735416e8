"""A whole run that starts `vllm serve` for its teacher, and the distribution that vLLM gives against the exact one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from harness.config.engines import ServerConfig
from harness.config.schema import ModelConfig
from harness.models.batching import pad
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer, resolve_path
from harness.serving.server import opened
from harness.teacher.base import check_same
from harness.teacher.local import LocalScorer
from harness.teacher.server import LEAST_LOGPROB
from harness.training.models import open_scorer
from harness.types import TrainingSample
from methods.base import jsd_loss, jsd_topk_loss

pytestmark = pytest.mark.vllm

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
CPU = torch.device("cpu")
TOP_K = 64


def test_off_policy_distillation_from_a_server_of_its_own(tmp_path):
    """It samples, scores and ends, and takes the keeper, the server and the server's engine with it."""
    command = [
        sys.executable, "-m", "harness.app", "train", "method=off_policy_kd", "student=tiny_xs",
        "teacher=tiny_teacher", "teacher.serve=true", "rollout.vllm.enforce_eager=true", "rollout.vllm.cache_gib=0.25",
        "rollout.vllm.max_model_len=2048", "steps=2", "eval=none", f"server.top_k={TOP_K}", f"outputs={tmp_path}",
    ]  # fmt: skip
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        trainer = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, **ENVIRONMENT})
        started = processes_below(trainer)
    assert trainer.returncode == 0, (tmp_path / "err").read_text()[-2000:]
    assert len(started) >= 3
    assert not [process for process in started if process.is_running()]
    folder = Path((tmp_path / "out").read_text().strip().splitlines()[-1])
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["tokens/teacher_generated"] > 0 and row["teacher/accuracy"] > 0.5
        assert row["train/num_updates"] > 0 and 0.0 < row["train/loss"] < 0.7  # nats; a JSD is at most ln 2
    (log,) = (folder.parents[2] / "logs").glob("*.teacher.server.log")
    assert "POST /v1/completions" in log.read_text()


def processes_below(trainer: subprocess.Popen[bytes]) -> set[psutil.Process]:
    """Waits for the trainer; every process that was seen below it. They are told apart by their starting times, too."""
    seen: set[psutil.Process] = set()
    deadline = time.monotonic() + 600.0
    while trainer.poll() is None:
        if time.monotonic() > deadline:
            trainer.kill()  # the keeper ends the rest
        with contextlib.suppress(psutil.NoSuchProcess):
            seen.update(psutil.Process(trainer.pid).children(recursive=True))
        time.sleep(0.2)
    return seen


def test_listed_logprobs_are_those_of_the_exact_distribution(tmp_path, monkeypatch):
    """The scores of 8 samples, of other lengths and partly with another prompt for the teacher, token by token."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    config = ModelConfig(name="teacher", path="tiny:teacher", serve=True, dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    module = load_model(config, "cpu")
    # What a reply cannot have stays in the exact distribution here: a server's list is of its own vocabulary.
    plain, bounded = LanguageModel(module), LanguageModel.for_chat(module, chat)
    micro_batches = [samples(chat)[:3], samples(chat)[3:]]
    arguments = ["--enforce-eager", "--max-model-len=512", f"--kv-cache-memory-bytes={64 * 2**20}", "--max-num-seqs=16",
                 "--no-enable-prefix-caching", "--no-enable-chunked-prefill"]  # fmt: skip
    server = ServerConfig(top_k=TOP_K, start_timeout=300.0, max_wait=60.0)
    log = tmp_path / "teacher.log"
    with opened(config, resolve_path(config), server, role="teacher", log=log, arguments=arguments) as endpoints:
        scorer = open_scorer(config, chat, "server", temperature=1.0, endpoints=endpoints, top_k=TOP_K)
        served = list(scorer.score(micro_batches))
    exact, limited = (list(LocalScorer(model, 1.0).score(micro_batches)) for model in (plain, bounded))
    for part, theirs, ours, possible in zip(micro_batches, served, exact, limited, strict=True):
        student = pad(part, CPU)
        check_same(theirs, student)
        num_tokens = len(theirs.ids_N)
        listed, full = theirs.between(0, num_tokens), ours.between(0, num_tokens)
        ids_NK, logprobs_NK = listed.topk_ids_NK, listed.topk_logprobs_NK
        is_listed_NK = (ids_NK >= 0) & (logprobs_NK > LEAST_LOGPROB)
        exact_NV = full.logits_NV.log_softmax(-1)
        difference_NK = (logprobs_NK - exact_NV.gather(1, ids_NK.clamp(min=0)))[is_listed_NK].abs()
        print(f"max |server - local| of {difference_NK.numel()} log-probabilities: {difference_NK.max():.2g}")
        assert difference_NK.max() < 1e-3
        assert (is_listed_NK.sum(-1) > TOP_K // 2).all()
        assert (ids_NK == torch.tensor(theirs.ids_N)[:, None]).any(-1).all()  # the trained token is listed
        logits_NV = torch.randn(full.logits_NV.shape, generator=torch.Generator().manual_seed(0))
        listed_N = jsd_topk_loss(logits_NV, ids_NK, logprobs_NK, 0.5)
        full_N = jsd_loss(logits_NV, possible.between(0, num_tokens).logits_NV, 0.5)
        assert (listed_N <= full_N + 1e-2).all()


def samples(chat: Chat) -> list[TrainingSample]:
    """Arithmetic in the chat's own words: what the teacher is sure of, and what it is not."""
    made = []
    for i in range(8):
        messages = [{"role": "user", "content": f"Compute {7 * i + 3}+{i * i}."}]
        text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = chat.encode_text(text)
        reply = chat.encode_text(f"The sum is \\boxed{{{7 * i + 3 + i * i}}}." * (1 + i % 3))
        sample = TrainingSample(
            uid=str(i), token_ids=[*prompt, *reply, chat.end_id], loss_mask=[0] * len(prompt) + [1] * (len(reply) + 1)
        )
        if i % 3 == 0:
            sample.teacher_prompt_ids = [*prompt, *prompt]
        made.append(sample)
    return made
