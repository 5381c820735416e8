from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.errors import UserError
from harness.models.forward import LanguageModel, gather_logprobs
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import RolloutGroup

A, B, C, END = 4, 5, 6, 2


def generate(model, chat, prompts, sampling, *, max_sequences=64, sampler="student") -> list[RolloutGroup]:
    engine = TransformersEngine(model, chat, sampler=sampler, max_sequences=max_sequences)
    return list(engine.generate(prompts, sampling))


def completions(groups) -> list[list[int]]:
    return [rollout.completion_ids for group in groups for rollout in group.rollouts]


def forced_logprobs(model: LanguageModel, rollouts, temperature: float, *, padded: bool) -> list[list[float]]:
    """Log-probabilities of the completions in one teacher-forced pass: right padded together, or each alone."""
    if not padded:
        return [forced_logprobs(model, [rollout], temperature, padded=True)[0] for rollout in rollouts]
    sequences = [rollout.prompt_ids + rollout.completion_ids for rollout in rollouts]
    width = max(map(len, sequences))
    ids_BT = torch.tensor([ids + [0] * (width - len(ids)) for ids in sequences])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    with torch.no_grad():
        hidden_BTH = model.hidden(ids_BT, mask_BT)
        result = []
        for row, rollout in enumerate(rollouts):
            start, stop = len(rollout.prompt_ids), len(sequences[row])
            logits_NV = model.logits(hidden_BTH[row, start - 1 : stop - 1]) / temperature
            result.append(gather_logprobs(logits_NV, ids_BT[row, start:stop]).tolist())
    return result


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_a_teacher_forced_pass(model, chat, prompts, temperature, padded):
    sampling = Sampling(num_rollouts=3, temperature=temperature, max_new_tokens=14)
    rollouts = [r for g in generate(model, chat, prompts, sampling, max_sequences=7) for r in g.rollouts]
    expected = forced_logprobs(model, rollouts, temperature, padded=padded)
    assert len({len(r.completion_ids) for r in rollouts}) > 1 and len(rollouts) == 12
    for rollout, logprobs in zip(rollouts, expected, strict=True):
        assert rollout.rollout_logprobs == pytest.approx(logprobs, abs=2e-5)
        assert rollout.prompt_ids and rollout.num_prefix == 0


def test_greedy_is_that_of_transformers_with_logprobs_at_temperature_1(model, chat, prompts):
    sampling = Sampling(temperature=0.0, max_new_tokens=20)
    rollouts = [g.rollouts[0] for g in generate(model, chat, prompts, sampling)]
    rows = model.module.get_output_embeddings().weight.shape[0]
    for rollout in rollouts:
        ids_BT = torch.tensor([rollout.prompt_ids])
        out = model.module.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=0,
            suppress_tokens=[*model.banned_ids, *range(model.num_tokens, rows)],
        )
        assert rollout.completion_ids == out[0, len(rollout.prompt_ids) :].tolist()
    for rollout, logprobs in zip(rollouts, forced_logprobs(model, rollouts, 1.0, padded=True), strict=True):
        assert rollout.rollout_logprobs == pytest.approx(logprobs, abs=2e-5)


def test_given_ids_stop_texts_and_no_bans_are_those_of_transformers(model, chat, prompts):
    ids = tuple(chat.tokenizer("compute 34: ab", add_special_tokens=False)["input_ids"])
    asked = replace(prompts[0], ids=ids)
    greedy = {"temperature": 0.0, "max_new_tokens": 20, "unrestricted": True}
    (group,) = generate(model, chat, [asked], Sampling(**greedy))
    (rollout,) = group.rollouts
    assert rollout.prompt_ids == list(ids)
    out = model.module.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=0,
    )
    assert rollout.completion_ids == out[0, len(ids) :].tolist() and len(rollout.completion_ids) > 3
    stop = chat.decode_prompt(rollout.completion_ids[:3])[-1:]
    first = next(n for n in range(1, 4) if stop in chat.decode_prompt(rollout.completion_ids[:n]))
    (group,) = generate(model, chat, [asked], Sampling(**greedy, stop=("never so", stop)))
    assert group.rollouts[0].completion_ids == rollout.completion_ids[:first]
    assert group.rollouts[0].finish_reason == "stop"


