"""Where the tests of a module are: in its mirror, `tests/<folder>/test_<name>[_<aspect>].py`, or in the table here."""

from collections.abc import Iterable
from pathlib import Path

from tests.layers import ROOT, Tree

TREE = Tree()

ELSEWHERE = {
    # Parts of one thing, tested together as that thing.
    "harness/builders/corpus/test_build.py": "harness.builders.corpus: card examine fixture options shards",
    "harness/builders/tiny/test_build.py": "harness.builders.tiny: card",
    "harness/builders/tiny/test_corpus.py": "harness.builders.tiny: slips",
    "harness/config/test_schema.py": "harness.config: data evaluation update values",
    "harness/data/test_files.py": "harness.data: rows scalars",
    "harness/data/test_index.py": "harness.data: stored",
    "harness/data/test_records_published.py": "harness.data: columns folders formats pictures",
    "harness/evaluation/benchmarks/test_columns.py": "harness.evaluation.benchmarks: registry",
    "harness/evaluation/benchmarks/test_knowledge.py": "harness.evaluation.benchmarks: recipe",
    "harness/evaluation/benchmarks/test_videos.py": "harness.evaluation.benchmarks: subtitles",
    "harness/evaluation/judge/test_formats.py": "harness.evaluation.judge: official",
    "harness/evaluation/library/test_isolation.py": "harness.evaluation.library: upstream",
    "harness/evaluation/test_evaluate.py": "harness.evaluation: student",
    "harness/evaluation/test_library_tasks.py": "harness.evaluation: asking library_scores",
    "harness/evaluation/test_lm_eval_tasks.py": "harness.evaluation.library: loglikelihood",
    "harness/preflight/plan/test_costs.py": "harness.config: gpus",
    "harness/preflight/plan/test_study.py": "harness.preflight.plan: cells options table",
    "harness/preflight/test_doctor.py": "harness.preflight: checks machine parts placement",
    "harness/rewards/judge/test_client.py": "harness.rewards.judge: forms",
    "harness/rewards/test_values.py": "harness.rewards: exact latex notation units",
    "harness/rewards/test_workers.py": "harness.rewards: child process",
    "harness/rollout/test_continuous.py": "harness.rollout: batch decoding",
    "harness/serving/test_endpoints.py": "harness.serving: http",
    "harness/serving/test_server.py": "harness.serving: keeper",
    "harness/study/test_scheduler.py": "harness.study: status",
    "harness/teacher/test_local.py": "harness.teacher: base",
    "harness/training/test_update.py": "harness.training: ranks",
    "methods/test_distill.py": "methods: sft",
    "methods/test_policy.py": "methods: grpo samples",
    "methods/test_registry.py": "methods: base contract keys",
    "reports/page/test_page.py": "reports.page: rollouts",
    "reports/plots/test_data.py": "reports.plots: batch buffer costs dynamics gains style",
    "reports/test_report.py": "reports: sections",
    "reports/test_tables.py": "reports.runs: cards",
    "reports/test_view.py": "reports.runs: rollouts",
    # Seen only in whole commands and runs.
    "harness/commands/test_data.py": "harness.builders.corpus: benchmark_hashes",
    "harness/test_app.py": "harness.commands: machine options reports train",
    "runs/test_nonfinite.py": "harness.training: nonfinite",
    "runs/test_damaged.py": "harness.records: read; reports.runs: damage",
    "runs/test_own_methods.py": "harness.training: credited",
    "runs/test_refused.py": "harness.run: preparation; harness.records: refusals log; harness.training: ownership",
    "runs/test_resume.py": "harness.config: identity; harness.records: files; harness.training: resume trainer",
    "runs/test_run.py": "harness.run: run; harness.records: rollouts; harness.process: modes; harness.training: parts",
    "runs/media/test_packer.py": "harness.models: vision",
    # Need several ranks, vLLM, or are themselves tools of tests.
    "distributed/test_gradients.py": "harness.distributed: messages ranks sharding weights",
    "distributed/test_runs.py": "harness.distributed: build follower world",
    "vllm/test_vllm_engine.py": "harness.rollout: vllm_media",
    "harness/testing/test_checks.py": "harness.testing: lab witness",
    # Records and constants, used by nearly every test.
    "harness/models/test_shapes.py": "harness.models.tiny: shapes",
    "harness/data/test_sources.py": "harness: types",
}
"""A file of tests, and the modules that it tests beside its own."""


def elsewhere() -> dict[str, str]:
    """The file of tests of each module of the table."""
    found = {}
    for file, entries in ELSEWHERE.items():
        for entry in entries.split("; "):
            package, _, names = entry.partition(": ")
            found |= {f"{package}.{name}": file for name in names.split()}
    return found


def mirrors(name: str) -> list[Path]:
    """The files of tests beside which a module needs no other."""
    package, _, short = name.rpartition(".")
    folder = ROOT / "tests" / TREE.files[name].relative_to(ROOT).parent
    names = [other.rpartition(".")[2] for other in MODULES if other.rpartition(".")[0] == package]
    return [file for file in folder.glob("test_*.py") if module_of(file.stem, names) == short]


def module_of(stem: str, names: Iterable[str]) -> str | None:
    """Which module of a folder a file of tests is of: `test_step_updates` is of `step_updates`, not of `step`."""
    fitting = [name for name in names if f"{stem}_".startswith(f"test_{name}_")]
    return max(fitting, key=len, default=None)


MODULES = [name for name, file in TREE.files.items() if file.name != "__init__.py"]


def test_a_file_of_tests_is_of_the_longest_name_that_fits():
    names = ("step", "step_updates", "update")
    files = (
        "test_step",
        "test_step_updates",
        "test_step_updates_resumed",
        "test_step_aside",
        "test_updates",
        "test_st",
    )
    assert [module_of(file, names) for file in files] == ["step", "step_updates", "step_updates", "step", None, None]


def test_a_module_has_a_mirror_or_is_in_the_table():
    assert set(elsewhere()) == {name for name in MODULES if not mirrors(name)}


def test_the_files_of_the_table_exist():
    assert [file for file in ELSEWHERE if not (ROOT / "tests" / file).is_file()] == []


def test_no_file_of_tests_is_empty():
    files = {ROOT / "tests" / file for file in ELSEWHERE} | {file for name in MODULES for file in mirrors(name)}
    assert [file for file in files if "def test_" not in file.read_text(encoding="utf-8")] == []


def test_a_file_of_tests_has_a_module():
    """What crosses modules is in `tests/runs/`; one file compares the made-up benchmarks with their script."""
    known = {file for name in MODULES for file in mirrors(name)}
    files = {
        file for package in ("harness", "methods", "reports") for file in (ROOT / "tests" / package).rglob("test_*.py")
    }
    assert {str(file.relative_to(ROOT / "tests")) for file in files - known} == {
        "harness/evaluation/benchmarks/test_fixtures.py"
    }
