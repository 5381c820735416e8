"""A run of ZPPO judged from its folder alone: caps, order, prompts, advantages, flags and buffer.

The reference is written out here; nothing is imported of the code that made the run but its launch.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd
import pytest
import yaml

RUN = [
    "method=zppo", "student=tiny_xs", "eval=none", "steps=5", "seed=0", "num_threads=1", "data.batch_size=10",
    "data.pool_size=30", "data.num_questions=60", "data.epochs=4", "data.levels=[1,2,3,4]", "rollout.temperature=1.0",
    "rollout.max_response_tokens=48", "method.group_size=4", "method.teacher_group_size=1", "method.augment_ratio=0.5",
    "method.buffer_capacity=7", "method.compress_max_tokens=96",
]  # fmt: skip
BOX = re.compile(r"\\boxed\{([^{}]*)\}")


@dataclass
class Folder:
    """The files of a run, read with pandas and json."""

    options: dict
    num_new: int
    rows: pd.DataFrame
    metrics: list[dict]
    events: list[dict]

    @classmethod
    def read(cls, path):
        config = yaml.safe_load((path / "config.yaml").read_text())
        defaults = {"tau": 0.5, "replay_ratio": 0.25}
        rows = pd.concat(pd.read_parquet(p) for p in sorted((path / "rollouts").glob("*.parquet")))
        metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        events = [json.loads(line) for line in (path / "buffer.jsonl").read_text().splitlines()]
        return cls(defaults | config["method"], config["data"]["batch_size"], rows, metrics, events)

    @cached_property
    def _steps(self):
        return [Step(self, step, rows) for step, rows in self.rows.groupby("step")]

    def steps(self):
        return self._steps


@dataclass
class Group:
    uid: str
    question: str
    kind: str
    replayed: bool
    rows: list[dict] = field(repr=False)

    @property
    def rewards(self):
        return [row["reward"] for row in self.rows]

    @property
    def accuracy(self):
        return sum(self.rewards) / len(self.rewards)

    @property
    def prompt(self):
        (text,) = {row["prompt_text"] for row in self.rows}
        return text


class Step:
    """The groups of one step in recorded order, by who sampled them and what for."""

    def __init__(self, folder, number, rows):
        self.folder, self.number = folder, number
        groups = []
        for (uid, sampler), part in rows.groupby(["uid", "sampler"], sort=False):
            first = part.iloc[0]
            records = part.astype(object).where(part.notna(), None).to_dict("records")
            group = Group(uid, first["question_id"], first["kind"], bool(first["replayed"]), records)
            groups.append((sampler, group))
        self.student = [g for sampler, g in groups if sampler == "student"]
        self.plain = [g for g in self.student if g.kind == "plain"]
        self.candidates = [g for g in self.student if g.kind in ("bcq", "ncq")]
        self.teacher = {g.question: g for sampler, g in groups if sampler == "teacher" and g.kind == "plain"}
        self.rewrites = [g for sampler, g in groups if sampler == "teacher" and g.kind == "compress"]
        self.accuracy = {g.question: g.accuracy for g in self.plain}
        self.hard = [g for g in self.plain if g.accuracy < folder.options["tau"]]
        self.cap = math.floor(folder.options["augment_ratio"] * folder.num_new)
        self.metrics = next(m for m in folder.metrics if m["step"] == number)

    def kinds(self):
        """Kinds of candidate prompts by question, in the order of the questions."""
        kinds = {}
        for group in self.candidates:
            kinds.setdefault(group.question, []).append(group.kind)
        return kinds

    def solved(self, question):
        return any(self.teacher[question].rewards)


@pytest.fixture(scope="module")
def run_path(tmp_path_factory):
    from harness.config.compose import compose
    from harness.config.schema import from_hydra
    from harness.run.run import run

    outputs = tmp_path_factory.mktemp("invariants")
    return run(from_hydra(compose([*RUN, f"outputs={outputs}"])))


@pytest.fixture(scope="module")
def folder(run_path):
    return Folder.read(run_path)


def test_the_run_has_everything_that_is_judged(folder):
    steps = folder.steps()
    events = Counter(event["event"] for event in folder.events)
    assert events["evict"] and events["graduate"]
    assert any(g.replayed for step in steps for g in step.plain)
    assert any(len(set(g.rewards)) == 1 for step in steps for g in step.student)
    last = [(step, list(step.kinds())[-1]) for step in steps if step.candidates]
    assert any(
        step.kinds()[question] == ["bcq"] and len(step.candidates) == step.cap and not _skipped(step)
        for step, question in last
    ), "no question with one slot left"
    assert any(
        kinds == ["ncq"] and not step.solved(question) for step in steps for question, kinds in step.kinds().items()
    ), "no question with an NCQ only"
    assert any(not _skipped(step) for step in steps)


@pytest.mark.clause("C003", "C004")
def test_new_questions_and_replay_draws(folder):
    """N new questions, floor(N / 4) of the buffer's others or as many as there are, never one twice."""
    queue = []
    for step in folder.steps():
        new = [g.question for g in step.plain if not g.replayed]
        drawn = [g.question for g in step.plain if g.replayed]
        assert len(new) == folder.num_new
        assert len(set(new + drawn)) == len(new + drawn)
        others = [question for question in queue if question not in new]
        assert set(drawn) <= set(others)
        assert len(drawn) == min(math.floor(folder.options["replay_ratio"] * folder.num_new), len(others))
        queue = _replay(folder, step.number)


