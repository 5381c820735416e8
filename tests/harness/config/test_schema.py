"""Every option and sweep composes without torch; what no run could use is refused with a remedy."""

import copy
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib.resources import files
from operator import attrgetter
from typing import get_args, get_origin, get_type_hints

import pytest
from omegaconf import OmegaConf

from harness.config.compose import compose, compose_sweep, group_options
from harness.config.deployment import build_method, resolved
from harness.config.schema import RunConfig, UpdateConfig, from_hydra
from harness.errors import UserError
from harness.study.cells import expand

GROUPS = ("method", "student", "teacher", "data", "rollout", "reward", "eval", "tracker", "recipe", "cluster")
REQUIRED = {  # what an option needs beside itself
    ("student", "hf"): ["student.path=/somewhere", "method=grpo"],
    ("student", "smollm2_135m"): ["method=grpo"],
    ("teacher", "hf"): ["teacher.path=/somewhere"],
    ("data", "reasoning_gym"): ["data.dataset=chain_sum"],
    ("data", "jsonl"): ["data.path=a.jsonl"],
    ("data", "parquet"): ["data.path=a.parquet"],
    ("data", "hub"): ["data.path=owner/name"],
    ("teacher", "none"): ["method=grpo"],
    ("rollout", "server"): ["method=base", "student.urls=[http://127.0.0.1:8000/v1]"],
}
PUBLISHED = {
    "qwen3_5_0_8b": "Qwen/Qwen3.5-0.8B",
    "qwen3_5_2b": "Qwen/Qwen3.5-2B",
    "qwen3_5_4b": "Qwen/Qwen3.5-4B",
    "qwen3_5_9b": "Qwen/Qwen3.5-9B",
}
"""The students of Table 8; their teacher is the FP8 checkpoint of 27B."""
OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]
SWEEPS = sorted(f.name.removesuffix(".yaml") for f in files("sweeps").iterdir() if f.name.endswith(".yaml"))


def check(*overrides: str) -> RunConfig:
    config = from_hydra(compose(list(overrides)))
    build_method(config)
    return config


WITH_A_METHOD = ("data", "reward", "eval", "tracker")
"""Groups whose options are independent of the method's. A choice of options takes 0.2 s."""


def choices() -> Iterator[dict[str, str]]:
    methods = group_options("method")
    others = [itertools.cycle(group_options(group)) for group in WITH_A_METHOD]
    assert all(len(group_options(group)) <= len(methods) for group in WITH_A_METHOD)
    for options in zip(methods, *others, strict=False):
        yield dict(zip(("method", *WITH_A_METHOD), options, strict=True))
    yield from ({group: option} for group, option in OPTIONS if group not in ("method", *WITH_A_METHOD))


@pytest.mark.clause("C096")
@pytest.mark.parametrize("chosen", choices(), ids=lambda chosen: " ".join(chosen.values()))
def test_every_option_composes(chosen):
    required = [word for pair in chosen.items() for word in REQUIRED.get(pair, [])]
    config = check(*(f"{group}={option}" for group, option in chosen.items()), *required)
    if "method" in chosen:
        assert config.method["name"] == chosen["method"]
    if "student" in chosen:
        assert config.student.name == chosen["student"]
    if (student := chosen.get("student")) in PUBLISHED:
        assert config.teacher is not None
        assert (config.student.path, config.teacher.path) == (PUBLISHED[student], "Qwen/Qwen3.5-27B-FP8")


@pytest.mark.clause("C110")
@pytest.mark.parametrize("student", [option for group, option in OPTIONS if group == "student" and option in PUBLISHED])
def test_the_judge_of_training_and_evaluation_is_the_published_teacher(student):
    config = check("teacher=qwen3_5_27b", f"student={student}")
    assert config.teacher is not None
    for judge in (config.reward.judge, config.eval.judge):
        assert (judge.model, judge.temperature, judge.top_p, judge.max_tokens) == (config.teacher.path, 0.0, 1.0, 512)


FORMS = ("paper_recipe", "tiny_teacher_size")
"""A sweep of each form: its own parameters, and another sweep's with values in their place. A cell takes 0.2 s."""


@pytest.mark.parametrize("name", [pytest.param(s, marks=[] if s in FORMS else [pytest.mark.slow]) for s in SWEEPS])
def test_every_sweep_expands(name):
    params, rest = compose_sweep(name, [])
    assert expand(params, rest, resolve=resolved)


def test_every_sweep_varies_options_that_are_there():
    """Which those are, `test_every_option_composes` has met."""
    for name in SWEEPS:
        params, _ = compose_sweep(name, [])
        for key in params.keys() & set(GROUPS):
            chosen = group_options(key) if params[key] == "glob(*)" else params[key].split(",")
            assert set(chosen) <= set(group_options(key)), name


