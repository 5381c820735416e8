"""Check the prose of the repository against `allowed.csv`, the number of findings that each file may still have.

Rules: `word` (codespell with `words.txt`), `line` (rumdl) and `sentence` (markdown-it-py parses, this file counts).
The options of both linters are in `pyproject.toml`. The check reads Markdown and, in Python files, comments, docstrings
and messages. A message is a string with a space in it, outside of tests.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import subprocess
import sys
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
MAX_WORDS = 30
STATEMENT_START = {tokenize.ENCODING, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}  # Python 3.12 splits f-strings
END_OF_SENTENCE = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?][)"']))(?=\s+[A-Z\d`"'(])""")
MARKDOWN = MarkdownIt("commonmark").enable("table")


class Text(NamedTuple):
    path: str
    line: int
    text: str
    has_sentences: bool = True


class Finding(NamedTuple):
    path: str
    line: int
    rule: str
    text: str


def run(command: str | Path, *arguments: str, cwd: Path = ROOT, stdin: str = "", failed: int = 1) -> str:
    """Standard output. RuntimeError for an exit code that is neither 0 nor `failed`, the one for findings."""
    done = subprocess.run([command, *arguments], input=stdin, capture_output=True, encoding="utf-8", cwd=cwd)
    if done.returncode not in (0, failed):
        raise RuntimeError(f"{command} ended with exit code {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def python_texts(root: Path, path: str) -> Iterator[Text]:
    previous = tokenize.ENCODING
    with (root / path).open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            line, text = token.start[0], token.string
            if token.type == tokenize.COMMENT:
                yield Text(path, line, text, has_sentences=False)
            elif token.type == tokenize.STRING and previous in STATEMENT_START and text[0] in "\"'rR":
                value = ast.literal_eval(text)
                yield Text(path, line + len(value) - len(value.lstrip("\n")), inspect.cleandoc(value))
            elif token.type in STRINGS and " " in text and "tests/" not in path:
                yield Text(path, line, re.sub(r"\{[^{}]*\}|\\[nt]", " ", text), has_sentences=False)
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                previous = token.type


def listed_words(texts: list[Text]) -> Iterator[Finding]:
    """Codespell reads all lines at once, from its standard input."""
    lines = [(t.path, t.line + i, line) for t in texts for i, line in enumerate(t.text.replace("\r", " ").split("\n"))]
    stdin = "".join(f"{line}\n" for _, _, line in lines)
    for output in run(SCRIPTS / "codespell", "--stdin-single-line", "-", stdin=stdin, failed=65).splitlines():
        number, found = output.split(": ", 1)
        path, line, _ = lines[int(number) - 1]
        yield Finding(path, line, "word", found.replace("==>", "->"))


def long_lines(root: Path, pages: list[str]) -> Iterator[Finding]:
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", "--output-format", "json"]
    for found in json.loads(run(SCRIPTS / "rumdl", "check", *options, *pages, cwd=root)) if pages else ():
        yield Finding(found["file"], found["line"], "line", f"{found['message']}: break the line")


def long_sentences(text: Text) -> Iterator[Finding]:
    """In paragraphs, lists and headings. A code span counts as one word."""
    in_table = False
    for token in MARKDOWN.parse(text.text) if text.has_sentences else ():
        in_table = token.type == "table_open" or (in_table and token.type != "table_close")
        if token.type != "inline" or token.map is None or in_table:
            continue
        line, content = text.line + token.map[0], ""
        for part in token.children or ():
            code = "`" + re.sub(r"\s", "_", part.content) + "`"
            content += {"softbreak": "\n", "hardbreak": "\n", "code_inline": code}.get(part.type, part.content)
        for sentence in END_OF_SENTENCE.split(content):
            body = sentence.lstrip()
            line += sentence.count("\n") - body.count("\n")
            words = [word for word in body.split() if re.search(r"\w", word)]
            if len(words) > MAX_WORDS:
                start = " ".join(words[:6])
                yield Finding(text.path, line, "sentence", f"{len(words)} words in '{start} ...': split it")
            line += body.count("\n")


def check(root: Path) -> list[Finding]:
    """Findings in the files that git tracks or would track, in order of path and line."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md", "*.py", cwd=root)
    paths = sorted(path for path in set(listed.split("\0")) - {""} if (root / path).is_file())
    pages = [path for path in paths if path.endswith(".md")]
    texts = [Text(path, 1, (root / path).read_text(encoding="utf-8")) for path in pages]
    texts += [text for path in paths if path.endswith(".py") for text in python_texts(root, path)]
    sentences = (found for text in texts for found in long_sentences(text))
    return sorted([*listed_words(texts), *long_lines(root, pages), *sentences])


def allowed_counts(file: Path) -> Counter[tuple[str, str]]:
    """The findings that each file may have, by path and rule."""
    entries = [row.rsplit(",", 2) for row in file.read_text(encoding="utf-8").splitlines()]
    return Counter({(path, rule): int(count) for path, rule, count in entries})


def totals(counts: Counter[tuple[str, str]]) -> Counter[str]:
    """Findings by rule, in all files together: a move changes paths, and no total."""
    found: Counter[str] = Counter()
    for (_, rule), num in counts.items():
        found[rule] += num
    return found


def main() -> int:
    """Exit code 1 where a file has more or fewer findings than `allowed.csv` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a git work tree (default: this one)")
    parser.add_argument(
        "--update", action="store_true", help="write today's counts to docs/prose/allowed.csv; no total may grow"
    )
    parser.add_argument("--all", action="store_true", help="print the allowed findings too")
    options = parser.parse_args()
    findings = check(options.root)
    counts = Counter((found.path, found.rule) for found in findings)
    file = options.root / "docs/prose/allowed.csv"
    if options.update:
        grown = {rule for rule, num in totals(counts).items() if num > totals(allowed_counts(file))[rule]}
        if grown:
            print(f"the allow-list only shrinks, and has fewer findings of {', '.join(sorted(grown))} than there are")
            return 1
        rows = [f"{path},{rule},{count}\n" for (path, rule), count in sorted(counts.items())]
        file.write_text("".join(rows), encoding="utf-8")
    allowed = allowed_counts(file)
    for found in findings:
        if options.all or counts[found.path, found.rule] > allowed[found.path, found.rule]:
            print(f"{found.path}:{found.line}: {found.rule}: {found.text}")
    wrong = sorted(key for key in counts | allowed if counts[key] != allowed[key])
    for key in wrong:
        more = counts[key] - allowed[key]
        remedy = f"fix {more} of those above" if more > 0 else "lower it with `python docs/prose/check.py --update`"
        print(f"{key[0]}: {key[1]}: found {counts[key]}, allowed {allowed[key]}: {remedy}")
    print("Prose:", ", ".join(f"{totals(counts)[rule]} {rule}" for rule in ("word", "line", "sentence")))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
