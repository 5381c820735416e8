"""What a wheel holds: every package, and every file in one that is no Python."""

import tomllib
from pathlib import PurePath

from tests.layers import ROOT

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
FOLDERS = ("harness", "methods", "conf", "sweeps", "reports")


def test_every_package_is_listed():
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("__init__.py")]
    assert sorted(SETUPTOOLS["packages"]) == sorted(".".join(file.relative_to(ROOT).parts[:-1]) for file in files)


def test_every_file_of_data_belongs_to_a_package():
    files = [file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.is_file()]
    data = {file for file in files if file.suffix not in (".py", ".pyc")}
    packed = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / PurePath(*package.split("."))).glob(pattern)
        if (file := path.relative_to(ROOT)) in data
    }
    assert data - packed == set()
