"""Every built-in preset passes the conformance kit; methods that are broken on purpose fail the line meant for them."""

import ast
import copy
import dataclasses
import inspect
import itertools
import random
import re
import warnings
from contextlib import nullcontext as does_not_raise
from pathlib import Path

import pytest
import torch
import yaml

from harness.testing import CHECKS, Case, ScriptedTeacher
from harness.types import LossOutput, RolloutGroup
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


def documented(word: str) -> dict[str, object]:
    """What the example of the page that has this word defines."""
    page = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if word in block]
    names: dict[str, object] = {"__name__": __name__}
    exec(block, names)
    return names


CASES = {preset: case_of(preset) for preset in PRESETS}
LOSSES: dict[object, str] = {}
for preset, case in CASES.items():
    LOSSES.setdefault(case.method_class.loss, preset)  # presets that share a loss take the same memory


FIRST: dict[object, str] = {}
for preset, case in CASES.items():
    FIRST.setdefault(case.method_class, preset)
RESUME = "resume_equals_the_unbroken_run"
"""Three runs, so it is seen in the fast suite once a class."""
CARRY_OVER = {"off_policy_kd"}
"""Its teacher samples and scores. `tests/runs/test_run.py` resumes ZPPO with its buffer, the slow suite the others."""
ONCE = {"moves_the_student", "same_seed_same_groups", "gradient_does_not_depend_on_micro_batches", RESUME}
"""Checks that update or sample anew: the fast suite makes them once a class, of which presets are options."""


def checked() -> list[object]:
    every = [(preset, check) for preset in PRESETS for check in CHECKS if check != MEMORY]
    others = {(preset, check) for preset in PRESETS.keys() - set(FIRST.values()) for check in ONCE}
    others |= {(preset, RESUME) for preset in PRESETS.keys() - CARRY_OVER}
    return [pytest.param(*pair, marks=[pytest.mark.slow] if pair in others else []) for pair in every]


@pytest.mark.parametrize(("preset", "check"), checked())
def test_built_in_methods_conform(preset, check, tmp_path):
    with warnings.catch_warnings(action="error", category=UserWarning):  # a kind of prompt that no check has seen
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
    prompt_kinds = frozenset({"plain", "extra"})

    def collect(self, batch, actors, rng):
        prompts = [dataclasses.replace(plain_prompt(q), uid=f"{q.id}/teacher") for q in batch.new]
        teacher = actors.teacher(prompts, 1).list()
        for group in teacher:
            group.rollouts = [dataclasses.replace(rollout, sampler="student") for rollout in group.rollouts]
            group.prompt = dataclasses.replace(group.prompt, kind="extra")
        return [*super().collect(batch, actors, rng), *teacher]

    def advantages(self, groups):
        return [[1.0 - 0.1 * i for i in range(len(group.rollouts))] for group in groups]


class TrainsTheTeachersTwins(PolicyGradientMethod):
    """Teacher rollouts that have the very tokens of one of the student's, under the student's name."""

    needs_teacher = "rollouts"
    prompt_kinds = frozenset({"plain", "extra"})
    openly = False

    def collect(self, batch, actors, rng):
        plain = super().collect(batch, actors, rng)
        student = {(g.prompt.question.id, *r.completion_ids) for g in plain for r in g.rollouts}
        prompts = [
            dataclasses.replace(g.prompt, uid=f"{g.prompt.question.id}/teacher", kind="extra")
            for g in plain if g.accuracy >= 0.25
        ][:2]  # fmt: skip
        teacher = actors.teacher(prompts, 4).list()
        for group in teacher:
            twins = [r for r in group.rollouts if (group.prompt.question.id, *r.completion_ids) in student]
            group.rollouts = twins
            for rollout in twins:
                rollout.sampler = "teacher" if self.openly else "student"
        return [*plain, *(group for group in teacher if group.rollouts)]

    def members(self, group):
        return group.rollouts

    def advantages(self, groups):
        return [[1.0 - 0.1 * i for i in range(len(group.rollouts))] for group in groups]


class DeclaresNoTeacher(TrainsTheTeachersTwins):
    openly = True


