"""Options of a method as a user writes them, and an author declares them: with types and limits."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import yaml

from harness.app import main
from harness.config.schema import ModelConfig, RunConfig
from methods.options import Share, option_type, section, validated
from methods.registry import MethodError, build

PLUGIN = """
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from methods.base import MethodConfig
from methods.grpo import GRPO


def only_even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: Annotated[int, Field(ge=1)] = 1


@dataclass(frozen=True, kw_only=True)
class DemoConfig(MethodConfig):
    group_size: int = 4
    tau: float = 0.25
    width: Annotated[int, Field(gt=0)] = 3
    steps: Annotated[int, Field(multiple_of=4)] = 4
    even: Annotated[int, AfterValidator(only_even)] = 2
    schedule: tuple[float, ...] = (0.0, 1.0)
    pair: tuple[int, Literal["a", "b"]] = (1, "a")
    limit: int | None = None
    either: int | str = 1
    names: Annotated[list[str], Field(min_length=1)] = field(default_factory=lambda: ["a"])
    bound: float = float("inf")
    inner: Inner = Inner()
    free: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit == 13:
            raise ValueError("method.limit=13 brings\\nbad luck: set another")


class Demo(GRPO):
    Config: ClassVar[type[MethodConfig]] = DemoConfig
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A file of a user's."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "demo_options.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield {"name": "demo", "class": "demo_options:Demo"}


def test_values_come_as_yaml_writes_them(demo):
    """1 for 1.0, a list for a tuple, and null where the type says so."""
    text = "{schedule: [0, 0.5], pair: [2, b], limit: null, bound: 1, names: [x], inner: {depth: 2}, free: {a: [1]}}"
    method = build(demo | yaml.safe_load(text))
    assert method is not None
    config = method.config
    assert (config.schedule, config.pair, config.limit, config.names) == ((0.0, 0.5), (2, "b"), None, ["x"])
    assert repr((config.bound, *config.schedule)) == "(1.0, 0.0, 0.5)"
    assert (config.inner.depth, config.free) == (2, {"a": [1]})


def test_what_a_class_has_by_default_can_be_given_again(demo):
    """A run's record names every option, and is given to the class once more; infinity is one of them."""
    assert build(demo | {"bound": float("inf")}).config == build(demo).config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "method.width must be greater than 0, got 0"),
        ({"width": 2.0}, "method.width must be an integer, got 2.0"),
        ({"width": "2"}, "method.width must be an integer, got '2'"),
        ({"steps": 6}, "method.steps must be a multiple of 4, got 6"),
        ({"even": 3}, "method.even: must be even, got 3"),
        ({"schedule": [0, "x"]}, "method.schedule[1] must be a number, got 'x'"),
        ({"schedule": 1}, "method.schedule must be a list, got 1"),
        ({"pair": [1, "c"]}, "method.pair[1] must be 'a' or 'b', got 'c'"),
        ({"limit": 1.5}, "method.limit must be an integer, or null, got 1.5"),
        ({"limit": 13}, "method.limit=13 brings bad luck: set another"),
        ({"either": 1.5}, "method.either must be an integer or a text, got 1.5"),
        ({"names": []}, "method.names: list should have at least 1 item, not 0, got []"),
        ({"bound": float("nan")}, "method.bound must be a number, got nan"),
        ({"inner": {"depth": 0}}, "method.inner.depth must be at least 1, got 0"),
        ({"inner": None}, "method.inner must be a mapping such as {key: value}, got null"),
        ({"free": [1]}, "method.free must be a mapping such as {key: value}, got [1]"),
        ({"widht": 1}, "Demo has no option 'method.widht'. Did you mean width? Options: bound, buffer_capacity, "),
        ({"inner": {"dept": 1}}, "Demo has no option 'method.inner.dept'."),
        ({"group_size": 0}, "method.group_size must be greater than 0, got 0"),
        ({"tau": 1.5}, "method.tau must be at most 1, got 1.5"),
    ],
)
def test_what_no_option_can_have_is_one_line(demo, options, message):
    with pytest.raises(MethodError) as caught:
        build(demo | options)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "reason"),
    [
        ("Missing", "name 'Missing' is not defined"),
        ("ClassVar[int] | None", "typing.ClassVar[int] is not valid as type argument"),
        ("GRPO | None", "Unable to generate pydantic-core schema for <class 'methods.grpo.GRPO'>"),
    ],
)
def test_an_option_that_cannot_be_checked_is_one_line(tmp_path, monkeypatch, hint, reason):
    name = f"bad_{abs(hash(hint))}"
    (tmp_path / f"{name}.py").write_text(PLUGIN.replace("width: Annotated[int, Field(gt=0)] = 3", f"width: {hint} = 3"))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MethodError) as caught:
        build({"name": "bad", "class": f"{name}:Demo", "width": 4})
    assert str(caught.value).startswith(f"{name}:DemoConfig has options of a type of its own: ")
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_limits_hold_where_a_field_is_declared_anew_and_where_a_class_is_called(demo):
    """`group_size` and `tau` have another default there, and no limits of their own."""
    config = type(build(demo).config)
    assert (config().group_size, config().tau) == (4, 0.25)
    with pytest.raises(ValueError, match=r"^method.tau must be at most 1, got 1.5$"):
        config(tau=1.5)
    with pytest.raises(ValueError, match=r"^method.width must be an integer, got '3'$"):
        config(width="3")


def test_a_line_about_one_value_says_nothing_of_another():
    with pytest.raises(ValueError, match=r"^seed must be an integer, got 'a'$"):
        validated(RunConfig, {"seed": "a", "steps": -1}, str)


def test_a_limit_of_a_plugin_holds_on_the_command_line(demo, capsys):
    words = ["train", "student=tiny_xs", "method._target_=demo_options:Demo", "--print-config"]
    assert main([*words, "method.width=0"]) == 2
    assert capsys.readouterr().err == "error: method.width must be greater than 0, got 0\n"
    assert main([*words, "method.width=5", "method.schedule=[1]"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert list(shown) == [option.name for option in fields(RunConfig)]
    method = shown["method"]
    assert (method["width"], method["schedule"], method["bound"]) == (5, [1.0], json.loads("Infinity"))


def test_the_type_of_an_option_by_its_key():
    assert option_type(RunConfig, "teacher.dtype").__args__ == ("float32", "bfloat16", "float16")
    assert option_type(RunConfig, "seed") is int and option_type(RunConfig, "student.path") is str
    assert option_type(RunConfig, "steps.more") is None and option_type(RunConfig, "stepss") is None
    assert option_type(RunConfig, "data.dataset_config.a.b") is not None
    assert section(option_type(RunConfig, "teacher")) is ModelConfig and section(Share) is None