def test_without_bans_every_row_of_the_head_counts(model):
    with torch.no_grad():
        hidden_NH = model.hidden(torch.tensor([[A, B]]), torch.ones(1, 2, dtype=torch.long))[0]
        logits_NV = model.unrestricted.logits(hidden_NH)
        expected_NV = model.module(torch.tensor([[A, B]])).logits[0]
    assert model.banned_ids and logits_NV.shape[1] > model.num_tokens
    assert torch.allclose(logits_NV, expected_NV.float(), atol=1e-5)


def test_penalised_greedy_is_that_of_transformers(llama, chat, prompts):
    sampling = Sampling(temperature=0.0, repetition_penalty=1.5, max_new_tokens=20)
    groups = generate(llama, chat, prompts, sampling)
    assert completions(groups) != completions(
        generate(llama, chat, prompts, Sampling(temperature=0, max_new_tokens=20))
    )
    for group in groups:
        rollout = group.rollouts[0]
        ids_BT = torch.tensor([rollout.prompt_ids])
        out = llama.module.generate(
            ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            max_new_tokens=20,
            repetition_penalty=1.5,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=0,
            suppress_tokens=[*llama.banned_ids, *range(llama.num_tokens, 48)],
        )
        assert rollout.completion_ids == out[0, len(rollout.prompt_ids) :].tolist()


def test_presence_penalty_by_a_plain_loop(llama, chat, prompts):
    sampling = Sampling(temperature=0.0, presence_penalty=3.0, max_new_tokens=12)
    for group in generate(llama, chat, prompts, sampling):
        rollout = group.rollouts[0]
        sampled: list[int] = []
        for token_id in rollout.completion_ids:
            ids_BT = torch.tensor([rollout.prompt_ids + sampled])
            with torch.no_grad():
                logits_V = llama.logits(llama.hidden(ids_BT, torch.ones_like(ids_BT))[:, -1])[0]
            logits_V[list(set(sampled))] -= 3.0
            assert token_id == int(logits_V.argmax())
            sampled.append(token_id)


@pytest.mark.parametrize(("max_sequences", "temperature"), [(2, 0.0), (5, 1.0)])
def test_batch_size_changes_nothing(model, chat, prompts, max_sequences, temperature):
    sampling = Sampling(num_rollouts=3, temperature=temperature, max_new_tokens=6)
    groups = generate(model, chat, prompts, sampling, max_sequences=max_sequences)
    assert [g.uid for g in groups] == [p.uid for p in prompts]
    assert all([r.index for r in g.rollouts] == [0, 1, 2] for g in groups)
    assert completions(groups) == completions(generate(model, chat, prompts, sampling, max_sequences=12))


def test_sampling_is_reproducible_and_differs_by_seed_step_sampler_uid_and_index(llama, chat, prompts, prompt_of):
    def one(prompt=prompts[0], sampler="student", **changes):
        return completions(
            generate(
                llama, chat, [prompt], Sampling(max_new_tokens=16, **({"num_rollouts": 2} | changes)), sampler=sampler
            )
        )

    base = one()
    assert one() == base and base[0] != base[1]
    assert one(num_rollouts=1) == base[:1]
    renamed = type(prompts[0])(uid="other", question=prompts[0].question, messages=prompts[0].messages)
    others = [one(seed=1), one(step=1), one(sampler="teacher"), one(prompt=renamed)]
    assert all(other[0] != base[0] for other in others)


def test_banned_and_padded_ids_are_never_sampled(model, chat, prompts):
    sampling = Sampling(num_rollouts=16, temperature=100.0, max_new_tokens=24)
    ids = {i for ids in completions(generate(model, chat, prompts, sampling)) for i in ids}
    assert chat.banned_ids == [0, 1, 3] and chat.num_tokens == 42
    assert ids == set(range(42)) - {0, 1, 3}


