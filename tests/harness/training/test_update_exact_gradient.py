"""The update's gradient against a naive fp64 computation: every loss, architecture, tile, micro-batch and padding side.

Naive: one sequence at a time, all logits at once, autograd through everything, the loss divided by the sum of norms.
"""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from harness.config.schema import UpdateConfig
from harness.models.batching import pad
from harness.models.forward import BANNED_LOGIT, LanguageModel
from harness.teacher.base import hidden_of
from harness.teacher.local import LocalScorer
from harness.training.update import Updater
from harness.types import TeacherDistribution, TrainingSample
from methods import registry

NUM_TOKENS, TEMPERATURE = 90, 0.7
SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.15,
}  # fmt: skip
MODELS = {
    "tied": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "untied": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "softcap": (Gemma2ForCausalLM, Gemma2Config(**SHAPE, final_logit_softcapping=2.0, head_dim=16)),
    "scaled_up": (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=2.5)),
    "scaled_down": (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=3.0)),
}
METHODS = {
    "policy": {"class": "grpo"},
    "importance": {"class": "grpo", "importance_cap": 1.5},
    "jsd": {"class": "on_policy_kd"},
    "forward_kl": {"class": "on_policy_kd", "jsd_beta": 0.0},
    "reverse_kl": {"class": "on_policy_kd", "jsd_beta": 1.0},
    "sft": {"class": "sft"},
}
ROW_MIB = 16 * NUM_TOKENS / 2**20
"""Of `logit_memory_mb`, for one token."""
CUTS = {
    "whole": {},
    "token_tiles": {"logit_memory_mb": ROW_MIB},
    "odd_tiles": {"logit_memory_mb": 5.5 * ROW_MIB},
    "one_sequence": {"micro_batch_tokens": 1},
    "some_sequences": {"micro_batch_tokens": 50, "logit_memory_mb": 3 * ROW_MIB},
    "not_shared": {"share_prompts": False},
}


def model(name: str, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    kind, config = MODELS[name]
    return LanguageModel(kind(copy.deepcopy(config)).eval(), [0, 7], num_tokens=NUM_TOKENS)


def samples(num_groups: int = 2, group_size: int = 3) -> list[TrainingSample]:
    """Groups on prompts of 9 and 14 tokens; completions of 2 to 12 tokens, some with an untrained prefix."""
    rng = torch.Generator().manual_seed(3)
    made = []
    for group in range(num_groups):
        prompt = torch.randint(10, NUM_TOKENS, (9 + 5 * group,), generator=rng).tolist()
        for i in range(group_size):
            length = 2 + int(torch.randint(11, (1,), generator=rng))
            completion = torch.randint(10, NUM_TOKENS, (length,), generator=rng).tolist()
            mask = [0] * len(prompt) + [0] * (group == 1) + [1] * (length - (group == 1))
            noise = torch.randn(2, len(mask), generator=rng) * 0.3
            made.append(
                TrainingSample(
                    uid=f"q{group}/plain",
                    token_ids=[*prompt, *completion],
                    loss_mask=mask,
                    advantages=[(1.0 - i) * m for m in mask],
                    old_logprobs=(-4.5 + noise[0]).tolist(),
                    rollout_logprobs=(-4.5 + noise[1]).tolist(),
                    weights=[(1.0 + 0.1 * i) * m for m in mask],
                )
            )
    return made


def naive_gradient(student: LanguageModel, teacher: LanguageModel, method, given) -> torch.Tensor:
    wide = LanguageModel(copy.deepcopy(student.module).double(), student.banned_ids, num_tokens=NUM_TOKENS)
    wide_teacher = LanguageModel(copy.deepcopy(teacher.module).double(), teacher.banned_ids, num_tokens=NUM_TOKENS)
    denominator = sum(sample.denominator for sample in given)
    for sample in given:
        batch = pad([sample], torch.device("cpu"))
        temperature = 1.0 if method.needs_teacher == "distribution" else TEMPERATURE  # a JSD is at 1, whatever samples
        logits_NV = naive_logits(wide, batch) / temperature
        scores = TeacherDistribution(logits_NV=naive_logits(wide_teacher, batch).detach())
        tokens = batch.tokens
        for name in ("advantages_N", "old_logprobs_N", "rollout_logprobs_N"):
            setattr(tokens, name, getattr(tokens, name).double())
        loss_N = method.loss(logits_NV, tokens, scores if method.needs_teacher == "distribution" else None).loss_N
        ((loss_N * batch.weights_N.double()).sum() / denominator).backward()
    return flat(wide)


def naive_logits(wide: LanguageModel, batch) -> torch.Tensor:
    hidden_NH = wide.hidden(batch.ids_BT, batch.mask_BT)[batch.rows_N, batch.columns_N]
    config, head = wide.module.config, wide.module.get_output_embeddings()
    logits_NV = F.linear(hidden_NH, head.weight[:NUM_TOKENS])
    logits_NV = logits_NV * getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NV = torch.tanh(logits_NV / cap) * cap
    banned = torch.zeros(NUM_TOKENS, dtype=torch.bool)
    banned[wide.banned_ids] = True
    return logits_NV.masked_fill(banned, BANNED_LOGIT)


def flat(student: LanguageModel) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in student.module.parameters()])


