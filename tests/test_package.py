"""What a wheel holds: every package, and every file in one that is no Python."""

import tomllib
from importlib import import_module
from pathlib import PurePath

from tests.layers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
FOLDERS = ("harness", "methods", "conf", "sweeps", "reports")


def test_every_package_is_listed():
    folders = {parent for folder in FOLDERS for file in (ROOT / folder).rglob("*.py") for parent in file.parents}
    inside = {folder.relative_to(ROOT) for folder in folders if folder != ROOT and folder.is_relative_to(ROOT)}
    assert sorted(SETUPTOOLS["packages"]) == sorted(".".join(folder.parts) for folder in inside)
    assert [folder for folder in inside if not (ROOT / folder / "__init__.py").is_file()] == []


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
    assert set(SETUPTOOLS["package-data"]) <= set(SETUPTOOLS["packages"])
    assert set(SETUPTOOLS) == {"packages", "package-data"}  # nothing is excluded again


def test_the_command_of_the_package_is_there():
    module, _, function = PROJECT["project"]["scripts"]["zppo"].partition(":")
    assert callable(getattr(import_module(module), function))
