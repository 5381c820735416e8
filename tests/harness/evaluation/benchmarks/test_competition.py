import base64
import io
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from lm_eval.utils import apply_template
from PIL import Image

from harness.config.evaluation import BenchmarkOptions
from harness.data.images import MediaError
from harness.errors import UserError
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.competition import DataUrlImage, hle, multichallenge
from harness.evaluation.benchmarks.recipe import by_grade
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.rows import load_rows
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import gold_error, grade
from tests.support.upstream import upstream_config

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"


def row_of(name, position=0, **options):
    return list(load_rows(columns()[name], BenchmarkOptions(**options), str(FIXTURES)))[position]


def with_cells(row, **cells):
    return replace(row, cells={**row.cells, **cells})


def score(question, response):
    return by_grade(question, grade(response, question, "math_verify"))


def test_aime25_has_both_papers(questions_of):
    questions = questions_of("aime25")
    assert [(q.id, q.answer) for q in questions] == [
        ("aime25/AIME2025-I/0", "70"),
        ("aime25/AIME2025-I/1", "72^\\circ"),
        ("aime25/AIME2025-II/0", "024"),
        ("aime25/AIME2025-II/1", "210"),
    ]
    assert questions[0].text == "Find the number of integers $n$ with $10 \\le n \\le 79$."


def test_aime26_answers_are_numbers_in_the_data_and_strings_here(questions_of):
    assert [(q.id, q.text, q.answer, q.answer_type) for q in questions_of("aime26")] == [
        ("aime26/0", "A square has perimeter $28$. Find its area.", "49", "math"),
        ("aime26/1", "In how many orders can five runners finish a race without ties?", "120", "math"),
    ]


@pytest.mark.parametrize(
    "position, box, expected",
    [(1, "72", 1.0), (1, "72^\\circ", 1.0), (1, "71", 0.0), (2, "24", 1.0), (2, "024", 1.0), (2, "240", 0.0)],
)
def test_aime_answers_are_compared_as_values(position, box, expected, questions_of):
    assert score(questions_of("aime25")[position], f"\\boxed{{{box}}}").score == expected


@pytest.mark.parametrize("name", ["aime25", "aime26"])
def test_upstream_aime_runs_on_the_fixture(name):
    column, config = columns()[name], upstream_config(columns()[name].library, columns()[name].upstream)
    process = upstream_module("lm_eval.tasks.aime.utils").process_results
    for configuration in column.configs or (None,):
        for doc in datasets.load_dataset(str(FIXTURES / column.repository), configuration, split=column.splits[0]):
            problem = doc.get("problem") or doc["question"]
            assert problem in apply_template(config["doc_to_text"], {**doc, "problem": problem})
            target = apply_template(config["doc_to_target"], doc)
            assert process(doc, [f"\\boxed{{{target}}}"]) == {"exact_match": 1}
            assert process(doc, ["\\boxed{271828}"]) == {"exact_match": 0}


def test_upstream_aime_misses_equal_values_and_takes_a_reply_without_a_box(questions_of):
    process = upstream_module("lm_eval.tasks.aime.utils").process_results
    with_zero, plain = questions_of("aime25")[2:]
    assert process({"answer": "024"}, ["\\boxed{24}"]) == {"exact_match": 0}
    assert score(with_zero, "\\boxed{24}").score == 1.0
    assert process({"answer": "210"}, ["210"]) == {"exact_match": 1}
    assert (score(plain, "210").score, score(plain, "210").outcome) == (0.0, "unparsed")


def test_imo_answers_in_words_are_texts(questions_of):
    assert [(q.answer, q.answer_type) for q in questions_of("imo_answerbench")] == [
        ("19", "math"),
        ("$2^{n-1}$", "math"),
        ("All even integers", "text"),
        ("$\\{(a,b):ab \\geq 5\\}$", "text"),
    ]


@pytest.mark.parametrize(
    "gold, kind",
    [
        ("$\\frac{1}{2}$", "math"),
        ("$\\lfloor n/2 \\rfloor+1$", "math"),
        ("3, 4", "math"),
        ("$(p,q)=(3,2)$", "math"),
        ("no solutions", "text"),
        ("odd $n$", "text"),
        ("$2n$ for some $n$", "text"),
        ("$x \\text{ and } y$", "text"),
    ],
)
def test_imo_answer_type(gold, kind):
    (question,) = recipe("imo_answerbench").questions(with_cells(row_of("imo_answerbench"), **{"Short Answer": gold}))
    assert (question.answer, question.answer_type) == (gold, kind)


