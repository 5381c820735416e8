"""The tables of docs/results/tiny.md: read off run folders, with the columns that the page has."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "tests/fixtures/study_at_39ecb1c"


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results_tables", ROOT / "docs/results/tables.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_of_a_study_by_hand(results):
    """Its scores.csv: 50 in text, 50 and 75 on pictures, 25 on clips, all of level 1. Its buffer after two steps:
    14 questions in, 1 out."""
    runs = results.read(STUDY)
    (scores,) = results.score_rows(runs)
    assert scores[:5] == ["zppo", "50.0", "62.5", "25.0", "50.0"] and scores[6] == "45.8"
    metrics = [json.loads(line) for line in (STUDY / "zppo/tiny_xs/seed0/metrics.jsonl").read_text().splitlines()]
    assert scores[7] == f"{sum(row['tokens/student_generated'] for row in metrics) / 1000:.0f}k"
    (training,) = results.training_rows(runs)
    assert training[4:6] == ["14", "1"] and training[-1] == "bcq 0.12; ncq 0.12"


def test_seeds_stand_side_by_side_and_base_comes_first(results, tmp_path):
    study = Path(shutil.copytree(STUDY, tmp_path / "study"))
    shutil.copytree(study / "zppo/tiny_xs/seed0", study / "zppo/tiny_xs/seed1")
    shutil.copytree(study / "zppo/tiny_xs/seed0", study / "base/tiny_xs/seed0")
    rows = list(results.score_rows(results.read(study)))
    assert [row[0] for row in rows] == ["base", "zppo"]
    assert rows[1][1] == "50.0 / 50.0"
    info = study / "zppo/tiny_xs/seed1/run.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"status": "failed"}))
    with pytest.raises(ValueError, match=r"seed1/run\.json is not of a finished run"):
        results.read(study)


def test_the_page_has_the_tables_of_the_script(results):
    page = results.PAGE.read_text(encoding="utf-8")
    for name, (header, _) in results.TABLES.items():
        table = page.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0]
        assert [cell.strip() for cell in table.splitlines()[0].strip("|").split("|")] == header