def test_nothing_of_it_needs_torch():
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "accelerate", "lm_eval", "vllm"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from harness.config.compose import compose, compose_sweep, group_options
from harness.config.schema import from_hydra
from harness.config.deployment import build_method, resolved
from harness.study.cells import expand
from methods import registry
import harness.app, harness.commands.methods, harness.study.scheduler, reports.report
for method in ("zppo", "on_policy_kd"):
    build_method(from_hydra(compose([f"method={method}", "student=qwen3_5_0_8b"])))
assert registry.built_in()  # imports every class
for student in ("tiny_s", "smollm2_135m"):
    build_method(from_hydra(compose([f"student={student}", "method=grpo"])))
expand(*compose_sweep("quickstart", ["method=base,grpo"]), resolve=resolved)
assert "torch" not in sys.modules
print("composed")
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.stdout == "composed\n", answer.stderr


@pytest.mark.clause("C089", "C090", "C091", "C092")
def test_the_defaults_are_the_published_setting():
    """Table 8."""
    config = check("student=qwen3_5_0_8b")
    update = config.update
    assert (update.learning_rate, update.betas, update.eps, update.weight_decay) == (1e-6, [0.9, 0.999], 1e-8, 0.1)
    assert (update.max_grad_norm, update.optimizer) == (1.0, "adamw")
    rollout = config.rollout
    assert (rollout.temperature, rollout.max_prompt_tokens) == (1.0, 4096)
    assert rollout.max_response_tokens == 12_288
    assert config.data.batch_size == 384 and config.data.epochs == 1
    assert config.teacher is not None and config.teacher.name == "qwen3_5_27b"
    assert update == UpdateConfig()


