"""Which options a stranger's run folder decides: every field of the configuration is marked, or not, on purpose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest

from harness.config.foreign import foreign_values, option_fields
from harness.config.schema import RunConfig
from harness.errors import UserError

DECIDED = {
    "ModelConfig": (
        "dtype enable_thinking",
        "name path revision attn_implementation chat_template urls serve api served_name trust_remote_code",
    ),
    "RewardConfig": ("grader", "num_workers cpu_seconds"),
    "RolloutConfig": (
        "engine",
        "fast_decoding temperature max_prompt_tokens max_response_tokens max_sequences transfer_timeout",
    ),
    "EvalConfig": (
        "suite apply_chat_template num_fewshot mini_tasks levels num_questions num_samples seed temperature top_p "
        "top_k min_p presence_penalty repetition_penalty max_response_tokens columns limit",
        "benchmarks every tasks task_paths allow_code data_root stage",
    ),
    "MediaConfig": ("min_pixels max_pixels fps num_frames max_frames", ""),
    "BenchmarkOptions": (
        "charxiv dynamath hle mmlu_redux wemath vlmsareblind ceval ocrbench_v2 multichallenge gpqa_seed "
        "videomme_subtitles aime_repeats",
        "",
    ),
}
"""Marked and not, of every class that has marked fields."""
UNMARKED = {
    "RunConfig", "JudgeConfig", "EvalJudgeConfig", "TrackerConfig", "CheckpointConfig", "RecordsConfig", "DataConfig",
    "ColumnsConfig", "VllmConfig", "ServerConfig", "UpdateConfig", "AlarmConfig", "ClusterConfig",
}  # fmt: skip
NEVER = re.compile(
    r"path|url|file|root|folder|outputs|code|env|key|attn|template|args|class|target|device|body|project|entity"
)
"""What names code, a place outside the folder, an address or a variable."""


def groups(group: type) -> Iterator[type]:
    yield group
    for hint in get_type_hints(group).values():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and is_dataclass(kind):
                yield from groups(kind)


def test_every_field_is_marked_or_not_on_purpose() -> None:
    found = {
        group.__name__: tuple(
            {field.name for field in fields(group) if field.metadata.get("foreign", False) is mark}
            - {name for name, hint in get_type_hints(group).items() if any(map(is_dataclass, (hint, *get_args(hint))))}
            for mark in (True, False)
        )
        for group in groups(RunConfig)
    }
    mixed = {name: (set(marked.split()), set(others.split())) for name, (marked, others) in DECIDED.items()}
    assert {name: sets for name, sets in found.items() if sets[0]} == mixed
    assert {name for name, (marked, _) in found.items() if not marked} == UNMARKED


def test_no_marked_option_names_code_a_place_an_address_or_a_variable() -> None:
    """A marked text is one of a few words, so that it cannot name anything."""
    marked = {key: hint for key, hint, is_marked in option_fields(RunConfig) if is_marked}
    assert [key for key, hint in marked.items() if NEVER.search(key.rpartition(".")[2]) and hint is not bool] == []
    assert [key for key, hint in marked.items() if str in (hint, *get_args(hint))] == [
        "rollout.engine",  # names, which are looked up
        "eval.suite",
        "eval.mini_tasks",  # lists of names
        "eval.columns",
    ]
    kinds = {
        type(kind) if isinstance(kind, str) else kind
        for hint in marked.values()
        for member in (get_args(hint) or (hint,))
        for kind in (get_args(member) or (member,))
    }
    assert kinds == {str, int, float, bool, type(None)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("suite", "${oc.env:HOME}"),
        ("suite", "../../mini"),
        ("suite", ["mini"]),
        ("mini_tasks", ["${oc.env:HOME}"]),
        ("mini_tasks", ["arithmetic", {"a": 1}]),
        ("mini_tasks", "arithmetic"),
        ("levels", [1, [2]]),
        ("levels", [1] * 1001),
        ("levels", [True]),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "0.5"),
        ("temperature", None),
        ("num_questions", 1.5),
        pytest.param("num_questions", 10**400, id="10**400"),
        ("num_questions", True),
        ("num_questions", 0),
        ("temperature", -0.5),
        ("mini_tasks", ["a" * 101]),
        ("num_questions", {"_target_": "os.system"}),
    ],
)
def test_a_value_that_the_option_cannot_have_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"^eval.{key} has no value that it can have: give one as eval.{key}=VALUE$"):
        foreign_values({"eval": {key: value}}, RunConfig)


def test_what_is_not_marked_is_not_looked_at() -> None:
    stored = {
        "student": {"dtype": "float32", "path": "${oc.env:HOME}", "trust_remote_code": True, "unknown": [[[]]]},
        "eval": {"suite": None, "levels": [1, 2], "temperature": 1, "data_root": "/", "judge": {"url": "http://a"}},
        "teacher": None,
        "method": {"_target_": "os:system"},
        "data": "no record",
    }
    assert foreign_values(stored, RunConfig) == {
        "student.dtype": "float32", "eval.suite": None, "eval.levels": [1, 2], "eval.temperature": 1,
    }  # fmt: skip
    assert foreign_values(["no record"], RunConfig) == {}


def test_tasks_of_mini_are_read_under_their_earlier_name() -> None:
    earlier = {"eval": {"tasks": ["arithmetic"]}}
    assert foreign_values(earlier, RunConfig) == {"eval.mini_tasks": ["arithmetic"]}
    today = {"eval": {"tasks": ["lm_eval:gsm8k"], "mini_tasks": ["bar_clip"]}}
    assert foreign_values(today, RunConfig) == {"eval.mini_tasks": ["bar_clip"]}
