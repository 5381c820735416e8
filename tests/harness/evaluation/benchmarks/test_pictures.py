import random
from pathlib import Path

import datasets
import pytest

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.pictures import RECIPES, grid_size
from harness.evaluation.benchmarks.rows import Row
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import grade
from tests.support.upstream import upstream_config

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"
UTILS = {
    "ai2d": "ai2d",
    "babyvision": "babyvision",
    "embspatial": "embspatial",
    "mmmu_pro": "mmmu_pro",
    "visualpuzzles": "VisualPuzzles",
    "vlmsareblind": "vlmsareblind",
}
TEMPTING = (
    "<think>Option A looks plausible but (C) is not. I think D. is wrong.</think> The final answer is \\boxed{B}."
)
"""The notes' reply: letters in the reasoning, another one in the box."""


def utils(name):
    return upstream_module(f"lmms_eval.tasks.{UTILS[name]}.utils")


def docs(name, config=None):
    """The fixture as the libraries load it, pictures decoded."""
    column = columns()[name]
    return list(datasets.load_dataset(str(FIXTURES / column.repository), config, split=column.splits[0]))


def row(name, cells, config="", **options):
    return Row(
        column=columns()[name], config=config, split="", position=0, cells=cells, options=BenchmarkOptions(**options)
    )


def score(name, question, reply):
    mark = RECIPES[name].scorer(question, grade(reply, question, "math_verify"))
    return mark.score, mark.outcome


# What is asked


@pytest.mark.parametrize(
    ("name", "texts", "answers"),
    [
        (
            "ai2d",
            [
                "Which animal in the web eats only grass?\nA. fox\nB. hare\nC. owl\nD. eagle",
                "What does the part labelled D stand for?\nA. root\nB. stem\nC. petal\nD. leaf",
            ],
            ["B", "D"],
        ),
        (
            "babyvision",
            [
                "Which animal does the rope of the boat lead to?\nA. the goat\nB. the duck\nC. the mole",
                "Whose shadow is the grey one?\nThe options A, B and C are in the picture.",
                "How many blocks are in the tower?",
                "In which row and column is the odd flag, as (row, column)?",
                "Which number hangs on which letter?",
            ],
            ["C", "A", "7", "(4,7)", "1-C, 2-A, 3-B"],
        ),
        (
            "embspatial",
            [
                "How are the stool and the lamp placed to each other?\nA. The stool is above the lamp.\nB. "
                "The stool is left of the lamp.\nC. The stool is under the lamp.\nD. The stool is right of the lamp.",
                "Of these things, which one is nearest to the camera?\nA. mug\nB. kettle\nC. window\nD. door",
            ],
            ["C", "A"],
        ),
        (
            "visualpuzzles",
            [
                "Which weight replaces the question mark?\nA. 11\nB. 13\nC. 17\nD. 19",
                "Which figure continues the row?\nThe options A, B, C and D are in the picture.",
            ],
            ["D", "B"],
        ),
    ],
)
def test_texts_and_answers(name, texts, answers, questions_of):
    questions = questions_of(name)
    assert [question.text for question in questions] == texts
    assert [question.answer for question in questions] == answers
    assert all(len(question.images) == 1 for question in questions)


def test_mmmu_pro_pools_three_configurations_and_puts_pictures_where_they_are_named(questions_of):
    questions = questions_of("mmmu_pro")
    four, ten, vision = "standard (4 options)", "standard (10 options)", "vision"
    assert [question.id for question in questions] == [
        f"mmmu_pro/{config}/{position}" for config in (four, ten, vision) for position in (0, 1)
    ]
    rope, facade, rope_ten, graph, rope_vision, interval = questions
    assert rope.text == "<image> How taut is the rope?\nA. 12 N\nB. 15 N\nC. 18 N\nD. 21 N"
    assert facade.text == (
        "Which sketch belongs to the facade in <image>?\nA. <image>\nB. <image>\nC. <image>\nD. <image>"
    )
    assert [image.name[-7:] for image in facade.images] == ["image_1", "image_2", "image_3", "image_4", "image_5"]
    assert rope_ten.answer == rope_vision.answer == "H" and len(rope_ten.metadata["choices"]) == 10
    assert graph.text.startswith("The graph in (picture 2) is the one of (picture 1), moved.")
    assert [image.name[-7:] for image in graph.images] == ["image_1", "image_2"]  # not 3, which the solution shows
    assert rope_vision.text == interval.text and "rope" not in rope_vision.text and len(rope_vision.images) == 1
    assert interval.metadata["choices"] == ["a minor third", "a fifth", "an octave"]