def test_completion_ends_with_the_stop_token(spelling, chat, prompts):
    group = generate(spelling, chat, prompts[:1], Sampling(num_rollouts=2))[0]
    rollout = group.rollouts[1]
    assert rollout.completion_ids == [A, B, C, END]
    assert (rollout.finish_reason, rollout.text, rollout.index) == ("stop", "abc", 1)
    assert chat.decode_prompt(rollout.prompt_ids) == "<start>u:2:3<end><start>a:"
    assert rollout.rollout_logprobs == pytest.approx([0.0] * 4, abs=1e-6) and rollout.sampler == "student"


def test_completion_is_cut_at_max_new_tokens(spelling, chat, prompts):
    rollout = generate(spelling, chat, prompts[:1], Sampling(max_new_tokens=3))[0].rollouts[0]
    assert (rollout.completion_ids, rollout.finish_reason, rollout.text) == ([A, B, C], "length", "abc")
    rollout = generate(spelling, chat, prompts[:1], Sampling(max_new_tokens=4))[0].rollouts[0]
    assert (rollout.completion_ids, rollout.finish_reason) == ([A, B, C, END], "stop")


def test_prefix_starts_the_completion_and_counts_against_its_length(spelling, chat, prompt_of):
    prompts = [prompt_of("q", (B,)), prompt_of("q"), prompt_of("q", (C, A))]
    groups = generate(spelling, chat, prompts, Sampling(max_new_tokens=3, num_rollouts=2))
    rollouts = [g.rollouts[0] for g in groups]
    assert [r.completion_ids for r in rollouts] == [[B, C, END], [A, B, C], [C, A, B]]
    assert [r.finish_reason for r in rollouts] == ["stop", "length", "length"]
    assert [r.num_prefix for r in rollouts] == [1, 0, 2]
    assert [r.text for r in rollouts] == ["bc", "abc", "cab"]
    assert rollouts[0].rollout_logprobs[0] == 0.0 and rollouts[2].rollout_logprobs[:2] == [0.0, 0.0]
    assert len({tuple(r.prompt_ids) for r in rollouts}) == 1


def test_prefixed_logprobs_are_those_of_a_teacher_forced_pass(model, chat, prompt_of):
    prompts = [prompt_of("q", (B, A, 20)), prompt_of("longer")]
    rollouts = [
        r for g in generate(model, chat, prompts, Sampling(num_rollouts=2, max_new_tokens=9)) for r in g.rollouts
    ]
    for rollout, logprobs in zip(rollouts, forced_logprobs(model, rollouts, 1.0, padded=True), strict=True):
        given = rollout.num_prefix
        assert rollout.rollout_logprobs == pytest.approx([0.0] * given + logprobs[given:], abs=2e-5)


def test_each_prompt_is_read_once_and_finished_sequences_leave_the_batch(spelling, chat, prompt_of):
    shapes = []
    handle = spelling.module.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = [prompt_of("q"), prompt_of("q", (A,)), prompt_of("q", (A, B))]
    groups = generate(spelling, chat, prompts, Sampling(num_rollouts=2))
    handle.remove()
    assert completions(groups) == [[A, B, C, END]] * 6
    # <start>u:q<end><start>a: is 8 tokens, of which 7 are read for all three: the last one of a prompt is its own. The
    # longest prefix has 2. The replies still have 4, 3 and 2 tokens to sample.
    assert shapes == [(1, 7), (3, 3), (6, 1), (4, 1), (2, 1)]


def test_large_groups_are_split_and_joined(spelling, chat, prompts):
    shapes = []
    spelling.module.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    groups = generate(spelling, chat, prompts[:1], Sampling(num_rollouts=5, max_new_tokens=2), max_sequences=2)
    assert [r.index for r in groups[0].rollouts] == [0, 1, 2, 3, 4] and len(groups) == 1
    assert shapes == [(1, 10), (2, 1), (1, 10), (2, 1), (1, 10), (1, 1)]


