"""Engines, data sources and benchmarks of others: real distributions on disk, runs with them, a line for each fault."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from harness.app import main
from harness.config.data import SOURCES
from harness.config.engines import ENGINES
from harness.config.evaluation import EvalConfig, check_suite
from harness.config.registry import Registry
from harness.data.sources import LOADERS
from harness.errors import UserError
from harness.evaluation.benchmarks.recipe import Mark
from harness.evaluation.suites import load_suite
from harness.rewards.rules import Grade
from harness.testing import assert_same_run
from harness.training.models import OPENERS

SMALL = [
    "student=tiny_xs", "steps=1", "num_threads=1", "method.group_size=2",
    "data.batch_size=2", "rollout.max_response_tokens=16",
]  # fmt: skip
GENERATED = ["data.levels=[1]", "data.num_questions=4", "data.pool_size=null", "eval=none"]

PARTS = """
from harness.rollout.transformers_engine import open_engine as ours
from harness.types import OwnBenchmark, Question

OPENED = []


def open_engine(parts):
    OPENED.append((parts.sampler, parts.weights is None))
    return ours(parts)


def load(config):
    add = config.dataset_config["add"]
    return [Question(id=str(i), text=f"Compute {i}+{add}.", answer=str(i + add)) for i in range(9)]


def sums():
    return OwnBenchmark(name="sums", family="LLM", questions=load_all(), judged=False)


def half():
    return OwnBenchmark(name="half", family="LLM", questions=load_all(), mark=lambda question, answer: 0.5)


def load_all():
    return [Question(id=str(i), text=f"Compute {i}+1.", answer=str(i + 1)) for i in range(6)]


def twins(config):
    return [Question(id="a", text="Compute 1+1.", answer="2")] * 2


def texts(config):
    return ["Compute 1+1."]


def same_name():
    return OwnBenchmark(name="aime26", family="LLM", questions=load_all())


def no_question():
    return OwnBenchmark(name="empty", family="LLM", questions=[])


def beyond():
    return OwnBenchmark(name="beyond", family="LLM", questions=load_all(), mark=lambda question, answer: 2.0)


NUMBER = 3


def fails(*given):
    raise KeyError("add")


def leaves(*given):
    raise SystemExit(3)


def half_way(config):
    yield load_all()[0]
    1 / 0


def nothing(*given):
    return None


def numbered(config):
    return [Question(id=1, text="Compute 1+1.", answer="2")]


def unknown_type(config):
    return [Question(id="a", text="Compute 1+1.", answer="2", answer_type="words")]


def no_gold():
    return OwnBenchmark(name="no_gold", family="LLM", questions=[Question(id="a", text="Compute 1+1.", answer="?!")])


def no_family():
    return OwnBenchmark(name="no_family", family="Text", questions=load_all())
