"""Evaluate a student: generate, mark by rule, ask the judge, and write scores and responses."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.config.schema import EvalConfig
from harness.errors import UserError
from harness.evaluation.asking import Asker, Live
from harness.evaluation.library.isolation import preserved_state
from harness.evaluation.library_scores import LibraryScore
from harness.evaluation.library_tasks import load_tasks
from harness.evaluation.protocol import UNKNOWN, Setup, card_hash, evaluation_card
from harness.evaluation.samples import Sampled, sample_row
from harness.evaluation.store import SampleStore
from harness.evaluation.student import Respondent, Response
from harness.evaluation.suites import Benchmark, load_suite, refuse_golds
from harness.records.files import write_atomically
from harness.rollout.base import RolloutEngine

if TYPE_CHECKING:
    from harness.evaluation.judge.verdicts import Verdict
    from harness.rewards.workers import Grader

logger = logging.getLogger(__name__)

SCORE_COLUMNS = (
    "benchmark", "family", "score", "stderr", "n", "num_truncated", "num_unparsable", "num_timeout", "num_judged",
    "num_malformed", "protocol",
)  # fmt: skip
DECIMALS = 4
MODEL_FILE = "model.json"
SAMPLES_FILE = "samples.csv"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A response with its final score in [0, 1]. `how`: rule, judge, or why the judge could not say.

    `score` is None where nobody has a verdict: `whose` is missing, the judge's or the grader's, and `why`.
    """

    response: Response
    score: float | None
    how: str
    whose: str = ""
    why: str = ""


def evaluate(
    config: EvalConfig,
    engine: RolloutEngine | None,
    grader: Grader,
    *,
    out_dir: Path,
    model_name: str,
    identity: str | None,
    setup: Setup = UNKNOWN,
    live: Live | None = None,
) -> list[dict[str, Any]]:
    """Score a model on `config.suite` and `config.tasks`. Returns the rows of `scores.csv`.

    `live` is what library tasks read of the student; they need it.

    Writes under `out_dir`, `scores.csv` last:

    - `responses.jsonl`: every response as it comes; rows of the same model (`identity`, `setup`) and protocol are not
      generated again (`harness.evaluation.store`).
    - `model.json`: the model that gave the last complete ones. With `identity` None they are taken, and no engine is
      needed: for a judging pass that does not load the model. `setup` is then the one that is stored.
    - `verdicts.jsonl`: every reply of the judge as it comes, likewise.
    - `rows.jsonl`: every response with its prompt (pictures and clip by name), answer, gold answer, score and how it
      was scored. A response that nobody could grade is `ungraded`, without a score.
    - `protocol.json`: the evaluation card of each benchmark by the hash in its row, the model, why benchmarks are
      missing (`holes`), and what the data of others lack (`partial`).
    - `samples.csv` with several samples a question (`harness.evaluation.samples`).
    - `scores.csv`: benchmark, family, score (in percent), stderr, n, num_truncated, num_unparsable, num_timeout,
      num_judged, num_malformed, protocol. `stderr` is over questions, not over runs. `num_timeout` counts answers at
      the grader's limits, `num_malformed` replies of the judge that are no verdicts: wrong. A benchmark that could not
      be run, or has an ungraded response, has a row without a score.

    With `config.stage` generate only the first two files are written, and nothing returned. Raises UserError for an
    unknown suite, where no benchmark can be run, where the judge's first replies are no verdicts, and without identity
    where there are no responses. Leaves the process's random generators and environment as they were.
    """
    if identity is None:
        identity, setup = _stored_model(out_dir)
    suite = load_suite(config)
    refuse_golds(suite, grader.gold_errors)
    holes = dict(suite.holes)
    from_library: dict[str, list[LibraryScore]] = {}
    with ExitStack() as stack:
        stack.enter_context(preserved_state())
        tasks, task_holes = load_tasks(config)
        holes |= task_holes
        store = stack.enter_context(SampleStore(out_dir / "responses.jsonl"))
        student = Respondent(engine, grader, config, suite.benchmarks, store=store, identity=identity, setup=setup)
        for benchmark in suite.benchmarks:
            try:
                student.answer(benchmark)
            except UserError as error:
                if suite.strict:
                    raise
                holes[benchmark.name] = str(error)
        student.report()
        for task in tasks:
            asker = Asker(engine, live, store=store, identity=identity, setup=setup)
            try:
                from_library[task.entry] = task.evaluate(asker, config, setup)
            except UserError as error:
                holes[task.entry] = str(error)
    described: dict[str, Any] = {"model": model_name, "identity": identity}
    write_atomically(out_dir / MODEL_FILE, json.dumps(described | asdict(setup)) + "\n")
    answered = [benchmark for benchmark in suite.benchmarks if benchmark.name not in holes]
    if config.stage == "generate":
        _report_holes(holes, any_answered=bool(answered or from_library))
        return []
    verdicts = _verdicts([response for b in answered for response in student.of(b)], config, out_dir)
    cards: dict[str, Any] = {}
    scored: list[Scored] = []
    rows: dict[str, dict[str, Any]] = {}
    spreads: list[dict[str, Any]] = []
    partial: dict[str, Any] = {}
    for benchmark in answered:
        finals = [_scored(response, verdicts, config.judge.when) for response in student.of(benchmark)]
        if ungraded := _ungraded(finals):
            holes[benchmark.name] = f"{benchmark.name}: {ungraded}"
            scored += finals
            continue
        card = evaluation_card(benchmark, config, grader.config.grader, setup, student.digests)
        try:
            rows[benchmark.name] = _score_row(benchmark, finals, card_hash(card), config.num_samples)
            if config.num_samples > 1:
                spreads.append(sample_row(benchmark.name, _sampled(finals, config), benchmark.aggregate, grader.same))
        except UserError as error:  # of an aggregation that needs more rows than there are
            holes[benchmark.name] = str(error)
            continue
        cards[card_hash(card)] = card
        if benchmark.partial:
            partial[benchmark.name] = benchmark.partial
            logger.warning("%s is not complete: %s", benchmark.name, benchmark.partial)
        scored += finals
    _report_holes(holes, any_answered=bool(scored or from_library))
    scores = [rows.get(name) or _hole_row(name, family) for name, family in suite.families.items()]
    responses = [_response_row(one) for one in scored]
    for entry in config.tasks:
        if entry in holes:
            scores.append(_hole_row(entry, entry.partition(":")[0]))
        for score in from_library.get(entry, ()):
            cards[card_hash(score.card)] = score.card
            scores.append(_library_row(score, card_hash(score.card)))
            responses += score.rows
    write_atomically(out_dir / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in responses))
    described |= {"cards": cards, "holes": holes, "partial": partial}
    write_atomically(out_dir / "protocol.json", json.dumps(described, indent=2) + "\n")
    if spreads:
        write_atomically(out_dir / SAMPLES_FILE, _csv_text(spreads, list(spreads[0])))
    write_atomically(out_dir / "scores.csv", _csv_text(scores))
    return scores


