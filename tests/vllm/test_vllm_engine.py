"""vLLM in the trainer's process against the trainer's own forward: the tiny family, text, pictures and clips, in fp32.

vLLM allows one such engine a process, so all tests share it, and each starts by handing it the weights it needs.
"""

from __future__ import annotations

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from harness.config.data import DataConfig
from harness.config.engines import RolloutConfig, VllmConfig
from harness.config.evaluation import MediaConfig
from harness.config.schema import ModelConfig
from harness.data.sources import load_questions
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.forward import LanguageModel, gather_logprobs
from harness.models.loading import load_model, load_tokenizer, resolve_path
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.types import Rollout
from methods.base import plain_prompt

pytestmark = pytest.mark.vllm
STUDENT = ModelConfig(name="s", path="tiny:s", dtype="float32")
CONFIG = RolloutConfig(max_sequences=128, vllm=VllmConfig(enforce_eager=True, cache_gib=0.25, max_model_len=2048))
TASKS = ["arithmetic", "bar_chart", "bar_cards", "bar_clip"]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(load_tokenizer(STUDENT), STUDENT)


@pytest.fixture(scope="module")
def shipped(chat) -> LanguageModel:
    return LanguageModel.for_chat(load_model(STUDENT, "cpu"), chat)


@pytest.fixture(scope="module")
def running(chat):
    from harness.rollout.vllm_engine import VllmEngine

    engine = VllmEngine(resolve_path(STUDENT), chat, sampler="student", model=STUDENT, config=CONFIG, empty=True)
    yield engine
    engine.close()


@pytest.fixture
def engine(running, shipped):
    running.load_weights(shipped.module.named_parameters())
    return running


@pytest.fixture(scope="module")
def prompts():
    data = DataConfig(
        source="synthetic", num_questions=16, tasks=TASKS, media=MediaConfig(min_pixels=256, max_pixels=65536)
    )
    loaded = load_questions(
        data, gold_errors=lambda questions: [None] * len(questions), measure=lambda question: 1, max_prompt_tokens=999
    )
    return [plain_prompt(question) for question in loaded.questions]


def trainer_logprobs(model: LanguageModel, rollout: Rollout, temperature: float) -> list[float]:
    ids_1T = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    media = [None if rollout.media is None else rollout.media.inputs()]
    start = len(rollout.prompt_ids)
    with torch.no_grad():
        hidden_TH = model.hidden(ids_1T, torch.ones_like(ids_1T), media=media)[0, start - 1 : -1]
        return gather_logprobs(model.logits(hidden_TH) / temperature, ids_1T[0, start:]).tolist()


def largest_gap(groups, model: LanguageModel, temperature: float = 1.0) -> float:
    return max(
        abs(ours - theirs)
        for group in groups
        for rollout in group.rollouts
        for ours, theirs in zip(trainer_logprobs(model, rollout, temperature), rollout.rollout_logprobs, strict=True)
    )


def by_uid(groups):
    return {
        group.uid: [(r.completion_ids, r.finish_reason, r.text, r.prompt_ids) for r in group.rollouts]
        for group in groups
    }


def test_greedy_outputs_are_those_of_transformers_on_text_pictures_and_clips(engine, shipped, chat, prompts):
    assert {bool(p.question.images) for p in prompts} == {True, False}
    assert any(p.question.video is not None for p in prompts)
    sampling = Sampling(num_rollouts=2, temperature=0.0, max_new_tokens=40)
    own = TransformersEngine(shipped, chat, "student", 256).generate(prompts, sampling)
    assert by_uid(engine.generate(prompts, sampling)) == by_uid(own)


def test_sampled_logprobs_are_the_trainers_at_the_sampling_temperature(engine, shipped, prompts):
    groups = list(engine.generate(prompts, Sampling(num_rollouts=4, temperature=0.7, max_new_tokens=24, seed=1)))
    assert largest_gap(groups, shipped, 0.7) < 1e-3
    assert largest_gap(groups, shipped, 1.0) > 0.1  # another temperature is another distribution


def test_draws_follow_from_seed_step_uid_and_index(engine, prompts):
    def draw(prompts, **changes):
        sampling = Sampling(**({"num_rollouts": 4, "max_new_tokens": 24, "seed": 1, "step": 3} | changes))
        return by_uid(engine.generate(prompts, sampling))

    texts = prompts[:4]
    first = draw(texts)
    assert draw(texts) == first
    assert draw(texts[1:2]) == {texts[1].uid: first[texts[1].uid]}  # whatever else is in the batch
    assert draw(texts, num_rollouts=2) == {uid: rollouts[:2] for uid, rollouts in first.items()}
    assert any(len({tuple(r[0]) for r in rollouts}) > 1 for rollouts in first.values())
    assert draw(texts, seed=2) != first and draw(texts, step=4) != first


def test_a_prefix_starts_the_completion_and_counts_against_its_length(engine, shipped, chat, prompts):
    prefix = tuple(chat.encode_text("<think>1"))
    prompt = plain_prompt(prompts[0].question)
    prompt = type(prompt)(uid="p", question=prompt.question, messages=prompt.messages, prefix_ids=prefix)
    (group,) = engine.generate([prompt], Sampling(num_rollouts=3, max_new_tokens=len(prefix) + 4))
    for rollout in group.rollouts:
        assert rollout.num_prefix == len(prefix) and tuple(rollout.completion_ids[: len(prefix)]) == prefix
        assert len(rollout.completion_ids) <= len(prefix) + 4
        assert rollout.rollout_logprobs[: len(prefix)] == [0.0] * len(prefix)
        theirs = trainer_logprobs(shipped, rollout, 1.0)[len(prefix) :]
        assert theirs == pytest.approx(rollout.rollout_logprobs[len(prefix) :], abs=1e-3)


