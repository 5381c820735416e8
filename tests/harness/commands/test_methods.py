"""`zppo methods`: rows of ours and of plugins, and one line for each thing that is broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from harness.app import main
from harness.commands.methods import methods_text, taken_names

ROOT = Path(__file__).parents[3]
PACKAGE = "from methods.base import PolicyGradientMethod\n\n\nclass Demo(PolicyGradientMethod):\n    '''{}'''\n"


def rows(text: str) -> dict[str, list[str]]:
    """Cells by preset, without the purpose, of the table."""
    table = [re.split(r" {2,}", line) for line in text.partition("\n\n")[0].splitlines() if line[0] != " "]
    assert table[0] == ["preset", "class", "from", "teacher", "replay", "purpose"]
    return {cells[0]: cells[1:5] for cells in table[1:]}


def lines(text: str) -> list[str]:
    return text.partition("\n\n")[2].splitlines()


def test_presets_of_ours():
    text = methods_text()
    expected = {
        "base": ["-", "zppo-bench", "none", "-"],
        "grpo": ["grpo", "methods.grpo", "none", "no"],
        "zppo": ["zppo", "methods.zppo", "rollouts", "yes"],
        "on_policy_kd_replay": ["on_policy_kd", "methods.distill", "distribution", "yes"],
    }
    table = rows(text)
    assert {name: table[name] for name in expected} == expected
    assert set(table) >= {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert "The student as it is: a cell without training." in text
    assert "Plain student rollouts, group advantages, clipped surrogate" in text


def test_presets_of_a_plugin_with_where_they_come_from(install):
    install(
        "zppo-demo",
        {"demo": "demo_pkg:Demo"},
        {
            "demo_pkg/__init__.py": PACKAGE.format("Shows [/b] and :smile:.\n\n    More."),
            "demo_pkg/conf/method/demo.yaml": "name: demo\nclass: demo\n",
            "demo_pkg/conf/method/demo_replay.yaml": "# With replay.\ndefaults: [demo, _self_]\nname: demo_replay\n"
            "replay: true\n",
            "demo_pkg/conf/method/grpo_demo.yaml": "name: grpo_demo\nclass: grpo\ntau: 0.1\n",
        },
        version="2.3",
    )
    text = methods_text(check=True)
    table = rows(text)
    assert table["demo"] == ["demo", "zppo-demo 2.3", "none", "no"]
    assert table["demo_replay"] == ["demo", "zppo-demo 2.3", "none", "yes"]
    assert table["grpo_demo"] == ["grpo", "zppo-demo 2.3", "none", "no"]
    assert "Shows [/b] and :smile:.\n" in text and "More" not in text and "With replay." in text
    assert table["grpo"] == ["grpo", "methods.grpo", "none", "no"]
    assert taken_names().keys() >= {"demo", "demo_replay", "grpo", "base"}


def test_a_list_runs_no_code_of_plugins_and_says_so(install, capsys):
    boom = {
        "boom_pkg/__init__.py": "1 / 0",
        "boom_pkg/conf/method/boom.yaml": "name: boom\nclass: boom",
    }
    install("zppo-boom", {"boom": "boom_pkg:Boom"}, boom, version="0.3")
    install("zppo-demo", {"demo": "demo_pkg:Demo"}, {
        "demo_pkg/__init__.py": PACKAGE.format("Doc."),
        "demo_pkg/conf/method/demo.yaml": "# For tests.\nname: demo\nclass: demo\n",
        "demo_pkg/conf/method/grpo_demo.yaml": "name: grpo_demo\nclass: grpo\ntua: 0.1\n",
    })  # fmt: skip
    install("zppo-evil", {"grpo": "evil_pkg:Demo"})
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    table = rows(text)
    assert table["boom"] == ["boom", "zppo-boom 0.3", "?", "?"] and "For tests." in text
    assert table["demo"] == ["demo", "zppo-demo 1.0", "?", "?"] and table["grpo"][1] == "methods.grpo"
    assert not {"boom_pkg", "demo_pkg", "evil_pkg"} & set(sys.modules)
    claim, typo, note = lines(text)
    assert claim.startswith("zppo-evil 1.0 claims the name of the built-in method 'grpo'")
    assert typo.startswith("preset 'grpo_demo' of zppo-demo 1.0: GRPO has no option 'method.tua'")
    assert "was not run; zppo methods --check imports all of them" in note


def test_every_broken_thing_is_one_line_below_and_the_rest_is_listed(install):
    install("zppo-demo", {"demo": "demo_pkg:Demo"})
    install(
        "zppo-boom",
        {"boom": "boom_pkg:Boom"},
        {
            "boom_pkg/__init__.py": "1 / 0",
            "boom_pkg/conf/method/boom.yaml": "name: boom\nclass: boom\n",
            "boom_pkg/conf/method/boom_fast.yaml": "name: boom_fast\nclass: boom\n",
            "boom_pkg/conf/method/typo.yaml": "name: typo\nclass: grpo\ntua: 0.1\n",
        },
    )
    install("zppo-a", {"same": "a_pkg:Demo"})
    install("zppo-b", {"same": "b_pkg:Demo"})
    install("zppo-evil", {"grpo": "evil_pkg:Demo"})
    install("zppo-bare", {"bare": "bare_pkg:Demo"}, {"bare_pkg/__init__.py": PACKAGE.format("Bare.")})
    install(
        "zppo-odd",
        {"odd": "odd_pkg:Demo"},
        {
            "odd_pkg/__init__.py": PACKAGE.format("Odd.") + "    def __init__(self, config):\n        {}['no']\n",
            "odd_pkg/conf/method/odd.yaml": "name: odd\nclass: odd\n",
            "odd_pkg/conf/method/unread.yaml": "name: [\n",
            "odd_pkg/conf/method/zppo.yaml": "name: zppo\nclass: odd\n",
        },
    )
    text = methods_text(check=True)
    below = lines(text)
    assert below[:4] == [
        "zppo-bare 1.0 declares method 'bare' but ships no bare_pkg/conf/method/bare.yaml: "
        "add the file (and to its package data), or uninstall zppo-bare",
        "method 'boom' of zppo-boom 1.0 cannot be used: importing boom_pkg fails "
        "(ZeroDivisionError: division by zero); fix or uninstall zppo-boom",
        "zppo-evil 1.0 claims the name of the built-in method 'grpo' (evil_pkg:Demo): "
        "rename its entry point, or uninstall zppo-evil",
        "method 'same' is claimed by zppo-a 1.0 (a_pkg:Demo) and by zppo-b 1.0 (b_pkg:Demo): "
        "uninstall all but one of them",
    ]
    assert below[4] == "preset 'odd' of zppo-odd 1.0 cannot be built (KeyError: 'no'): fix it"
    assert below[5].startswith("preset 'typo' of zppo-boom 1.0: GRPO has no option 'method.tua'. Did you mean tau?")
    assert below[6].startswith("preset 'unread' of zppo-odd 1.0: ")
    assert below[7:] == [
        "preset 'zppo' of zppo-odd 1.0 is hidden by the one of zppo-bench: rename odd_pkg/conf/method/zppo.yaml"
    ]
    table = rows(text)
    assert table["demo"] == ["demo", "zppo-demo 1.0", "none", "no"]
    assert table["grpo"] == ["grpo", "methods.grpo", "none", "no"]
    assert table["zppo"] == ["zppo", "methods.zppo", "rollouts", "yes"]
    assert not set(table) & {"bare", "boom", "boom_fast", "same", "odd", "typo", "unread"}


def test_one_preset_of_two_plugins(install):
    for name in ("b", "a"):
        files = {
            f"{name}_pkg/__init__.py": PACKAGE.format("Doc."),
            f"{name}_pkg/conf/method/own_{name}.yaml": f"name: own_{name}\nclass: own_{name}\n",
            f"{name}_pkg/conf/method/fast.yaml": f"name: fast\nclass: own_{name}\n",
        }
        install(f"zppo-{name}", {f"own_{name}": f"{name}_pkg:Demo"}, files)
    text = methods_text(check=True)
    assert rows(text)["fast"] == ["own_a", "zppo-a 1.0", "none", "no"]
    assert lines(text) == [
        "preset 'fast' of zppo-b 1.0 is hidden by the one of zppo-a 1.0: rename b_pkg/conf/method/fast.yaml"
    ]


def test_the_command_prints_it_and_a_broken_method_is_refused_with_the_same_line(install, capsys):
    install("zppo-bare", {"bare": "bare_pkg:Demo"}, {"bare_pkg/__init__.py": PACKAGE.format("Bare.")})
    install(
        "zppo-boom",
        {"boom": "boom_pkg:Boom"},
        {"boom_pkg/__init__.py": "1 / 0", "boom_pkg/conf/method/boom.yaml": "name: boom\nclass: boom\n"},
    )
    assert main(["methods", "--check"]) == 0
    below = lines(capsys.readouterr().out)
    assert len(below) == 2
    for name, line in zip(("bare", "boom"), below, strict=True):
        assert main(["train", f"method={name}"]) == 2
        assert capsys.readouterr().err == f"error: {line}\n"


def test_listing_imports_no_torch(install):
    site = install("zppo-demo", {"demo": "demo_pkg:Demo"})
    code = (
        "import sys; from harness.app import main; main(['methods'])\n"
        "print(sorted(m for m in sys.modules if m in ('torch', 'demo_pkg')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]"