@pytest.mark.parametrize(
    ("question", "options", "text", "images", "choices"),
    [
        ("From <image 3> to <image 1>?", ["up"], "From <image> to <image>?\nA. up", ["c", "a"], ["up"]),
        (
            "Is <image 3> like <image 1>? See <image 3>.",
            ["<image 1>"],
            "Is (picture 2) like (picture 1)? See (picture 2).\nA. (picture 1)",
            ["a", "c"],
            ["(picture 1)"],
        ),
        ("What is it?", ["up"], "What is it?\nA. up", ["a", "c"], ["up"]),
        ("<image 2><image 1> What is it?", ["up"], "<image> What is it?\nA. up", ["a"], ["up"]),
    ],
    ids=["order of the text", "named twice", "none named", "no such picture"],
)
def test_mmmu_pro_marks(question, options, text, images, choices):
    pictures = {f"image_{number}": {1: "a", 3: "c"}.get(number) for number in range(1, 8)}
    cells = {"question": question, "options": str(options), "answer": "A", **pictures}
    [made] = RECIPES["mmmu_pro"].questions(row("mmmu_pro", cells, "standard (4 options)"))
    assert (made.text, list(made.images), made.metadata["choices"]) == (text, images, choices)
    assert made.text.count("<image>") in (0, len(made.images))


@pytest.mark.parametrize(
    "options",
    [
        "[['A', 'B', 'Not enough information']]",  # as in row 81 of the data set
        "(('A', 'B', 'Not enough information'),)",
        "[[['A', 'B', 'Not enough information']]]",
        "['A', 'B', 'Not enough information']",
        [["A", "B", "Not enough information"]],
    ],
)
def test_mmmu_pro_options_in_a_list_of_their_own(options):
    cells = {"question": "Which is wider?", "options": options, "answer": "B"} | {
        f"image_{i}": None for i in range(1, 8)
    }
    [made] = RECIPES["mmmu_pro"].questions(row("mmmu_pro", cells, "standard (10 options)"))
    assert made.text == "Which is wider?\nA. A\nB. B\nC. Not enough information"
    marks = [
        RECIPES["mmmu_pro"].scorer(made, grade(f"\\boxed{{{box}}}", made, "math_verify")) for box in ("B", "(B)", "A")
    ]
    assert [(mark.score, mark.outcome) for mark in marks] == [(1.0, "match"), (1.0, "match"), (0.0, "other_option")]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("What is ringed?", "What is ringed?"),
        ("What is ringed? Please provide your answer in curly brackets, e.g. {a}", "What is ringed?"),
        ("How many? Answer with only the number in numerical format.", "How many?"),
        ("How many? Please answer with a number in curly brackets e.g., {10}.", "How many?"),
        ("Count them. Answer with only the number in numerical format in curly brackets e.g. {3}.", "Count them."),
        ("Count where they meet. Put your answer in curly brackets, e.g., {2}.", "Count where they meet."),
        (
            "Count rows, columns and answer with numbers in curly brackets. For example, rows={5} columns={6}",
            "Count rows, columns.",
        ),
        ("How big? Answer with only the numbers in a pair (row, column), e.g., (5,6)", "How big?"),
        ("How many ways from D to B? Answer with a number in curly brackets, e.g., {3}", "How many ways from D to B?"),
        ("Do they touch? Answer with Yes/No.", "Do they touch?"),
    ],
)
def test_vlmsareblind_prompts_lose_their_directive_and_nothing_else(prompt, text):
    cells = {"task": "Nested Squares", "prompt": prompt, "groundtruth": "3", "image": "picture"}
    [question] = RECIPES["vlmsareblind"].questions(row("vlmsareblind", cells))
    assert question.text == text


