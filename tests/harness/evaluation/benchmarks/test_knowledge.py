import random
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from lm_eval.filters.extraction import RegexFilter
from lm_eval.utils import apply_template

from harness.config.evaluation import BenchmarkOptions
from harness.evaluation.benchmarks.columns import columns
from harness.evaluation.benchmarks.recipe import by_grade
from harness.evaluation.benchmarks.registry import recipe
from harness.evaluation.benchmarks.rows import load_rows
from harness.evaluation.library.upstream import upstream_module
from harness.rewards.rules import grade
from tests.support.upstream import upstream_config

FIXTURES = Path(__file__).parents[3] / "fixtures" / "benchmarks"

REPLY = "<think>Option A looks plausible, but it is not.</think>\nA reader may object. The answer is \\boxed{C}."


def rows_of(name, **options):
    return list(load_rows(columns()[name], BenchmarkOptions(**options), str(FIXTURES)))


def ask(name, row, **cells):
    (question,) = recipe(name).questions(replace(row, cells={**row.cells, **cells}))
    return question


def docs_of(name):
    column = columns()[name]
    folder = str(FIXTURES / column.repository)
    configs = datasets.get_dataset_config_names(folder) if column.configs == ("*",) else column.configs or (None,)
    return [doc for config in configs for doc in datasets.load_dataset(folder, config, split=column.splits[0])]


def extracted(name, reply):
    """What the first regular expression of the library's task finds in a reply."""
    step = upstream_config(columns()[name].library, columns()[name].upstream)["filter_list"][0]["filter"][0]
    (found,) = RegexFilter(regex_pattern=step["regex_pattern"]).apply([[reply]], [{}])
    return found[0]


def test_questions_and_letters(questions_of):
    asked = {name: [(q.text, q.answer) for q in questions_of(name)] for name in ("mmlu", "mmlu_pro", "ceval")}
    assert asked == {
        "mmlu": [
            ("Which is a fruit?\nA. pear\nB. leek\nC. beet\nD. kale", "A"),
            ("2 + 2 =\nA. 3\nB. 5\nC. 4\nD. 1", "C"),
        ],
        "mmlu_pro": [
            ("Which number is a square?\nA. 2\nB. 3\nC. 5\nD. 6\nE. 7\nF. 8\nG. 10\nH. 11\nI. 12\nJ. 9", "J"),
            ("Who wrote the made-up novel?\nA. Ann\nB. Bob\nC. Cid", "B"),
        ],
        "ceval": [
            ("下列哪一项是颜色____。\nA. 红\nB. 桌子\nC. 跑\nD. 三", "A"),
            ("小白是猫所以小白是____\nA. 石头\nB. 动物\nC. 植物\nD. 机器", "B"),
            ("下列数中最大的是____\nA. 1\nB. 2\nC. 3\nD. 9", "D"),
            ("人有几只手____\nA. 一\nB. 两\nC. 五\nD. 八", "B"),
        ],
    }


@pytest.mark.parametrize(
    "options, index, choices, letter",
    [
        (["x", "N/A", "y", "z"], 2, ["x", "y", "z"], "B"),
        (["N/A", " N/A ", "y"], 2, ["y"], "A"),
        (["x", "N/A"], 1, ["x", "N/A"], "B"),
    ],
)
def test_mmlu_pro_gold_moves_with_the_options_that_are_left_out(options, index, choices, letter):
    question = ask("mmlu_pro", rows_of("mmlu_pro")[0], options=options, answer_index=index)
    assert (question.metadata["choices"], question.answer) == (choices, letter)


@pytest.mark.parametrize("option, letters", [("corrected", "ACDDB"), ("printed", "ABADB"), ("ok", "A")])
def test_mmlu_redux_options(option, letters, questions_of):
    questions = questions_of("mmlu_redux", mmlu_redux=option)
    assert "".join(q.answer for q in questions) == letters
    assert questions[0].id == "mmlu_redux/anatomy/0"


@pytest.mark.parametrize(
    "correction, letter",
    [
        ("D", "D"),
        (" d ", "D"),
        ("(D)", "D"),
        ("D. 2", "D"),
        ("ten", "C"),
        ("0", "A"),
        ("3", "D"),
        ("7", "B"),  # neither an index nor an option
        ("2", "B"),  # the index of `ten`, and the text of the last option
        ("C and D", "B"),
        ("E", "B"),
        ("", "B"),
        (None, "B"),
    ],
)
def test_mmlu_redux_correction(correction, letter):
    row = rows_of("mmlu_redux")[1]
    cells = {"choices": ["four", "nine", "ten", "2"], "answer": 1, "correct_answer": correction}
    assert ask("mmlu_redux", row, error_type="wrong_groundtruth", **cells).answer == letter
    # Only a wrong answer is corrected: elsewhere a number is a value, or several options are named.
    assert ask("mmlu_redux", row, error_type="no_correct_answer", **cells).answer == "B"
    assert ask("mmlu_redux", row, error_type="multiple_correct_answers", **cells).answer == "B"


@pytest.mark.parametrize("option, mean", [("rows", 0.5), ("subjects", (1 + 0.5 + 0) / 3)])
def test_ceval_mean(option, mean, questions_of):
    questions = questions_of("ceval")
    assert [q.metadata["category"] for q in questions] == ["law", "logic", "logic", "physician"]
    aggregate = recipe("ceval").aggregate(BenchmarkOptions(ceval=option))
    assert aggregate(list(zip(questions, [1.0, 1.0, 0.0, 0.0], strict=True))).mean == pytest.approx(mean)


