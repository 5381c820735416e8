import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from datasets import load_dataset

from harness.config.evaluation import BenchmarkOptions
from harness.errors import UserError
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.recipe import Mark, by_grade, row_mean
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.rows import load_rows
from harness.evaluation.benchmarks.subtitles import Cue, evenly_spread, read_cues, spoken
from harness.evaluation.benchmarks.videos import MVBENCH_FOLDERS, QUIZ_FRAME, VIDEOMMMU_FOLDERS, official_videommmu
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import Grade, grade
from harness.types import MediaLimits
from tests.support.upstream import upstream_config

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"
NAMES = ("mmvu", "mvbench", "videomme", "videomme_sub", "videommmu")


def upstream(name):
    return upstream_module(f"lmms_eval.tasks.{name}.utils")


def docs(name, config=None):
    column = columns()[name]
    return list(load_dataset(str(FIXTURES / column.repository), config, split=column.splits[0]))


def reads(root, name, **options):
    column = columns()[name]
    rows = load_rows(column, BenchmarkOptions(**options), str(root))
    return [question for row in rows for question in recipe(name).questions(row)]


def copied(tmp_path, name):
    """A copy of a column's repository that a test may change, and its root."""
    repository = columns()[name].repository
    return shutil.copytree(FIXTURES / repository, tmp_path / repository), tmp_path


def mark(name, question, box):
    response = "" if box is None else f"<think>(A)? B. or C</think> \\boxed{{{box}}}"
    return recipe(name).scorer(question, grade(response, question, "math_verify"))


@pytest.mark.parametrize("name", NAMES)
def test_every_clip_opens(name, questions_of):
    for question in questions_of(name):
        clip = question.video.open(MediaLimits(num_frames=2))
        assert clip.frames_FHWC.shape == (2, 64, 64, 3)


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("mmvu", ["A", "breadth-first search", "12"]),
        ("mvbench", ["C", "B", "B", "B"]),
        ("videomme", ["B", "D"]),
        ("videomme_sub", ["B", "D"]),
        ("videommmu", ["C", "B", "A", "12.5", "truss"]),
    ],
)
def test_gold_answers(name, answers, questions_of):
    assert [question.answer for question in questions_of(name)] == answers


def test_mvbench_has_the_tasks_in_its_ids(questions_of):
    tasks = {"action_sequence", "episodic_reasoning", "moving_count", "object_shuffle"}
    assert {question.id for question in questions_of("mvbench")} == {f"mvbench/{task}/0" for task in tasks}


# MMVU


def test_mmvu_has_options_only_where_it_is_multiple_choice(questions_of):
    choice, words, number = questions_of("mmvu")
    assert choice.text == "How does the brightness change?\nA. up\nB. down\nC. not\nD. twice\nE. never"
    assert choice.metadata == {
        "choices": ["up", "down", "not", "twice", "never"], "question_type": "multiple-choice", "category": "Art",
    }  # fmt: skip
    assert words.text == "Which search has this order?"
    assert words.metadata == {"question_type": "open-ended", "category": "Computer_Science"}
    assert (choice.answer_type, words.answer_type, number.answer_type) == ("choice", "text", "text")
    assert words.video.name == str(FIXTURES / "yale-nlp/MMVU/videos/Computer_Science/1.mp4")


def test_upstream_mmvu_takes_an_empty_answer_and_a_part_of_the_answer_and_any_first_number(questions_of):
    _, words, number = questions_of("mmvu")
    _, doc, number_doc = docs("mmvu")
    rule = upstream("mmvu").evaluate_with_rule_based
    for wrong in ("", "f"):
        assert rule(doc, wrong)
        assert mark("mmvu", words, wrong or None).score == mark("mmvu", words, wrong).score == 0.0
    assert rule(number_doc, "12 of the 40, so 28")
    assert mark("mmvu", number, "12 of the 40, so 28") == Mark(score=0.0, outcome="mismatch")
    assert mark("mmvu", words, None) == mark("mmvu", words, " ") == Mark(score=0.0, outcome="unparsed")


