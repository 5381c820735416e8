"""The wall: an import goes to a lower floor only, no files form a circle, and what the floors cannot say."""

import ast
import re
import subprocess
import sys
import textwrap
from typing import get_args

import pytest

from harness.config.engines import ENGINES
from harness.types import PromptKind
from tests import layers
from tests.layers import Import, Tree, imported_names

TREE = Tree()
PRESETS = {p.stem for p in (layers.ROOT / "conf" / "method").glob("*.yaml")} - set(get_args(PromptKind))
"""Some are called as the kind of prompt that they add: comparing a kind is no branch on a method."""

KNOWS_MORE = {
    "harness.config.compose": ("methods.plugins",),
    "harness.config.deployment": ("methods.registry",),
    "harness.config.registry": ("methods.plugins",),
    "harness.app": ("methods.registry",),
    "harness.run.run": ("methods.registry",),
    "harness.testing.lab": ("methods.registry",),
    "harness.commands.methods": ("methods.registry", "methods.plugins"),
}
"""Modules of the harness that build methods by name, list them, or look for option files that plugins ship."""

NAMES_METHODS = {
    "harness.study.cells": {"base"},  # the cell without training
    "harness.commands.new_method": {"zppo"},  # the command
}

WITHOUT_TORCH = (
    "harness.app", "harness.commands", "harness.config", "harness.distributed.balance", "harness.distributed.launch",
    "harness.distributed.rank", "harness.preflight.plan", "harness.process", "harness.run", "harness.study",
    "methods", "reports",
)  # fmt: skip
"""What checks a configuration, plans or runs a study, or reads one: folders with all their modules."""


def test_an_import_goes_to_a_lower_floor():
    assert TREE.upward == []


def test_no_files_form_a_circle():
    assert TREE.circles == []


def test_no_two_folders_import_each_other():
    assert TREE.mutual_folders == []


def test_few_modules_are_loose():
    assert TREE.loose == ["harness.app", "harness.errors", "harness.types"]


def test_every_room_of_the_table_exists():
    rooms = {room for names in layers.FLOORS for room in names}
    assert rooms == {layers.room(name) for name in TREE.files}


