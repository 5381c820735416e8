"""The page without a browser: its data, what is escaped, which rollouts are chosen."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.page import rollouts
from reports.page.page import (
    PageFigure,
    PageRow,
    PageRun,
    PageTable,
    collect_page_runs,
    escaped_json,
    sort_value,
    write_page,
)  # fmt: skip
from reports.page.rollouts import PageGroup, PageQuestion, PageResponse, PageText, collect_rollouts, cut
from reports.runs.collect import find_runs

WriteRun = Callable[..., Path]
EVIL = "</script><script>window.hit = 1</script><!-- <img src=x onerror='window.hit = 1'> & \u2028"


def test_sort_value_reads_the_number_a_cell_begins_with() -> None:
    # 2.5 min = 150 s; 1.5 h = 5400 s; 1.2M = 1,200,000.
    expected = {
        "71.2": 71.2, "71.2 ± 0.4": 71.2, "+1.5": 1.5, "-0.3": -0.3, "\u22120.3": -0.3, "1,200": 1200, "7e+11": 7e11,
        "95 s": 95, "2.5 min": 150, "1.5 h": 5400, "1.2M": 1.2e6, "40 %": 40, "0.8 [0.2, 1.4]": 0.8, "-": None,
        "": None, "level 2": None, "2 apples": None,
    }  # fmt: skip
    for text, value in expected.items():
        assert sort_value(text) == (None if value is None else pytest.approx(value)), text


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_escaped_json_is_the_same_value_without_markup(value: Any) -> None:
    text = escaped_json(value)
    assert json.loads(text) == value
    assert not set("<>&") & set(text)


def page(folder: Path, **changed: Any) -> str:
    """A page whose every text is hostile."""
    group = PageGroup("plain", PageText(EVIL), (PageResponse(PageText(EVIL), EVIL, 1.0, EVIL, 0.5),))
    row = PageRow([EVIL, "1.5"], label=EVIL, student=EVIL, family=EVIL)
    parts = {
        "title": EVIL,
        "tables": [PageTable(EVIL, [EVIL, "score"], [row], EVIL, EVIL, EVIL)],
        "figures": [PageFigure(EVIL, EVIL, "<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>")],
        "runs": [PageRun(EVIL, EVIL, EVIL, EVIL, 0, ((EVIL, EVIL),))],
        "rollouts": [PageQuestion(EVIL, 1, EVIL, EVIL, (group,))],
        "notes": [EVIL],
    }
    return write_page(folder, **(parts | changed)).read_text(encoding="utf-8")


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    html = page(tmp_path)
    assert html.count("<script") == 2 == html.count("</script>")  # the data and the page's own
    assert "window.hit" in html
    assert "<img src=x" not in html and "<!--" not in html
    data = re.search(r'<script type="application/json" id="rollout-data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    (question,) = json.loads(data[1])
    assert question["groups"][0]["responses"][0]["text"]["head"] == EVIL


def test_the_policy_names_the_hashes_of_the_only_script_and_style(tmp_path: Path) -> None:
    html = page(tmp_path)
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert len(content) == 1
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert f"{directive} &#39;sha256-{digest}&#39;;" in html
    assert "default-src &#39;none&#39;" in html
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", html)  # nothing outside the page
    assert " style=" not in html  # the policy would refuse it


def test_same_input_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert page(tmp_path) == page(tmp_path / "again")


def test_png_figures_are_embedded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    # base64 of 89 50 4E 47
    assert "data:image/png;base64,iVBORw==" in page(tmp_path, figures=[PageFigure("a", "b", tmp_path / "a.png")])


def test_svg_files_are_embedded_as_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.svg").write_text("<svg/>")
    # base64 of <svg/>
    assert "data:image/svg+xml;base64,PHN2Zy8+" in page(tmp_path, figures=[PageFigure("a", "b", tmp_path / "a.svg")])


def test_empty_page_has_no_sections(tmp_path: Path) -> None:
    html = page(tmp_path, title="t", tables=[], figures=[], runs=[], rollouts=[], notes=[])
    assert "<section" not in html and "<nav" in html


def test_cells_that_do_not_fit_the_header_are_refused(tmp_path: Path) -> None:
    table = PageTable("scores", ["method", "a"], [PageRow(["zppo"])])
    with pytest.raises(ValueError, match=r"table 'scores': .* has 1 cells, its header 2"):
        page(tmp_path, tables=[table])


def test_only_differing_configuration_is_kept(write_run: WriteRun) -> None:
    common = "seed: {seed}\nlabel: {label}\nupdate: {{lr: 1.0e-06, betas: [0.9, 0.95]}}\nmethod:\n  name: {label}\n"
    a, b, c = write_run("grpo"), write_run("zppo"), write_run("zppo", seed=1)
    (a / "config.yaml").write_text(common.format(seed=0, label="grpo") + "data: {batch_size: 8}\n")
    (b / "config.yaml").write_text(common.format(seed=0, label="zppo") + "  ncq: true\ndata: {batch_size: 16}\n")
    runs = collect_page_runs(find_runs(a.parents[2]))
    # lr and betas agree; seed, label and method.name are told by the label and the seed.
    assert [(run.name, run.status, run.config) for run in runs] == [
        ("grpo tiny_s seed0", "done, but not evaluated", (("data.batch_size", "8"),)),
        ("zppo tiny_s seed0", "done, but not evaluated", (("method.ncq", "true"), ("data.batch_size", "16"))),
        ("zppo tiny_s seed1", "done, but not evaluated; no config.yaml", ()),
    ]
    (c / "config.yaml").write_text("a: [")
    assert collect_page_runs(find_runs(a.parents[2]))[2].status.endswith("config.yaml cannot be read")


def write_rollouts(run: Path, step: int, questions: dict[str, list[str]], text: str = "r", **changed: Any) -> None:
    """One step: `questions` is {question: kinds}; each group has one student rollout."""
    rows = [
        {
            "uid": f"{question}/{kind}", "kind": kind, "sampler": "student", "question_id": question, "index": 0,
            "prompt_text": f"{kind}?", "response_text": text, "num_response_tokens": 3, "finish_reason": "stop",
            "gold": "4", "reward": 1.0, "training_reward": None, "verdict": "correct", "match": None,
            "trained": True, "advantage": 0.123456,
        }
        | changed
        for question, kinds in questions.items()
        for kind in kinds
    ]  # fmt: skip
    (run / "rollouts").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), run / "rollouts" / f"step-{step:06d}.parquet")


def test_questions_with_all_three_prompts_come_first(write_run: WriteRun) -> None:
    run = write_run("zppo")
    write_rollouts(run, 1, {"a": ["plain"], "b": ["plain", "bcq"], "c": ["ncq", "compress", "bcq", "plain"]})
    write_rollouts(run, 2, {"d": ["plain"], "e": ["plain", "bcq", "ncq"]})
    questions, remarks = collect_rollouts(find_runs(run.parents[2]), max_questions=3)
    # c and e have three kinds, b two; shown by step, within a step the richest first.
    assert [(q.step, q.question_id) for q in questions] == [(1, "c"), (1, "b"), (2, "e")]
    assert [group.kind for group in questions[0].groups] == ["plain", "bcq", "ncq"]  # no rewrite
    response = questions[0].groups[0].responses[0]
    assert (response.reward, response.verdict, response.advantage, response.sampler) == (
        1,
        "correct",
        0.1235,
        "student",
    )
    assert remarks == []


def test_steps_are_spread_and_take_turns(write_run: WriteRun) -> None:
    run = write_run("grpo")
    for step in range(1, 11):
        write_rollouts(run, step, {f"{step}{name}": ["plain"] for name in "abc"})
    # Of 10 steps, places 0, 3, 6, 9: steps 1, 4, 7, 10. Of 6 questions, two go to the last two steps.
    questions, _ = collect_rollouts(find_runs(run.parents[2]), max_questions=6)
    assert [q.question_id for q in questions] == ["1a", "4a", "7a", "7b", "10a", "10b"]


def test_a_teacher_that_saw_the_same_prompt_is_in_the_same_group(write_run: WriteRun) -> None:
    run = write_run("off_policy_kd")
    write_rollouts(run, 1, {"a": ["plain"]})
    file = run / "rollouts" / "step-000001.parquet"
    student = pq.read_table(file).to_pylist()
    teacher = [row | {"sampler": "teacher", "uid": "a/plain/teacher", "index": i} for row in student for i in (1, 0)]
    pq.write_table(pa.Table.from_pylist([*teacher, *student]), file)
    ((question,), _) = collect_rollouts(find_runs(run.parents[2]))
    (group,) = question.groups
    assert [response.sampler for response in group.responses] == ["student", "teacher", "teacher"]


def test_the_budget_is_shared_by_the_runs_and_said(write_run: WriteRun) -> None:
    for label in ("grpo", "zppo"):
        run = write_run(label)
        for step in (1, 2):
            write_rollouts(run, step, {"a": ["plain"]}, text="x" * 1000)
    # A question is a little over 1000 bytes: three fit in 4500. Both runs' last steps are taken before a first step.
    questions, remarks = collect_rollouts(find_runs(run.parents[2]), max_bytes=4500)
    assert [(q.run.split()[0], q.step) for q in questions] == [("grpo", 1), ("grpo", 2), ("zppo", 2)]
    assert remarks == [
        "3 of the 4 questions chosen for the rollout browser are on this page: it holds at most 0.0045 MB of rollouts."
    ]


def test_runs_without_readable_rollouts_are_named(write_run: WriteRun) -> None:
    write_run("base")  # makes none by its nature: not named
    write_run("grpo")
    old, broken = write_run("sft"), write_run("zppo")
    write_rollouts(old, 1, {"a": ["plain"]})
    file = old / "rollouts" / "step-000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns("verdict"), file)
    (broken / "rollouts").mkdir()
    (broken / "rollouts" / "step-000001.parquet").write_bytes(b"PAR1 half")
    questions, remarks = collect_rollouts(find_runs(old.parents[2]))
    assert questions == []
    by_run = {line.split()[0]: line for line in remarks}
    assert set(by_run) == {"grpo", "sft", "zppo"}
    assert "no rollouts" in by_run["grpo"]
    assert "no column 'verdict'" in by_run["sft"]
    assert "cannot be read" in by_run["zppo"]


@given(st.text(max_size=60))
def test_cut_keeps_both_ends(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "MAX_CHARS", 10)
        short = cut(text)
    assert len(short.head) + short.num_left_out + len(short.tail) == len(text)
    assert text.startswith(short.head) and text.endswith(short.tail)
    assert len(short.head) + len(short.tail) == min(len(text), 10)


def test_missing_advantage_stays_missing(write_run: WriteRun) -> None:
    run = write_run("sft")
    write_rollouts(run, 1, {"a": ["plain"]}, advantage=float("nan"))
    ((question,), _) = collect_rollouts(find_runs(run.parents[2]))
    assert question.groups[0].responses[0].advantage is None