@pytest.mark.clause("C022", "C023", "C024", "C025")
def test_buffer_events(folder):
    """Admit the hard, graduate the others, then evict first in first out, from plain groups only, in their order."""
    expected = []
    _replay(folder, folder.steps()[-1].number, expected)
    assert folder.events == expected


@pytest.mark.clause("C005")
def test_the_teacher_is_asked_about_hard_questions_only(folder):
    for step in folder.steps():
        assert list(step.teacher) == [g.question for g in step.hard]
        assert all(len(g.rows) == folder.options["teacher_group_size"] for g in step.teacher.values())


@pytest.mark.clause("C008", "C012", "C013")
def test_caps_and_order(folder):
    for step in folder.steps():
        kinds = step.kinds()
        accuracies = [step.accuracy[question] for question in kinds]
        assert accuracies == sorted(accuracies), "harder questions come first"
        assert set(kinds) <= {g.question for g in step.hard}
        assert len(step.candidates) <= step.cap
        uids = [g.uid for g in step.candidates]
        assert uids == [f"{question}/{kind}" for question, mine in kinds.items() for kind in mine], "BCQ before NCQ"
        if _skipped(step):
            continue
        easier = [g for g in step.hard if g.question not in kinds]
        assert all(g.accuracy >= accuracies[-1] for g in easier), "nobody harder was passed over"
        for question, mine in list(kinds.items())[:-1]:
            assert mine == (["bcq", "ncq"] if step.solved(question) else ["ncq"])
        last = list(kinds)[-1]
        full = ["bcq", "ncq"] if step.solved(last) else ["ncq"]
        assert kinds[last] == full or (kinds[last] == ["bcq"] and len(step.candidates) == step.cap)
        assert len(step.candidates) == step.cap or len(kinds) == len(step.hard)


@pytest.mark.clause("C014", "C036", "C041", "C042")
def test_candidate_prompts(folder):
    """A BCQ shows one right and one wrong answer; an NCQ lists the wrong ones once and shows every wrong trace."""
    for step in folder.steps():
        plain = {g.question: g for g in step.plain}
        for group in step.candidates:
            shown = [BOX.findall(part.split("</candidate>")[0]) for part in group.prompt.split("<candidate>\n")[1:]]
            wrong = [row for row in plain[group.question].rows if row["reward"] == 0]
            answers = [row["answer"] for row in wrong]
            first = group.rows[0]
            gold = first["gold"]
            if group.kind == "bcq":
                assert len(shown) == 2 and sum(gold in boxes for boxes in shown) == 1
                assert first["positive_answer"] == gold
                assert len(first["negative_answers"]) <= 1 and set(first["negative_answers"]) <= set(answers)
            else:
                statement = group.prompt.split("<candidate>")[0].partition("wrong: ")[2]
                listed = list(dict.fromkeys(answer.strip() for answer in answers if answer and answer.strip()))
                assert BOX.findall(statement.partition(".\n")[0]) == listed
                assert len(shown) == len(wrong) and not any(gold in boxes for boxes in shown)
                assert set(first["negative_answers"]) == {*listed, *(boxes[-1] for boxes in shown if boxes)}
                assert first["positive_answer"] in (None, gold)
            assert len(group.rows) == folder.options["group_size"]
            assert all(row["reward"] == float(row["answer"] == gold) for row in group.rows)