def test_the_picture_of_the_docs_shows_the_floors():
    text = (layers.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [
        {room.removesuffix(".py").replace("/", ".") for room in re.findall(r'\["([a-z/_.]+)"\]', floor)}
        for floor in re.findall(r"subgraph floor\d+.*?\n(.*?)\n  end", text, flags=re.DOTALL)
    ]
    assert drawn == [set(rooms) - {"harness"} for rooms in layers.FLOORS]


def test_the_picture_has_no_arrow_that_is_not_there():
    text = (layers.ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    nodes = re.findall(r'(\w+)\["([a-z/_.]+)"\]', text)
    names = {node: room.removesuffix(".py").replace("/", ".") for node, room in nodes}
    drawn = {
        (names[source], names[target])
        for source, targets in re.findall(r"^  (\w+) --> ([\w &]+)$", text, flags=re.MULTILINE)
        for target in targets.split(" & ")
    }
    arrows = text.partition("\n  end\n  methods")[2].partition("\n```")[0].splitlines()[1:]
    assert len(arrows) >= 20 and all(re.fullmatch(r"  \w+ --> \w+(?: & \w+)*", arrow) for arrow in arrows)
    numbers = re.findall(r'subgraph floor(\d+)\["floor (\d+)"\]', text)
    assert numbers == [(str(i), str(i)) for i in range(1, len(layers.FLOORS) + 1)]
    assert drawn and drawn <= {(layers.room(edge.source), layers.room(edge.target)) for edge in TREE.imports}


def test_methods_import_only_types_of_the_harness():
    for name in names_of("methods"):
        assert under(imports(name), "harness") <= under(imports(name), "harness.types"), name
        assert not under(imports(name), "reports"), name


def test_who_knows_the_registry_and_the_plugins():
    """Others see the contract, the wording and the check of options, never a method by name."""
    for name in names_of("harness"):
        allowed = ("methods.base", "methods.prompts", "methods.options", *KNOWS_MORE.get(name, ()))
        used = under(imports(name), "methods") - {"methods"}
        assert used == under(used, *allowed), name


def test_reports_read_run_folders_only():
    for name in names_of("reports"):
        assert not under(imports(name), "torch", "transformers", "harness", "methods"), name


def test_nothing_needs_what_a_wheel_does_not_have():
    for name in TREE.files:
        assert not under(imports(name), "tests", "benchmarks", "docs", "examples"), name


def test_checking_a_configuration_needs_no_torch():
    """In a process that has imported nothing yet: what these modules import imports no torch either."""
    names = [name for package in WITHOUT_TORCH for name in names_of(package)]
    code = f"""
        import importlib, sys
        for name in {names}:
            importlib.import_module(name)
            loaded = {{"torch", "transformers", "lm_eval", "lmms_eval", "accelerate"}} & sys.modules.keys()
            assert not loaded, f"{{name}} imports {{loaded}}"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=layers.ROOT)


def test_modules_are_short():
    """A longer one has more than one subject. No file is cut by its size."""
    long = {name: num for name in TREE.files if (num := len(text_of(name).splitlines())) > 500}
    assert long == {}


@pytest.mark.clause("C027", "C052")
def test_no_module_branches_on_a_method_s_name():
    for name in TREE.files:
        for node in ast.walk(TREE.parsed[name]):
            if isinstance(node, ast.Compare | ast.match_case):
                words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
                assert not words & PRESETS, f"{name}:{node.lineno} branches on a method: {ast.unparse(node)}"


def test_the_harness_and_the_methods_name_no_method():
    """A name decides nothing that is not looked up under it: `{"zppo": 2}.get(name)` branches too."""
    for name in (*names_of("harness"), *names_of("methods")):
        found = named_methods(TREE.parsed[name])
        assert found == NAMES_METHODS.get(name, set()), f"{name} names methods: let the method say what it needs"


@pytest.mark.parametrize(
    "line",
    [
        'weight = {"zppo": 2.0}.get(name, 1.0)',
        'WEIGHTS["zppo"]',
        'if name.startswith("zppo"): pass',
        'if name in ("hint", "zppo"): pass',
        "match name:\n    case 'zppo': pass",
    ],
)
def test_a_name_of_a_method_is_seen_wherever_it_stands(line):
    assert named_methods(ast.parse(line)) == {"zppo"}


def test_a_class_may_claim_its_name():
    assert named_methods(ast.parse('@register("zppo")\nclass A: pass')) == set()
    assert named_methods(ast.parse('"""zppo"""\nkind = "hint"')) == set()


def test_no_module_compares_the_name_of_an_engine():
    """`harness.config.deployment` does; everybody else reads what it says."""
    engines = set(ENGINES.ours)
    for name in [name for name in names_of("harness") if not name.startswith("harness.config")]:
        for node in ast.walk(TREE.parsed[name]):
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
                parts = [part for o in operands for part in (o.elts if isinstance(o, ast.Tuple | ast.List) else [o])]
            else:
                parts = list(ast.walk(node.pattern)) if isinstance(node, ast.match_case) else []
            words = {part.value for part in parts if isinstance(part, ast.Constant)}
            assert not words & engines, f"{name} compares an engine: {ast.unparse(node)}"


def test_one_train_loop():
    """Building the tiny family pretrains, and the conformance kit measures the memory of one backward pass."""
    loops = {name for name in TREE.files if ".backward(" in text_of(name)}
    assert loops == {"harness.training.update", "harness.builders.tiny.build", "harness.testing.checks"}


@pytest.mark.parametrize("line", ['"""harness.run"""', "COMMAND = ['python', '-m', 'harness.run']"])
def test_what_imports_nothing_is_no_import(tmp_path, line):
    for path, text in {"harness/data/new.py": line, "harness/run.py": "", "harness/__init__.py": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert Tree(tmp_path).imports == []


@pytest.mark.parametrize(
    "line",
    [
        "import harness.run",
        "from harness import run",
        "from harness.run import build_method",
        "def later():\n    from harness.run import build_method",
        "if TYPE_CHECKING:\n    from harness.run import build_method",
        "import importlib\nimportlib.import_module('harness.run')",
        "import importlib\nimportlib.import_module(f'harness.run.{name}')",
        "from importlib import import_module as load\nload(name='harness.run')",
        "HOOKS = {'end': 'harness.run:build_method'}",
    ],
)
def test_an_import_is_seen_wherever_it_stands(tmp_path, line):
    for path, text in {"harness/data/new.py": line, "harness/run.py": "", "harness/__init__.py": ""}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    tree = Tree(tmp_path)
    assert Import("harness.data.new", "harness.run") in tree.upward


def test_a_circle_is_seen(tmp_path):
    for name, text in {
        "a": "def f():\n    import methods.b",
        "b": "from methods import c",
        "c": "import methods.a",
    }.items():
        (tmp_path / "methods").mkdir(exist_ok=True)
        (tmp_path / "methods" / f"{name}.py").write_text(text)
    assert Tree(tmp_path).circles == [["methods.a", "methods.b", "methods.c"]]


def test_a_module_without_a_room_is_refused(tmp_path):
    (tmp_path / "harness" / "attic").mkdir(parents=True)
    (tmp_path / "harness" / "attic" / "new.py").write_text("import harness.types")
    (tmp_path / "harness" / "types.py").write_text("")
    with pytest.raises(KeyError, match=r"harness\.attic\.new stands in no room"):
        _ = Tree(tmp_path).upward


def names_of(package: str) -> list[str]:
    return [name for name in TREE.files if name == package or name.startswith(package + ".")]


def named_methods(parsed: ast.Module) -> set[str]:
    """Names of methods among the strings of a module, but for docstrings and what `@register` claims."""
    left_out = [
        part
        for node in ast.walk(parsed)
        for part in (
            [node.value] if isinstance(node, ast.Expr) else
            node.args if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "register" else []
        )
    ]  # fmt: skip
    known = {id(part) for part in left_out if isinstance(part, ast.Constant)}
    strings = {node.value for node in ast.walk(parsed) if isinstance(node, ast.Constant) and id(node) not in known}
    return PRESETS.intersection(strings)


def text_of(name: str) -> str:
    return TREE.files[name].read_text(encoding="utf-8")


def imports(name: str) -> set[str]:
    """Every dotted name that a module imports, of any package."""
    found = set(imported_names(TREE.parsed[name]))
    return found | {dotted.rpartition(".")[0] for dotted in found if "." in dotted}


def under(names: set[str], *prefixes: str) -> set[str]:
    return {name for name in names if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)}