def test_upstream_mmvu_takes_a_letter_that_a_reply_only_mentions(questions_of):
    question, doc = questions_of("mmvu")[0], docs("mmvu")[0]
    reply = "<think>A is tempting.</think> \\boxed{B}"
    assert upstream("mmvu").evaluate_with_rule_based(doc, reply)
    assert recipe("mmvu").scorer(question, grade(reply, question, "math_verify")) == Mark(
        score=0.0, outcome="other_option"
    )


def test_mmvu_fixture_passes_the_upstream_task(monkeypatch):
    module = upstream("mmvu")
    monkeypatch.setattr(module, "cache_dir_val", str(FIXTURES / "yale-nlp/MMVU"))
    results = []
    for doc in docs("mmvu"):
        doc["video_path"] = doc["video"].partition("/resolve/main/")[2]  # the library's copy has paths
        (path,) = module.mmvu_doc_to_visual_val(doc)
        assert Path(path).is_file() and doc["question"] in module.mmvu_doc_to_text(doc)
        results.append(module.mmvu_process_results(doc, [doc["answer"]])["accuracy"])
    assert module.mmvu_aggregate_results_val(results) == 100.0


# MVBench


def test_mvbench_knows_every_task_and_its_folder():
    folders = upstream("mvbench").DATA_LIST
    assert {task: names[0] for task, names in MVBENCH_FOLDERS.items()} == folders and len(folders) == 20


def test_mvbench_shows_parts_and_frame_pictures(questions_of):
    by_task = {question.metadata["category"]: question for question in questions_of("mvbench")}
    assert by_task["action_sequence"].text == "What comes next?\nA. a bag\nB. a box\nC. a hat"
    times = {task: q.video.open(MediaLimits(num_frames=99)).times_F for task, q in by_task.items()}
    # 8 frames at 4 a second, of which those from 0.5 to 1.5; 9 pictures at 3 a second, of which those from 1 to 2.
    assert times["action_sequence"] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    assert times["episodic_reasoning"] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert times["moving_count"] == pytest.approx([i / 4 for i in range(8)])


@pytest.mark.parametrize("name", ["WALK1.mp4", "WALK1_0.5_1.5.mp4"])
def test_a_clip_that_is_cut_already_is_shown_whole(tmp_path, name):
    folder, root = copied(tmp_path, "mvbench")
    (folder / "star/Charades_segment").mkdir(parents=True)
    shutil.copy(folder / "video/star/Charades_v1_480/WALK1.mp4", folder / "star/Charades_segment" / name)
    video = reads(root, "mvbench")[0].video
    assert video.name == str(folder / "star/Charades_segment" / name)
    assert len(video.open(MediaLimits(num_frames=99)).times_F) == 8


def test_a_missing_clip_is_named(tmp_path):
    folder, root = copied(tmp_path, "mvbench")
    (folder / "clevrer/video_validation/video_1.mp4").unlink()
    with pytest.raises(UserError, match=r"mvbench: .* has no video clevrer/video_validation/video_1.mp4 or "):
        reads(root, "mvbench")


def test_upstream_mvbench_leaves_empty_answers_out_of_the_mean(questions_of):
    question, module = questions_of("mvbench")[0], upstream("mvbench")
    doc = docs("mvbench", "action_sequence")[0]
    results = [module.mvbench_process_results(doc, [reply])["mvbench_accuracy"] for reply in ("C", "", "", "")]
    assert module.mvbench_aggregate_results(results) == 100.0
    marks = [mark("mvbench", question, box) for box in ("C", None, None, None)]
    estimate = recipe("mvbench").aggregate(BenchmarkOptions())([(question, m.score) for m in marks])
    assert estimate == row_mean([(question, score) for score in (1, 0, 0, 0)]) and estimate.mean == 0.25