@pytest.mark.clause("C119")
def test_audit_columns(folder):
    for step in folder.steps():
        counts = Counter()
        for group in step.student:
            for row in group.rows:
                if group.kind == "plain":
                    assert row["match"] is None
                    continue
                expected = "other"
                if row["answer"] is not None and row["answer"] == row["positive_answer"]:
                    expected = "positive"
                elif row["answer"] in list(row["negative_answers"]):
                    expected = "negative"
                assert row["match"] == expected
                counts[f"{group.kind}/{'right' if row['reward'] else 'wrong'}_{expected}"] += 1
        recorded = {k: v for k, v in step.metrics.items() if re.fullmatch(r"[bn]cq/(right|wrong)_\w+", k)}
        assert recorded == counts


@pytest.mark.clause("C053", "C054", "C055")
def test_advantages(folder):
    """Centred on the group's mean, divided by the deviation over the rollouts of the groups that differ (Eqs. 2-6)."""
    for step in folder.steps():
        centred = {g.uid: [r - g.accuracy for r in g.rewards] for g in step.student}
        pool = [a for g in step.student if len(set(g.rewards)) > 1 for a in centred[g.uid]]
        mean = sum(pool) / len(pool) if pool else 0.0
        sigma = math.sqrt(sum((a - mean) ** 2 for a in pool) / len(pool)) if pool else 0.0
        for group in step.student:
            trivial = len(set(group.rewards)) == 1
            expected = [0.0 if trivial else (a - mean) / (sigma + 1e-6) for a in centred[group.uid]]
            assert [row["advantage"] for row in group.rows] == pytest.approx(expected, abs=1e-5)


@pytest.mark.clause("C016", "C069", "C070")
def test_trained_flags(folder):
    """Every token in the gradient is the student's; trivial groups are trained too (they stay in the norm)."""
    rows = folder.rows
    assert rows[rows["sampler"] == "student"]["trained"].all()
    teacher = rows[rows["sampler"] == "teacher"]
    assert not teacher["trained"].any() and teacher["advantage"].isna().all()
    assert set(teacher["kind"]) == {"plain", "compress"}


@pytest.mark.clause("C118")
def test_metrics_are_those_of_the_rows(folder):
    for step in folder.steps():
        metrics, plain = step.metrics, step.plain
        new = [g.accuracy for g in plain if not g.replayed]
        assert metrics["rollout/accuracy"] == pytest.approx(sum(new) / len(new))
        assert metrics["precap/easy_frac"] == pytest.approx(1 - len(step.hard) / len(plain))
        assert metrics["precap/bcq_frac"] == pytest.approx(sum(step.solved(g.question) for g in step.hard) / len(plain))
        assert metrics["precap/ncq_frac"] == pytest.approx(len(step.hard) / len(plain))
        for kind in ("bcq", "ncq"):
            groups = [g.accuracy for g in step.candidates if g.kind == kind]
            assert metrics[f"{kind}/prompts"] == len(groups)
            if groups:
                assert metrics[f"{kind}/accuracy"] == pytest.approx(sum(groups) / len(groups))
        assert metrics["compress/accepted"] == sum(row["reward"] for g in step.rewrites for row in g.rows)
        trained = sum(len(g.rows) for g in step.student)
        assert metrics["train/num_samples"] == trained
        positive = sum(row["advantage"] > 0 for g in step.student for row in g.rows)
        assert metrics["train/positive_advantage_frac"] == pytest.approx(positive / trained)


def _skipped(step):
    """Prompts that were given up because a trace could not be compressed: then a slot went to somebody else."""
    return step.metrics.get("bcq/skipped_rewrites", 0) + step.metrics.get("ncq/skipped_rewrites", 0)


