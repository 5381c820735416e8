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


@pytest.fixture(scope="session")
def questions_of():
    """The fixture's questions of a column, under options; each is read once."""
    read = {}

    def load(name, **options):
        key = name, repr(sorted(options.items()))
        if key not in read:
            rows = load_rows(columns()[name], BenchmarkOptions(**options), str(FIXTURES))
            read[key] = [question for row in rows for question in recipe(name).questions(row)]
        return list(read[key])

    return load
