"""`zppo new-method NAME`: an installable package with a working method, its options, tests and a README."""

from __future__ import annotations

import argparse
import keyword
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from string import Template

from harness.commands.methods import taken_names
from harness.errors import UserError


def new_method(name: str, parent: str) -> str:
    """Write the folder `zppo-NAME` in `parent`; returns what to run next.

    Raises UserError for a name that is not in snake_case or is taken, and for a folder that exists or cannot be
    written.
    """
    _check_name(name)
    folder = Path(parent) / f"zppo-{name}"
    if folder.exists():
        raise UserError(f"{folder} exists: remove it, or choose another --dir")
    class_name = "".join(part.capitalize() for part in name.split("_"))
    try:
        for path, template in FILES.items():
            file = folder / path.replace("NAME", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = Template(template).substitute(name=name, class_name=class_name, module=f"zppo_{name}")
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error
    python = _shown(sys.executable)
    commands = (
        (python, "-m", "pip", "install", "--editable", f"{folder}[test]"),
        (python, "-m", "pytest", str(folder)),
        (_shown(str(Path(sys.executable).with_name("zppo"))), "train", f"method={name}", "student=tiny_xs", "steps=2",
         "eval=none"),
    )  # fmt: skip
    lines = "\n".join(f"    {shlex.join(command)}" for command in commands)
    return f"Wrote {folder}; the method is in {folder / f'zppo_{name}' / '__init__.py'}. Next:\n\n{lines}"


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"'{name}' cannot name a method: write it in snake_case, such as my_method")
    if owner := taken_names().get(name):
        raise UserError(f"the name '{name}' is taken by {owner}: choose another one")
    try:
        metadata.distribution(f"zppo-{name}")
    except metadata.PackageNotFoundError:
        return
    raise UserError(f"a package zppo-{name} is installed: choose another name")


def _shown(program: str) -> str:
    """The path of `program` from here, where it lies below."""
    path = os.path.relpath(program)
    return program if path.startswith(os.pardir) else path


PYPROJECT = """\
[build-system]
requires = ["setuptools>=80"]
build-backend = "setuptools.build_meta"

[project]
name = "zppo-$name"
version = "0.1.0"
description = "The method $name for zppo-bench"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["zppo-bench"]

[project.optional-dependencies]
test = ["pytest"]

# `zppo methods` finds the class here, and its option file in the package's folder conf/method.
[project.entry-points."zppo.methods"]
$name = "$module:$class_name"

[tool.setuptools]
packages = ["$module"]

[tool.setuptools.package-data]
$module = ["conf/**/*.yaml"]
"""

METHOD = '''\
"""The method $name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.types import RolloutGroup
from methods.base import (
    MethodConfig,
    PolicyGradientConfig,
    PolicyGradientMethod,
    sampled_by_student,
    training_rewards,
)
from pydantic import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class ${class_name}Config(PolicyGradientConfig):
    """Each field is an option: `method=$name method.scale=2`."""

    scale: PositiveFloat = 1.0
    """What every advantage is multiplied with."""
    advantage_normalization: Literal["none"] = "none"
    """The inherited option has no effect here, so it has no other value."""


class $class_name(PolicyGradientMethod):
    """GRPO whose advantage is the reward minus the mean of its group, times `scale`."""

    Config: ClassVar[type[MethodConfig]] = ${class_name}Config

    def advantages(self, groups: Sequence[RolloutGroup]) -> list[list[float]]:
        """One list a group, one number a student rollout. It sees all groups of the step at once."""
        return [self._of_group(training_rewards(sampled_by_student(group))) for group in groups]

    def _of_group(self, rewards: list[float]) -> list[float]:
        mean = sum(rewards) / len(rewards) if rewards else 0.0
        return [self.config.scale * (reward - mean) for reward in rewards]
'''

OPTIONS = """\
name: $name
class: $name
# Below: options that differ from the defaults of the class. Each further file in this folder is a further preset.
"""

TESTS = '''\
"""The advantages against numbers derived by hand, and what every method has to hold."""

from harness.testing import conformance_test
from harness.types import Question, Rollout, RolloutGroup
from methods.base import plain_prompt

from $module import $class_name


def group(*rewards: float) -> RolloutGroup:
    prompt = plain_prompt(Question(id="q", text="Compute 1+1.", answer="2"))
    rollouts = [
        Rollout(
            sampler="student", index=index, prompt_ids=[5], completion_ids=[6, 2], rollout_logprobs=[-0.5, -0.25],
            text="", finish_reason="stop", reward=reward,
        )
        for index, reward in enumerate(rewards)
    ]  # fmt: skip
    return RolloutGroup(uid=prompt.uid, prompt=prompt, rollouts=rollouts)


def test_advantages() -> None:
    """Means 1/4 and 1: 2 (1 - 1/4) = 1.5, 2 (0 - 1/4) = -0.5, 2 (1 - 1) = 0."""
    method = $class_name($class_name.Config(scale=2.0))
    assert method.advantages([group(1, 0, 0, 0), group(1, 1)]) == [[1.5, -0.5, -0.5, -0.5], [0.0, 0.0]]


test_conformance = conformance_test($class_name)
'''

README = """\
# zppo-$name

The method `$name` for zppo-bench. Its class is in `$module/__init__.py`, its presets are in `$module/conf/method/`.

```
pip install --editable '.[test]'    # where zppo-bench is installed
python -m pytest
zppo methods
zppo train method=$name student=tiny_xs steps=2 eval=none
zppo train -m method=grpo,$name student=tiny_xs seed=0,1 study=$name
zppo report outputs/$name
```

zppo-bench's `docs/adding_a_method.md` has the contract of a method, the checks of the conformance kit, and the errors
one can meet.
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "zppo_NAME/__init__.py": METHOD,
    "zppo_NAME/conf/method/NAME.yaml": OPTIONS,
    "tests/test_NAME.py": TESTS,
}


def run_new_method(parser: argparse.ArgumentParser, argv: Sequence[str]) -> int:
    parser.add_argument("name", help="of the method, in snake_case")
    parser.add_argument("--dir", default=".", help="folder that gets the new folder zppo-NAME; default here")
    args = parser.parse_args(argv)
    print(new_method(args.name, args.dir))
    return 0
