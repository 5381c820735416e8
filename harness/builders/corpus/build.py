"""From the two sources to ZPPO-77K: read every row, choose within each sub-dataset by seed, examine, write, describe.

Rows of a sub-dataset are ordered by a keyed hash of their content, and the first ones that pass every filter are taken,
up to its cap. So the choice depends on seed and content alone: not on the order of files, the machine, or how often the
build was killed. Costly filters look at no row beyond the last one that is needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.builders.corpus.card import card, card_text
from harness.builders.corpus.hashes import BenchmarkHashes, NearDuplicates, digest, normal_question
from harness.builders.corpus.index import Candidate, Index, Kept, refuse_if_held
from harness.builders.corpus.options import BuildOptions
from harness.builders.corpus.reasons import KEPT, answer_of, first_fault, question_of
from harness.builders.corpus.shards import digests, write_shards
from harness.builders.corpus.sources import OpenedSource, Row, SourceFile, count_names, open_source, read_rows
from harness.builders.corpus.tables import SOURCES, SUB_DATASETS, canonical_name, is_left_out, sub_datasets
from harness.config.schema import RunConfig
from harness.data.files import UNFINISHED
from harness.errors import UserError, disk_error
from harness.records.files import put_in_place, sha256, write_atomically

if TYPE_CHECKING:
    from harness.builders.corpus.examine import Examiner

CARD, README, STATE = "card.json", "README.md", "state.sqlite"
FINISHED = ".finished"
PACKAGES = ("zppo-bench", "datasets", "imagehash", "pillow", "pyarrow", "transformers")

Report = Callable[[str], None]


@dataclass(frozen=True)
class Inputs:
    """All that decides what a corpus holds."""

    options: BuildOptions
    config: RunConfig
    sources: tuple[OpenedSource, ...]
    hashes: BenchmarkHashes | None

    def files(self) -> list[tuple[int, SourceFile]]:
        """(number of the source, file) of every file, in order."""
        return [(number, file) for number, source in enumerate(self.sources) for file in source.files]

    def described(self) -> dict[str, Any]:
        """What the card says of them, and what a build that goes on is held to."""
        near = self.options.near_duplicates
        return {
            "options": self.options.chosen(),
            "prompt": {
                "student": self.config.student.path,
                "student_revision": self.config.student.revision,
                "max_prompt_tokens": self.config.rollout.max_prompt_tokens,
                "media": vars(self.config.data.media),
                "grader": self.config.reward.grader,
            },
            "sources": {
                source.source.name: {
                    "location": source.location,
                    "revision": source.revision,
                    "num_files": len(source.files),
                    "num_rows": source.num_rows,
                }
                for source in self.sources
            },
            "near_duplicates": None
            if near is None or self.hashes is None
            else {
                "sha256": sha256(Path(near).expanduser()),
                "questions": self.hashes.columns,
                "missing": self.hashes.missing,
            },
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }

    def fingerprint(self) -> str:
        files = [(file.source, file.name, file.num_rows) for _, file in self.files()]
        return hashlib.sha256(json.dumps([self.described(), files], sort_keys=True).encode()).hexdigest()


def build(options: BuildOptions, config: RunConfig, *, force: bool = False, report: Report = print) -> dict[str, Any]:
    """Build a corpus, or go on with one; returns its card. `config` is that of a run that would train on it.

    Raises UserError for whatever of options and sources cannot be used, before anything is written, and for a folder
    that holds another corpus.
    """
    options.check()
    out = Path(options.out).expanduser()
    work = out / UNFINISHED
    inputs = _inputs(options, config, report)
    fingerprint = inputs.fingerprint()
    if (out / FINISHED).exists():
        shutil.rmtree(out / FINISHED)
    if not force and not work.exists() and (out / CARD).exists():
        stored: dict[str, Any] = json.loads((out / CARD).read_text(encoding="utf-8"))
        if stored["fingerprint"] != fingerprint:
            raise UserError(
                f"{out} holds a corpus of other options, sources or versions: choose another --out, or replace it with "
                "--force"
            )
        report(f"{out} is built already")
        return stored
    if not force and out.is_dir() and not work.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and holds no corpus: choose another --out")

    from harness.builders.corpus.examine import Examiner

    near = NearDuplicates(inputs.hashes, options.distance) if inputs.hashes is not None else None
    try:
        with Examiner(config, near) as examiner:  # first of all: it refuses a student that cannot be loaded
            if force:
                _clear(out)
            work.mkdir(parents=True, exist_ok=True)
            return _build(inputs, fingerprint, examiner, out, report)
    except OSError as error:
        if (known := disk_error(error, out)) is not None:
            raise known from error
        raise


def _build(inputs: Inputs, fingerprint: str, examiner: Examiner, out: Path, report: Report) -> dict[str, Any]:
    work = out / UNFINISHED
    index = Index(work / STATE, fingerprint)
    try:
        _read(inputs, index, report)
        _choose(inputs, index, examiner, report)
        num_rows = sum(index.num_kept(subset.name) for subset in SUB_DATASETS)
        if num_rows == 0:
            reasons: Counter[str] = Counter()
            for *_, reason, number in index.table():
                reasons[reason] += number
            raise UserError(f"no row of the sources is left: {dict(reasons)}; are they the right data sets?")
        paths = write_shards(index, num_rows, work, inputs.options.shard_rows, report)
        made = card(inputs.described(), fingerprint, [s.source.name for s in inputs.sources], index.table(),
                    index.examples(), inputs.options.caps(), digests(paths))  # fmt: skip
    finally:
        index.close()
    write_atomically(work / CARD, json.dumps(made, indent=2) + "\n")
    write_atomically(work / README, card_text(made))
    for name in [*(path.name for path in paths), README, CARD]:  # killed in between, it makes what is missing again
        put_in_place(work / name, out / name)
    work.rename(out / FINISHED)  # at once, so that half a state is never taken for one to go on with
    shutil.rmtree(out / FINISHED)
    return made


def _inputs(options: BuildOptions, config: RunConfig, report: Report) -> Inputs:
    """Open everything and refuse what is unusable."""
    hashes = None
    if options.near_duplicates is not None:
        hashes = BenchmarkHashes.load(Path(options.near_duplicates).expanduser())
    sources = []
    for source in SOURCES:
        location, revision = options.location(source.name)
        opened = open_source(source, location, revision)
        report(f"{source.name}: {location}, {len(opened.files)} files, {opened.num_rows} rows")
        sources.append(opened)
    if options.unknown == "refuse":
        _refuse_unknown(sources)
    return Inputs(options, config, tuple(sources), hashes)


def _refuse_unknown(sources: Sequence[OpenedSource]) -> None:
    for opened in sources:
        name = opened.source.name
        counts = count_names(opened)
        unknown = {
            raw: number
            for raw, number in counts.items()
            if canonical_name(name, raw) is None and not is_left_out(name, raw)
        }
        if unknown:
            names = ", ".join(f"{raw!r} ({number} rows)" for raw, number in sorted(unknown.items()))
            raise UserError(
                f"{name}: sub-datasets that are in no table: {names}: leave them out with --unknown skip, or give them "
                "a tier in harness/builders/corpus/tables.py"
            )


def _read(inputs: Inputs, index: Index, report: Report) -> None:
    """Look at every row, file by file; what passes becomes a candidate."""
    files = inputs.files()
    for number, (source, file) in enumerate(files):
        if not index.is_read(number):
            with index.commit():
                for rows in read_rows(inputs.sources[source].source, file):
                    for row in rows:
                        _note(inputs, index, source, number, row)
                index.set_read(number)
        _tell(report, "read", number + 1, len(files), "files")


def _note(inputs: Inputs, index: Index, source: int, file: int, row: Row) -> None:
    """Count a row that is out, add one that is not."""
    spec = inputs.sources[source].source
    raw = str(row.values["subset"] or "").strip()
    name = _row_name(spec.name, raw, row)
    subset = canonical_name(spec.name, raw)
    if subset is None:
        index.count(source, raw, "", "not_listed" if is_left_out(spec.name, raw) else "unknown")
        return
    if inputs.options.shared == "priority" and any(sub_datasets()[subset].names(s.name) for s in SOURCES[:source]):
        index.count(source, raw, subset, "other_source")
        return
    fault = first_fault(row, has_pass_rate="pass_rate" in spec.fields, name=name)
    if fault is not None:
        index.count(source, raw, subset, fault[0])
        index.example(*fault)
        return
    image = row.image_bytes() or b""
    content = digest(normal_question(question_of(row)), image)
    index.add(
        Candidate(
            content=content,
            rank=bytes([source]) + subset.encode() + b"\0" + digest(question_of(row), answer_of(row), name),
            subset=subset,
            source=source,
            raw=raw,
            key=digest(str(inputs.options.seed), subset, content),
            file=file,
            position=row.position,
        )
    )


def _choose(inputs: Inputs, index: Index, examiner: Examiner, report: Report) -> None:
    """Examine candidates, each sub-dataset in its order and no more at a time than it lacks, until it is full."""
    caps = inputs.options.caps()

    def lacking() -> list[Candidate]:
        return [row for s in SUB_DATASETS for row in index.next_rows(s.name, caps[s.tier] - index.num_kept(s.name))]

    while wanted := lacking():
        by_file: dict[int, dict[int, Candidate]] = defaultdict(dict)
        for row in wanted:
            by_file[row.file][row.position] = row
        for number, file in enumerate(sorted(by_file)):
            with index.commit():
                _examine_file(inputs, index, examiner, file, by_file[file])
            _tell(report, f"examined {len(wanted)} chosen rows:", number + 1, len(by_file), "files")


def _examine_file(inputs: Inputs, index: Index, examiner: Examiner, file: int, wanted: dict[int, Candidate]) -> None:
    source, source_file = inputs.files()[file]
    spec = inputs.sources[source].source
    for rows in read_rows(spec, source_file, sorted(wanted)):
        candidates = [wanted[row.position] for row in rows]
        named = [(_row_name(spec.name, c.raw, row), row) for c, row in zip(candidates, rows, strict=True)]
        for candidate, row, finding in zip(candidates, rows, examiner.examine(named), strict=True):
            index.decide(candidate.content, finding.reason or KEPT)
            if finding.reason is not None:
                index.example(finding.reason, finding.message)
                continue
            subset = sub_datasets()[candidate.subset]
            index.keep(
                Kept(
                    key=candidate.key,
                    id=f"{subset.name}/{candidate.content.hex()}",
                    question=finding.question.text,
                    answer=finding.question.answer,
                    answer_type=finding.question.answer_type,
                    image=row.image_bytes() or b"",
                    subset=subset.name,
                    tier=subset.tier,
                    source=spec.name,
                    source_subset=candidate.raw,
                    source_id=None if row.values["id"] is None else str(row.values["id"]),
                    pass_rate=None if row.values["pass_rate"] is None else float(row.values["pass_rate"]),
                    prompt_tokens=finding.num_prompt_tokens,
                )
            )


def _tell(report: Report, what: str, number: int, total: int, things: str) -> None:
    """At most ten lines for a stage."""
    if number * 10 // total > (number - 1) * 10 // total:
        report(f"{what} {number} of {total} {things}")


def _row_name(source: str, raw: str, row: Row) -> str:
    """How messages name a row: by what the source says of it, which does not depend on the file it is in."""
    return "/".join([source, raw, str(row.values["id"])])


def _clear(out: Path) -> None:
    """Remove what a build has written, and nothing else. Raises UserError for one that is under way."""
    if (out / UNFINISHED / STATE).exists():
        refuse_if_held(out / UNFINISHED / STATE)
    for path in [*out.glob("train-*-of-*.parquet"), out / CARD, out / README]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