class ReturnsAGroupTwice(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        return [*groups, groups[0]]


class NamesNoRollout(PolicyGradientMethod):
    def credit(self, groups):
        return [dataclasses.replace(sample, rollout=None) for sample in super().credit(groups)]


class NamesASibling(PolicyGradientMethod):
    def credit(self, groups):
        samples = super().credit(groups)
        for sample in samples:
            other = (sample.rollout.index + 1) % self.config.group_size
            sample.rollout = dataclasses.replace(sample.rollout, index=other)
        return samples


class InventsARollout(PolicyGradientMethod):
    prompt_kinds = frozenset({"plain", "extra"})

    def collect(self, batch, actors, rng):
        groups = super().collect(batch, actors, rng)
        prompt = dataclasses.replace(groups[0].prompt, uid="invented", kind="extra")
        rollouts = [
            dataclasses.replace(rollout, completion_ids=list(rollout.completion_ids)) for rollout in groups[0].rollouts
        ]
        return [*groups, RolloutGroup(uid="invented", prompt=prompt, rollouts=rollouts)]


class AsksAKindThatItDoesNotDeclare(PolicyGradientMethod):
    def collect(self, batch, actors, rng):
        prompts = [dataclasses.replace(plain_prompt(q), uid=f"{q.id}/again", kind="again") for q in batch.new]
        return [*super().collect(batch, actors, rng), *actors.student(prompts, 2).list()]


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
        return super().credit(whole)


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


class CountsNoVerdictInItsMean(PolicyGradientMethod):
    """What has no verdict has advantage 0, and its reward moves the mean of the others."""

    def credit(self, groups):
        given = self.advantages(groups)
        return [
            rollout_sample(group.uid, rollout, advantage=advantage * rollout.is_graded)
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


class SaysNothingUntilTold(documented("ScriptedTeacher")["Critique"]):
    """The example of the page, which its scripted teacher has to lead to its second group."""


WHO = "trained_tokens_were_sampled_by_whom_it_declares"
BUFFER = "buffer_is_fed_by_plain_groups"
KINDS = "every_kind_of_prompt_occurs"
VERDICT = "a_rollout_without_a_verdict_teaches_nothing"

BROKEN: dict[type[Method], tuple[str, str]] = {
    AllAdvantagesAreZero: ("moves_the_student", "the gradient of a step is zero: let `credit` give advantages"),
    DrawsFromTheGlobalStream: ("same_seed_same_groups", "differs between two steps of the same seed: draw all chance"),
    SamplesAsManyAsChanceSays: ("same_seed_same_groups", "have . and . groups: draw all chance from the `rng`"),
    CountsItsSteps: (RESUME, r"the metrics of .* differ \(step 2: .* is .* and .*\): .* keep no state in the method"),
    TrainsTheTeachersTokens: (WHO, "was not sampled by student but by the teacher: declare that in trained_samplers"),
    TrainsTheTeachersTwins: (WHO, "was not sampled by student but by the teacher: declare that in trained_samplers"),
    DeclaresNoTeacher: (WHO, "credit trains tokens of the teacher: declare it in trained_samplers"),
    ReturnsAGroupTwice: (WHO, "returns two groups .*: give each prompt a uid of its own"),
    NamesNoRollout: (WHO, "names no rollout: give it its `rollout`"),
    NamesASibling: (WHO, "that names rollout 1 of .* is of rollout 0 of .*: keep sampler and index"),
    InventsARollout: (WHO, "rollout 0 of the student of 'invented' was not sampled: ask `actors` for it"),
    TrainsTextInsteadOfIds: (WHO, "the tokens of rollout 0 .* are not those that were sampled: train prompt_ids and"),
    TrainsGivenPrefixes: ("prefixes_get_no_gradient", "trains tokens of a given prefix: set loss_mask to 0 for"),
    AveragesOverTheChunk: (
        "gradient_does_not_depend_on_micro_batches",
        "depends on .*: let `loss` return one",
    ),
    CallsEveryPromptPlain: (BUFFER, "groups of kind `plain` on question .*: give further prompts .* another kind"),
    AsksAnotherPromptAsPlain: (BUFFER, "is of kind `plain` but not on a plain prompt: make it with `plain_prompt`"),
    ShapesTheRewardItself: (BUFFER, "is not that of its graded rollouts: leave `reward`"),
    AsksAKindThatItDoesNotDeclare: (KINDS, "asks prompts of kind `again` and declares plain: add the kind to prompt_"),
    SaysNothingUntilTold: (KINDS, "none of . rewrites of kind `critique` was accepted .*: give .* a ScriptedTeacher"),
    TakesNoVerdictForAWrongOne: (VERDICT, "trains a rollout without a verdict as a wrong one: leave rollouts"),
    CountsNoVerdictInItsMean: (VERDICT, "the reward of a rollout without a verdict changes what is trained"),
    KeepsEveryTile: (MEMORY, "times the memory of the logits, more than 3: form fewer"),
}
CANNOT_RESUME = {
    CountsItsSteps,
    DrawsFromTheGlobalStream,
    SamplesAsManyAsChanceSays,
    DeclaresNoTeacher,
    ReturnsAGroupTwice,
}
"""A run that draws from a global stream cannot be resumed either, and names that a run refuses end it."""


@pytest.mark.parametrize("broken", BROKEN, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:SaysNothingUntilTold declares:UserWarning")
def test_a_broken_method_fails_the_line_meant_for_it(broken, tmp_path):
    meant, message = BROKEN[broken]
    with pytest.raises(AssertionError, match=message):
        CHECKS[meant](Case(broken, {}), tmp_path)


A_FEW = {CallsEveryPromptPlain}
"""Built-in methods show in the fast suite that no line fails what it should not."""


@pytest.mark.parametrize(
    "broken",
    [pytest.param(cls, marks=[] if cls in A_FEW else [pytest.mark.slow]) for cls in BROKEN],
    ids=lambda cls: cls.__name__,
)
@pytest.mark.filterwarnings("ignore:SaysNothingUntilTold declares:UserWarning")
def test_a_broken_method_fails_no_other_line(broken, tmp_path):
    case = Case(broken, {})
    for name in CHECKS.keys() - {BROKEN[broken][0], MEMORY, RESUME}:
        CHECKS[name](case, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [cls for cls in BROKEN if cls not in CANNOT_RESUME], ids=lambda cls: cls.__name__)
def test_a_broken_method_can_be_resumed_all_the_same(broken, tmp_path):
    """The other line that it must not fail: three runs each, while the fast suite resumes every built-in class."""
    CHECKS[RESUME](Case(broken, {}), tmp_path)


class MakesNoSamples(PolicyGradientMethod):
    def credit(self, groups):
        return []


class DividesByZero(PolicyGradientMethod):
    def advantages(self, groups):
        return [[float("inf")] * len(group.rollouts) for group in groups]


class MasksTheCompletionAlone(PolicyGradientMethod):
    def credit(self, groups):
        samples = super().credit(groups)
        for sample in samples:
            sample.loss_mask = sample.loss_mask[sample.num_prompt :]
        return samples


class TrainsItsPrompt(PolicyGradientMethod):
    def credit(self, groups):
        samples = super().credit(groups)
        for sample in samples:
            sample.loss_mask = [0] + [1] * (len(sample.token_ids) - 1)
        return samples


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (MakesNoSamples, "moves_the_student", "credit makes no training samples: return one"),
        (DividesByZero, "moves_the_student", "is not finite .*: keep `credit` and `loss` from a division by 0"),
        (MasksTheCompletionAlone, WHO, "tokens and a loss mask of .*: give one number a token"),
        (TrainsItsPrompt, WHO, "trains tokens of its prompt .*: set loss_mask to 0 before the first token"),
    ],
)
def test_a_fault_that_spoils_several_checks_is_named_by_the_first(broken, check, message, tmp_path):
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](Case(broken, {}), tmp_path)


