"""Names of library tasks, read off their files without the libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.evaluation.library.index import Entry, find_tasks, own_index, runs_code, task_index
from harness.evaluation.library.isolation import quiet_lmms_eval
from tests.support.library_tasks import write_own_tasks


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A group of two tasks, and files of other forms."""
    write_own_tasks(tmp_path)
    (tmp_path / "base_yaml").write_text("tag: [own_tag, other_tag]\nunsafe_code: true\ntest_split: test\n")
    (tmp_path / "quoted.yaml").write_text('"task": "own_code"  # a comment\ninclude: base_yaml\n')
    (tmp_path / "listed.yaml").write_text(
        "group: own_outer\ntask:\n  - own_sums\n  - task: own_code\n    num_fewshot: 3\n"
    )
    (tmp_path / "broken.yaml").write_text("task: [\n")
    (tmp_path / "no_task.yaml").write_text("dataset_path: json\n")
    (tmp_path / "second.yaml").write_text("task: own_code\ntest_split: other\n")
    return tmp_path


def test_tasks_groups_and_tags_of_a_folder(own: Path) -> None:
    before = {name for name in ("lm_eval", "lmms_eval") if name in sys.modules}
    index = own_index("lm_eval", str(own))
    assert {name: entry.kind for name, entry in index.items()} == {
        "own_choices": "task",
        "own_replies": "task",
        "own_sums": "group",
        "own_outer": "group",
        "own_code": "task",
        "own_tag": "tag",
        "other_tag": "tag",
    }
    assert index["own_tag"].tasks == ["own_code"]
    assert index["own_code"].file == own / "quoted.yaml"  # of two files, the first
    assert {name for name in ("lm_eval", "lmms_eval") if name in sys.modules} == before


def test_of_two_files_lmms_eval_takes_the_last_and_a_group_of_a_task_is_a_tag(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("task: own\ngroup: [own_group]\n")
    index = own_index("lmms_eval", str(tmp_path))
    assert (index["own"].kind, index["own_group"].kind, index["own_group"].tasks) == ("task", "tag", ["own"])


def test_what_runs_code_is_found_below_groups_without_importing_it(own: Path) -> None:
    index = own_index("lm_eval", str(own))
    assert runs_code("own_sums", index, "lm_eval", [str(own)]) is None
    assert runs_code("own_outer", index, "lm_eval", [str(own)]) == "own_code"
    assert runs_code("own_tag", index, "lm_eval", [str(own)]) == "own_code"


def test_ones_own_folders_suffice_and_come_first(
    own: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(library: str) -> dict[str, Entry]:
        raise AssertionError("14,000 files were read for nothing")

    monkeypatch.setattr("harness.evaluation.library.index._library_index", never)
    other = tmp_path_factory.mktemp("other")
    (other / "mine.yaml").write_text("task: own_choices\n")
    found = find_tasks("lm_eval", ["own_sums", "own_choices"], [str(other), str(own)])
    assert found["own_choices"].file == other / "mine.yaml"
    with pytest.raises(UserError, match=r"eval\.task_paths=/nowhere is no folder"):
        find_tasks("lm_eval", ["own_sums"], ["/nowhere"])


@pytest.mark.slow
def test_every_name_is_there_as_the_libraries_find_it() -> None:
    from lm_eval.tasks import TaskManager

    names = {"TASK": "task", "PY_TASK": "python_task", "GROUP": "group", "TAG": "tag"}
    theirs = {
        name: (names[entry.kind.name], entry.yaml_path, sorted(entry.tags) if entry.kind.name == "TAG" else [])
        for name, entry in TaskManager().task_index.items()
    }
    assert shown(task_index("lm_eval")) == theirs and len(theirs) > 10_000
    with quiet_lmms_eval():
        from lmms_eval.tasks import TaskManager as MediaTaskManager

        found = MediaTaskManager().task_index
    theirs = {
        name: (
            entry["type"],
            None if entry["yaml_path"] == -1 else Path(entry["yaml_path"]),
            sorted(entry["task"]) if entry["type"] == "tag" else [],
        )
        for name, entry in found.items()
    }
    assert shown(task_index("lmms_eval")) == theirs and len(theirs) > 1_500


def shown(index: dict[str, Entry]) -> dict[str, tuple[str, Path | None, list[str]]]:
    return {name: (entry.kind, entry.file, sorted(entry.tasks)) for name, entry in index.items()}
