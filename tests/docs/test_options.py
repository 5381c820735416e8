"""docs/configuration.md against the dataclasses that it is made of."""

import importlib.util
import re
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from omegaconf import OmegaConf
from pydantic import Field

from harness.config.compose import compose, group_options, parse_overrides
from harness.config.schema import ModelConfig, RunConfig, from_hydra, known_keys
from harness.errors import UserError
from methods import registry

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "configuration.md"
spec = importlib.util.spec_from_file_location("options_page", DOCS / "options" / "page.py")
assert spec is not None and spec.loader is not None
reference = sys.modules["options_page"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)
TEXT = PAGE.read_text(encoding="utf-8")
SETTINGS, METHODS = TEXT.split("\n## Methods\n")
NOT_FIRST = ("Of", "As", "With", "Likewise", "The same")
"""A meaning that begins so needs the one above it."""


def rows(text: str) -> dict[str, tuple[str, str, str]]:
    """Type, default and meaning of every key in the tables of a text; of two rows with one key the last."""
    cells = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if line.startswith("| `")]
    return {key: (kind, default, said) for keys, kind, default, said in (row for row in cells if len(row) == 4)
            for key in re.findall(r"`([^`]+)`", keys)}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    """What stands below each heading."""
    return dict(part.split("\n", 1) for part in re.split(r"^##+ ", text, flags=re.MULTILINE)[1:])


CLASSES = {key: cls.Config for key, cls in registry.built_in().items() if cls.__module__ in registry.BUILT_IN}


def test_the_page_is_the_one_that_the_dataclasses_make():
    assert reference.page() == TEXT, "python docs/options/page.py > docs/configuration.md"


def test_every_key_of_a_run_is_on_the_page():
    titles = {name for title in sections(SETTINGS) for name in title.split(", ")}
    assert [key for key in known_keys() if key not in rows(SETTINGS).keys() | titles] == []
    assert rows(SETTINGS).keys() <= set(known_keys())


@pytest.mark.parametrize("key", CLASSES)
def test_every_option_of_a_method_is_on_the_page(key):
    """In the sections that the table names for its class; of several with one key the last has its default."""
    line = next(line for line in METHODS.splitlines() if line.startswith(f"| `{key}` |"))
    below = sections(METHODS)
    shown = rows("\n".join(below[name] for name in re.findall(r"\[(\w+)\]\(#", line)))
    expected = {f"method.{option.name}": f"`{reference.typed(option.default)}`" for option in fields(CLASSES[key])}
    assert {name: default.split(";")[0] for name, (_, default, _) in shown.items()} == expected


def test_every_option_has_a_meaning_that_stands_alone():
    for text in (SETTINGS, *sections(METHODS).values()):
        for key, (_, _, said) in rows(text).items():
            assert len(said.split()) >= 4, key
            assert said.endswith((".", ")")) and said[0].isupper(), key
            assert not said.startswith(tuple(f"{first} " for first in NOT_FIRST)), key


def test_no_link_within_the_page_is_dead():
    headings = re.findall(r"^##+ (.*)$", TEXT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", TEXT)
    assert set(links) <= anchors and len(set(links)) >= 20


def test_every_section_says_what_it_is_for():
    for title, text in (sections(SETTINGS) | sections(METHODS)).items():
        said = text.strip().split("\n|")[0]
        assert len(said.split()) >= 4 and not said.startswith("|"), title


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("update.learning_rate", "float from 0", "1e-06"),
        ("eval.top_p", "float above 0 up to 1", "0.95"),
        ("update.betas", "list of float from 0 below 1", "[0.9,0.999]"),
        ("rollout.max_response_tokens", "int above 0", "12288"),
        ("data.batch_size", "int above 0", "384"),
        ("data.media.min_pixels", "int above 0", "262144"),
        ("eval.presence_penalty", "float", "1.5"),
        ("eval.media.fps", "float above 0 or null", "2.0"),
        ("checkpoint.keep_every", "int above 0 or null", "null"),
        ("cluster.gpu", "str", "''"),
        ("student.urls", "list of str", "[]"),
        ("reward.judge.extra_body", "dict", "{chat_template_kwargs:{enable_thinking:false}}"),
        ("rollout.vllm.prefix_caching", "bool", "true"),
    ],
)
def test_types_and_published_defaults(key, kind, default):
    assert rows(SETTINGS)[key][:2] == (kind, f"`{default}`")


