from __future__ import annotations

import json
from typing import Any

import pytest
import reasoning_gym
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.data import DataConfig
from harness.data.reasoning import first_seed, held_out_questions, load
from harness.errors import UserError


def config(dataset: str, **options: Any) -> DataConfig:
    return DataConfig(source="reasoning_gym", dataset=dataset, **{"num_questions": 8, **options})


@pytest.mark.parametrize(
    "dataset", ["chain_sum", "basic_arithmetic", "leg_counting", "spell_backward", "gsm_symbolic", "countdown"]
)
def test_gold_answers_score_one_after_json(dataset: str) -> None:
    rows = load(config(dataset))
    assert len(rows.questions) == 8
    for question in rows.questions:
        metadata = json.loads(json.dumps(question.metadata))
        assert metadata == question.metadata
        scorer = reasoning_gym.create_dataset(metadata["dataset"], **metadata["config"])
        assert scorer.score_answer(question.answer, metadata["entry"]) == 1.0
        assert scorer.score_answer("no such answer", metadata["entry"]) < 1.0


def test_question_carries_what_scoring_needs() -> None:
    options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    question = load(config("chain_sum", dataset_config=options, seed=5)).questions[3]
    assert (question.id, question.answer_type, question.source) == (
        "chain_sum/train/5/3",
        "reasoning_gym",
        "reasoning_gym/chain_sum",
    )
    assert question.metadata["dataset"] == "chain_sum"
    assert question.metadata["config"] == options
    entry = question.metadata["entry"]
    assert (entry["question"].strip(), entry["answer"]) == (question.text, question.answer)
    expression = " ".join(entry["metadata"]["expression"].split())
    left, operator, right = expression.split(" ")
    assert question.answer == str(int(left) + int(right) if operator == "+" else int(left) - int(right))


def test_same_seed_same_questions_neighbouring_seeds_differ() -> None:
    def texts(seed: int) -> list[str]:
        return [q.text for q in load(config("leg_counting", seed=seed)).questions]

    assert texts(0) == texts(0)
    # reasoning-gym's own seeds 0 and 1 share all but one entry
    assert not set(texts(0)) & set(texts(1))
    assert len(texts(-1)) == 8


def test_a_data_set_that_wants_32_bit_seeds_works_for_both_splits() -> None:
    options = config("pool_matrix", num_questions=2, seed=2**40)
    assert len(load(options).questions) == 2
    assert len(load(options, split="held_out").questions) == 2


@given(st.integers(-3, 2**70), st.integers(-3, 2**70))
@settings(max_examples=60, deadline=None)
def test_seeds_of_the_splits_never_meet(seed: int, other: int) -> None:
    num_entries = 10**9
    assert first_seed(seed, "train") >= 0
    assert first_seed(seed, "train") + num_entries < 2**31 <= first_seed(other, "held_out")
    assert first_seed(other, "held_out") + num_entries < 2**32


SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
"""One-digit sums of two terms: a few hundred questions, so that splits would collide."""


def test_held_out_questions_never_occur_in_training() -> None:
    options = config("chain_sum", num_questions=100, dataset_config=SMALL)
    training = load(options).questions
    seen = {q.text for q in training}
    held_out = held_out_questions(options, training=training, num_questions=30)
    assert len({q.text for q in held_out}) == 30
    assert not seen & {q.text for q in held_out}
    assert held_out == held_out_questions(options, training=training, num_questions=30)
    # without the comparison the held-out seeds do repeat training questions
    assert seen & {q.text for q in held_out_questions(options, training=[], num_questions=30)}


def test_held_out_split_of_load_is_guarded() -> None:
    options = config("chain_sum", num_questions=60, dataset_config=SMALL)
    rows = load(options, split="held_out")
    assert rows.numbers == list(range(1, 61))
    assert all(q.id.startswith("chain_sum/held_out/0/") for q in rows.questions)
    assert not {q.text for q in load(options).questions} & {q.text for q in rows.questions}


def test_too_few_held_out_questions_are_refused() -> None:
    options = config("chain_sum", num_questions=100, dataset_config=SMALL)
    with pytest.raises(UserError, match=r"questions outside the training data, 400 asked for"):
        held_out_questions(options, training=load(options).questions, num_questions=400)


def test_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"data.dataset=chain_sums .*Did you mean 'chain_sum'"):
        load(config("chain_sums"))


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match=r"dataset_config.min_term is no option of chain_sum. Known: .*min_terms"):
        load(config("chain_sum", dataset_config={"min_term": 2}))
    with pytest.raises(UserError, match=r"dataset_config.seed is not for use here: set data.seed"):
        load(config("chain_sum", dataset_config={"seed": 2}))
    with pytest.raises(UserError, match=r"cannot make chain_sum with these data.dataset_config: max_terms must be"):
        load(config("chain_sum", dataset_config={"min_terms": 5, "max_terms": 2}))
    with pytest.raises(UserError, match=r"cannot make chain_sum"):
        load(config("chain_sum", dataset_config={"min_terms": "two"}))


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ("propositional_logic", "no gold answer"),
        ("rearc", "the gold answer scores 0.05 instead of 1 once the entry is stored as JSON"),
    ],
)
def test_entries_without_a_usable_gold_answer_are_bad_rows(dataset: str, reason: str) -> None:
    rows = load(config(dataset, num_questions=2))
    assert rows.questions == []
    assert rows.messages() == [f"reasoning_gym/{dataset}:{i}: {reason}" for i in (1, 2)]


def test_hash_ordered_data_sets_need_a_fixed_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(UserError, match="PYTHONHASHSEED=0"):
        load(config("word_ladder", num_questions=1))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load(config("word_ladder", num_questions=1)).questions) == 1
