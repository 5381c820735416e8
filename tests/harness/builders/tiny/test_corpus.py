import random
import re
from collections import Counter
from itertools import islice

import pytest

from harness.builders.tiny import corpus
from harness.builders.tiny.corpus import (
    RECIPES,
    compress_example,
    examples,
    hint_example,
    hint_of,
    ncq_example,
    sample_trace,
    summary_of,
    told_steps,
    write_hint_example,
)
from harness.builders.tiny.slips import Slips, corrupt_step, make_slips, odd_trace
from harness.data.arithmetic import Terms, clean_steps, clean_trace, draw_terms, question, split_of
from harness.data.bars import split_of_question
from harness.rewards.boxed import last_boxed
from methods import prompts

STUDENT, TEACHER = RECIPES["s"], RECIPES["teacher"]
TERMS: Terms = (37, 8, 5, 9)


def inputs(terms):
    """Arguments of the makers that need no recipe."""
    return STUDENT, question(terms), terms


def first_examples(recipe, num_examples=300, seed=0):
    return list(islice(examples(recipe, seed), num_examples))


def kind_of(turn):
    for kind, form in (("bcq", prompts.BCQ), ("hint", prompts.HINT)):
        if form in turn:
            return kind
    for kind, start in (("compress", "Rewrite"), ("write_hint", "Turn")):
        if turn.startswith(start):
            return kind
    return "ncq" if "<candidate>" in turn else "plain"


def test_examples_repeat_with_the_seed():
    assert first_examples(STUDENT, 50) == first_examples(STUDENT, 50)
    assert first_examples(STUDENT, 50) != first_examples(STUDENT, 50, seed=1)


@pytest.mark.parametrize("recipe", [STUDENT, TEACHER])
def test_kinds_have_their_shares_and_all_questions_are_of_the_train_split(recipe):
    drawn = first_examples(recipe, 1000)
    counts = Counter(kind_of(example.turn) for example in drawn)
    for kind, share in recipe.kinds.items():
        assert abs(counts[kind] / 1000 - share) < 0.06  # 4 standard errors at share 0.5
    assert sum(counts[kind] for kind in recipe.kinds) == 1000
    tasks = Counter(example.question.source for example in drawn if example.question is not None)
    for task, share in recipe.tasks.items():
        assert abs(tasks[task] / tasks.total() - share) < 0.08
    for example in drawn:
        assert (example.question is None) == (kind_of(example.turn) in ("compress", "write_hint"))
        if example.question is not None:
            in_text = example.question.source == "arithmetic"
            split = split_of(example.question.text) if in_text else split_of_question(example.question)
            assert split == "train" and example.turn.startswith(example.question.text)


def test_plain_prompts_are_worded_as_the_methods_word_them():
    for example in first_examples(STUDENT):
        if kind_of(example.turn) == "plain":
            assert example.turn == prompts.plain_text(example.question)


def test_bcq_reply_is_the_right_candidate_or_one_of_two_wrong_ones():
    kinds = Counter()
    for example in first_examples(STUDENT, 1500):
        if kind_of(example.turn) == "bcq":
            shown = [part.partition("\n</candidate>")[0] for part in example.turn.split("<candidate>\n")[1:]]
            answer = example.question.answer
            right = [last_boxed(text) for text in shown].count(answer)
            assert len(shown) == 2 and summary_of(example.reply) in shown and right in (0, 1)
            assert (last_boxed(example.reply) == answer) == (right == 1)
            kinds[right] += 1
    assert abs(kinds[0] / kinds.total() - corpus.BOTH_WRONG) < 0.08  # of some 400: 4 standard errors


def test_ncq_reply_repeats_no_listed_answer_unless_nothing_else_is_drawn():
    rng = random.Random(0)
    repeated = 0
    for _ in range(200):
        example = ncq_example(rng, *inputs(draw_terms(rng, 2, "train")))
        listed = example.turn.partition("<candidate>")[0]
        repeated += f"\\boxed{{{last_boxed(example.reply)}}}" in listed
    assert repeated < 60


def test_ncq_replies_have_the_slips_of_plain_ones():
    # The only fact of 37+8 is certain to slip by 1, so the reply stays wrong although 46 is listed.
    certain = corpus.Recipe(kinds={"ncq": 1.0}, slips=Slips({(7, 8): (1, 1.0)}))
    example = ncq_example(random.Random(0), certain, question((37, 8)), (37, 8))
    assert example.reply == r"<think>37+8=46</think>\boxed{46}"


def test_slips_carry_on_from_the_wrong_value():
    slips = Slips({(7, 8): (-1, 1.0), (4, 5): (10, 1.0)})
    # 37+8=45, minus 1 is 44; the fact is now (4, 5): 49, plus 10 is 59; (9, 9) is no shaky fact: 68.
    assert slips.steps(random.Random(0), TERMS) == [(8, 44), (5, 59), (9, 68)]
    assert sample_trace(random.Random(0), slips, TERMS) == r"<think>37+8=44+5=59+9=68</think>\boxed{68}"
    assert sample_trace(random.Random(0), None, TERMS) == clean_trace(TERMS)


