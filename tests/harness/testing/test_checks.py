"""Every built-in preset passes the conformance kit; methods that are broken on purpose fail the line meant for them."""

import dataclasses
import itertools
import random
from pathlib import Path

import pytest
import torch
import yaml

from harness.testing import CHECKS, Case
from harness.types import LossOutput
from methods import registry
from methods.base import PolicyGradientMethod, plain_prompt, policy_gradient_loss, rollout_sample, sampled_by_student
from methods.contract import Method

ROOT = Path(__file__).parents[3]
OPTIONS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((ROOT / "conf" / "method").glob("*.yaml"))}
PRESETS = {name: options for name, options in OPTIONS.items() if options["class"] is not None}
MEMORY = "memory_stays_within_three_tiles"


def case_of(preset: str) -> Case:
    options = {key: value for key, value in PRESETS[preset].items() if key not in ("name", "class")}
    return Case(registry.method_class(PRESETS[preset]["class"]), options)


CASES = {preset: case_of(preset) for preset in PRESETS}
LOSSES: dict[object, str] = {}
for preset, case in CASES.items():
    LOSSES.setdefault(case.method_class.loss, preset)  # presets that share a loss take the same memory


FIRST: dict[object, str] = {}
for preset, case in CASES.items():
    FIRST.setdefault(case.method_class, preset)
RESUME = "resume_equals_the_unbroken_run"
"""Three runs, so it is seen in the fast suite once a class."""


def checked() -> list[object]:
    every = [(preset, check) for preset in PRESETS for check in CHECKS if check != MEMORY]
    others = {(preset, RESUME) for preset in PRESETS if preset not in FIRST.values()}
    return [pytest.param(*pair, marks=[pytest.mark.slow] if pair in others else []) for pair in every]


@pytest.mark.parametrize(("preset", "check"), checked())
def test_built_in_methods_conform(preset, check, tmp_path):
    CHECKS[check](CASES[preset], tmp_path)


@pytest.mark.parametrize("preset", LOSSES.values())
def test_built_in_losses_are_lean(preset, tmp_path):
    CHECKS[MEMORY](CASES[preset], tmp_path)


def test_every_class_is_covered():
    assert {case.method_class for case in CASES.values()} == set(registry.built_in().values())


# --- methods that are broken on purpose ---


SIZES = itertools.cycle([6, 7])


class AllAdvantagesAreZero(PolicyGradientMethod):
    def advantages(self, groups):
        return [[0.0] * len(sampled_by_student(group)) for group in groups]


