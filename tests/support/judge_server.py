"""A judge without a model, behind an OpenAI-compatible endpoint on this machine: for tests and demonstrations.

`python -m tests.support.judge_server --port 8123`, then `eval.judge.url=http://127.0.0.1:8123/v1`. It compares
the gold answer with the student's text and answers in the form that the prompt asks for. It knows no synonyms and no
arithmetic beyond equal numbers: its verdicts show that judging works and are no results.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager

from harness.evaluation.judge import official
from harness.rewards.boxed import last_boxed
from harness.rewards.choice import choice_letter, normal_text
from harness.rewards.judge import forms as shared
from harness.rewards.judge.sections import read_sections
from tests.support.http_server import Body, Fault, LoopbackServer, Plan, running, until_interrupted

MODEL = "loopback-judge"
_WORD = re.compile(r"[^\W_]{4,}")
_QUOTED = re.compile("[\"'`\u2018\u201c]([^\"'`\u2018\u2019\u201c\u201d]+)[\"'`\u2019\u201d](?!\\w)")
_ASIDE = {"answer", "does", "have", "model", "reply", "response", "that", "the", "there", "this", "with", "word"}


def answer(body: Body) -> Body:
    """A chat completion with the verdict."""
    message = {"role": "assistant", "content": verdict(body["messages"])}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"object": "chat.completion", "model": body["model"], "choices": [choice]}


def saying(text: str) -> Fault:
    """The judge says this instead of its verdict."""
    return Fault(spoil=lambda completion: completion["choices"][0]["message"].update(content=text))


def make_server(port: int = 0, plan: Plan | None = None) -> LoopbackServer:
    """Port 0 takes a free one. `plan` makes it misbehave."""
    models: list[Body] = [{"id": MODEL, "object": "model"}]
    return LoopbackServer({"chat/completions": answer}, models, port=port, plan=plan)


def serve(port: int = 0, plan: Plan | None = None) -> AbstractContextManager[LoopbackServer]:
    """The endpoint in a thread."""
    return running(make_server(port, plan))


def verdict(messages: list[dict[str, str]]) -> str:
    """The reply to a prompt, in the form that its rules end with. Raises ValueError for one of another harness."""
    rules = messages[0]["content"]
    parts = read_sections(messages[-1]["content"])
    for ending, reply in _FORMS.items():
        if rules.endswith(ending):
            return reply(parts)
    raise ValueError("it asks for no known form")


def _shared(parts: dict[str, str]) -> str:
    return json.dumps({"verdict": "correct" if _equal(parts) else "wrong"})


def _mmvet(parts: dict[str, str]) -> str:
    """The best of the alternatives, each worth the share of its elements that the student has."""
    said = _committed(parts)
    shares = []
    for alternative in parts["reference"].split("<OR>"):
        elements = [element.strip() for element in alternative.split("<AND>") if element.strip()]
        shares.append(sum(_says(said, element) for element in elements) / max(1, len(elements)))
    return f"{max(shares):.1f}"


def _multichallenge(parts: dict[str, str]) -> str:
    """YES if the reply has what the criterion quotes, or, where it quotes nothing, most of its longer words."""
    reply = parts["response"]
    quoted = _QUOTED.findall(parts["criterion"])
    words = [word for word in _WORD.findall(parts["criterion"].casefold()) if word not in _ASIDE]
    if quoted:
        met = all(_says(reply, phrase) for phrase in quoted)
    else:
        met = sum(_says(reply, word) for word in words) * 2 > len(words)
    return "The words of the criterion were looked for.\n" + ("YES" if met else "NO")


def _hle(parts: dict[str, str]) -> str:
    equal = _equal(parts)
    return json.dumps(
        {
            "extracted_final_answer": _committed(parts) or "None",
            "reasoning": "The texts are the same." if equal else "The texts differ.",
            "correct": "yes" if equal else "no",
            "confidence": 100,
        }
    )


def _charxiv(parts: dict[str, str]) -> str:
    return json.dumps({"score": int(_equal(parts)), "extracted_answer": _committed(parts)})


_FORMS: dict[str, Callable[[dict[str, str]], str]] = {
    shared.REPLY: _shared,
    official.MMVET_REPLY: _mmvet,
    official.MULTICHALLENGE_REPLY: _multichallenge,
    official.HLE_REPLY: _hle,
    official.CHARXIV_REPLY: _charxiv,
}


def _committed(parts: dict[str, str]) -> str:
    """What the student settles on: the extracted answer; of a response the last box, else the last line of text."""
    if "answer" in parts:
        return parts["answer"]
    boxed = last_boxed(parts["response"])
    lines = [line.strip() for line in parts["response"].splitlines() if line.strip()]
    return boxed if boxed is not None else lines[-1] if lines else ""


def _equal(parts: dict[str, str]) -> bool:
    said, gold = _committed(parts), parts["reference"]
    options = [line.partition(". ")[2] for line in parts.get("options", "").splitlines()]
    if options:
        chosen = choice_letter(said, options)
        if chosen is not None:
            return chosen == choice_letter(gold, options)
    if _same(said, gold):
        return True
    # A letter or a digit stands in many sentences by chance.
    return len(normal_text(gold)) > 1 and _says(said, gold)


def _same(said: str, gold: str) -> bool:
    if normal_text(said) == normal_text(gold):
        return bool(normal_text(gold))
    try:
        return float(said) == float(gold)
    except ValueError:
        return False


def _says(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text as complete words."""
    wanted = normal_text(phrase)
    return bool(wanted) and re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", normal_text(text)) is not None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.judge_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    server = make_server(parser.parse_args().port)
    until_interrupted(server, f"eval.judge.url={server.url}")


if __name__ == "__main__":
    main()
