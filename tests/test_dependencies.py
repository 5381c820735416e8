"""The rules of docs/architecture.md about who may import what, read off the source."""

import ast
from pathlib import Path
from typing import get_args

import pytest

from harness.types import PromptKind

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for package in ("harness", "methods", "reports") for p in (ROOT / package).rglob("*.py"))

PRESETS = {p.stem for p in (ROOT / "conf" / "method").glob("*.yaml")} - set(get_args(PromptKind))
"""Some are called as the kind of prompt that they add: comparing a kind is no branch on a method."""

KNOWS_MORE = {
    "run.py": ("methods.registry",),
    "testing/lab.py": ("methods.registry",),
    "catalog.py": ("methods.registry", "methods.plugins"),
    "compose.py": ("methods.plugins",),
}
"""Modules of the harness that build methods by name, list them, or look for option files that plugins ship."""


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports; with `top_level`, only those that importing the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_executed(tree) if top_level else ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _executed(tree: ast.AST):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _executed(node)


def modules(package: str) -> list[Path]:
    return [p for p in MODULES if p.relative_to(ROOT).parts[0] == package]


def starts(names: set[str], *prefixes: str) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(p + ".") for p in prefixes)}


@pytest.mark.parametrize("path", modules("methods"), ids=lambda p: p.name)
def test_methods_import_only_types_of_the_harness(path):
    allowed = starts(imports(path), "harness.types")
    assert starts(imports(path), "harness") - allowed - {"harness"} == set()
    assert starts(imports(path), "reports") == set()
    assert starts(imports(path, top_level=True), "torch", "transformers") == set()


@pytest.mark.parametrize("path", modules("harness"), ids=lambda p: str(p.relative_to(ROOT)))
def test_who_knows_the_registry_and_the_plugins(path):
    """Others see the contract and the wording, never a method by name."""
    used = starts(imports(path), "methods")
    contract = starts(used, "methods.base", "methods.prompts") | {"methods"}
    contract |= starts(used, *KNOWS_MORE.get(str(path.relative_to(ROOT / "harness")), ()))
    assert used - contract == set()


@pytest.mark.parametrize("path", modules("reports"), ids=lambda p: p.name)
def test_reports_read_run_folders_only(path):
    assert starts(imports(path), "torch", "transformers", "harness", "methods") == set()


@pytest.mark.parametrize(
    "name",
    [
        "config",
        "config_cluster",
        "distributed/balance",
        "distributed/launch",
        "distributed/place",
        "gpus",
        "errors",
        "types",
        "compose",
        "sweep",
        "scheduler",
        "run",
        "app",
        "catalog",
        "new_method",
    ],
)
def test_checking_a_configuration_needs_no_torch(name):
    path = ROOT / "harness" / f"{name}.py"
    assert starts(imports(path, top_level=True), "torch", "transformers", "lm_eval", "accelerate") == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_short_and_know_no_method_by_name(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
            assert not constants & PRESETS, f"{path}:{node.lineno} branches on a method's name: {ast.unparse(node)}"


def test_one_train_loop():
    """Building the tiny family pretrains, and the conformance kit measures the memory of one backward pass."""
    loops = [p for p in MODULES if ".backward(" in p.read_text(encoding="utf-8")]
    assert {str(p.relative_to(ROOT)) for p in loops} == {
        "harness/training/update.py", "harness/models/tiny/build.py", "harness/testing/checks.py",
    }  # fmt: skip
