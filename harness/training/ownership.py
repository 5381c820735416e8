"""Whose checkpoint it is: the run's configuration and what its prompts are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.config.identity import comparable, differences, digest, plain
from harness.config.schema import RunConfig
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.identity import tokenizer_identity
from harness.training.checkpoint import read_state
from methods.prompts import wording


def identity(config: RunConfig, chat: Chat) -> dict[str, Any]:
    """What a checkpoint's state says of its run. The learning rate is constant: of a schedule there is no state."""
    values = plain(config)
    return {
        "config": comparable(values),
        "config_digest": digest(values),
        "schedule": "constant",
        "prompts": prompts(chat),
    }


def refuse_foreign(path: Path, config: RunConfig, chat: Chat) -> None:
    """Raise UserError for a checkpoint of another run, and for one whose weights have learned other prompts.

    Checkpoints of versions before the present wording do not say what their prompts were.
    """
    state = read_state(path)
    stored = state.get("config")
    different = None if stored is None else differences(stored, config)
    if different is not None:
        raise UserError(f"{path} is a checkpoint of another run ({different}): remove it, or choose another study=NAME")
    old, new = state.get("prompts") or {}, prompts(chat)
    changed = [name for name, value in new.items() if old.get(name) != value]
    if changed:
        raise UserError(
            f"{path} was trained on prompts that are made otherwise by now ({' and '.join(changed)} changed): the run "
            "can be read, but not go on; choose another study=NAME, or --force to start it anew"
        )


def prompts(chat: Chat) -> dict[str, str]:
    """What every prompt of a run is made of, by name."""
    return {"wording": wording(), "the student's tokenizer": tokenizer_identity(chat)}