def test_the_student_chooses_recipe_and_teacher():
    tiny = check()
    assert (tiny.student.name, tiny.teacher and tiny.teacher.name, tiny.steps) == ("tiny_s", "tiny_teacher", 60)
    assert tiny.update.learning_rate == 2e-4
    assert check("student=tiny_s", "recipe=paper").update.learning_rate == 1e-6
    assert check("student=qwen3_5_4b", "teacher=hf", "teacher.path=/t").teacher.path == "/t"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["update.lerning_rate=1"], "unknown option 'update.lerning_rate'. Did you mean 'update.learning_rate'"),
        (["stepz=3"], "unknown option 'stepz'. Did you mean 'steps'"),
        (["method=zpo"], "method=zpo: no such option. Did you mean 'zppo'"),
        (["student=qwen"], "student=qwen: no such option."),
        (["method.group_sise=4"], "no option 'method.group_sise'. Did you mean group_size or"),
        (["method.group_size=1"], "method.group_size must be at least 2"),
        (["method.tau=1.5"], "method.tau must be at most 1, got 1.5"),
        (["method.group_size=four"], "method.group_size must be an integer, got 'four'"),
        (["steps=many"], "steps must be an integer, or null, got 'many'"),
        (["steps='3'"], "steps must be an integer, or null, got '3'"),
        (["data.batch_size=8.0"], "data.batch_size must be an integer, got 8.0"),
        (["data.batch_size=null"], "data.batch_size must be an integer, got null"),
        (["data.shuffle=1"], "data.shuffle must be true or false, got 1"),
        (["update.learning_rate=fast"], "update.learning_rate must be a number, got 'fast'"),
        (["update.learning_rate=true"], "update.learning_rate must be a number, got true"),
        (["update.learning_rate=inf"], "update.learning_rate must be a finite number, got inf"),
        (["update.learning_rate=-1e-6"], "update.learning_rate must be at least 0, got -1e-06"),
        (
            ["update.optimizer=adamw_4bit"],
            "update.optimizer must be 'adamw', 'adamw_bf16' or 'adamw_8bit', got 'adamw_4",
        ),
        (["study=true"], "study must be a text, got true: write study=\"'true'\""),
        (["student.urls=http://a"], "student.urls must be a list, got 'http://a'"),
        (["data.columns=5"], "data.columns must be a mapping such as {key: value}, got 5"),
        (["rollout.vllm=null"], "rollout.vllm must be a mapping such as {key: value}, got null"),
        (["eval.seed=${sed}"], "eval.seed: Interpolation key 'sed' not found"),
        (["rollout.temperature=0"], "rollout.temperature must be greater than 0, got 0"),
        (["data.batch_size=0"], "data.batch_size must be greater than 0, got 0"),
        (["data.levels=[2,7]"], "data.levels[1] must be at most 4, got 7"),
        (["data.levels=[[1]]"], "data.levels[0] must be an integer, got [1]"),
        (["data.levels=[]"], "data.levels: list should have at least 1 item, not 0, got []"),
        (["data=reasoning_gym"], "data.dataset=chain_sum"),
        (["data=jsonl"], "data.path=FILE"),
        (["data=hub"], "data.path=OWNER/NAME"),
        (["data.media.min_pixels=0"], "data.media.min_pixels must be greater than 0, got 0"),
        (
            ["data.media.min_pixels=9", "data.media.max_pixels=8"],
            "data.media.min_pixels=9 must be at most max_pixels=8",
        ),
        (["data.media.num_frames=8"], "data.media.fps=2.0 and num_frames=8: set one and make the other null"),
        (["data.media.fps=null"], "data.media.fps=None and num_frames=None: set one"),
        (["data.media.fps=0"], "data.media.fps must be greater than 0, or null, got 0"),
        (["data.media.fps=nan"], "data.media.fps must be a finite number, or null, got nan"),
        (
            ["data.media.fps=null", "data.media.num_frames=0"],
            "data.media.num_frames must be greater than 0, or null, got 0",
        ),
        (
            ["data.media.fps=null", "data.media.num_frames=769"],
            "data.media.num_frames=769 must be at most max_frames=768",
        ),
        (["data.media.max_frames=1"], "data.media.max_frames must be at least 2, got 1"),
        (["data.max_bad_fraction=1"], "data.max_bad_fraction must be less than 1, got 1"),
        (["student=hf"], "no value for student.path: set student.path="),
        (["teacher=none"], "method=zppo needs a teacher"),
        (["data.dataset_config={a:{b:[nan]}}"], "data.dataset_config has a number that is not finite: write one"),
        (["eval.judge.extra_body.min_p=inf"], "eval.judge.extra_body has a number that is not finite: write one"),
        (["reward.judge.extra_body.min_p=-inf"], "reward.judge.extra_body has a number that is not finite"),
        (["resume=maybe"], "resume must be 'auto' or 'never', got 'maybe'"),
        (
            ["eval.suite=minni"],
            "eval.suite=minni is not known. Did you mean 'mini'?",
        ),
        (["steps=-1"], "steps must be at least 0, or null, got -1"),
        (["method=grpo,zppo"], "add -m"),
        (["method.name=1"], "method.name must be a text, got 1"),
        (["method.clip_ratio_low=nan"], "method.clip_ratio_low must be a number, got nan"),
        (["device=gpu"], "device=gpu is no device: write auto, cpu, cuda or cuda:0"),
        (["teacher_device=cuda:x"], "teacher_device=cuda:x is no device"),
        (["update.betas=[0.9,1]"], "update.betas[1] must be less than 1, got 1"),
        (["update.betas=[0.9]"], "update.betas: list should have at least 2 items, not 1, got [0.9]"),
        (["update.betas=[0,0,0]"], "update.betas: list should have at most 2 items, not 3, got [0, 0, 0]"),
        (["eval.top_p=1.5"], "eval.top_p must be at most 1, got 1.5"),
        (["preempt_grace=1e10"], "preempt_grace must be at most 1000000000, got 10000000000.0"),
        ([f"seed={2**63}"], "seed must be at most 9223372036854775807, got 9223372036854775808"),
    ],
)
def test_refused_in_one_line_with_the_remedy(overrides, message):
    with pytest.raises(UserError) as error:
        check(*overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


SIGNED = {"data.seed", "eval.seed", "eval.options.gpqa_seed", "eval.presence_penalty"}
"""Numbers that may be below 0."""
COMPOSED = compose(["student=tiny_xs", "data=arithmetic"])


def given(key: str, value: object) -> RunConfig:
    cfg = copy.deepcopy(COMPOSED)
    OmegaConf.update(cfg, key, value, force_add=True)
    return from_hydra(cfg)


def numbers(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    for name, hint in get_type_hints(cls).items():
        kinds = get_args(hint) or (hint,)
        if is_dataclass(kinds[0]):
            yield from numbers(kinds[0], f"{prefix}{name}.")
        elif kinds[0] in (int, float) and get_origin(hint) is not list:
            yield prefix + name, kinds[0]


def test_no_number_of_the_configuration_is_below_its_least_or_not_finite():
    found = dict(numbers(RunConfig))
    cases = [(key, value) for key, kind in found.items() if kind is float for value in (math.nan, math.inf)]
    cases += [(key, -1) for key in found if key not in SIGNED] + [(key, True) for key in found]
    cases += [(key, 2.0) for key, kind in found.items() if kind is int]
    for key, value in cases:
        with pytest.raises(UserError, match=rf"^{re.escape(key)} must be .*, got {str(value).replace('T', 't')}$"):
            given(key, value)
    assert len(cases) > 200


def test_an_integer_is_a_number_and_a_number_is_a_text():
    """YAML reads 1 where a user means 1.0, and 2024 or 1.0 where they mean a name."""
    cfg = compose(["student=tiny_xs", "update.learning_rate=1", "study=2024", "data.revision=1.0", "server.args=[8]"])
    config = from_hydra(cfg)
    assert (repr(config.update.learning_rate), config.study, config.server.args) == ("1.0", "2024", ["8"])
    assert config.data.revision == "1.0"


@pytest.mark.parametrize("other", [[], ["eval.seed=${seed}"]])
def test_a_free_mapping_replaces_its_default(other):
    words = ["reward.judge.extra_body={}", "eval.judge.extra_body.chat_template_kwargs.enable_thinking=true"]
    config = from_hydra(compose(["student=tiny_xs", *words, *other]))
    assert config.reward.judge.extra_body == {}
    assert config.eval.judge.extra_body == {"chat_template_kwargs": {"enable_thinking": True}}


def test_options_may_refer_to_each_other_and_to_defaults():
    words = ["eval.seed=${seed}", "student.dtype=${teacher.dtype}", "data.num_questions=${data.batch_size}"]
    config = from_hydra(compose(["student=tiny_xs", "teacher=hf", "teacher.path=t", "seed=3", *words]))
    assert (config.eval.seed, config.student.dtype, config.data.num_questions) == (3, "bfloat16", 48)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UserError, match=r"^data.path must be a text or a list, or null, got .*hello"):
        given("data.path", b"hello")  # `!!binary` of YAML
    with pytest.raises(UserError) as caught:
        from_hydra(compose(["student=tiny_xs", "data.path=caf\udce9"]))
    assert str(caught.value) == '"path": "caf\\udce9" has bytes that are no text in UTF-8: rename what it names'


@pytest.mark.parametrize(
    ("override", "reason", "instead"),
    [
        (
            "rollout.top_p=0.9",
            "training samples from the complete distribution",
            "leave it out (evaluation has eval.top_p)",
        ),
        (
            "rollout.top_k=0",
            "training samples from the complete distribution",
            "leave it out (evaluation has eval.top_k)",
        ),
        (
            "rollout.min_p=0.1",
            "training samples from the complete distribution",
            "leave it out (evaluation has eval.min_p)",
        ),
        (
            "rollout.presence_penalty=1",
            "training samples from the complete",
            "leave it out (evaluation has eval.presence_penalty)",
        ),
        (
            "+rollout.repetition_penalty=1",
            "training samples from the complete",
            "leave it out (evaluation has eval.repetition_penalty)",
        ),
        ("student.gguf_file=a.gguf", "weights are read from safetensors alone", "set student.path=FOLDER"),
        (
            "reward.judge.when=unparsed",
            "what has no readable answer earns nothing",
            "leave it out (evaluation has eval.judge.when)",
        ),
    ],
)
def test_an_option_that_had_one_value_is_refused_with_the_reason(override, reason, instead):
    key = override.partition("=")[0].removeprefix("+")
    with pytest.raises(UserError) as on_the_command_line:
        compose(["student=tiny_xs", override])
    with pytest.raises(UserError) as in_a_file:
        given(key, "unmatched" if key.endswith("when") else 1)
    assert str(on_the_command_line.value) == str(in_a_file.value)
    assert str(in_a_file.value).startswith(f"{key} is no option: ") and reason in str(in_a_file.value)
    assert str(in_a_file.value).endswith(instead)


def test_configurations_share_nothing():
    first = from_hydra(compose(["student=tiny_xs"]))
    first.data.levels.append(9)
    first.method["group_size"] = 2
    first.student.urls.append("http://127.0.0.1:1/v1")
    second = from_hydra(compose(["student=tiny_xs"]))
    assert 9 not in second.data.levels and "group_size" not in second.method and second.student.urls == []
    assert from_hydra(compose(["student=tiny_xs", "seed=3"])).seed == 3 and second.seed == 0


@pytest.mark.parametrize(
    "path",
    [
        "outputs/lr/grpo,update.learning_rate=0.0001/tiny_xs/seed0/model", "a=b", "(x", "it's", "a{b", "Über uns: 1",
        "it's a\\b=c", "x=\\", "a\\'b=",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["student.path", "outputs", "data.path"])
def test_a_path_is_taken_as_it_is(key, path):
    config = from_hydra(compose(["student=hf", "student.path=tiny:xs", "teacher=null", "method=grpo", f"{key}={path}"]))
    assert attrgetter(key)(config) == path


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("data.levels=[a", "write 'data.levels=\"[a\"'"),
        ("student.urls=[a", "write 'student.urls=\"[a\"'"),
        ("outputs=~/x", "write 'outputs=\"~/x\"'"),
        ("nonsense", "write key=value"),
    ],
)
def test_what_cannot_be_read_is_shown_as_it_should_be_written(line, remedy):
    with pytest.raises(UserError, match=re.escape(f"cannot read override '{line}': {remedy}")):
        compose([line])
