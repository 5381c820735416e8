"""Whether a student and a teacher belong together: what ids, ends of a reply and chat templates mean to both.

Reads files of this machine alone, a local folder or the hub's cache; what is not there waits for the download and says
so. Imports transformers where there is something to compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.shapes import ModelShape, cached_file
from harness.preflight.machine import Check

NEEDED = ("tokenizer.json", "tokenizer_config.json")
PROBE = [{"role": "user", "content": "2 + 2 ="}]
FAMILY = "choose a teacher of the student's family"


def check_pair(student: ModelConfig, teacher: ModelConfig, shapes: tuple[ModelShape, ModelShape]) -> list[Check]:
    """The checks of one pair; `shapes` are the student's and the teacher's."""
    name = f"{student.name}, {teacher.name}"
    checks = [_rows(name, student, teacher, shapes)]
    missing = [model.path for model in (student, teacher) if any(cached_file(model, file) is None for file in NEEDED)]
    if missing:
        text = (
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on this machine: tokenizer by id and "
            "piece, ends of a reply, chat template and enable_thinking are compared after the download"
        )
        return [*checks, Check("warn", name, text, f"hf download {missing[0]} --exclude '*.safetensors'")]
    with _offline():
        return [*checks, *_compared(name, student, teacher, shapes)]


def _compared(
    name: str, student: ModelConfig, teacher: ModelConfig, shapes: tuple[ModelShape, ModelShape]
) -> Iterator[Check]:
    from harness.models.loading import load_tokenizer, same_tokenizer

    try:
        ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    except UserError as error:
        yield Check("fail", name, str(error))
        return
    difference = same_tokenizer(ours, theirs)
    if difference is None:
        yield Check("ok", name, f"one tokenizer: {len(ours)} ids mean the same to both")
    else:
        yield Check("fail", name, f"different tokenizers: {difference}", FAMILY)
    padded = [shape.vocab - len(tokenizer) for shape, tokenizer in zip(shapes, (ours, theirs), strict=True)]
    if any(padded):
        text = f"{padded[0]} rows of the student's head and {padded[1]} of the teacher's have no token: never sampled"
        yield Check("ok" if min(padded) >= 0 else "fail", name, text, FAMILY if min(padded) < 0 else "")
    ends = [_ends(model, tokenizer) for model, tokenizer in ((student, ours), (teacher, theirs))]
    if ends[0] == ends[1]:
        yield Check("ok", name, f"replies end with {_tokens(ours, ends[0])} for both")
    else:
        text = f"replies end with {_tokens(ours, ends[0])} for the student, {_tokens(theirs, ends[1])} for the teacher"
        yield Check(
            "warn", name, text, "the harness stops both at the student's ids, which the template ends a turn with"
        )
    yield _templates(name, student, ours, theirs)


def _templates(name: str, student: ModelConfig, ours: Any, theirs: Any) -> Check:
    """One template renders every prompt for both; how the teacher's own differs is worth knowing."""
    chosen = student.enable_thinking
    defaults = [_default(tokenizer) for tokenizer in (ours, theirs)]
    words = {True: "thinks", False: "does not think", None: "knows no thinking"}
    ours_does, theirs_does = (words[default] for default in defaults)
    said = f"by default the student's template {ours_does}, the teacher's {theirs_does}"
    used = f"student.enable_thinking={str(chosen).lower()} is given explicitly"
    if _rendered(ours, chosen) == _rendered(theirs, chosen):
        return Check("ok", name, f"one prompt in both chat templates; {used} ({said})")
    text = f"the chat templates differ: the student's renders every prompt for both; {used} ({said})"
    return Check("warn", name, text, "set student.chat_template=FILE to give both another one")


def _default(tokenizer: Any) -> bool | None:
    """Which of the two the template does where nobody says; None where it makes no difference."""
    yes, no = _rendered(tokenizer, True), _rendered(tokenizer, False)
    return None if yes == no else _rendered(tokenizer, None) == yes


def _rendered(tokenizer: Any, thinking: bool | None) -> str:
    options = {} if thinking is None else {"enable_thinking": thinking}
    return str(tokenizer.apply_chat_template(PROBE, tokenize=False, add_generation_prompt=True, **options))


def _ends(model: ModelConfig, tokenizer: Any) -> frozenset[int]:
    """The ids that end a reply: of generation_config.json and of the tokenizer."""
    file = cached_file(model, "generation_config.json")
    given = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file is not None else None
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return frozenset(listed) | ({tokenizer.eos_token_id} - {None})


def _tokens(tokenizer: Any, ids: frozenset[int]) -> str:
    return ", ".join(tokenizer.convert_ids_to_tokens(sorted(ids)))


def _rows(name: str, student: ModelConfig, teacher: ModelConfig, shapes: tuple[ModelShape, ModelShape]) -> Check:
    ours, theirs = (shape.vocab for shape in shapes)
    if ours == theirs:
        return Check("ok", name, f"both heads have {ours} rows")
    text = f"the heads have {ours} and {theirs} rows: only the tokenizer's ids are compared, the rest is padding"
    return Check("ok", name, text)


@contextmanager
def _offline() -> Iterator[None]:
    """The hub is not asked."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