def test_words_are_no_products_of_letters(questions_of):
    words = questions_of("imo_answerbench")[2]
    as_math = replace(words, answer_type="math")
    assert "is words" in (gold_error(as_math, "math_verify") or "")
    reply = f"\\boxed{{{words.answer[::-1]}}}"
    assert (score(as_math, reply).score, score(words, reply).score) == (0.0, 0.0)
    assert score(words, "\\boxed{\\text{all even integers}.}").score == 1.0


def test_hle_leaves_out_pictures_unless_all_is_asked_for(questions_of):
    assert [q.id for q in questions_of("hle")] == ["hle/0", "hle/1"]
    questions = questions_of("hle", hle="all")
    assert [q.id for q in questions] == ["hle/0", "hle/1", "hle/2"]
    assert [len(q.images) for q in questions] == [0, 0, 1]
    (image,) = questions[2].images
    opened = image.open()
    assert (image.name, opened.mode, opened.size) == ("cais/hle:h3", "RGB", (48, 40))
    preview = datasets.load_dataset(str(FIXTURES / "cais/hle"), split="test")[2]["image_preview"]
    assert opened.tobytes() == preview.convert("RGB").tobytes()


def test_hle_answers(questions_of):
    text, choice = questions_of("hle")
    assert (text.answer, text.answer_type) == ("the outer one", "text")
    assert (choice.answer, choice.answer_type) == ("E", "choice")
    assert choice.text.startswith("Which number is prime?") and choice.text.endswith("E. 41\nF. 51")
    assert score(choice, "\\boxed{E. 41}").score == 1.0
    assert score(choice, "\\boxed{F}").outcome == "other_option"


@pytest.mark.parametrize(
    "cells, kind",
    [
        ({"answer": " B\n"}, "choice"),
        ({"answer": "B and C"}, "text"),
        ({"answer": "AB"}, "text"),
        ({"answer": "B", "answer_type": "exactMatch"}, "text"),
        ({"image": None}, "choice"),
    ],
)
def test_hle_answer_type(cells, kind):
    (question,) = hle(with_cells(row_of("hle", 1), **cells))
    assert question.answer_type == kind and question.answer == cells.get("answer", "E").strip()


def test_data_url_image():
    buffer = io.BytesIO()
    Image.new("RGBA", (5, 7), (255, 0, 0, 255)).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    for url in (f"data:image/png;base64,{encoded}", encoded):
        image = DataUrlImage("x", url)
        assert (image.open().mode, image.open().size, image.open().getpixel((0, 0))) == ("RGB", (5, 7), (255, 0, 0))
        assert encoded not in repr(image)


@pytest.mark.parametrize("url", ["data:image/png;base64,AAAAA", "data:image/png;base64,AAAA", "data:image/png;base64,"])
def test_broken_data_url_names_the_picture(url):
    with pytest.raises(MediaError, match="cais/hle:q7"):
        DataUrlImage("cais/hle:q7", url).open()


def test_multichallenge_keeps_the_conversation(questions_of):
    first, second, third = questions_of("multichallenge")
    assert first.text == "Suggest a cake for my birthday."
    assert first.messages == (
        {"role": "user", "content": "I cannot eat nuts."},
        {"role": "assistant", "content": "Noted."},
    )
    assert first.answer == "YES"
    assert first.metadata == {
        "target_question": "Is the suggested cake free of nuts?",
        "pass_criteria": "YES",
        "category": "INFERENCE_MEMORY",
    }
    assert second.text == "What is the capital of Peru?" and second.metadata["category"] == "INSTRUCTION_RETENTION"
    assert [len(q.messages) for q in (first, second, third)] == [2, 2, 4]


def test_multichallenge_takes_turns_as_a_list_too():
    row = row_of("multichallenge")
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]
    last = {"role": "user", "content": "Bye."}
    (question,) = multichallenge(with_cells(row, conversation=[*turns, last]))
    assert (question.messages, question.text) == (tuple(turns), "Bye.")
    with pytest.raises(UserError, match="multichallenge: the conversation of row 0 does not end with a user turn"):
        multichallenge(with_cells(row, conversation=turns))


@pytest.mark.parametrize("option, mean, stderr", [("axes", 1 / 4, (1 / 32) ** 0.5), ("rows", 1 / 3, (2 / 27) ** 0.5)])
def test_multichallenge_mean(option, mean, stderr, questions_of):
    """Right on one of the two rows of one axis, wrong on the only one of the other."""
    aggregate = recipe("multichallenge").aggregate(BenchmarkOptions(multichallenge=option))
    estimate = aggregate(list(zip(questions_of("multichallenge"), [1.0, 0.0, 0.0], strict=True)))
    assert (estimate.mean, estimate.stderr) == pytest.approx((mean, stderr))


def test_official_judges():
    assert (recipe("hle").judge, recipe("multichallenge").judge) == ("hle", "multichallenge")