class DrawsFromTheGlobalStream(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        return random.sample(groups, k=len(groups))


class CountsItsSteps(PolicyGradientMethod):
    def __init__(self, config):
        super().__init__(config)
        self.num_steps = 0

    def credit(self, groups):
        self.num_steps += 1
        samples = super().credit(groups)
        for sample in samples:
            sample.weights = [mask / self.num_steps for mask in sample.loss_mask]
        return samples


class TrainsTheTeachersTokens(PolicyGradientMethod):
    needs_teacher = "rollouts"

    def collect(self, batch, actors, rng):
        prompts = [dataclasses.replace(plain_prompt(q), uid=f"{q.id}/teacher") for q in batch.new]
        teacher = actors.teacher(prompts, 1).list()
        for group in teacher:
            group.rollouts = [dataclasses.replace(rollout, sampler="student") for rollout in group.rollouts]
            group.prompt = dataclasses.replace(group.prompt, kind="extra")
        return [*super().collect(batch, actors, rng), *teacher]

    def advantages(self, groups):
        return [[1.0 - 0.1 * i for i in range(len(group.rollouts))] for group in groups]


class TrainsTextInsteadOfIds(PolicyGradientMethod):
    """What decoding and encoding again can do: one token comes back as another."""

    def credit(self, groups):
        samples = super().credit(groups)
        for sample in samples:
            sample.token_ids[-1] -= 1
        return samples


class TrainsGivenPrefixes(PolicyGradientMethod):
    def credit(self, groups):
        whole = [
            dataclasses.replace(g, rollouts=[dataclasses.replace(r, num_prefix=0) for r in g.rollouts]) for g in groups
        ]
        samples = super().credit(whole)
        rollouts = [rollout for group in groups for rollout in sampled_by_student(group)]
        for sample, rollout in zip(samples, rollouts, strict=True):
            sample.rollout = rollout
        return samples


class AveragesOverTheChunk(PolicyGradientMethod):
    def loss(self, logits_NV, batch, teacher):
        output = super().loss(logits_NV, batch, teacher)
        return LossOutput(loss_N=output.loss_N / len(output.loss_N), sums=output.sums)


class CallsEveryPromptPlain(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        prompts = [
            dataclasses.replace(
                plain_prompt(q), uid=f"{q.id}/helped", messages=({"role": "user", "content": f"{q.text}\n{q.answer}"},)
            )
            for q in batch.new
        ]
        return [*super().collect(batch, actors, rng), *actors.student(prompts, self.config.group_size).list()]


class AsksAnotherPromptAsPlain(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        prompts = [
            dataclasses.replace(
                prompt, messages=({**prompt.messages[0], "content": prompt.messages[0]["content"] + " "},)
            )
            for prompt in map(plain_prompt, batch.new)
        ]
        return actors.student(prompts, self.config.group_size).list()


class SamplesAsManyAsChanceSays(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        return super().collect(batch, actors, rng)[: next(SIZES)]


class ShapesTheRewardItself(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        for group in groups:
            for rollout in group.rollouts:
                rollout.reward = 1.0 - rollout.reward
        return groups


class TakesNoVerdictForAWrongOne(PolicyGradientMethod):
    def credit(self, groups):
        given = self.advantages(groups)
        return [
            rollout_sample(group.uid, rollout, advantage=advantage)
            for group, advantages in zip(groups, given, strict=True)
            for rollout, advantage in zip(sampled_by_student(group), advantages, strict=True)
        ]


class KeepsEveryTile(PolicyGradientMethod):
    def loss(self, logits_NV, batch, teacher):
        probs_NV = torch.softmax(logits_NV, -1)
        entropy_N = -(probs_NV * torch.log(probs_NV + 1e-9)).sum(-1)
        options = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.2, "dual_clip": 10.0}
        loss_N, _ = policy_gradient_loss(logits_NV, batch.ids_N, batch.advantages_N, batch.old_logprobs_N, **options)
        return LossOutput(loss_N=loss_N - 0.01 * entropy_N)


BROKEN: dict[type[Method], tuple[str, str]] = {
    AllAdvantagesAreZero: ("moves_the_student", "the gradient of a step is zero"),
    DrawsFromTheGlobalStream: ("same_seed_same_groups", "differs between two steps of the same seed"),
    SamplesAsManyAsChanceSays: ("same_seed_same_groups", "two steps of the same seed have . and . groups"),
    CountsItsSteps: ("resume_equals_the_unbroken_run", "the metrics of .* differ"),
    TrainsTheTeachersTokens: ("trained_tokens_were_sampled_by_whom_it_declares", "were not sampled by student"),
    TrainsTextInsteadOfIds: ("trained_tokens_were_sampled_by_whom_it_declares", "were not sampled by student"),
    TrainsGivenPrefixes: ("prefixes_get_no_gradient", "trains tokens of a given prefix"),
    AveragesOverTheChunk: ("gradient_does_not_depend_on_micro_batches", "the gradient depends on"),
    CallsEveryPromptPlain: ("buffer_is_fed_by_plain_groups", "groups of kind `plain` on question"),
    AsksAnotherPromptAsPlain: ("buffer_is_fed_by_plain_groups", "is of kind `plain` but not on a plain prompt"),
    ShapesTheRewardItself: ("buffer_is_fed_by_plain_groups", "is not that of its graded rollouts"),
    TakesNoVerdictForAWrongOne: ("a_rollout_without_a_verdict_teaches_nothing", "without a verdict"),
    KeepsEveryTile: (MEMORY, "times the memory of the logits, more than 3"),
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
def test_a_broken_method_fails_the_line_meant_for_it_and_no_other(broken, tmp_path):
    meant, message = BROKEN[broken]
    case = Case(broken, {})
    with pytest.raises(AssertionError, match=message):
        CHECKS[meant](case, tmp_path / "meant")
    # A run that draws from a global stream cannot be resumed either.
    resume = {"resume_equals_the_unbroken_run"}
    also: dict[type[Method], set[str]] = {DrawsFromTheGlobalStream: resume, SamplesAsManyAsChanceSays: resume}
    for name, check in CHECKS.items():
        if name not in {meant, MEMORY} | also.get(broken, set()):
            check(case, tmp_path / name)


class PlainlyWritten(PolicyGradientMethod):
    """What the author of a plugin writes first has to fit: log_softmax and gather."""

    def loss(self, logits_NV, batch, teacher):
        logprobs_N = logits_NV.log_softmax(-1).gather(-1, batch.ids_N.unsqueeze(-1)).squeeze(-1)
        return LossOutput(loss_N=-batch.advantages_N * logprobs_N)


@pytest.mark.parametrize("check", ["gradient_does_not_depend_on_micro_batches", MEMORY])
def test_a_plainly_written_loss_passes(check, tmp_path):
    CHECKS[check](Case(PlainlyWritten, {}), tmp_path)


def test_options_are_filled_in_where_the_class_has_them():
    case = CASES["hint"]
    assert (case.build().config.hint_max_tokens, case.build().config.augment_ratio) == (64, 0.5)
    assert "hint_max_tokens" not in CASES["grpo"].options
    assert Case(registry.method_class("zppo"), {"group_size": 3}).build().config.group_size == 3


def test_the_kit_is_one_line():
    from harness.testing import conformance_test

    function = conformance_test(registry.method_class("grpo"), group_size=2)
    (mark,) = function.pytestmark
    assert mark.kwargs["ids"] == list(CHECKS) and mark.args[1] == list(CHECKS.values())