def test_context_window_ends_completions_and_refuses_prompts(spelling, llama, chat, prompt_of):
    # 7 tokens of the template around the text; the window of `spelling` is 32.
    fits, full = prompt_of("x" * 23), prompt_of("x" * 25)
    rollout = generate(spelling, chat, [fits], Sampling())[0].rollouts[0]
    assert (rollout.completion_ids, rollout.finish_reason) == ([A, B], "length")
    engine = TransformersEngine(spelling, chat, sampler="student", max_sequences=4)
    with pytest.raises(UserError, match=r"prompt x+/0 has 32 tokens and the context window 32"):
        engine.generate([fits, full], Sampling())
    with pytest.raises(UserError, match="the prefix of prompt q/3 has 3 tokens and a reply may have 3"):
        engine.generate([prompt_of("q", (A, B, C))], Sampling(max_new_tokens=3))


def test_groups_come_while_later_prompts_are_waiting(spelling, chat, prompts):
    calls = []
    spelling.module.model.register_forward_pre_hook(lambda *_: calls.append(1))
    stream = TransformersEngine(spelling, chat, sampler="student", max_sequences=1).generate(prompts, Sampling())
    assert next(iter(stream)).uid == prompts[0].uid
    assert len(calls) == 4


def test_sampling_runs_in_eval_mode_and_leaves_the_mode_as_it_was(llama, chat, prompts):
    expected = completions(generate(llama, chat, prompts, Sampling(temperature=0, max_new_tokens=8)))
    for layer in llama.module.model.layers:
        layer.self_attn.attention_dropout = 0.9
    llama.module.train()
    assert completions(generate(llama, chat, prompts, Sampling(temperature=0, max_new_tokens=8))) == expected
    assert llama.module.training


class Copies(TorchDispatchMode):
    """Counts the tensors that are copied while it is active."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.copy_.default
        return func(*args, **(kwargs or {}))


def test_shared_weights_cost_nothing_and_others_are_copied(llama, chat):
    engine = TransformersEngine(llama, chat, sampler="student", max_sequences=8)
    weight = llama.module.lm_head.weight
    with Copies() as copies:
        engine.load_weights(llama.module.named_parameters())
        engine.load_weights([("lm_head.weight", weight.detach())])
        assert copies.count == 0
        engine.load_weights([("lm_head.weight", torch.zeros_like(weight))])
        assert copies.count == 1
    assert not weight.any() and weight.requires_grad
    with pytest.raises(ValueError, match="no tensor head"):
        engine.load_weights([("head", torch.zeros(1))])
    engine.close()


@pytest.mark.slow
def test_smollm2_replies(prompt_of, smollm2):
    from harness.config.schema import ModelConfig
    from harness.models.chat import Chat
    from harness.models.loading import load_model, load_tokenizer

    config = ModelConfig(name="smollm2", path=str(smollm2), dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    model = LanguageModel.for_chat(load_model(config, "cpu"), chat)
    sampling = Sampling(temperature=0.0, max_new_tokens=24)
    rollout = generate(model, chat, [prompt_of("What is the capital of France?")], sampling)[0].rollouts[0]
    assert "Paris" in rollout.text and chat.stop_ids == {2} and chat.end_id == 2
    assert rollout.rollout_logprobs == pytest.approx(forced_logprobs(model, [rollout], 1.0, padded=True)[0], abs=1e-3)


def test_whoever_samples_with_an_engine_that_is_closed_stops(model, chat, prompts):
    """A process that ends waits for its threads; a sampling that would take minutes is given up within a token."""
    engine = TransformersEngine(model, chat, sampler="student", max_sequences=64)
    stop_ids, chat.stop_ids = chat.stop_ids, frozenset()  # nothing but the limit ends a reply
    sampling = Sampling(num_rollouts=8, max_new_tokens=1500)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: list(engine.generate(prompts, sampling)))
        try:
            future.exception(timeout=0.3)
        except TimeoutError:
            engine.close()
        started = time.monotonic()
        with pytest.raises(RuntimeError, match="closed while it sampled"):
            future.result(timeout=60)
    chat.stop_ids = stop_ids
    assert time.monotonic() - started < 5