def _stored_model(out_dir: Path) -> tuple[str, Setup]:
    """Which model gave the responses that are there, and how. Earlier versions did not say how."""
    again = "generate them first, with stage=generate"
    if not (out_dir / MODEL_FILE).exists():
        raise UserError(f"{out_dir} has no responses: {again}")
    try:
        stored = json.loads((out_dir / MODEL_FILE).read_text(encoding="utf-8"))
        setup = Setup(**{field.name: stored.get(field.name) for field in fields(Setup)})
        return str(stored["identity"]), setup
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"{out_dir / MODEL_FILE} is damaged: {again}") from error


def needs_judge(response: Response, when: str) -> bool:
    """Whether the rule leaves the score open. An empty reply is wrong without asking."""
    benchmark, outcome = response.benchmark, response.mark.outcome
    if benchmark.judge is None or not response.sample.response.strip():
        return False
    if benchmark.scoring == "bench_judge" or outcome == "unparsed":
        return True
    return outcome in ("mismatch", "ungraded") and when == "unmatched"


def _scored(response: Response, verdicts: dict[str, Verdict], when: str) -> Scored:
    """The judge's score where it was asked, the mark's elsewhere. Without a judge what is open is wrong."""
    verdict = verdicts.get(response.prompt.uid)
    if verdict is not None and verdict.missing:
        return Scored(response=response, score=None, how="missing_verdict", whose="judge", why=verdict.reply)
    if verdict is not None:
        how = "malformed_verdict" if verdict.malformed else "judge"
        return Scored(response=response, score=verdict.score, how=how)
    if response.mark.outcome == "ungraded":
        why = "two of its workers were lost at an answer, see the log"
        return Scored(response=response, score=None, how="missing_verdict", whose="grader", why=why)
    how = "no_judge" if needs_judge(response, when) else "rule"
    return Scored(response=response, score=response.mark.score, how=how)