def test_every_assertion_has_a_remedy():
    """After a colon. What credited.py refuses has its own."""
    messages = []
    for check in CHECKS.values():
        for node in ast.walk(ast.parse(inspect.getsource(check))):
            if isinstance(node, ast.Assert):
                assert node.msg is not None, f"{check.__name__}: {ast.unparse(node)}"
                messages.append(ast.unparse(node.msg))
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                messages.append(ast.unparse(node.exc.args[0]))
    messages.remove("str(error)")
    assert len(messages) > 20 and [text for text in messages if ": " not in text] == []


def test_equal_tokens_of_two_rollouts_are_told_apart():
    """The smallest student often says the same twice: siblings with equal tokens keep their origins, in copies too."""
    step = CASES["grpo"].first()
    for group in step.groups:
        group.rollouts = [dataclasses.replace(rollout, index=0, sampler="teacher") for rollout in group.rollouts]
    groups = copy.deepcopy(step.groups)
    origins = [[step.witness.origin("moved", rollout) for rollout in group.rollouts] for group in groups]
    assert {(o.uid, o.sampler, o.index) for row in origins for o in row} == {
        (group.uid, "student", index) for group in groups for index in range(4)
    }
    assert any(a.token_ids == b.token_ids for row in origins for a, b in itertools.combinations(row, 2))