def test_upstream_mvbench_shows_frames_in_the_order_of_the_file_system(monkeypatch, questions_of):
    module, folder = upstream("mvbench"), FIXTURES / "OpenGVLab/MVBench"
    monkeypatch.setattr(module, "base_cache_dir", str(folder.parent))
    monkeypatch.setattr(module, "cache_name", folder.name)
    monkeypatch.setitem(module.DATA_LIST, "episodic_reasoning", "video/tvqa/frames_fps3_hq")
    names = sorted(os.listdir(folder / "video/tvqa/frames_fps3_hq/show_s01e01_clip_00"), reverse=True)
    monkeypatch.setattr(module.os, "listdir", lambda path: names)
    images = module.mvbench_frames_doc_to_visual(
        docs("mvbench", "episodic_reasoning")[0], {"sub_task": "episodic_reasoning"}
    )
    monkeypatch.undo()
    question = next(q for q in questions_of("mvbench") if q.metadata["category"] == "episodic_reasoning")
    whole = dataclasses.replace(question.video, start=None, end=None).open(MediaLimits(num_frames=9)).frames_FHWC
    assert len(images) == 9 and all((whole[8 - i] == image).all() for i, image in enumerate(images))
    assert not (whole[0] == whole[8]).all()


@pytest.mark.parametrize("task", ["moving_count", "object_shuffle"])
def test_mvbench_fixture_passes_the_upstream_task(task, monkeypatch):
    module, folder = upstream("mvbench"), FIXTURES / "OpenGVLab/MVBench"
    monkeypatch.setattr(module, "base_cache_dir", str(folder.parent))
    monkeypatch.setattr(module, "cache_name", folder.name)
    options = {"sub_task": task, "post_prompt": "Only give the best option.\n"}
    doc = docs("mvbench", task)[0]
    (path,) = module.mvbench_doc_to_visual(doc, options)
    assert Path(path).is_file() and doc["question"] in module.mvbench_doc_to_text(doc, options)
    assert module.mvbench_process_results(doc, ["(B) so"])["mvbench_accuracy"]["score"] == 1


# Video-MME


def test_videomme_asks_with_and_without_subtitles(questions_of):
    bare = "What colour does the wall turn?\nA. Blue.\nB. Grey.\nC. Red.\nD. None."
    shown = "The subtitles of the video:\nhere is a black wall\nand the wall turns grey\nthanks for watching\n\n"
    assert questions_of("videomme")[0].text == bare
    assert questions_of("videomme_sub")[0].text == shown + bare
    assert questions_of("videomme")[0].metadata["choices"] == ["Blue.", "Grey.", "Red.", "None."]


def test_only_what_is_said_while_a_frame_is_shown(questions_of):
    text = questions_of("videomme_sub", videomme_subtitles="frames")[0].text  # the clip has 2 seconds
    assert "black wall" in text and text.count("turns grey") == 1 and "thanks" not in text


def test_a_video_without_subtitles_is_asked_as_in_the_other_column(questions_of):
    with_file, without_file = questions_of("videomme_sub")
    assert with_file.metadata["subtitles"] == "shown"
    assert without_file.metadata["subtitles"] == "missing"
    other = questions_of("videomme")[1]
    assert without_file.text == other.text and other.metadata["subtitles"] == "off"


def test_upstream_videomme_speaks_of_subtitles_where_there_are_none(questions_of):
    options = upstream_config(columns()["videomme"].library, columns()["videomme"].upstream)[
        "lmms_eval_specific_kwargs"
    ]["default"]
    for doc, question in zip(docs("videomme"), questions_of("videomme"), strict=True):
        assert "and the subtitles" in upstream("videomme").videomme_doc_to_text(doc, options)
        assert "ubtitle" not in question.text


def test_upstream_videomme_rows_and_mean_disagree_about_small_letters(questions_of):
    module, doc, question = upstream("videomme"), docs("videomme")[0], questions_of("videomme")[0]
    result = module.videomme_process_results(doc | {"answer": "b"}, ["B"])["videomme_perception_score"]
    assert result["score"] == 1.0 and module.videomme_aggregate_results([result]) == 0.0
    assert mark("videomme", question, "b") == mark("videomme", question, "Grey.") == Mark(score=1.0, outcome="match")


