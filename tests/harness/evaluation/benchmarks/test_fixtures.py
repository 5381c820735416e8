"""The fixtures on disk are what their script writes."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

FIXTURES = Path(__file__).parents[3] / "fixtures"


def test_fixtures_are_those_of_their_script(tmp_path):
    command = [sys.executable, str(FIXTURES / "make_benchmarks.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made, kept = (
        {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path, FIXTURES / "benchmarks")
    )
    assert made.keys() == kept.keys() and len(made) > 80
    for name, path in made.items():
        if path.suffix == ".parquet":  # rows and types: the encoding depends on the library's version
            assert pq.read_schema(path).equals(pq.read_schema(kept[name])), name
            assert pq.read_table(path).to_pylist() == pq.read_table(kept[name]).to_pylist(), name
        elif path.suffix in (".md", ".srt"):
            assert path.read_bytes() == kept[name].read_bytes(), name
        else:  # clips and frames: other versions of the encoder write other bytes
            assert 0 < kept[name].stat().st_size < 10_000, name