def test_answers_are_compared_by_what_they_are(questions_of):
    kinds = [question.answer_type for question in questions_of("vlmsareblind")]
    assert kinds == ["text", "text", "text", "math", "math", "math", "math", "math", "text", "text"]
    assert [q.answer_type for q in questions_of("babyvision")] == ["choice", "choice", "math", "math", "text"]


# How it is scored


@pytest.mark.parametrize(
    "text",
    [
        "3,4", "(3, 4)", "3 x 4", "3x4", "3 \u00d7 4", "3 \\times 4", "3\\times4", "[3, 4]", "{3}{4}", "\\{3\\}\\{4\\}",
        "3 by 4", "3 rows, 4 columns", "3 rows and 4 columns", "4 columns, 3 rows", "rows=3, columns=4",
        "columns: 4; rows: 3", "\\text{3 rows, 4 columns}", "\\text{rows} = 3, \\text{columns} = 4", "$3, 4$.",
        "3 Rows \u00d7 4 Cols", "a 3 x 4 grid", "rows={3} columns={4}", "1 row and 2 columns",
    ],
)  # fmt: skip
def test_sizes_of_grids(text):
    assert grid_size(text) == ((1, 2) if text.startswith("1") else (3, 4))


@pytest.mark.parametrize(
    "text",
    [
        "", "12", "3.4", "3-4", "3/4", "-3, 4", "3, 4, 5", "three by four", "3 rows", "4 columns, 3", "3 rows, 4 rows",
        "3 or 4", "3 x 4 = 12", "no such thing at all", "3 rows, 4 cells", f"3, 4, {'5' * 5000}",
    ],
)  # fmt: skip
def test_what_is_no_size_of_a_grid(text):  # however many digits it has
    assert grid_size(text) is None


@pytest.mark.parametrize(
    ("position", "box", "expected"),
    [
        (1, "4 rows, 6 columns", (1.0, "match")),
        (1, "6 columns, 4 rows", (1.0, "match")),
        (1, "6, 4", (0.0, "mismatch")),
        (1, "many", (0.0, "mismatch")),
        (1, " ", (0.0, "unparsed")),
        (0, "Q", (1.0, "match")),
        (0, "o", (0.0, "mismatch")),
        (5, "6", (1.0, "match")),
        (5, "5", (0.0, "mismatch")),
        (8, "yes.", (1.0, "match")),
        (9, "Yes", (0.0, "mismatch")),
    ],
)
def test_vlmsareblind_marks(position, box, expected, questions_of):
    question = questions_of("vlmsareblind")[position]
    assert score("vlmsareblind", question, f"<think>4, 6?</think> \\boxed{{{box}}}") == expected


@pytest.mark.parametrize(
    ("position", "box", "expected"),
    [
        (0, "(C) the mole", (1.0, "match")),
        (0, "the mole", (1.0, "match")),
        (0, "B", (0.0, "other_option")),
        (1, "A", (1.0, "match")),
        (2, "7.0", (1.0, "match")),
        (2, "8", (0.0, "mismatch")),
        (3, "(4, 7)", (1.0, "match")),
        (3, "(7, 4)", (0.0, "mismatch")),
        (4, "1-c,  2-a, 3-b", (1.0, "match")),
        (4, "1-C, 2-B, 3-A", (0.0, "mismatch")),
    ],
)
def test_babyvision_marks(position, box, expected, questions_of):
    assert score("babyvision", questions_of("babyvision")[position], f"\\boxed{{{box}}}") == expected


