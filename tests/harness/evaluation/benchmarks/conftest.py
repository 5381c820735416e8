from pathlib import Path

import pytest

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.rows import load_rows

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tables of earlier fixtures are never taken for the present ones, and nothing is left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture
def questions_of():
    """The fixture's questions of a column, under options."""

    def load(name, **options):
        column, chosen = columns()[name], BenchmarkOptions(**options)
        return [q for row in load_rows(column, chosen, str(FIXTURES)) for q in recipe(name).questions(row)]

    return load