def test_fewer_shaky_facts_are_a_subset_and_rates_scale():
    few, many, rarer = make_slips(num_shaky=20), make_slips(num_shaky=45), make_slips(rate_scale=0.5)
    assert len(many.facts) == 45 and few.facts.items() <= many.facts.items()
    assert all(rarer.facts[fact] == (offset, rate / 2) for fact, (offset, rate) in many.facts.items())


def test_corrupted_step_changes_the_answer_by_one_offset():
    for seed in range(20):
        steps = corrupt_step(random.Random(seed), TERMS)
        assert [addend for addend, _ in steps] == [8, 5, 9]
        assert steps[-1][1] - 59 in (-10, -2, -1, 1, 2, 10)


def test_the_teacher_copies_whatever_it_is_shown():
    rng = random.Random(0)
    answers = Counter()
    for _ in range(300):
        example = compress_example(rng, *inputs(draw_terms(rng, 3, "train")))
        turn, reply = example.turn, example.reply
        shown = turn.partition("<response>\n")[2].removesuffix("\n</response>")
        assert reply == f"<summary>{shown}</summary>"
        assert turn.count("<response>") == 1 and "Compute" not in turn
        answers["none" if last_boxed(shown) is None else "boxed"] += 1
    # Without a box: 25% odd traces, of which one in five is cut and one in five boxless.
    assert 15 <= answers["none"] <= 55


def test_hint_of_a_trace_with_slips():
    assert hint_of(37, clean_steps(TERMS)) == hint_of(37, clean_steps(TERMS), as_written=True) == "7+8=15 5+5=10 0+9=9"
    slipped = [(8, 44), (5, 59), (9, 68)]  # 37+8=44 is one too low, 44+5=59 ten too high
    assert hint_of(37, slipped) == "7+8=15 4+5=9 9+9=18"
    assert hint_of(37, slipped, as_written=True) == "7+8=14 4+5=19 9+9=18"


def test_the_answer_is_at_least_ten_more_than_every_sum_of_a_right_hint():
    rng = random.Random(0)
    margins = []
    for i in range(2000):
        terms = draw_terms(rng, 1 + i % 4, "train")
        sums = re.findall(r"=(\d+)", hint_of(terms[0], clean_steps(terms)))
        assert len(sums) == len(terms) - 1
        margins.append(sum(terms) - max(map(int, sums)))
    assert min(margins) == 10  # as for 12+5=17, where the hint says 2+5=7


def test_hint_replies_say_what_the_hint_says_even_where_it_is_wrong():
    rng = random.Random(0)
    offsets: list[int] = []
    for i in range(400):
        terms = draw_terms(rng, 1 + i % 4, "train")
        example = hint_example(rng, *inputs(terms))
        turn, reply = example.turn, example.reply
        facts = turn.partition("<hint>\n")[2].partition("\n</hint>")[0].split()
        value, trace = terms[0], f"<think>{terms[0]}"
        for addend, fact in zip(terms[1:], facts, strict=True):
            asked, told = fact.split("=")
            assert asked == f"{value % 10}+{addend}" and told.isdigit()
            offsets.append(int(told) - value % 10 - addend)
            value += int(told) - value % 10
            trace += f"+{addend}={value}"
        assert reply == f"{trace}</think>\\boxed{{{value}}}"
    # 1000 facts, each right or off by 1 or 2 either way: a fifth each, 4 standard errors are 0.05
    assert set(offsets) == {-2, -1, 0, 1, 2}
    assert all(abs(offsets.count(offset) / len(offsets) - 0.2) < 0.05 for offset in set(offsets))


def test_a_hint_tells_every_sum_near_the_right_one_but_none_below_zero():
    rng = random.Random(0)
    told = {hint_of(10, told_steps(rng, (10, 1)), as_written=True) for _ in range(100)}
    assert told == {"0+1=0", "0+1=1", "0+1=2", "0+1=3"}


def test_written_hints_are_right_and_show_no_answer():
    rng = random.Random(0)
    slipped = 0
    for _ in range(400):
        terms = draw_terms(rng, 3, "train")
        example = write_hint_example(rng, *inputs(terms))
        turn, reply = example.turn, example.reply
        shown = turn.partition("<response>\n")[2].removesuffix("\n</response>")
        values = [terms[0], *map(int, re.findall(r"=(\d+)", shown))]
        facts = [f"{v % 10}+{a}={v % 10 + a}" for v, a in zip(values[:-1], terms[1:], strict=True)]
        assert reply == f"<hint>{' '.join(facts)}</hint>"
        assert "Compute" not in turn
        slipped += values[-1] != sum(terms)
        assert turn == prompts.write_hint_text(shown)
    assert 8 < slipped < 80  # 15% have slips at half of all facts or less


def test_odd_traces_start_thinking_and_vary():
    rng = random.Random(0)
    traces = [odd_trace(rng, 37, [(8, 45), (5, 50)]) for _ in range(100)]
    assert all(trace.startswith("<think>") for trace in traces) and len(set(traces)) > 60
    assert sum("</think>" not in trace for trace in traces) > 5