@pytest.mark.parametrize("name", ["videomme", "videomme_sub"])
def test_videomme_fixture_passes_the_upstream_task(name, monkeypatch):
    module = upstream("videomme")
    monkeypatch.setattr(module, "base_cache_dir", str(FIXTURES / "lmms-lab"))
    monkeypatch.setattr(module, "cache_name", "Video-MME")
    options = upstream_config(columns()[name].library, columns()[name].upstream)["lmms_eval_specific_kwargs"]["default"]
    to_text = module.videomme_doc_to_text if name == "videomme" else module.videomme_doc_to_text_subtitle
    results = []
    for doc in docs(name):
        (path,) = module.videomme_doc_to_visual(doc)
        text = to_text(doc, options)
        assert Path(path).is_file() and doc["question"] in text
        assert ("No subtitles available" in text) == (name == "videomme_sub" and doc["videoID"] == "madeUp2")
        results.append(module.videomme_process_results(doc, [f"({doc['answer']})"])["videomme_perception_score"])
    assert module.videomme_aggregate_results(results) == 100.0


CUES = [Cue(0.0, 1.5, "one"), Cue(1.5, 2.0, "two"), Cue(2.0, 3.0, "two"), Cue(3.0, 4.0, "one")]


@pytest.mark.parametrize(
    ("times", "text"),
    [
        (None, "one\ntwo\none"),
        ([], ""),
        ([0.0], "one"),
        ([1.5], "two"),
        ([1.4, 3.5], "one"),  # nothing else is between them
        ([3.5, 1.9, 0.2], "one\ntwo\none"),
        ([4.0], ""),
    ],
)
def test_cues_that_are_on_screen(times, text):
    assert spoken(CUES, times) == text


@pytest.mark.parametrize(
    ("content", "cues"),
    [
        ("", []),
        ("\ufeff1\r\n00:00:01,250 --> 00:00:02,000\r\nHello\r\n", [Cue(1.25, 2.0, "Hello")]),
        ("1\n01:02:03.5 --> 01:02:04\n<i>a</i>  <b>b\nc</b>\n", [Cue(3723.5, 3724.0, "a b c")]),
        ("1\n00:00:05,000 --> 00:00:06,000\n \n\n2\n00:00:01,000 --> 00:00:02,000\nx < 3 >\n", [Cue(1, 2, "x < 3 >")]),
        ("1\n00:00:00,000 --> 00:00:01,000\n1989\n", [Cue(0, 1, "1989")]),  # said, and no number of a cue
        ("1\n00:00:00,000 --> 00:00:01,000\n1989\n\n2\n00:00:01,000 --> 00:00:02,000\n{\\an8}b\n",
         [Cue(0, 1, "1989"), Cue(1, 2, "b")]),
    ],
)  # fmt: skip
def test_subtitle_files(tmp_path, content, cues):
    (tmp_path / "a.srt").write_bytes(content.encode())
    assert read_cues(tmp_path / "a.srt") == cues


def test_times_are_spread_from_the_first_to_the_last():
    assert evenly_spread(3.0, 4) == [0.0, 1.0, 2.0, 3.0] and evenly_spread(3.0, 1) == [0.0]


# Video-MMMU


def test_videommmu_shows_the_clip_before_the_picture(questions_of):
    perception, comprehension, choice, number, words = questions_of("videommmu")
    quiz = "\n\nA quiz in the last frame of the video belongs to another question."
    assert perception.text == "What is written on the wall?\nA. yes\nB. no\nC. so" + quiz
    assert comprehension.text == "Which holds?\nA. x < y\nB. x > y" + quiz
    assert choice.text == "<video>\nWhich of these <image> is lit from above?\nA. left\nB. right"
    assert number.text == "<video>\nFind the area in <image>."
    assert words.text == "<video>\n<image>\nName the beam."
    assert [len(question.images) for question in questions_of("videommmu")] == [0, 0, 1, 1, 1]
    assert words.video.name.endswith("lmms-lab/VideoMMMU/Engineering/dev_Architecture_and_Engineering_3.mp4")
    assert words.metadata == {"category": "Adaptation", "answers": ["truss", "lattice"]}
    assert [q.answer_type for q in questions_of("videommmu")] == ["choice", "choice", "choice", "math", "text"]


