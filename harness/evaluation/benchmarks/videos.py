"""Questions about videos: MMVU, MVBench, Video-MME without and with subtitles, Video-MMMU."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from harness.data.frames import FrameFolder, VideoPart, last_frame_time
from harness.data.video import VideoFile
from harness.evaluation.benchmarks.recipe import Mark, Recipe, by_grade
from harness.evaluation.benchmarks.rows import Row, media_folder, texts_of
from harness.evaluation.benchmarks.subtitles import evenly_spread, read_cues, spoken
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.choice import LETTERS, lettered, normal_text
from harness.rewards.rules import Grade
from harness.types import AnswerType, Question, VideoRef

SUBTITLE_FRAMES = 32
"""Number of the evenly spread frames by which `videomme_subtitles=frames` thins the subtitles: the official number. A
row does not know how many frames of its clip a model is shown."""

EPISODIC_FPS = 3.0
"""Rate of the frame pictures of MVBench's episodic_reasoning."""

MVBENCH_FOLDERS = {
    "action_antonym": ("ssv2_video_mp4", "ssv2_video"),
    "action_count": ("perception/videos",),
    "action_localization": ("sta/sta_video_segment", "sta/sta_video"),
    "action_prediction": ("star/Charades_segment", "star/Charades_v1_480"),
    "action_sequence": ("star/Charades_segment", "star/Charades_v1_480"),
    "character_order": ("perception/videos",),
    "counterfactual_inference": ("clevrer/video_validation",),
    "egocentric_navigation": ("vlnqa",),
    "episodic_reasoning": ("tvqa/video_fps3_hq_segment", "tvqa/frames_fps3_hq"),
    "fine_grained_action": ("Moments_in_Time_Raw/videos",),
    "fine_grained_pose": ("nturgbd_convert", "nturgbd"),
    "moving_attribute": ("clevrer/video_validation",),
    "moving_count": ("clevrer/video_validation",),
    "moving_direction": ("clevrer/video_validation",),
    "object_existence": ("clevrer/video_validation",),
    "object_interaction": ("star/Charades_segment", "star/Charades_v1_480"),
    "object_shuffle": ("perception/videos",),
    "scene_transition": ("scene_qa/video",),
    "state_change": ("perception/videos",),
    "unexpected_action": ("FunQA_test/test",),
}
"""Where a task's clips lie: in the branch `video`, and in `main` if that differs."""
MVBENCH_ROOTS = ("", "video/", "data0613/", "video/data0613/")
"""Where the archives of the two branches unpack to; `data0613` has what was added later."""

VIDEOMMMU_FOLDERS = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
    "Humanities": ("History", "Literature", "Psychology", "Sociology"),
    "Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
}  # fmt: skip
QUIZ_FRAME = "A quiz in the last frame of the video belongs to another question."
"""The clips of Video-MMMU end with the picture of their Adaptation question, which the other two must not take up."""

_PICTURE = re.compile(r"<image ?\d*>")
_IN_REPOSITORY = re.compile(r"^https?://.*?/(?:resolve|blob)/[^/]+/")


def mmvu(row: Row) -> list[Question]:
    """`video` is the address of a file of the repository: `.../resolve/main/videos/<discipline>/<number>.mp4`."""
    path = _IN_REPOSITORY.sub("", row["video"]).removeprefix("./")
    choices = [text for letter in LETTERS if (text := (row["choices"] or {}).get(letter))]
    is_choice = row["question_type"] == "multiple-choice"
    return [
        row.question(
            _with_options(row["question"], choices if is_choice else ()),
            row.gold("answer").strip(),
            answer_type="choice" if is_choice else "text",
            choices=choices if is_choice else (),
            video=row.video(path, path.removeprefix("videos/")),
            question_type=row["question_type"],
            category=path.split("/")[-2] if "/" in path else "",
        )
    ]


def mvbench(row: Row) -> list[Question]:
    choices = list(row["candidates"])
    return [
        row.question(
            _with_options(row["question"], choices),
            LETTERS[choices.index(row.gold("answer"))],
            answer_type="choice",
            choices=choices,
            video=_mvbench_video(row),
            category=row.config,
        )
    ]


def videomme(row: Row) -> list[Question]:
    return [_videomme(row, "", subtitles="off")]


def videomme_sub(row: Row) -> list[Question]:
    """Without a subtitle file, which some videos lack, it is the question of the other column; `subtitles` says so."""
    path = _root(row) / "subtitle" / f"{row['videoID']}.srt"
    if not path.is_file():
        return [_videomme(row, "", subtitles="missing")]
    video = _videomme_video(row)
    shown = row.options.videomme_subtitles == "frames"
    times = evenly_spread(last_frame_time(video.name), SUBTITLE_FRAMES) if shown else None
    text = spoken(read_cues(path), times)
    return [_videomme(row, f"The subtitles of the video:\n{text}\n\n" if text else "", subtitles="shown")]