def test_the_mean_over_tasks_is_upstreams_and_the_grids_are_one_task(questions_of):
    questions = questions_of("vlmsareblind")
    right = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    scores = list(zip(questions, right, strict=True))
    rows, tasks = (RECIPES["vlmsareblind"].aggregate(BenchmarkOptions(vlmsareblind=by)) for by in ("rows", "tasks"))
    assert rows(scores).mean == pytest.approx(4 / 10)
    # letter 1, grids 1/2, lines 1, squares 0, circles 0, pentagons 0, subway 0, touching 1/2
    assert tasks(scores).mean == pytest.approx(3 / 8)
    entries = [
        {"task": doc["task"], "is_correct": bool(value)} for doc, value in zip(docs("vlmsareblind"), right, strict=True)
    ]
    assert utils("vlmsareblind").vlmsareblind_aggregate_by_task(entries)["task_mean"] == pytest.approx(3 / 8)


# The libraries' own task code: it reads the fixtures, and what it makes of replies


@pytest.mark.parametrize(
    ("name", "config"),
    [(name, config) for name in UTILS for config in columns()[name].configs or (None,)],
)
def test_upstream_code_reads_the_fixtures(name, config):
    """So the fixtures have the columns and types that the libraries expect of the hub's data."""
    module, prefix = utils(name), UTILS[name]
    prompts = upstream_config(columns()[name].library, columns()[name].upstream)["lmms_eval_specific_kwargs"]["default"]
    for doc in docs(name, config):
        assert getattr(module, f"{prefix}_doc_to_text")(doc, prompts).strip()
        visuals = getattr(module, f"{prefix}_doc_to_visual")(doc)
        assert visuals and all(visual.size[0] >= 64 for visual in visuals)


def test_upstream_metrics_score_the_fixtures_gold_answers():
    assert [utils("ai2d").ai2d_doc_to_target(doc, "mcq") for doc in docs("ai2d")] == ["B", "D"]
    targets = [utils("babyvision").babyvision_doc_to_target(doc) for doc in docs("babyvision")]
    assert targets == ["C", "A", "7", "(4,7)", "1-C, 2-A, 3-B"]

    entries = [
        utils("embspatial").embspatial_process_results(doc, [letter])["embspatial_acc"]
        for doc, letter in zip(docs("embspatial"), "CB", strict=True)
    ]
    assert utils("embspatial").embspatial_aggregate_results(entries) == 0.5

    puzzles = utils("visualpuzzles")
    results = [puzzles.VisualPuzzles_process_result(doc, [doc["answer"]]) for doc in docs("visualpuzzles")]
    assert results == [{"exact_match": 1.0}] * 2

    for config in columns()["mmmu_pro"].configs:
        entries = [
            utils("mmmu_pro").mmmu_pro_process_results(doc, [doc["answer"]])["mmmu_acc"]
            for doc in docs("mmmu_pro", config)
        ]
        assert utils("mmmu_pro").mmmu_pro_aggregate_results(entries) == 1.0

    blind = ["q", "(4,6)", "rows={5} columns={3}", "{0}", "3", "6", "8", "{2}", "yes", "no"]
    for doc, reply in zip(docs("vlmsareblind"), blind, strict=True):
        assert utils("vlmsareblind").vlmsareblind_process_results(doc, [reply])["accuracy"] == 1.0


def test_mmmu_pro_upstream_draws_letters_for_a_boxed_reply_and_for_none(questions_of):
    random.seed(0)
    doc = docs("mmmu_pro", "standard (10 options)")[0]
    process = utils("mmmu_pro").mmmu_pro_process_results
    for reply in ("\\boxed{H}", "No idea."):
        assert len({process(doc, [reply])["mmmu_acc"]["parsed_pred"] for _ in range(40)}) > 1
    assert process(doc, [TEMPTING])["mmmu_acc"]["parsed_pred"] == "C"  # the reasoning's
    assert process(doc, ["I cannot tell."])["mmmu_acc"]["parsed_pred"] == "I"  # the pronoun
    question = questions_of("mmmu_pro")[2]
    assert score("mmmu_pro", question, "\\boxed{H}") == (1.0, "match")
    assert score("mmmu_pro", question, TEMPTING) == (0.0, "other_option")
    for reply in ("No idea.", "I cannot tell."):
        assert score("mmmu_pro", question, reply) == (0.0, "unparsed")