def updater(student, teacher, method, **options) -> Updater:
    reads = method.needs_teacher == "distribution"
    scorer = LocalScorer(teacher, method.logit_temperature(TEMPERATURE)) if reads else None
    config = UpdateConfig(**({"max_grad_norm": 1e9} | options))
    return Updater(student=student, teacher=scorer, method=method, config=config, temperature=TEMPERATURE)


def gradient(student, teacher, method, given, **options) -> torch.Tensor:
    upd, taken = updater(student, teacher, method, **options), []
    upd.optimizer.register_step_pre_hook(lambda *_: taken.append(flat(student)))
    upd.update(given)
    return taken[0]


def assert_close(found: torch.Tensor, naive: torch.Tensor) -> None:
    assert float(naive.norm()) > 1e-3
    assert float((found - naive).norm() / naive.norm()) < 1e-5


@pytest.mark.parametrize(
    ("name", "cut"),
    [  # in the fast suite every loss has the hardest cut, and one loss has every cut
        pytest.param(name, cut, marks=[] if name == "policy" or cut == "some_sequences" else [pytest.mark.slow])
        for name in METHODS
        for cut in CUTS
    ],
)
def test_every_loss_and_cut(name, cut):
    method = registry.build({"name": name, **METHODS[name]})
    student, teacher = model("tied"), model("untied", 1)
    naive = naive_gradient(student, teacher, method, samples())
    assert_close(gradient(student, teacher, method, samples(), **CUTS[cut]), naive)


@pytest.mark.parametrize("name", [pytest.param("policy", marks=pytest.mark.slow), "jsd"])
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_head(kind, name):
    method = registry.build({"name": name, **METHODS[name]})
    student, teacher = model(kind), model(kind, 1)
    naive = naive_gradient(student, teacher, method, samples())
    assert_close(gradient(student, teacher, method, samples(), logit_memory_mb=4 * ROW_MIB), naive)


def test_a_prompt_is_read_once_for_its_group():
    """6 sequences: prompts of 9 and 14 tokens. All but the last token of a prompt, and of the second also the one that
    starts the completion, are read twice less."""
    method = registry.build({"name": "grpo", "class": "grpo"})
    row = {}
    for share in (True, False):
        student = model("tied")
        assert student.can_share_prompts
        row[share] = updater(student, student, method, share_prompts=share).update(samples())
    total = sum(len(sample.token_ids) for sample in samples())
    assert row[False]["num_read"] == total and row[True]["num_read"] == total - 2 * (8 + 14)
    assert row[True]["loss"] == pytest.approx(row[False]["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ["policy", "jsd"])
def test_what_all_prompts_begin_with_is_read_once(name):
    """By student and teacher: 6 prompts of their own behind 20 common tokens."""
    method = registry.build({"name": name, **METHODS[name]})
    common = torch.randint(10, NUM_TOKENS, (20,), generator=torch.Generator().manual_seed(5)).tolist()
    given = [sample for i in range(6) for sample in samples(group_size=1)[i % 2 : i % 2 + 1]]
    for i, sample in enumerate(given):
        sample.uid = str(i)
        sample.token_ids = [*common, 20 + i, *sample.token_ids]
        for field in ("loss_mask", "advantages", "old_logprobs", "rollout_logprobs", "weights"):
            setattr(sample, field, [0] * 21 + getattr(sample, field))
    student, teacher = model("tied"), model("untied", 1)
    scorer = LocalScorer(teacher, TEMPERATURE)
    (scores,) = scorer.score([given])
    with torch.no_grad():
        plain_NH = torch.cat([hidden_of(teacher, pad([sample], torch.device("cpu"))) for sample in given])
    torch.testing.assert_close(scores.hidden_NH, plain_NH, rtol=1e-4, atol=1e-5)
    naive = naive_gradient(student, teacher, method, given)
    assert_close(gradient(student, teacher, method, given), naive)
    total = sum(len(sample.token_ids) for sample in given)
    assert updater(model("tied"), teacher, method).update(given)["num_read"] == total - 5 * 20


def test_layers_with_a_window_or_a_state_do_not_share(make_student):
    assert not model("softcap").can_share_prompts  # Gemma 2 has sliding windows
    hybrid = Qwen3_5TextConfig(
        **SHAPE, layer_types=["linear_attention", "full_attention"], head_dim=16, linear_num_value_heads=2,
        linear_num_key_heads=1, linear_key_head_dim=64, linear_value_head_dim=64,
    )  # fmt: skip
    assert not LanguageModel(Qwen3_5ForCausalLM(hybrid).eval()).can_share_prompts  # Qwen3.5: a recurrent state
    assert make_student().can_share_prompts  # the tiny family: all of its layers attend to everything


def test_old_logprobs_are_the_same_with_shared_prompts():
    method = registry.build({"name": "grpo", "class": "grpo"})
    found = []
    for share in (True, False):
        given = samples()
        for sample in given:
            sample.old_logprobs = None
        student = model("untied")
        upd = updater(student, student, method, share_prompts=share, old_logprobs="recompute", logit_memory_mb=ROW_MIB)
        upd.fill_old_logprobs(given)
        found.append([sample.old_logprobs for sample in given])
    for a, b in zip(*found, strict=True):
        assert a == pytest.approx(b, abs=2e-5)
