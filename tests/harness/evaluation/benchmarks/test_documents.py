"""Charts, infographics and documents: what is asked, and where lmms-eval goes wrong."""

from collections import Counter
from pathlib import Path

import datasets
import pytest

from harness.evaluation.benchmarks.documents import DESCRIPTIVE, anls
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import Grade
from harness.types import Question

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"


def hub(repository, split, config=None):
    return datasets.load_dataset(str(FIXTURES / repository), config, split=split)


def test_charxiv_asks_what_the_option_says(questions_of):
    parts = {
        option: Counter(q.id.split("/")[2] for q in questions_of("charxiv", charxiv=option))
        for option in ("reasoning", "descriptive", "both")
    }
    four = {f"descriptive{i}": 4 for i in (1, 2, 3, 4)}
    assert parts == {"reasoning": {"reasoning": 4}, "descriptive": four, "both": {"reasoning": 4} | four}


@pytest.mark.parametrize(
    ("identity", "start", "answer", "template"),
    [
        ("0/descriptive1", "In this plot, what title", "Loss", 1),
        ("1/descriptive1", "In the subplot in row 2, column 1, how is the x-axis", "Steps", 2),
        ("2/descriptive2", "In the inset at the top, by how much do neighboring numbers", "5", 9),
        ("1/descriptive4", "How many rows and how many columns", "2 by 2", 18),
    ],
)
def test_a_descriptive_question_says_which_subplot_it_is_about(identity, start, answer, template, questions_of):
    (question,) = [q for q in questions_of("charxiv", charxiv="both") if q.id == f"charxiv/{identity}"]
    assert question.text.startswith(start) and question.answer == answer
    assert question.metadata == {"kind": "descriptive", "template": template}


def test_charxiv_has_a_wording_for_every_template():
    official = upstream_module("lmms_eval.tasks.charxiv.constant").DESCRIPTIVE_RESP_INST
    assert DESCRIPTIVE.keys() == official.keys()
    assert len(set(DESCRIPTIVE.values())) == 19


def test_upstream_asks_one_question_of_a_figure_four_times(questions_of):
    upstream = upstream_module("lmms_eval.tasks.charxiv.utils")
    asked = upstream.charxiv_descriptive_process_docs(hub("princeton-nlp/CharXiv", "validation"))
    pairs = Counter((doc["figure_path"], doc["qid"]) for doc in asked)
    assert pairs == {("images/0.jpg", 1): 4, ("images/1.jpg", 7): 4, ("images/2.jpg", 13): 4, ("images/3.jpg", 17): 4}
    ours = Counter((q.id.split("/")[1], q.metadata["template"]) for q in questions_of("charxiv", charxiv="descriptive"))
    assert len(ours) == 16 and set(ours.values()) == {1}


def test_upstream_takes_the_writer_of_a_question_for_the_type_of_its_answer(questions_of):
    upstream = upstream_module("lmms_eval.tasks.charxiv.utils")
    docs = list(hub("princeton-nlp/CharXiv", "validation"))
    read = [upstream.charxiv_reasoning_process_results(doc, ["x"])["reasoning_acc"]["data"] for doc in docs]
    assert [data["inst_category"] for data in read] == [3, 1, 2, 4]
    questions = questions_of("charxiv")
    assert [q.metadata for q in questions] == [{"kind": "reasoning", "category": i} for i in (1, 2, 3, 4)]
    assert [q.text for q in questions] == [doc["reasoning_q"] for doc in docs]


@pytest.mark.parametrize(
    ("name", "repository", "config", "split", "read"),
    [
        ("charxiv", "princeton-nlp/CharXiv", None, "validation", lambda m, d: m.charxiv_reasoning_doc_to_text_cot(d)),
        ("infovqa", "lmms-lab/DocVQA", "InfographicVQA", "validation",
         lambda m, d: m.infovqa_doc_to_text(d, {"pre_prompt": "", "post_prompt": ""})),
        ("mmvet", "lmms-lab/MMVet", None, "test", lambda m, d: m.doc_to_text(d)),
    ],
)  # fmt: skip
def test_upstream_reads_the_fixture(name, repository, config, split, read, questions_of):
    module = upstream_module(f"lmms_eval.tasks.{name}.utils")
    for doc, question in zip(hub(repository, split, config), questions_of(name), strict=True):
        (picture,) = getattr(module, f"{name}_doc_to_visual")(doc)
        assert picture.tobytes() == question.images[0].open().tobytes()
        assert question.text in read(module, doc)


def test_mmvet_keeps_the_gold_answer_as_it_is(questions_of):
    assert [(q.answer, q.metadata) for q in questions_of("mmvet")] == [
        ("2<AND>-3", {"capability": "ocr,math"}),
        ("cat<OR>kitten", {"capability": "rec"}),
    ]


def infographic(*answers):
    return Question(id="infovqa/0", text="?", answer=answers[0], answer_type="text", metadata={"answers": answers})


@pytest.mark.parametrize(
    ("answers", "box", "score"),
    [
        (["Norway"], "norway", 1.0),
        (["Norway", "Oslo"], "oslo", 1.0),
        (["Norway"], "Norwey", 1 - 1 / 6),
        (["ab"], "ax", 0.5),  # one half counts
        (["abc"], "axy", 0.0),
        (["45%"], r"45\%", 1.0),
        (["Norway"], r"\text{Norway}", 1.0),
        (["Norway"], "Norway" + "!" * 100_000, 0.0),
        (["two  trees"], "two trees", 1.0),
    ],
)
def test_anls(answers, box, score):
    mark = anls(infographic(*answers), Grade.of(box, "wrong"))
    assert mark.score == pytest.approx(score)
    assert mark.outcome == ("match" if score else "mismatch")


@pytest.mark.parametrize("box", [None, "", "  "])
def test_an_empty_box_is_unparsed(box):
    assert anls(infographic("Norway"), Grade.of(box, "unparsable")).outcome == "unparsed"


def test_upstream_anls_gives_nothing_for_a_whole_response():
    official = upstream_module("lmms_eval.api.metrics").anls
    assert official(["Norway"], [r"<think>Is it Oslo?</think> The answer is \boxed{Norway}."])["anls"] == 0
    assert anls(infographic("Norway"), Grade.of("Norway", "correct")).score == 1.0
