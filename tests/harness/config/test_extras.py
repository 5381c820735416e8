"""A package that only some installations have is missed before anything is loaded or written, in a line."""

from __future__ import annotations

import re
import sys

import pytest

from harness.app import main
from tests.layers import ROOT


@pytest.mark.parametrize(
    ("module", "words", "line"),
    [
        (
            "lm_eval", ["train", "eval.tasks=[lm_eval:gsm8k]"],
            "eval.tasks=lm_eval:gsm8k needs lm_eval, which is not installed: pip install -e '.[eval]' in the checkout",
        ),
        (
            "jieba", ["train", "-m", "eval=paper31", "seed=0,1"],
            "eval.suite=paper31 needs jieba, which is not installed: pip install -e '.[eval]' in the checkout",
        ),
        (
            "wandb", ["train", "eval=none", "tracker=wandb", "tracker.wandb=offline"],
            "tracker.wandb=offline needs wandb, which is not installed: pip install -e '.[wandb]' in the checkout",
        ),
        (
            "wandb", ["report", "absent", "--wandb", "offline"],
            "--wandb offline needs wandb, which is not installed: pip install -e '.[wandb]' in the checkout",
        ),
        (
            "imagehash", ["data", "build", "zppo77k", "--fixture"],
            "zppo data needs imagehash, which is not installed: pip install -e '.[corpus]' in the checkout",
        ),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path, capsys, module, words, line):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)  # as Python has it for what cannot be imported
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {line}\n"
    assert list(tmp_path.iterdir()) == []


def test_what_is_left_out_of_an_evaluation_without_scorers_is_a_matter_of_the_suite(monkeypatch):
    from harness.config.compose import compose
    from harness.config.extras import missing
    from harness.config.schema import from_hydra

    for module in ("nltk", "lm_eval", "lmms_eval"):
        monkeypatch.setitem(sys.modules, module, None)
    assert list(missing(from_hydra(compose(["eval=mini"])))) == []
    assert len(list(missing(from_hydra(compose(["eval=llm10"]))))) == 1


def test_no_address_of_an_index_is_written_down():
    for name in ("Makefile", "README.md", "pyproject.toml"):
        assert not re.search(r"--(extra-)?index-url|https?://[^ )]*(pypi|whl|simple)", (ROOT / name).read_text()), name
