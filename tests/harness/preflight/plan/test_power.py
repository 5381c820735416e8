"""What a study can see, before it has run. Its formula is held by `benchmarks/verdicts.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from harness.app import main
from harness.preflight.plan.counting import Assumptions
from harness.preflight.plan.power import Detectable, detectable_leads, with_spread
from harness.preflight.plan.study import plan_study

WORDS = [
    "student=tiny_s",
    "method=base,grpo,zppo",
    "eval=mini",
    "eval.mini_tasks=[arithmetic,bar_clip]",
    "eval.levels=[1,2]",
]


def leads(*more: str, **assumed: float) -> dict[str, Detectable]:
    """Of the study with some words in the place of those of the same key."""
    words = list({word.partition("=")[0]: word for word in (*WORDS, *more)}.values())
    plans = plan_study(words, assumed=Assumptions(**assumed)).plans
    return {lead.family: lead for lead in detectable_leads(plans, Assumptions(**assumed))}


def test_a_lead_by_hand():
    found = leads("seed=0,1,2,3,4", run_sd=1.0, response_sd=30.0)["LLM"]
    assert (found.num_seeds, found.num_labels, found.num_questions) == (5, 3, (200, 200))
    # 1 + 900 / 200 = 5.5 a run, times 2 / 5; two labels on two benchmarks share half of 4.5 %.
    for lead, variance, alpha in (
        (found.alone[0], 5.5, 0.045), (found.corrected[1], 5.5, 0.045 / 8), (found.macro, 1 + 900 / 400, 0.045 / 4),
    ):  # fmt: skip
        se, df = (2 * variance / 5) ** 0.5, 2 * 4 * 5 / 6
        assert stats.nct.sf(stats.t.isf(alpha / 2, df), df, lead / se) == pytest.approx(0.8, abs=1e-4)


def test_one_seed_finds_nothing_and_one_label_compares_nothing(capsys):
    assert np.isnan(leads()["Video"].alone).all()
    assert leads("method=zppo") == {}
    assert main(["plan", *WORDS]) == 0
    assert "one run" in capsys.readouterr().out.partition("Smallest lead")[2]


def test_the_plan_says_it(capsys):
    assert main(["plan", *WORDS, "seed=0,1,2", "--run-sd", "2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["assumed"]["run_sd"] == 2
    assert [lead["family"] for lead in said["detectable"]] == ["LLM", "Video"]
    assert said["detectable"][0]["macro"] > 6


def test_the_papers_suite_has_its_questions():
    found = plan_study(
        ["sweep=paper_main", "student=qwen3_5_2b", "method=base,zppo", "seed=0,1"], assumed=Assumptions()
    )
    by_family = {lead.family: lead for lead in detectable_leads(found.plans, Assumptions())}
    assert {family: len(lead.num_questions) for family, lead in by_family.items()} == {"VLM": 16, "LLM": 10, "Video": 5}
    assert min(by_family["LLM"].num_questions) == 30 and by_family["LLM"].alone[0] < by_family["LLM"].alone[1]


def test_an_earlier_study_gives_the_spread(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for seed, shift in enumerate((-0.06, -0.02, 0.03, 0.05)):
        run = tmp_path / "grpo" / "s" / f"seed{seed}"
        (run / "eval" / "mini").mkdir(parents=True)
        info = {"status": "done", "label": "grpo", "method": "grpo", "student": "s", "seed": seed}
        (run / "run.json").write_text(json.dumps(info))
        (run / "eval" / "mini" / "scores.csv").write_text("benchmark,score,n,protocol\na,50,1000,p\n")
        scores = (rng.random(1000) < 0.5 + shift).astype(float)
        rows = [{"benchmark": "a", "question_id": str(i), "score": score} for i, score in enumerate(scores)]
        (run / "eval" / "mini" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = with_spread(Assumptions(), str(tmp_path))
    assert 2 < found.run_sd < 8 and found.response_sd == pytest.approx(50, abs=1)
    assert main(["plan", *WORDS, "--spread", str(tmp_path / "none")]) == 2
    assert "--spread: no study folder" in capsys.readouterr().err
