from __future__ import annotations

import json
import re
import shutil

import pytest
from matplotlib.image import imread
from matplotlib.text import Text

import reports.figures
from reports.figures import draw_figures
from reports.runs.collect import collect, find_runs
from tests.reports.conftest import writer

ALL = ["macro_gain", "dynamics", "buffer_occupancy", "graduation", "batch_composition", "recipe"]
SCORES = {"level1": 40.0, "level2": 20.0, "VLM_level1": 30.0}


def write_training(folder, *, num_steps=3):
    """Metrics and buffer events: two questions enter at step 1 (0 and 1 of 8), one graduates at step 2."""
    rows = [
        {
            "step": step, "rollout/accuracy": 0.1 * step, "train/positive_advantage_frac": 0.3, "train/loss": 0.01,
            "rollout/entropy": 0.5, "rollout/response_tokens": 20.0, "bcq/accuracy": 0.6, "ncq/accuracy": 0.2,
            "group/num_plain": 10, "group/num_student": 12, "buffer/replayed": 4, "bcq/prompts": 1, "ncq/prompts": 1,
        }
        for step in range(1, num_steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [(1, "admit", 0.0), (1, "admit", 0.125), (2, "revisit", 0.125), (2, "graduate", 0.125)]
    lines = [
        json.dumps({"step": s, "event": e, "question_id": f"q{a}", "entry_accuracy": a, "visits": 0}) + "\n"
        for s, e, a in events
    ]
    (folder / "buffer.jsonl").write_text("".join(lines))


def draw(tmp_path, name="figures"):
    study = tmp_path / "study"
    return draw_figures(find_runs(study), collect(study), tmp_path / name)


def write_study(root):
    write_run = writer(root)
    write_run("base", SCORES)
    for label in ("zppo,updates_per_step=4", "zppo,updates_per_step=16"):
        for seed in (0, 1):
            folder = write_run(label, {name: score + 5 + seed for name, score in SCORES.items()}, seed=seed)
            write_training(folder)
    return root


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figures of the study, and every text in each, as it stands when the figure has been saved."""
    texts = {}
    save = reports.figures.save

    def record(drawing, folder):
        figure = save(drawing, folder)
        texts[drawing.name] = [text for text in drawing.canvas.findobj(Text) if text.get_text()]
        return figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reports.figures, "save", record)
        figures = draw(write_study(tmp_path_factory.mktemp("drawn")))
    return figures, texts


def test_every_figure_is_written_as_png_and_svg(drawn):
    figures, _ = drawn
    assert [figure.name for figure in figures] == ALL
    for figure in figures:
        assert [file.name for file in figure.files] == [f"{figure.name}.png", f"{figure.name}.svg"]
        assert all(file.stat().st_size > 1000 for file in figure.files)
        assert figure.title and figure.caption.endswith(".")
    assert len(list(figures[0].files[0].parent.iterdir())) == 2 * len(ALL)


def test_figures_are_opaque_white_and_narrow_enough_for_a_telephone(drawn):
    for figure in drawn[0]:
        image = imread(figure.files[0])
        assert (image[..., 3:] == 1.0).all() and (image[0, 0] == 1.0).all()
        # 5.2 inches at 200 dots: shown 390 pixels wide an 8 point letter is 8/72 * 390/5.2 = 8.3 pixels.
        assert image.shape[1] == 1040


def test_no_text_is_smaller_than_8_points(drawn):
    _, texts = drawn
    assert list(texts) == ALL
    assert min(text.get_fontsize() for in_figure in texts.values() for text in in_figure) >= 8


def test_a_label_has_one_colour_in_all_figures(drawn):
    # The first two trained labels: the first two colours of the palette; base takes none.
    figures = {figure.name: figure for figure in drawn[0]}
    for name in ("macro_gain", "dynamics", "recipe"):
        svg = figures[name].files[1].read_text()
        for colour in ("#0072b2", "#d55e00"):
            assert re.search(rf"(stroke|fill): {colour}", svg), (name, colour)
        assert "#009e73" not in svg


def test_figures_without_data_are_not_written(write_run, tmp_path):
    write_run("base", SCORES)
    assert draw(tmp_path) == []
    assert list((tmp_path / "figures").iterdir()) == []


def test_plain_batches_and_labels_without_options_leave_figures_out(write_run, tmp_path):
    write_run("grpo", SCORES, accuracies=[0.1, 0.2])
    assert [figure.name for figure in draw(tmp_path)] == ["dynamics"]  # no base, no buffer, no counts of groups


def test_scores_without_run_folders(write_run, tmp_path):
    write_run("base", SCORES)
    write_run("zppo", SCORES)
    figures = draw_figures([], collect(tmp_path / "study"), tmp_path / "figures")
    assert [figure.name for figure in figures] == ["macro_gain"]


def test_several_teachers(write_run, tmp_path):
    for teacher in ("qwen3_5_4b", "qwen3_5_27b"):
        write_run(f"zppo,teacher={teacher}", SCORES, teacher=teacher)
    assert [figure.name for figure in draw(tmp_path)] == ["teacher_size"]


def test_a_run_left_out_is_named_in_the_caption(write_run, tmp_path):
    write_run("base", SCORES)
    write_run("zppo", SCORES)
    write_run("grpo", SCORES, protocol="p2")
    (figure,) = draw(tmp_path)
    assert "grpo tiny_s seed0 LLM (evaluated by another protocol)" in figure.caption


@pytest.mark.slow
def test_twenty_labels_and_two_students(write_run, tmp_path):
    for student in ("s", "l"):
        write_run("base", SCORES, student=student)
        for number in range(20):
            write_run(f"method{number}", SCORES, student=student, accuracies=[0.1, 0.2, 0.3])
    assert [figure.name for figure in draw(tmp_path)] == ["macro_gain", "dynamics"]


@pytest.mark.slow
def test_runs_of_two_studies_are_not_pooled(study, tmp_path, monkeypatch):
    shutil.copytree(study / "study", study / "other")
    runs = find_runs(study / "study") + find_runs(study / "other")
    seen = []
    monkeypatch.setattr(reports.figures, "draw_dynamics", lambda metrics, look: seen.extend(metrics["label"].unique()))
    draw_figures(runs, collect(study / "study"), tmp_path / "figures")
    assert sorted(seen) == [f"{name}/zppo,updates_per_step={n}" for name in ("other", "study") for n in (16, 4)]


def test_the_same_study_gives_the_same_bytes_and_half_a_line_does_not_count(study, drawn):
    """A line that an unfinished run has not ended, and one that is broken for good."""
    for seed, end in (("seed0", ""), ("seed1", "\n")):
        with (study / "study" / "zppo,updates_per_step=4" / "tiny_s" / seed / "metrics.jsonl").open("a") as handle:
            handle.write('{"step": 4, "rollout/accu' + end)
    for one, other in zip(drawn[0], draw(study, "half"), strict=True):
        assert [file.read_bytes() for file in one.files] == [file.read_bytes() for file in other.files]


def test_numbers_of_macro_gain_are_in_the_picture(drawn):
    texts = {name: [text.get_text() for text in found] for name, found in drawn[1].items()}
    # Every score is 5 above base for seed 0 and 6 for seed 1: 5.5 for two labels and two families.
    assert texts["macro_gain"].count("+5.5") == 4
    assert "0 of 8 right" in texts["graduation"] and "1 of 8 right" in texts["graduation"]