def test_banned_ids_are_never_sampled(engine, shipped, chat, prompts):
    """With a head that is zero all ids are equally likely: of 3,000 draws from 320 rows each banned one would get 9."""
    tensors = dict(shipped.module.named_parameters())
    head = "model.language_model.embed_tokens.weight"
    tensors[head] = torch.zeros_like(tensors[head])
    engine.load_weights(tensors.items())
    groups = engine.generate(prompts[:4], Sampling(num_rollouts=32, max_new_tokens=24))
    sampled = {token_id for group in groups for r in group.rollouts for token_id in r.completion_ids}
    assert sampled >= set(range(chat.num_tokens)) - set(chat.banned_ids) - set(chat.stop_ids)
    assert not sampled & set(chat.banned_ids) and max(sampled) < chat.num_tokens


def test_after_each_of_20_transfers_the_engine_has_the_new_weights_and_not_the_old(engine, shipped, prompts):
    student = LanguageModel(copy.deepcopy(shipped.module), shipped.banned_ids, num_tokens=shipped.num_tokens)
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        old = LanguageModel(copy.deepcopy(student.module), shipped.banned_ids, num_tokens=shipped.num_tokens)
        with torch.no_grad():
            for parameter in student.module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.003)
        engine.load_weights(student.module.named_parameters())
        groups = list(engine.generate(prompts[:8], Sampling(num_rollouts=1, max_new_tokens=16, step=step)))
        new_gap, old_gap = largest_gap(groups, student), largest_gap(groups, old)
        assert new_gap < 1e-3 < 10 * new_gap + 1e-3 < old_gap


def test_a_transfer_that_withholds_a_tensor_is_refused(engine, shipped):
    tensors = dict(shipped.module.named_parameters())
    lost = next(name for name in tensors if "mlp.down_proj" in name)
    with pytest.raises(RuntimeError, match="down_proj"):
        engine.load_weights((name, tensor) for name, tensor in tensors.items() if name != lost)


@pytest.mark.parametrize("picture", [False, True])
def test_one_other_id_is_noticed(engine, prompts, monkeypatch, picture):
    prompt = next(p for p in prompts if bool(p.question.images) == picture)
    build = engine._input

    def changed(prompt, packed):
        given = build(prompt, packed)
        given["prompt_token_ids"] = [*given["prompt_token_ids"][:-1], given["prompt_token_ids"][-1] - 1]
        return given

    monkeypatch.setattr(engine, "_input", changed)
    with pytest.raises(RuntimeError, match="other ids"):
        list(engine.generate([prompt], Sampling(max_new_tokens=4)))


def test_abandoned_requests_leave_nothing_behind(engine, prompts):
    stream = engine.generate(prompts, Sampling(num_rollouts=2, max_new_tokens=24))
    next(stream)
    stream.close()
    (group,) = engine.generate(prompts[:1], Sampling(num_rollouts=2, max_new_tokens=4))
    assert group.uid == prompts[0].uid and all(map(math.isfinite, group.rollouts[0].rollout_logprobs))


def test_prompts_that_come_while_it_samples_are_taken_in(engine, prompts):
    """The last two prompts are asked for only when a group is done; the same completions as from a list."""
    first, sampling = threading.Event(), Sampling(num_rollouts=2, max_new_tokens=16, step=3)

    def late():
        yield from prompts[:2]
        assert first.wait(60)
        yield from prompts[2:4]

    found = {}
    for group in engine.generate(late(), sampling):
        found[group.uid] = [rollout.completion_ids for rollout in group.rollouts]
        first.set()
    listed = {g.uid: [r.completion_ids for r in g.rollouts] for g in engine.generate(prompts[:4], sampling)}
    assert found == listed


def test_a_temperature_that_vllm_refuses_is_refused_in_one_line(engine, prompts):
    with pytest.raises(UserError, match="up to 2, not at 2"):
        engine.generate(prompts, Sampling(temperature=2.5))


def test_a_prompt_without_room_is_refused(engine, prompts):
    prompt = prompts[0]
    long = type(prompt)(uid="long", question=prompt.question, messages=({"role": "user", "content": "1+" * 2000},))
    with pytest.raises(UserError, match=r"context window 2048.*max_prompt_tokens"):
        list(engine.generate([long], Sampling(max_new_tokens=4)))


def test_the_generators_of_the_process_are_left_alone(engine, prompts):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(engine.generate(prompts[:2], Sampling(num_rollouts=2, max_new_tokens=8)))
    assert torch.equal(torch.rand(3), expected)


def test_a_teacher_is_in_a_process_of_its_own_and_both_can_be_asked_at_once(engine, chat, prompts):
    """After the first engine has begun here vLLM reads no variable again; two engines in one process share globals."""
    from harness.rollout.vllm_engine import VllmEngine

    before = set(psutil.Process().children(recursive=True))
    teacher = VllmEngine(resolve_path(STUDENT), chat, sampler="teacher", model=STUDENT, config=CONFIG)
    try:
        assert type(teacher._engine.engine_core).__name__ != "InprocClient"
        assert set(psutil.Process().children(recursive=True)) - before
        sampling = Sampling(num_rollouts=4, max_new_tokens=24, seed=1)
        alone = [by_uid(one.generate(prompts, sampling)) for one in (engine, teacher)]
        with ThreadPoolExecutor(2) as pool:
            together = list(pool.map(lambda one: by_uid(one.generate(prompts, sampling)), (engine, teacher)))
        assert together == alone
    finally:
        teacher.close()


def test_the_students_head_gives_fp32_logits(engine):
    assert engine._engine.vllm_config.model_config.head_dtype == torch.float32