@pytest.mark.parametrize(
    ("section", "key", "default"),
    [
        ("MethodConfig", "group_size", "`8`"),
        ("MethodConfig", "updates_per_step", "`1`; PolicyGradientConfig: `4`"),
        ("MethodConfig", "replay", "`false`; TeacherAidedConfig: `true`"),
        ("PolicyGradientConfig", "updates_per_step", "`4`"),
        ("PolicyGradientConfig", "clip_ratio_high", "`0.28`"),
        ("TeacherAidedConfig", "teacher_group_size", "`4`"),
        ("AugmentConfig", "augment_ratio", "`0.25`"),
        ("ZPPOConfig", "compress_max_lines", "`5`"),
        ("PrefixConfig", "prefix_ratio", "`0.4`"),
    ],
)
def test_published_defaults_of_methods(section, key, default):
    assert rows(sections(METHODS)[section])[f"method.{key}"][1] == default


def test_a_default_means_itself_on_the_command_line():
    structure = OmegaConf.create(asdict(RunConfig(teacher=ModelConfig())))
    for key, (_, default, _) in rows(SETTINGS).items():
        if default == "required":
            section, _, name = key.rpartition(".")
            assert OmegaConf.is_missing(OmegaConf.select(structure, section), name), key
        else:
            (override,) = parse_overrides([f"{key}={default.strip('`')}"])
            value = OmegaConf.select(structure, key)
            assert override.value() == (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value), key


def beyond(kind: str) -> list[float]:
    """Of `int above 0 up to 9`, values that are just outside."""
    steps = {"above": 0, "from": -1, "below": 0, "up to": 1}
    return [int(number) + steps[word] for word, number in re.findall(r"(above|from|below|up to) (\d+)", kind)]


def test_choices_and_limits_are_those_that_are_checked():
    """Of the page's rows: a value beyond each limit, and a word that is not among the choices."""
    words = ["student=tiny_xs", "data=arithmetic", "teacher=tiny_teacher"]
    cases = [(key, value, kind) for key, (kind, _, _) in rows(SETTINGS).items() for value in beyond(kind)]
    cases += [(key, "nonsense", kind) for key, (kind, _, _) in rows(SETTINGS).items() if kind.startswith("`")]
    assert len(cases) > 100
    for key, value, kind in cases:
        cfg = compose(words)
        OmegaConf.update(cfg, key, [value, value] if kind.startswith("list") else value, force_add=True)
        with pytest.raises(UserError) as caught:
            from_hydra(cfg)
        assert re.match(rf"{re.escape(key)}(\[0\])? must be .*, got {value!r}$", str(caught.value)), key
        assert all(f"'{word}'" in str(caught.value) for word in re.findall(r"`(\w+)`", kind))


def test_the_groups_of_option_files():
    listed = dict(re.findall(r"^\| `(\w+)=` \| (.+?) \|", TEXT, re.MULTILINE))
    for group in ("student", "teacher", "data", "rollout", "eval", "cluster"):
        assert re.findall(r"`(\w+)`", listed[group]) == [n for n in group_options(group) if n in listed[group]]
    assert "`tiny_xs`" in listed["student"] and "`paper31`" in listed["eval"]


def test_presets_stand_beside_their_class_with_what_they_set():
    assert "| `grpo` | `grpo`, `grpo_replay` (`method.replay=true`) |" in METHODS
    assert "`grpo_both` (`method.replay=false`)" in next(
        li for li in METHODS.splitlines() if li.startswith("| `zppo` |")
    )


def test_the_page_can_be_read():
    for line in TEXT.splitlines():
        assert line.startswith("|") or len(line) <= 200
        assert "<" not in re.sub(r"`[^`]*`", "", line), "Markdown takes it for a tag"
    tables = [block.splitlines() for block in TEXT.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table}) == 1, table[0]


@dataclass
class Part:
    """What a part
    is for."""

    size: int | None = None
    """Pieces
    a part."""
    mode: Literal["a", "b"] = "a"
    names: list[str] = field(default_factory=list)
    """Not of `mode`."""


@dataclass
class Heir(Part):
    size: int | None = 3


def test_a_meaning_is_the_docstring_below_its_field_or_an_inherited_one():
    assert reference.purpose(Part) == "What a part is for."
    assert reference.purpose(Heir) == ""
    assert [reference.meaning(Heir, name) for name in ("size", "mode", "names")] == [
        "Pieces a part.",
        "",
        "Not of `mode`.",
    ]
    assert [reference.default_of(option) for option in fields(Heir)] == ["`3`", "`a`", "`[]`"]
    assert reference.type_of(Literal["a", "b"]) == "`a`, `b`"
    assert reference.type_of(Annotated[int, Field(ge=1, lt=9)] | None) == "int from 1 below 9 or null"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (1e-8, "1e-08"), ("", "''"), ("a b", "'a b'"), ([1, None], "[1,null]")],
)
def test_typed(value, text):
    assert reference.typed(value) == text
    assert parse_overrides([f"x={text}"])[0].value() == value