"""


@pytest.fixture
def parts(install, tmp_path, monkeypatch) -> Path:
    """A package with one of each, its benchmarks declared and with a suite; the folder of outputs."""
    files = {
        "parts_pkg/__init__.py": PARTS,
        "parts_pkg/conf/eval/sums_and_half.yaml": "suite: sums_and_half\nbenchmarks: [own_sums, parts_pkg:half]\n",
    }
    install("zppo-parts", {"own_sums": "parts_pkg:sums"}, files, group="zppo.benchmarks")
    install("zppo-engine", {"own_engine": "parts_pkg:open_engine"}, {}, group="zppo.engines")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


@pytest.mark.parametrize(("registry", "ours"), [(ENGINES, OPENERS), (SOURCES, LOADERS)], ids=["engines", "sources"])
def test_what_is_ours_can_be_had_by_its_name_and_by_its_path(registry: Registry, ours: dict[str, str]) -> None:
    assert list(ours) == list(registry.ours)
    for name, path in ours.items():
        if name != "vllm":  # it is not installed here
            assert registry.load(name, ours) is registry.load(path)


def test_a_fault_in_a_module_of_ours_is_none_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_of_ours.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        Registry("data.source", "zppo.sources", ("broken",)).load("broken", {"broken": "broken_of_ours:load"})
    with pytest.raises(UserError, match="importing broken_of_ours fails"):
        Registry("data.source", "zppo.sources").load("broken_of_ours:load")


def test_an_engine_and_a_source_of_others_are_used(parts: Path) -> None:
    """The engine is ours in another package: then the run is the same."""
    for outputs, engine in ((parts / "ours", "transformers"), (parts / "theirs", "own_engine")):
        words = ["train", *SMALL, *GENERATED, "method=off_policy_kd", f"rollout.engine={engine}", f"outputs={outputs}"]
        assert main(words) == 0
    run = Path("default/off_policy_kd/tiny_xs/seed0")
    assert_same_run(parts / "ours" / run, parts / "theirs" / run)
    assert sys.modules["parts_pkg"].OPENED == [("student", False), ("teacher", True)]  # its copy only scores
    words = [
        *SMALL,
        "method=grpo",
        "data.source=parts_pkg:load",
        "data.dataset_config.add=1",
        "data.pool_size=null",
        "data.epochs=1",
    ]
    assert main(["train", *words, "eval=none", "study=theirs", f"outputs={parts}"]) == 0
    info = json.loads((parts / "theirs" / "grpo" / "tiny_xs" / "seed0" / "run.json").read_text())
    assert info["most_steps"] == 4  # 9 questions, 2 a step


def test_a_suite_of_others_lists_its_own_benchmarks(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "model=tiny_xs", "suite=sums_and_half", "limit=4", f"outputs={parts}"]) == 0
    folder = next(parts.rglob("scores.csv")).parent
    assert folder.name == "sums_and_half"
    rows = {row["benchmark"]: row for row in csv.DictReader((folder / "scores.csv").open())}
    assert {name: (row["family"], row["n"]) for name, row in rows.items()} == {
        "sums": ("LLM", "4"),
        "half": ("LLM", "4"),
    }
    answered = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    uids = [row["uid"] for row in answered if row["benchmark"] == "sums"]
    assert uids == [f"eval/sums/{i}" for i in (0, 1, 3, 4)]  # of the complete benchmark: they decide its draws
    halves = [(row["answer"] is not None, row["score"]) for row in answered if row["benchmark"] == "half"]
    assert len(halves) == 4 and set(halves) <= {(True, 0.5), (False, 0.0)}
    cards = json.loads((folder / "protocol.json").read_text())["cards"].values()
    assert {card["benchmark"]: card["dataset"] for card in cards} == {
        "sums": "parts_pkg:sums",
        "half": "parts_pkg:half",
    }
    capsys.readouterr()
    words = [
        "train",
        *SMALL,
        *GENERATED[:3],
        "method=grpo",
        "eval=sums_and_half",
        "eval.columns=[aime26]",
        f"outputs={parts}",
    ]
    assert main(words) == 2
    assert "eval.columns: sums_and_half has no 'aime26'" in capsys.readouterr().err


def test_a_mark_of_others_sees_the_box_and_lies_in_0_to_1(parts: Path) -> None:
    half, beyond = load_suite(EvalConfig(suite="own", benchmarks=["parts_pkg:half", "parts_pkg:beyond"])).benchmarks
    question = half.questions[0]
    assert half.scorer(question, Grade.of(None, "unparsable")) == Mark(score=0.0, outcome="unparsed")
    assert half.scorer(question, Grade.of("1", "correct")) == Mark(score=0.5, outcome="mismatch")
    with pytest.raises(UserError, match="the mark of question 0 is 2: marks lie in"):
        beyond.scorer(question, Grade.of("1", "correct"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rollout.engine=own_engin", "rollout.engine=own_engin is not known. Did you mean 'own_engine'?"),
        ("rollout.engine=parts_pkg.open_engine", "One of your own is named package.module:name."),
        (
            "rollout.engine=parts_pkg:open_engin",
            "has nothing to call by the name open_engin. Did you mean 'open_engine'",
        ),
        (
            "data.source=parts_pkg:NUMBER",
            "parts_pkg has nothing to call by the name NUMBER",
        ),
        (
            "data.source=no_such_pkg:load",
            "no module no_such_pkg is installed, or lies in",
        ),
        ("data.source=broken:load", "importing broken fails (ZeroDivisionError: division by zero)"),
        ("data.source=parts_pkg:twins", "gave two questions of the id 'a': ids have to differ"),
        (
            "data.source=parts_pkg:texts",
            "gave a str: a question is a harness.types.Question",
        ),
        ("data.source=parts_pkg:fails", "data.source=parts_pkg:fails raised KeyError: 'add' ("),
        ("data.source=parts_pkg:leaves", "data.source=parts_pkg:leaves raised SystemExit: 3 ("),
        (
            "data.source=parts_pkg:half_way",
            "data.source=parts_pkg:half_way raised ZeroDivisionError: division by zero (",
        ),
        ("data.source=parts_pkg:nothing", "gave a NoneType: a source gives harness.types.Question"),
        ("data.source=parts_pkg:numbered", "gave a question whose id is 1: it has to be a text"),
        ("data.source=parts_pkg:unknown_type", "question a has the answer type 'words'. Known: choice, math"),
        ("rollout.engine=parts_pkg:nothing", "gave a NoneType without generate: see RolloutEngine"),
        ("rollout.engine=parts_pkg:fails", "rollout.engine=parts_pkg:fails raised KeyError: 'add' ("),
        ("eval.benchmarks=['parts_pkg:fails']", "eval.benchmarks=parts_pkg:fails raised KeyError: 'add' ("),
        ("eval.benchmarks=['parts_pkg:no_gold']", "parts_pkg:no_gold: question a: "),
        ("eval.benchmarks=['parts_pkg:no_family']", "is of the family 'Text'. Known: LLM, VLM, Video"),
        ("eval.benchmarks=[aime27]", "eval.benchmarks=aime27 is not known. Did you mean 'aime26'"),
        ("eval.benchmarks=['parts_pkg:same_name']", "is named aime26, as another benchmark is: choose another name"),
        ("eval.benchmarks=['parts_pkg:no_question']", "eval.benchmarks=parts_pkg:no_question has no questions"),
        ("eval.benchmarks=['parts_pkg:load_all']", "gave a list: it has to give a harness.types.OwnBenchmark"),
        ("eval.benchmarks=[own_sums,'parts_pkg:sums']", "is named sums, as another benchmark is"),
        ("eval.benchmarks=[own_sums,own_sums]", "eval.benchmarks has own_sums twice: name it once"),
    ],
)
def test_what_cannot_be_used_is_one_line(parts: Path, capsys, words: str, message: str) -> None:
    Path("broken.py").write_text("1 / 0")
    suite = ["eval.suite=own"] if "benchmarks" in words else ["eval=none"]
    given = ["train", *SMALL, "method=zppo", *GENERATED[:3], *suite, words, f"outputs={parts}"]
    assert main(given) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not list(parts.rglob("config.yaml"))


def test_the_doctor_finds_an_engine_as_a_run_does(parts: Path, capsys) -> None:
    assert main(["doctor", *SMALL, "method=grpo", "eval=none", "rollout.engine=parts_pkg:open_engin"]) == 2
    assert "nothing to call by the name open_engin" in " ".join(capsys.readouterr().out.split())


def test_a_suite_of_ones_own_leaves_the_scores_of_another(parts: Path, capsys) -> None:
    words = ["eval", "model=tiny_xs", "limit=1", f"outputs={parts}"]
    assert main([*words, "suite=mini", "eval.levels=[1]", "eval.mini_tasks=[arithmetic]"]) == 0
    (scores,) = parts.rglob("scores.csv")
    before = scores.read_bytes()
    assert main([*words, "suite=own", "eval.benchmarks=['parts_pkg:sums']"]) == 0
    assert (scores.parents[1] / "own" / "scores.csv").exists() and scores.read_bytes() == before
    capsys.readouterr()
    for more, message in (
        (
            ["suite=mini", "eval.benchmarks=['parts_pkg:sums']"],
            "eval.suite=mini has benchmarks of its own: set another",
        ),
        (["suite=others"], "suite=others: no such suite. Known: "),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert scores.read_bytes() == before
    with pytest.raises(UserError, match=r"eval\.benchmarks is a suite without a name: set eval\.suite=NAME"):
        check_suite(EvalConfig(benchmarks=["parts_pkg:sums"]))


def test_a_name_that_two_claim_is_refused(install, parts: Path) -> None:
    install("zppo-other", {"own_engine": "other_pkg:open", "vllm": "other_pkg:open"}, {}, group="zppo.engines")
    for name in ("own_engine", "vllm"):
        with pytest.raises(UserError, match=rf"rollout.engine={name} is claimed by .* and by .*: uninstall one of"):
            ENGINES.entry(name)
    assert ENGINES.entry("other_pkg:open") == "other_pkg:open"


def test_what_a_strangers_folder_names_is_not_imported(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["train", *SMALL, "method=grpo", *GENERATED[:3], "eval=mini", "eval.num_questions=2", f"outputs={parts}"])
        == 0
    )
    run = parts / "default" / "grpo" / "tiny_xs" / "seed0"
    config, text = run / "config.yaml", (run / "config.yaml").read_text()
    Path("planted.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    for before, after, message in (
        ("engine: transformers", "engine: planted:open", "rollout.engine has no value that it can have"),
        ("engine: transformers", "engine: own_engine", ""),  # of an installed package
        ("benchmarks: []", "benchmarks: ['planted:open']", ""),
    ):
        assert before in text
        config.write_text(text.replace(before, after))
        assert main(["eval", f"run={run}", "limit=1"]) == (2 if message else 0)
        assert message in capsys.readouterr().err
    assert not Path("ran").exists()