def videommmu(row: Row) -> list[Question]:
    """Adaptation asks about a picture after the lesson of the clip; its open answers may be lists of alternatives."""
    options = _unlettered(row["options"] or ())
    is_choice = bool(options) and row["question_type"] != "open"
    picture = row.cells.get("image")  # only Adaptation has the column
    quiz = "" if row.config == "Adaptation" else f"\n\n{QUIZ_FRAME}"
    text = _with_options(row["question"], options if is_choice else ())
    answers = [row.gold("answer").strip()] if is_choice else _alternatives(row.gold("answer"))
    subject = "_".join(row["id"].split("_")[1:-1])
    folder = next((name for name, subjects in VIDEOMMMU_FOLDERS.items() if subject in subjects), subject)
    return [
        row.question(
            _with_picture(text) if picture is not None else _PICTURE.sub("", text).strip() + quiz,
            answers[0],
            answer_type="choice" if is_choice else _kind(answers[0]),
            choices=options if is_choice else (),
            images=[picture],
            video=row.video(f"{folder}/{row['id']}.mp4", f"videos/{folder}/{row['id']}.mp4", f"{row['id']}.mp4"),
            category=row.config,
            answers=answers,
        )
    ]


def official_videommmu(question: Question, grade: Grade) -> Mark:
    """An open answer is also right if it is the same number to two decimals, or the same text, as any gold answer.

    The official normalisation, without its search for the gold answer somewhere in a longer text.
    """
    mark = by_grade(question, grade)
    if mark.outcome != "mismatch" or question.answer_type == "choice":
        return mark
    assert grade.answer is not None
    normalize = upstream_module("lmms_eval.tasks.videommmu.utils").normalize_str
    answer = normalize(normal_text(grade.answer))
    if any(normalize(normal_text(gold)) == answer for gold in question.metadata["answers"]):
        return Mark(score=1.0, outcome="match")
    return mark


def _videomme(row: Row, before: str, *, subtitles: str) -> Question:
    choices = _unlettered(row["options"])
    return row.question(
        before + _with_options(row["question"], choices),
        row.gold("answer").strip(),
        answer_type="choice",
        choices=choices,
        video=_videomme_video(row),
        category=row["duration"],
        subtitles=subtitles,
    )


def _videomme_video(row: Row) -> VideoRef:
    names = [f"{row['videoID']}.{suffix}" for suffix in ("mp4", "MP4", "mkv")]
    return row.video(*(folder + name for folder in ("data/", "", "videos/") for name in names))


def _mvbench_video(row: Row) -> VideoRef:
    """A file, a part of one, or a folder of frames.

    The branch `video` has clips that are cut already, some with their times in the name; `main` has complete videos
    and the times in columns.
    """
    root, name = _root(row), row["video"]
    start, end = row.cells.get("start"), row.cells.get("end")
    cut, *whole = MVBENCH_FOLDERS[row.config]
    part = f"{Path(name).stem if Path(name).suffix in ('.mp4', '.webm') else name}_{start}_{end}.mp4"
    places = {folder: [f"{base}{folder}/{name}" for base in MVBENCH_ROOTS] for folder in (cut, *whole)}
    parts = [] if start is None else [f"{base}{cut}/{part}" for base in MVBENCH_ROOTS]
    for path in (path for folder in places for path in places[folder]):
        if (root / path).is_dir():
            return FrameFolder(str(root / path), EPISODIC_FPS, start, end)
    video = row.video(*parts, *(path for folder in places for path in places[folder]))
    is_whole = any(video.name == str(root / path) for folder in whole for path in places[folder])
    if is_whole and start is not None and end is not None:
        return VideoPart(video.name, start, end)
    return VideoFile(video.name)


def _root(row: Row) -> Path:
    return row.folder or media_folder(row.column.repository, row.column.revision)


def _with_options(question: str, choices: Sequence[str]) -> str:
    return f"{question.strip()}\n{lettered(choices)}".strip()


def _unlettered(options: Sequence[str]) -> list[str]:
    """Options without their letters, where all have them: `B. red` or `B) red` in the second place."""
    found = [re.match(rf"\s*{letter}\s*[.):]\s*", option) for letter, option in zip(LETTERS, options, strict=False)]
    if not all(found):
        return list(options)
    return [option[match.end() :].strip() for option, match in zip(options, found, strict=True) if match is not None]


def _with_picture(text: str) -> str:
    """The clip before the question, the picture where the text has its mark, otherwise after the clip."""
    if len(_PICTURE.findall(text)) == 1:
        return "<video>\n" + _PICTURE.sub("<image>", text)
    return "<video>\n<image>\n" + _PICTURE.sub("the picture", text)


def _alternatives(answer: str) -> list[str]:
    """The gold answers of a cell: a text, or the Python form of a list of texts."""
    if answer.strip().startswith("["):
        try:
            return [text.strip() for text in texts_of(answer)]
        except (SyntaxError, ValueError):
            pass  # a text with a bracket in front, such as an interval
    return [answer.strip()]


def _kind(answer: str) -> AnswerType:
    try:
        return "math" if math.isfinite(float(answer.replace(",", ""))) else "text"
    except ValueError:
        return "text"


RECIPES = {
    "mmvu": Recipe(questions=mmvu, judge="mmvu"),
    "mvbench": Recipe(questions=mvbench),
    "videomme": Recipe(questions=videomme),
    "videomme_sub": Recipe(questions=videomme_sub),
    "videommmu": Recipe(questions=videommmu, scorer=official_videommmu),
}