class DeclaresWhatItNeverAsks(PolicyGradientMethod):
    prompt_kinds = frozenset({"plain", "retry"})


def test_a_declared_kind_that_never_occurs_is_a_warning(tmp_path, capsys):
    with pytest.warns(UserWarning, match=r"declares prompts of kind `retry` .* \(plain 8\).*: give conformance_test"):
        CHECKS[KINDS](Case(DeclaresWhatItNeverAsks, {}), tmp_path)
    assert capsys.readouterr().out == "prompts of one step of DeclaresWhatItNeverAsks: plain 8\n"


def test_the_scripted_teacher_of_the_page_leads_to_its_kinds(tmp_path, capsys):
    case = Case(SaysNothingUntilTold, {}, documented("ScriptedTeacher")["teacher"])
    with warnings.catch_warnings(action="error"):
        for name in CHECKS.keys() - {MEMORY, RESUME}:
            CHECKS[name](case, tmp_path)
    assert re.search(r"plain 8, retry (\d); rewrites: critique \1 \(\1 accepted\)", capsys.readouterr().out)


def test_a_rewrite_that_no_prompt_shows_is_accepted_where_it_is_counted(tmp_path):
    class Counts(SaysNothingUntilTold):
        prompt_kinds = frozenset({"plain", "critique"})

        def collect(self, batch, actors, rng):
            groups = super().collect(batch, actors, rng)
            if self.counts:
                actors.count("critique/accepted")
            return [group for group in groups if group.prompt.kind == "plain"]

    silent = ScriptedTeacher(rewrites={"critique": ["<critique> </critique>"]})
    for Counts.counts in (True, False):
        outcome = does_not_raise() if Counts.counts else pytest.raises(AssertionError, match=r"\(. have no text")
        with outcome:
            CHECKS[KINDS](Case(Counts, {}, silent), tmp_path)


@pytest.mark.parametrize(
    ("preset", "tight"),
    [
        pytest.param("zppo", {"compress_max_tokens": 8}, marks=pytest.mark.slow),
        ("hint", {"hint_max_tokens": 4}),
    ],
)
def test_the_kit_takes_the_scripted_teacher_where_the_tiny_one_leaves_a_kind_unseen(preset, tight, tmp_path):
    """No summary of the tiny teacher has 8 tokens, and no hint 4."""
    case = Case(CASES[preset].method_class, tight)
    step = case.first()
    assert case.build().prompt_kinds == step.num_prompts.keys() | step.num_accepted.keys()
    texts = {r.text.partition("</think>")[0] for g in step.groups for r in g.rollouts if r.sampler == "teacher"}
    assert texts == {"<think>Add.", "<think>Guess."}
    CHECKS["same_seed_same_groups"](case, tmp_path)
    CHECKS[KINDS](case, tmp_path)


class PlainlyWritten(PolicyGradientMethod):
    """What the author of a plugin writes first has to fit: log_softmax and gather."""

    def loss(self, logits_NV, batch, teacher):
        logprobs_N = logits_NV.log_softmax(-1).gather(-1, batch.ids_N.unsqueeze(-1)).squeeze(-1)
        return LossOutput(loss_N=-batch.advantages_N * logprobs_N)


@pytest.mark.parametrize(
    "check", ["gradient_does_not_depend_on_micro_batches", pytest.param(MEMORY, marks=pytest.mark.slow)]
)
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
