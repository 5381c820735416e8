"""Methods of other packages: real distributions on disk, what is found of them, and a line for each way to break."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.app import main
from harness.config.data import SOURCES
from methods import plugins
from methods.registry import MethodError, build, method_class, plugin_class, private_import, provenance

ROOT = Path(__file__).parents[2]


def test_a_plugin_is_found_and_used_without_being_imported_before(install):
    site = install("zppo-demo", {"demo": "demo_pkg:Demo"}, version="2.3")
    plugin = plugins.named("demo")
    assert plugin is not None
    assert (plugin.source, plugin.value, plugin.problem) == ("zppo-demo 2.3", "demo_pkg:Demo", None)
    assert plugins.option_folders()[site / "demo_pkg" / "conf"] == "zppo-demo 2.3"
    assert plugins.distribution_of("demo_pkg.inner") == {"zppo-demo": "2.3"}
    assert method_class("grpo").__name__ == "GRPO"
    assert "demo_pkg" not in sys.modules
    method = build({"name": "demo_fast", "class": "demo", "group_size": 4})
    assert method is not None and method.config.group_size == 4
    assert provenance(method) == ("demo_pkg:Demo", {"zppo-demo": "2.3"})
    assert provenance(build({"name": "grpo", "class": "grpo"})) == ("methods.grpo:GRPO", {})
    assert provenance(None) == (None, {})


def test_what_is_installed_is_read_once_and_again_where_another_package_is_there(install, monkeypatch):
    """A study checks thousands of configurations, and each read opens a file of every package."""
    read, real = [], plugins.metadata.entry_points
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **kind: read.append(kind) or real(**kind))
    for number, distribution in enumerate(["zppo-first", "zppo-second"], 1):
        install(distribution, {f"demo{number}": f"demo{number}:load"}, {}, group="zppo.sources")
        for _ in range(3):
            assert {f"demo{n}" for n in range(1, number + 1)} <= set(SOURCES.names())
            assert SOURCES.entry("jsonl") is None and SOURCES.entry(f"demo{number}") == f"demo{number}:load"
            assert f"demo{number}" not in plugins.declared("zppo.engines").names
        assert len(read) == number


def test_a_class_in_a_module_of_the_package_and_a_package_with_two_methods(install):
    option = "name: {0}\nclass: {0}\n"
    install(
        "zppo-two",
        {"first": "two_pkg.one:One", "second": "two_pkg.other:Other"},
        {
            "two_pkg/__init__.py": "",
            "two_pkg/one.py": "from methods.grpo import GRPO\n\n\nclass One(GRPO):\n    pass\n",
            "two_pkg/other.py": "raise RuntimeError('only the other one is broken')",
            "two_pkg/conf/method/first.yaml": option.format("first"),
            "two_pkg/conf/method/second.yaml": option.format("second"),
        },
    )
    assert method_class("first").__name__ == "One"
    assert "two_pkg.other" not in sys.modules


OPTION = {"broken_pkg/conf/method/broken.yaml": "name: broken\nclass: broken\n"}
BROKEN = [
    (
        "broken_pkg:Broken",
        {"broken_pkg/__init__.py": "class Broken:\n    pass\n"} | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: broken_pkg:Broken is not derived from "
        "methods.base.Method; fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Brokn",
        {"broken_pkg/__init__.py": "class Broken:\n    pass\n"} | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: broken_pkg has no class Brokn (did you mean Broken?); "
        "fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Broken",
        {"broken_pkg/__init__.py": "from methods.base import Method\n\n\nclass Broken(Method):\n    pass\n"} | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: broken_pkg:Broken does not define credit and loss; "
        "fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Broken",
        {"broken_pkg/__init__.py": "from methods.grpo import GRPO\n\n\nclass Broken(GRPO):\n    Config = int\n"}
        | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: broken_pkg:Broken.Config is not derived from "
        "methods.base.MethodConfig; fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Broken",
        {"broken_pkg/__init__.py": "raise RuntimeError('bad\\n  day')"} | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: importing broken_pkg fails (RuntimeError: bad day); "
        "fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Broken",
        {"broken_pkg/__init__.py": "import sys\nsys.exit('gone')"} | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: importing broken_pkg fails (SystemExit: gone); "
        "fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg.inner:Broken",
        {"broken_pkg/__init__.py": ""} | OPTION,
        "method 'broken' of zppo-broken 1.0 cannot be used: importing broken_pkg.inner fails "
        "(ModuleNotFoundError: No module named 'broken_pkg.inner'); fix or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Broken",
        {"broken_pkg/__init__.py": "raise RuntimeError", "broken_pkg/conf/method/other.yaml": ""},
        "zppo-broken 1.0 declares method 'broken' but ships no broken_pkg/conf/method/broken.yaml: "
        "add the file (and to its package data), or uninstall zppo-broken",
    ),
    (
        "broken_module:Broken",
        {"broken_module.py": "raise RuntimeError"},
        "zppo-broken 1.0 declares method 'broken' but ships no broken_module/conf/method/broken.yaml: "
        "add the file (and to its package data), or uninstall zppo-broken",
    ),
    (
        "broken_pkg:Broken",
        {},
        "zppo-broken 1.0 declares method 'broken' in 'broken_pkg', but there is no package 'broken_pkg': "
        "install zppo-broken again, or uninstall it",
    ),
    (
        "broken_pkg",
        {},
        "zppo-broken 1.0 declares method 'broken' as 'broken_pkg': its entry point has to be package.module:Class",
    ),
    (
        "broken pkg:Broken",
        {},
        "zppo-broken 1.0 declares method 'broken' as 'broken pkg:Broken': "
        "its entry point has to be package.module:Class",
    ),
]


@pytest.mark.parametrize(("value", "files", "line"), BROKEN)
def test_a_broken_plugin_is_one_line_and_the_others_work(install, value, files, line):
    install("zppo-broken", {"broken": value}, files)
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    with pytest.raises(MethodError) as caught:
        method_class("broken")
    assert str(caught.value) == line
    assert method_class("demo").__name__ == "Demo"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import harness.actors", "ModuleNotFoundError: No module named 'harness.actors'"),
        ("from harness.replay import ReplayBuffer", "ModuleNotFoundError: No module named 'harness.replay'"),
        ("from harness.config import RunConfig", "ImportError: cannot import name 'RunConfig' from 'harness.config'"),
        (
            "import harness.config\nharness.config.RunConfig",
            "AttributeError: module 'harness.config' has no attribute 'RunConfig'",
        ),
        ("from reports.collect import collect", "ModuleNotFoundError: No module named 'reports.collect'"),
    ],
)
def test_a_plugin_that_imports_a_private_module_is_told_the_public_ones(install, line, reason):
    """Modules that plugins could import before files moved."""
    files = {"old_pkg/__init__.py": line, "old_pkg/conf/method/old.yaml": "name: old\nclass: old\n"}
    install("zppo-old", {"old": "old_pkg:Old"}, files)
    with pytest.raises(MethodError) as caught:
        method_class("old")
    text = str(caught.value)
    assert text.startswith(f"method 'old' of zppo-old 1.0 cannot be used: importing old_pkg fails ({reason}")
    assert "import from methods.base, harness.types and, in tests, harness.testing" in text and "\n" not in text


@pytest.mark.parametrize(
    "lines",
    [
        "try:\n    import harness.actors\nexcept ImportError as error:\n    raise RuntimeError('no actors') from error",
        "try:\n    import harness.actors\nexcept ImportError:\n    raise RuntimeError('no actors')",
    ],
)
def test_an_error_that_an_import_caused_names_the_public_ones_too(install, lines):
    files = {"old_pkg/__init__.py": lines, "old_pkg/conf/method/old.yaml": "name: old\nclass: old\n"}
    install("zppo-old", {"old": "old_pkg:Old"}, files)
    with pytest.raises(MethodError, match=r"no actors\): import from methods\.base"):
        method_class("old")


@pytest.mark.parametrize("name", ["harness.absent", "methods.absent"])
def test_an_import_of_our_own_that_fails_is_not_taken_for_theirs(name):
    for code in (f"import {name}", f"import importlib\nimportlib.import_module('{name}')"):
        with pytest.raises(ImportError) as caught:
            exec(code, {"__name__": "harness.rollout.actors"})
        assert private_import(caught.value) is None
        with pytest.raises(ImportError) as caught:
            exec(code, {"__name__": "harness_extra"})
        assert private_import(caught.value) is not None


def test_a_misspelt_public_name_is_only_named(install):
    line = "from harness.types import Rolout"
    files = {"old_pkg/__init__.py": line, "old_pkg/conf/method/old.yaml": "name: old\nclass: old\n"}
    install("zppo-old", {"old": "old_pkg:Old"}, files)
    with pytest.raises(MethodError) as caught:
        method_class("old")
    assert "cannot import name 'Rolout'" in str(caught.value) and "methods.base" not in str(caught.value)


@pytest.mark.parametrize("command", [["train"], ["plan", "cluster=1x8"], ["doctor"], ["train", "-m", "--dry-run"]])
def test_a_method_that_imports_a_private_module_when_it_is_built_is_one_line(command, tmp_path, monkeypatch, capsys):
    text = "from methods.base import PolicyGradientMethod\n\n\nclass Early(PolicyGradientMethod):\n"
    text += "    def __init__(self, config):\n        import harness.actors\n"
    (tmp_path / "early_file.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main([*command, "method._target_=early_file:Early", "student=tiny_xs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No module named 'harness.actors': import from methods.base")
    assert error.count("\n") == 1


def test_a_package_that_is_not_ours_is_only_named(install):
    files = {"old_pkg/__init__.py": "import absent_pkg", "old_pkg/conf/method/old.yaml": "name: old\nclass: old\n"}
    install("zppo-old", {"old": "old_pkg:Old"}, files)
    with pytest.raises(MethodError) as caught:
        method_class("old")
    assert "No module named 'absent_pkg'" in str(caught.value) and "methods.base" not in str(caught.value)


def test_two_packages_that_claim_one_name(install):
    install("zppo-b", {"same": "b_pkg:Demo"})
    install("zppo-a", {"same": "a_pkg:Demo"}, version="0.5")
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    with pytest.raises(MethodError) as caught:
        method_class("same")
    assert str(caught.value) == (
        "method 'same' is claimed by zppo-a 0.5 (a_pkg:Demo) and by zppo-b 1.0 (b_pkg:Demo): "
        "uninstall all but one of them"
    )
    assert method_class("demo").__name__ == "Demo"


def test_a_plugin_that_claims_a_built_in_key_does_not_get_it(install):
    install("zppo-evil", {"grpo": "evil_pkg:Demo"})
    assert method_class("grpo").__module__ == "methods.grpo"
    plugin = plugins.named("grpo")
    assert plugin is not None
    with pytest.raises(MethodError) as caught:
        plugin_class(plugin)
    assert str(caught.value) == (
        "zppo-evil 1.0 claims the name of the built-in method 'grpo' (evil_pkg:Demo): "
        "rename its entry point, or uninstall zppo-evil"
    )
    assert "evil_pkg" not in sys.modules


def test_one_distribution_that_is_found_twice_is_one_claim(install):
    site = install("zppo-demo", {"demo": "demo_pkg:Demo"})
    sys.path.append(str(site))
    assert [plugin.problem for plugin in plugins.installed() if plugin.name == "demo"] == [None]


def test_near_names_of_plugins_are_suggested(install):
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    with pytest.raises(MethodError) as caught:
        method_class("demmo")
    assert str(caught.value) == (
        "unknown method class 'demmo'. Did you mean demo? A class of your own is named package.module:Class."
    )


MINE = "import my_helper\nfrom methods.grpo import GRPO\n\n\nclass Mine(GRPO):\n    pass\n"


@pytest.mark.parametrize("name", ["my_file:Mine", "my_file.Mine"])
def test_a_file_in_the_current_directory_is_found_last(tmp_path, monkeypatch, name):
    """With the directory's other files; a module that is found elsewhere does not change `sys.path`."""
    (tmp_path / "my_file.py").write_text(MINE)
    (tmp_path / "my_helper.py").write_text("")
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('the file in the current directory')")
    monkeypatch.chdir(tmp_path)
    path = [entry for entry in sys.path if entry not in ("", str(ROOT))] + [str(ROOT)]
    monkeypatch.setattr(sys, "path", list(path))
    for module in ("my_file", "my_helper", "colorsys"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MethodError, match="colorsys has no class Mine"):
        method_class("colorsys:Mine")
    with pytest.raises(MethodError) as caught:
        method_class("no_file:Mine")
    assert str(caught.value) == f"method class 'no_file:Mine': no module no_file is installed, or lies in {tmp_path}"
    assert sys.path == path
    assert method_class(name).__name__ == "Mine"
    assert sys.path == [*path, str(tmp_path)]


def test_finding_plugins_imports_neither_torch_nor_the_harness_nor_the_plugins(install):
    site = install("zppo-demo", {"demo": "demo_pkg:Demo"})
    code = """
import sys
from methods import plugins
print(plugins.named("demo").source, list(plugins.option_folders().values()).count("zppo-demo 1.0"))
print(sorted(m for m in sys.modules if m.split(".")[0] in ("torch", "harness", "demo_pkg")))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines() == ["zppo-demo 1.0 1", "[]"]
