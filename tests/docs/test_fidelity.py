"""docs/fidelity.md: each clause of the paper is marked on a test, or has a reason why not."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "docs" / "fidelity" / "build.py"
spec = importlib.util.spec_from_file_location("fidelity", BUILD)
assert spec is not None and spec.loader is not None
fidelity = sys.modules["fidelity"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fidelity)

CLAUSES = """id,subject,place,clause
C001,data,Sec. 1,Held by a test
C002,data,Sec. 2,Not held
"""
REASONS = "id,state,reason\nC002,not held,It has a reason\n"
TEST = """import pytest

@pytest.mark.clause("C001")
def test_it():
    pass
"""


@pytest.fixture
def problems(tmp_path):
    """What is wrong with one file of tests and two tables."""

    def of(test=TEST, clauses=CLAUSES, reasons=REASONS, file="test_one.py"):
        (tmp_path / "tests").mkdir()
        (tmp_path / "tests" / file).write_text(test)
        tables = {"clauses": clauses, "reasons": reasons, "beside": "subject,deviation\n"}
        for name, text in tables.items():
            (tmp_path / f"{name}.csv").write_text(text)
        return fidelity.collect(tmp_path, tmp_path).problems()

    return of


@pytest.fixture(scope="module")
def found():
    return fidelity.collect()


def test_every_clause_is_held_or_has_a_reason(found):
    assert found.problems() == []
    assert [clause.id for clause in found.clauses] == [f"C{number:03}" for number in range(1, 121)]


def test_the_page_is_the_one_that_the_tables_and_marks_make(found):
    assert fidelity.PAGE.read_text(encoding="utf-8") == found.page(), "python docs/fidelity/build.py"


def test_the_numbers_of_the_page_are_those_of_its_rows(found):
    header, _, numbers = [line for line in found.page().splitlines() if line.startswith("|")][:3]
    assert header == "| clauses | held | not held | cannot be held |"
    total, *parts = (int(cell) for cell in numbers.strip("| ").split(" | "))
    assert total == sum(parts) == 120
    sections = found.page().split("\n## ")[1:]
    num_rows = {text.split("\n")[0]: len(re.findall(r"^\| C\d{3} \|", text, re.MULTILINE)) for text in sections}
    assert [num_rows[title] for title in ("Held", "Not held", "Cannot be held here")] == parts


def test_nothing_is_wrong_with_a_clause_that_is_held_and_one_that_has_a_reason(problems):
    assert problems() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"test": "x = 1\n"}, "C001 has neither a test that is marked with it nor a reason in reasons.csv"),
        ({"test": TEST.replace("C001", "C001\", \"C009")}, "test_it is marked with C009, which is no clause"),
        ({"test": TEST.replace("C001", "C001\", \"C002")}, "C002 is held by a test and has a reason why not"),
        ({"reasons": "id,state,reason\n"}, "C002 has neither a test"),
        ({"reasons": REASONS + "C003,not held,Why\n"}, "C003 of reasons.csv is no clause"),
        ({"reasons": REASONS.replace("It has a reason", "")}, "C002 of reasons.csv needs a reason"),
        ({"reasons": REASONS.replace("not held", "later")}, "C002 of reasons.csv needs a reason, and a state"),
        ({"reasons": REASONS + "C002,not held,Again\n"}, "C002 stands in reasons.csv twice"),
        ({"clauses": CLAUSES + "C002,data,Sec. 3,Again\n"}, "C002 stands in clauses.csv twice"),
        ({"test": TEST.replace('"C001"', "NAME")}, "a mark names clauses as literal strings"),
        ({"test": TEST.replace('("C001")', "")}, "a mark names clauses as literal strings"),
        ({"test": TEST.replace("test_it", "helper")}, "is no test that pytest collects"),
        ({"file": "conftest.py"}, "is no test that pytest collects"),
        ({"test": TEST.replace("def", "@pytest.mark.slow\ndef")}, "does not count on a test with the mark slow"),
        ({"test": TEST.replace("def", "@pytest.mark.skipif(True)\ndef")}, "a test with the mark skipif"),
        ({"test": TEST.replace("@", "pytestmark = [pytest.mark.gpu]\n@")}, "a test with the mark gpu"),
        ({"test": TEST + 'pytestmark = pytest.mark.clause("C001")\n'}, "a clause is marked on a test function"),
    ],
)  # fmt: skip
def test_what_the_build_fails_for(problems, change, problem):
    assert problem in "\n".join(problems(**change))


def test_a_mark_counts_in_every_spelling(problems):
    other = TEST.replace("import pytest", "from pytest import mark").replace("pytest.mark", "mark")
    assert problems(test=other) == []


def test_no_mark_that_pytest_sees_is_missed(request, found):
    """Of all tests of this session."""
    seen = {
        (name, item.path.relative_to(ROOT).as_posix(), item.originalname)
        for item in request.session.items
        for mark in item.iter_markers("clause")
        for name in mark.args
    }
    assert seen - {(mark.id, mark.path, mark.test) for mark in found.marks} == set()