def _replay(folder, last_step, events=None):
    """The queue after `last_step`, from the plain groups alone; appends the events to `events`."""
    queue, entries = [], {}
    events = [] if events is None else events

    def note(step, name, question, accuracy):
        entry, visits = entries[question]
        events.append({"step": step, "event": name, "question_id": question, "accuracy": accuracy,
                       "entry_accuracy": entry, "visits": visits})  # fmt: skip

    for step in folder.steps():
        if step.number > last_step:
            break
        for group in step.plain:
            question, accuracy = group.question, group.accuracy
            if question in queue:
                entries[question] = (entries[question][0], entries[question][1] + 1)
                if accuracy < folder.options["tau"]:
                    note(step.number, "revisit", question, accuracy)
                else:
                    note(step.number, "graduate", question, accuracy)
                    queue.remove(question)
            elif accuracy < folder.options["tau"]:
                entries[question] = (accuracy, 0)
                queue.append(question)
                note(step.number, "admit", question, accuracy)
        while len(queue) > folder.options["buffer_capacity"]:
            note(step.number, "evict", queue.pop(0), None)
    return queue


def test_chances_of_visits_follow_from_the_accuracies_in_the_folder(folder):
    """Bayes' rule over the accuracies of new plain groups so far, written out plainly."""
    size, tau = folder.options["group_size"], folder.options["tau"]

    def reaches(p):
        return sum(math.comb(size, m) * p**m * (1 - p) ** (size - m) for m in range(size + 1) if m >= tau * size)

    new = folder.rows.query("sampler == 'student' and kind == 'plain' and not replayed")
    accuracies = new.groupby(["step", "uid"]).reward.mean()
    seen, history, expected, num_visits = Counter(), {}, 0.0, 0
    for row in folder.metrics:
        seen.update(accuracies[row["step"]])
        for event in (e for e in folder.events if e["step"] == row["step"]):
            name = event["question_id"]
            if event["event"] == "admit":
                history[name] = [event["accuracy"]]
            if event["event"] in ("admit", "evict"):
                continue
            right, answers = sum(history[name]) * size, len(history[name]) * size
            weights = {p: n * p**right * (1 - p) ** (answers - right) for p, n in seen.items()}
            chance = sum(w * reaches(p) for p, w in weights.items()) / sum(weights.values())
            history[name].append(event["accuracy"])
            expected, num_visits = expected + chance, num_visits + 1
        assert row["buffer/graduated_by_chance"] == pytest.approx(expected, rel=1e-9)
        by_entry = [v for k, v in row.items() if k.startswith("buffer/graduated_by_chance@0")]
        by_visits = [v for k, v in row.items() if k.startswith("buffer/graduated_by_chance@visits")]
        assert sum(by_entry) == pytest.approx(expected) == pytest.approx(sum(by_visits))
    assert num_visits and 0 < expected < num_visits


def test_figures_show_entropy_and_length_of_new_rollouts_and_what_chance_graduates(run_path, folder):
    from reports.plots.buffer import buffer_counts, draw_graduation
    from reports.plots.data import load_events, load_metrics
    from reports.plots.dynamics import draw_dynamics
    from reports.plots.style import looks
    from reports.runs.collect import find_runs

    # At the sampling temperature, so above what a near-greedy model would have, below that of uniform draws.
    assert all(0.01 < row["rollout/entropy"] < 4 for row in folder.metrics)
    assert any(row["rollout/entropy"] != pytest.approx(row["train/entropy"], rel=0.05) for row in folder.metrics)
    runs = find_runs(run_path.parents[2])
    metrics = load_metrics(runs)
    panels = {ax.get_title(): ax for ax in draw_dynamics(metrics, looks(["zppo"])).canvas.axes}
    for title, name in (
        ("Entropy of new rollouts,\nnats a token", "rollout/entropy"),
        ("Length of new responses,\ntokens", "rollout/response_tokens"),
    ):
        (line,) = [line for line in panels[title].lines if len(line.get_xdata()) > 1]
        assert list(line.get_ydata()) == [row[name] for row in folder.metrics]
    assert len([title for title in panels if "ntropy" in title]) == 1  # that of trained tokens compares nothing
    counts, bins = buffer_counts(load_events(runs), metrics)
    canvas = draw_graduation(counts, bins).canvas
    dotted = [line for ax in canvas.axes for line in ax.lines if line.get_linestyle() == ":"]
    last = folder.metrics[-1]
    assert sorted(float(line.get_ydata()[-1]) for line in dotted) == pytest.approx(
        sorted(v for k, v in last.items() if k.startswith("buffer/graduated_by_chance@0") and v > 0)
    )