def test_mmmu_pro_upstream_compares_whole_replies_of_the_vision_configuration(questions_of):
    doc = docs("mmmu_pro", "vision")[1]
    entry = utils("mmmu_pro").mmmu_pro_process_results(doc, ["It is (B)."])["mmmu_acc"]
    assert utils("mmmu_pro").mmmu_pro_aggregate_results([entry]) == 0.0
    question = questions_of("mmmu_pro")[5]
    assert score("mmmu_pro", question, "It is \\boxed{(B)}.") == (1.0, "match")
    assert score("mmmu_pro", question, "It is \\boxed{a fifth}.") == (1.0, "match")


def test_visualpuzzles_upstream_draws_letters(questions_of):
    random.seed(0)
    doc = docs("visualpuzzles")[1]
    process = utils("visualpuzzles").VisualPuzzles_process_result
    assert {process(doc, ["I cannot tell."])["exact_match"] for _ in range(60)} == {0.0, 1.0}
    assert process(doc, [TEMPTING])["exact_match"] == 0.0  # it reads the (C) of the reasoning; B is right
    question = questions_of("visualpuzzles")[1]
    assert score("visualpuzzles", question, TEMPTING) == (1.0, "match")
    assert score("visualpuzzles", question, "I cannot tell.") == (0.0, "unparsed")


@pytest.mark.parametrize(
    ("reply", "read"), [("C", "C"), ("The answer is C.", "T"), ("\\boxed{C}", ""), ("<think>C</think> \\boxed{C}", "")]
)
def test_embspatial_upstream_reads_a_leading_letter_only(reply, read, questions_of):
    assert utils("embspatial")._extract_answer_letter(reply) == read
    question = questions_of("embspatial")[0]
    expected = (1.0, "match") if "boxed" in reply else (0.0, "unparsed")
    assert score("embspatial", question, reply) == expected


@pytest.mark.parametrize(
    ("position", "reply", "read", "box"),
    [
        (0, "The letter is q.", "t", "q"),
        (1, "4,6", None, "4,6"),
        (1, "4 rows and 6 columns", None, "4 rows and 6 columns"),
        (5, "Of 9 shapes 6 are rings.", "9", "6"),
        (8, "Yes, they do.", None, "Yes"),
    ],
)
def test_vlmsareblind_upstream_takes_the_first_match_of_prose(position, reply, read, box, questions_of):
    doc = docs("vlmsareblind")[position]
    assert utils("vlmsareblind").parse_response(reply, doc["task"]) == read
    assert utils("vlmsareblind").vlmsareblind_process_results(doc, [reply])["accuracy"] == 0.0
    question = questions_of("vlmsareblind")[position]
    assert score("vlmsareblind", question, f"<think>{reply}</think> \\boxed{{{box}}}") == (1.0, "match")


def test_babyvision_upstream_needs_a_judge_for_every_row(questions_of, monkeypatch):
    monkeypatch.delenv("BABYVISION_API_KEY", raising=False)
    doc = docs("babyvision")[2]
    entry = utils("babyvision").babyvision_process_results(doc, ["\\boxed{7}"])["babyvision_overall_accuracy"]
    assert not entry["correct"] and entry["error"] == "No API client"
    assert score("babyvision", questions_of("babyvision")[2], "\\boxed{7}") == (1.0, "match")


def test_ai2d_upstream_reads_no_letter_in_prose(questions_of):
    filtered = utils("ai2d").MultiChoiceRegexFilter().apply([["B. hare"], ["It is \\boxed{B}."]], docs("ai2d"))
    assert filtered == ["B", "It is \\boxed{B}."]
    assert score("ai2d", questions_of("ai2d")[0], "It is \\boxed{B. hare}.") == (1.0, "match")


def test_a_size_of_thousands_of_digits_is_another_size():
    """Python refuses to read so many."""
    assert grid_size("3, " + "4" * 5000) not in (None, (3, 4))