@pytest.mark.parametrize(
    ("config", "text", "image", "expected"),
    [
        ("Adaptation", "Is <image 1> <image 2>?", "x", "<video>\n<image>\nIs the picture the picture?"),
        ("Adaptation", "How long is it?", None, "How long is it?"),
        ("Perception", "Who speaks <image 1>", None, f"Who speaks\n\n{QUIZ_FRAME}"),
    ],
)  # fmt: skip
def test_videommmu_pictures_that_the_text_marks_oddly(config, text, image, expected):
    column = columns()["videommmu"]
    row = next(row for row in load_rows(column, BenchmarkOptions(), str(FIXTURES)) if row.config == config)
    cells = {**row.cells, "question": text, "options": [], "question_type": "open", "answer": "5", "image": image}
    (question,) = recipe("videommmu").questions(dataclasses.replace(row, cells=cells))
    assert question.text == expected and len(question.images) == (image is not None)


def test_videommmu_subjects_are_in_their_official_folders():
    module = upstream("videommmu")
    ours = {subject: folder for folder, subjects in VIDEOMMMU_FOLDERS.items() for subject in subjects}
    assert ours.keys() == {subject for subjects in module.DOMAIN_CAT2SUB_CAT.values() for subject in subjects}
    assert all(module.get_cache_dir(subject) == folder for subject, folder in ours.items())


@pytest.mark.parametrize(
    ("place", "box", "expected"),
    [
        (3, "12.5", Mark(score=1.0, outcome="match")),
        (3, r"\frac{25}{2}", Mark(score=1.0, outcome="match")),
        (3, "12.504", Mark(score=1.0, outcome="match")),  # two decimals
        (3, "12.51", Mark(score=0.0, outcome="mismatch")),
        (3, "125", Mark(score=0.0, outcome="mismatch")),
        (4, "Truss", Mark(score=1.0, outcome="match")),
        (4, r"\text{Lattice}.", Mark(score=1.0, outcome="match")),
        (4, "not a truss", Mark(score=0.0, outcome="mismatch")),
        (4, "", Mark(score=0.0, outcome="unparsed")),
        (4, None, Mark(score=0.0, outcome="unparsed")),
        (2, "B", Mark(score=0.0, outcome="other_option")),
        (2, "left", Mark(score=1.0, outcome="match")),
    ],
)
def test_videommmu_answers(place, box, expected, questions_of):
    assert mark("videommmu", questions_of("videommmu")[place], box) == expected


def test_upstream_videommmu_takes_a_text_that_contains_the_answer(questions_of):
    module, question = upstream("videommmu"), questions_of("videommmu")[4]
    assert module.eval_open("truss", module.parse_open_response("not a truss"))
    assert official_videommmu(question, Grade.of("not a truss", "wrong")).score == 0.0
    assert by_grade(question, Grade.of("lattice", "wrong")).score == 0.0  # the first of the gold answers alone


def test_upstream_videommmu_leaves_empty_answers_out_of_the_mean(questions_of):
    module, question, doc = upstream("videommmu"), questions_of("videommmu")[3], docs("videommmu", "Adaptation")[1]
    results = [module.videommmu_process_results(doc, [reply])["mmmu_acc"] for reply in ("12.5", "", "", "")]
    assert module.videommmu_aggregate_results(results) == 1.0
    marks = [mark("videommmu", question, box) for box in ("12.5", None, None, None)]
    scores = [(question, m.score) for m in marks]
    assert recipe("videommmu").aggregate(BenchmarkOptions())(scores).mean == 0.25


def test_videommmu_fixture_passes_the_upstream_task(monkeypatch):
    module = upstream("videommmu")
    monkeypatch.setattr(module, "HF_HOME", str(FIXTURES))
    monkeypatch.setattr(module, "cache_dir", "lmms-lab/VideoMMMU")
    options = upstream_config(columns()["videommmu"].library, columns()["videommmu"].upstream)[
        "lmms_eval_specific_kwargs"
    ]["default"]
    results = []
    for config in columns()["videommmu"].configs:
        name = "adaptation" if config == "Adaptation" else "perception_comprehension"
        to_text = getattr(module, f"videommmu_doc_to_text_{name}")
        for doc in docs("videommmu", config):
            (path,) = module.videommmu_doc_to_visual(doc)
            assert Path(path).is_file() and doc["question"] in to_text(doc, options)
            results.append(module.videommmu_process_results(doc, [f"{doc['answer']}"])["mmmu_acc"])
    assert module.videommmu_aggregate_results(results) == 1.0