def _ungraded(scored: Sequence[Scored]) -> str | None:
    """Who gave no verdict, on how many of a benchmark's responses and why, with the remedy; None where all have one."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in scored:
        if one.score is None:
            reasons[one.whose].append(one.why)
    if not reasons:
        return None
    said = [f"the {who} gave no verdict on {len(whys)} of {len(scored)}: {whys[0]}" for who, whys in reasons.items()]
    return "; ".join([*said, "the responses are kept, stage=judge goes on from them"])


def _verdicts(responses: Sequence[Response], config: EvalConfig, out_dir: Path) -> dict[str, Verdict]:
    """By uid. Of a judge that cannot be asked at all they are missing, but for those that it has given before."""
    asked = [response for response in responses if needs_judge(response, config.judge.when)]
    if not asked or config.judge.url is None:
        return {}
    from harness.evaluation.judge.verdicts import JudgeItem, MalformedReplies, judge, kept_verdicts
    from harness.rewards.judge.client import JudgeClient

    items = [
        JudgeItem(
            key=r.prompt.uid,
            format=r.benchmark.judge or "shared",
            question=r.prompt.question,
            response=r.sample.response,
            answer=r.grade.answer,
        )
        for r in asked
    ]
    logger.info("judging %d responses by %s", len(items), config.judge.model)
    client, cache = JudgeClient(config.judge), out_dir / "verdicts.jsonl"
    try:
        verdicts = judge(items, client, cache)
    except MalformedReplies:  # what it would say about the rest is known
        raise
    except UserError as error:
        verdicts = kept_verdicts(items, client, cache, str(error))
    return {item.key: verdict for item, verdict in zip(items, verdicts, strict=True)}


def refuse_no_score(out_dir: Path) -> None:
    """Raises UserError, with the first reason, where an evaluation has been written and no benchmark has a score."""
    with (out_dir / "scores.csv").open(encoding="utf-8", newline="") as lines:
        if any(row["score"] for row in csv.DictReader(lines)):
            return
    holes = json.loads((out_dir / "protocol.json").read_text(encoding="utf-8"))["holes"]
    raise UserError(next(iter(holes.values())))


def _report_holes(holes: dict[str, str], *, any_answered: bool) -> None:
    """A line for each. Raises UserError, with the first, where there is nothing to write."""
    if holes and not any_answered:
        raise UserError(next(iter(holes.values())))
    for message in dict.fromkeys(holes.values()):
        logger.warning("not evaluated: %s", message)


def _score_row(benchmark: Benchmark, scored: Sequence[Scored], protocol: str, num_samples: int) -> dict[str, Any]:
    """The mean over runs, each with one sample a question; the standard error is of the questions' means."""
    marked = [(s.response.prompt.question, s.score) for s in scored if s.score is not None]
    runs = [benchmark.aggregate(marked[k::num_samples]) for k in range(num_samples)]
    blocks = [marked[i : i + num_samples] for i in range(0, len(marked), num_samples)]
    means = [(block[0][0], fmean(score for _, score in block)) for block in blocks]
    values = (
        benchmark.name,
        benchmark.family,
        round(100 * fmean(run.mean for run in runs), DECIMALS),
        round(100 * (benchmark.aggregate(means) if num_samples > 1 else runs[0]).stderr, DECIMALS),
        len(scored) // num_samples,
        sum(s.response.sample.finish_reason == "length" for s in scored),
        sum(s.response.grade.verdict == "unparsable" for s in scored),
        sum(s.response.grade.verdict == "timeout" for s in scored),
        sum(s.how not in ("rule", "no_judge") for s in scored),
        sum(s.how == "malformed_verdict" for s in scored),
        protocol,
    )
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def _library_row(score: LibraryScore, protocol: str) -> dict[str, Any]:
    stderr = "" if score.stderr is None else round(score.stderr, DECIMALS)
    values = (
        score.name, score.family, round(score.score, DECIMALS), stderr, score.num_questions, score.num_truncated,
        0, 0, 0, 0, protocol,
    )  # fmt: skip
    return dict(zip(SCORE_COLUMNS, values, strict=True))


def _sampled(scored: Sequence[Scored], config: EvalConfig) -> list[Sampled]:
    blocks = [scored[i : i + config.num_samples] for i in range(0, len(scored), config.num_samples)]
    return [
        Sampled(
            question=block[0].response.prompt.question,
            answers=[one.response.grade.answer for one in block],
            scores=[one.score for one in block if one.score is not None],
        )
        for block in blocks
    ]


def _hole_row(name: str, family: str) -> dict[str, Any]:
    return dict.fromkeys(SCORE_COLUMNS, "") | {"benchmark": name, "family": family, "n": 0}


def _response_row(scored: Scored) -> dict[str, Any]:
    response = scored.response
    question, sample = response.prompt.question, response.sample
    return {
        "benchmark": response.benchmark.name,
        "uid": response.prompt.uid,
        "question_id": question.id,
        "messages": list(response.prompt.messages),
        "images": [image.name for image in question.images],
        "video": None if question.video is None else question.video.name,
        "response": sample.response,
        "num_tokens": sample.num_tokens,
        "finish_reason": sample.finish_reason,
        "answer": response.grade.answer,
        "gold": question.answer,
        "score": scored.score,
        "verdict": response.grade.verdict if scored.score is not None else "ungraded",
        "outcome": response.mark.outcome,
        "how": scored.how,
    }


def _csv_text(rows: Sequence[dict[str, Any]], columns: Sequence[str] = SCORE_COLUMNS) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