def test_gpqa_gold_is_the_right_option(questions_of):
    questions = questions_of("gpqa_diamond")
    gold = [q.metadata["choices"]["ABCD".index(q.answer)] for q in questions]
    assert gold == ["0", "argon", "hen", "photon"]
    assert sorted(questions[0].metadata["choices"]) == ["+1", "+2", "-1", "0"]
    first = questions[0]
    assert first.text == "What is the charge of a neutron?\n" + "\n".join(
        f"{letter}. {choice}" for letter, choice in zip("ABCD", first.metadata["choices"], strict=True)
    )


def test_gpqa_order_is_a_function_of_seed_and_record():
    row, *others = rows_of("gpqa_diamond")
    names = ["Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))]
    cells = dict(zip(names, "wxyz", strict=True))

    def order(row, **more):
        random.seed()  # the global generator has no part in it
        return "".join(ask("gpqa_diamond", row, **cells, **more).metadata["choices"])

    def seeded(seed, row=row):
        return order(replace(row, options=BenchmarkOptions(gpqa_seed=seed)))

    elsewhere = replace(others[0], position=170, options=row.options)
    same = {order(row), order(row), order(elsewhere, **{"Record ID": "recA1", "Question": "Another?"})}
    assert len(same) == 1
    assert len({order(row, **{"Record ID": f"rec{i}"}) for i in range(40)}) > 10
    assert len({seeded(seed) for seed in range(40)}) > 10
    assert seeded(0) == order(row) and seeded(1, others[0]) == seeded(1, others[0])
    letters = [ask("gpqa_diamond", row, **{"Record ID": f"rec{i}"}).answer for i in range(400)]
    assert all(60 < letters.count(letter) < 140 for letter in "ABCD")


def test_upstream_gpqa_shuffles_differently_at_every_call(questions_of):
    process_docs = upstream_module("lm_eval.tasks.gpqa.cot_zeroshot.utils").process_docs
    docs = datasets.Dataset.from_list(docs_of("gpqa_diamond"))
    state = random.getstate()
    datasets.disable_caching()
    try:
        random.seed(0)
        gold = [tuple(process_docs(docs)["answer"]) for _ in range(8)]
        ours = [tuple(q.answer for q in questions_of("gpqa_diamond")) for _ in range(8)]
    finally:
        datasets.enable_caching()
        random.setstate(state)
    assert len(set(gold)) > 1 and len(set(ours)) == 1


@pytest.mark.parametrize("name", ["mmlu", "mmlu_redux", "ceval"])
def test_upstream_templates_run_on_the_fixture(name):
    config = upstream_config(columns()[name].library, columns()[name].upstream)
    right = {"mmlu": "AC", "mmlu_redux": "ABADB", "ceval": "0131"}[name]
    docs = docs_of(name)
    assert "".join(apply_template(config["doc_to_target"], doc) for doc in docs) == right
    for doc in docs:
        options = doc.get("choices") or [doc[letter] for letter in "ABCD"]
        text = apply_template(config["doc_to_text"], doc)
        assert doc["question"].strip() in text and f"\nD. {options[3]}\n" in text


def test_upstream_mmlu_pro_runs_on_the_fixture_and_shows_the_fillers(questions_of):
    utils = upstream_module("lm_eval.tasks.mmlu_pro.utils")
    docs = datasets.Dataset.from_list(docs_of("mmlu_pro"))
    assert len(utils.process_math(docs)) == len(utils.process_history(docs)) == 1
    assert "J. 9\n" in utils.doc_to_text(docs[0])
    assert "D. N/A\nE. N/A\n" in utils.doc_to_text(docs[1])
    assert "N/A" not in questions_of("mmlu_pro")[1].text


def test_upstream_gpqa_runs_on_the_fixture():
    config = upstream_config(columns()["gpqa_diamond"].library, columns()["gpqa_diamond"].upstream)
    docs = upstream_module("lm_eval.tasks.gpqa.cot_zeroshot.utils").process_docs(
        datasets.Dataset.from_list(docs_of("gpqa_diamond"))
    )
    for doc in docs:
        assert doc["choices"]["ABCD".index(doc["answer"][1])] == doc["Correct Answer"].strip()
        assert f"{doc['answer']} {doc['Correct Answer'].strip()}\n" in apply_template(config["doc_to_text"], doc)


@pytest.mark.parametrize(
    "name, found",
    [
        ("mmlu", "<think>Option A looks plausible, but it is not.</think>"),  # the first line
        ("mmlu_redux", "A"),  # the first capital
        ("mmlu_pro", "[invalid]"),  # no letter behind `answer is`
    ],
)
def test_upstream_filters_miss_the_box(name, found, questions_of):
    assert extracted(name, REPLY) == found
    question = replace(questions_of(name)[0], answer="C")
    assert by_grade(question, grade(REPLY, question, "math_verify")).score == 1.0


@pytest.mark.parametrize("name", ["mmlu", "mmlu_pro", "mmlu_redux", "ceval", "gpqa_diamond"])
def test_every_column_is_multiple_choice(name, questions_of):
    for question in questions_of(name):
        assert question.answer_type == "choice" and question.answer in "ABCDEFGHIJ"
        choice = question.metadata["choices"]["ABCDEFGHIJ".index(question.answer)]
        marks = [by_grade(question, grade(f"\\boxed{{{box}}}", question, "math_verify")) for box in (choice, "Z")]
        assert [(mark.score, mark.outcome) for mark in marks] == [(1.0, "match"), (0.0, "mismatch")]
