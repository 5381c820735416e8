import json
import random
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen3_5ForConditionalGeneration

from harness.builders.tiny import build, card
from harness.builders.tiny.build import Batch, make_model, reply_loss, schedule, train
from harness.builders.tiny.card import (
    CANDIDATE_TASKS,
    CARD,
    NOTHING,
    Member,
    between,
    compress,
    good_hint,
    groups,
    held_out,
    plain_accuracy,
    write_hints,
)
from harness.builders.tiny.corpus import Example, hint_of, told_steps
from harness.builders.tiny.tokenizer import make_tokenizer
from harness.data.arithmetic import clean_steps, clean_trace, draw_terms, question
from harness.data.synthetic import TASKS
from harness.errors import UserError
from harness.models.forward import LanguageModel
from harness.models.tiny import SIZES, STUDENTS, tiny_path
from harness.models.tiny.shapes import HEAD_DIM, SHAPES, make_config
from harness.rewards.boxed import last_boxed
from methods.base import plain_prompt
from methods.prompts import hint_text, plain_text

TOKENIZER = make_tokenizer()
RECORD = json.loads(CARD.read_text())
NUM_CARD = RECORD["num_questions"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def teacher():
    return Member.load(tiny_path("teacher"))


def within(measured, recorded, num_measured, num_recorded=NUM_CARD):
    """Four standard errors of the difference of two shares; pooled, and at least those of a share of 0.02."""
    share = (measured * num_measured + recorded * num_recorded) / (num_measured + num_recorded)
    spread = max(share * (1 - share), 0.02)
    return abs(measured - recorded) <= 4 * sqrt(spread * (1 / num_measured + 1 / num_recorded))


def test_unknown_size_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"no tiny model 'teachr'\. Did you mean 'teacher'"):
        tiny_path("teachr")
    with pytest.raises(UserError, match="Known: hybrid, m, s, teacher, xs"):
        tiny_path("27b")


def test_finding_a_model_imports_no_torch():
    script = "import sys; from harness.models.tiny import tiny_path; tiny_path('s'); print('torch' in sys.modules)"
    root = Path(__file__).parents[4]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True).stdout == b"False\n"


@pytest.mark.parametrize("size", SIZES)
def test_shapes_are_what_vllm_takes(size):
    text = make_config(size, TOKENIZER).text_config
    rope = text.rope_parameters
    assert text.head_dim == HEAD_DIM == 32 and rope["partial_rotary_factor"] == 1.0
    assert sum(rope["mrope_section"]) == text.head_dim // 2
    assert text.num_attention_heads % text.num_key_value_heads == 0
    assert "full_attention" in text.layer_types  # generate() needs one for the length of its cache
    assert ("linear_attention" in text.layer_types) == (size == "hybrid")
    assert text.linear_key_head_dim == text.linear_value_head_dim == 64
    assert text.vocab_size == len(TOKENIZER)


@pytest.mark.parametrize("size", SIZES)
def test_shipped_folder_is_complete_and_current(size):
    folder = tiny_path(size)
    model, info = Qwen3_5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings
    expected = make_config(size, TOKENIZER)
    assert model.config.text_config.layer_types == list(SHAPES[size].layer_types)
    for part in ("text_config", "vision_config"):
        shape = getattr(expected, part).to_diff_dict()
        saved = getattr(model.config, part).to_dict()
        assert {key: saved[key] for key in shape if key != "dtype"} == {k: v for k, v in shape.items() if k != "dtype"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab() and tokenizer.chat_template == TOKENIZER.chat_template
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.pad_token_id == tokenizer.convert_tokens_to_ids("<pad>")


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for size in SIZES for path in tiny_path(size).iterdir()) < 10_000_000


@pytest.mark.parametrize("size", ["s", "hybrid"])
def test_a_16_pixel_image_is_one_token_and_the_model_reads_it(size):
    processor = AutoProcessor.from_pretrained(tiny_path(size))
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    model = Qwen3_5ForConditionalGeneration.from_pretrained(tiny_path(size), dtype=torch.float32).eval()
    logits = []
    for colour in ("black", "white"):
        batch = processor(text=[text], images=[Image.new("RGB", (32, 16), colour)], return_tensors="pt")
        assert batch.image_grid_thw.tolist() == [[1, 2, 4]]  # patches of 8 pixels
        assert (batch.input_ids == processor.image_token_id).sum() == 2  # 2x2 patches merge
        with torch.no_grad():
            logits.append(model(**batch).logits)
    assert not torch.equal(*logits)


def test_schedule():
    assert schedule(0, 1000) == 1 / 40 and schedule(19, 1000) == 0.5
    assert schedule(500, 1000) == 0.5**0.8
    assert schedule(999, 1000) == 0.03


def test_loss_is_the_mean_over_reply_tokens_and_padding_changes_nothing():
    model = make_model("xs", TOKENIZER, seed=0)
    ids, reply = torch.tensor([[9, 20, 30, 40]]), torch.tensor([[False, False, True, True]])
    logprobs = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    expected = -(logprobs[1, 30] + logprobs[2, 40]) / 2
    mask = torch.ones_like(ids)
    widened = [torch.nn.functional.pad(tensor, (0, 2)) for tensor in (ids, mask, reply)]
    for batch in (Batch(ids, mask, reply, [None]), Batch(*widened, [None])):
        assert torch.allclose(reply_loss(LanguageModel(model), batch).double(), expected, atol=1e-5)


def test_batches_keep_the_token_budget_and_mask_the_prompt():
    stream = build.batches("s", build.make_chat(), 0)
    pad_id, shown = TOKENIZER.convert_tokens_to_ids("<pad>"), 0
    for _, batch in zip(range(30), stream, strict=False):
        assert batch.ids_BT.numel() <= build.BATCH_TOKENS
        rows = zip(batch.ids_BT.tolist(), batch.mask_BT.tolist(), batch.is_reply_BT.tolist(), batch.media, strict=True)
        for ids, mask, is_reply, media in rows:
            assert {i for i, real in zip(ids, mask, strict=True) if not real} <= {pad_id}
            prompt = TOKENIZER.decode([i for i, m, learned in zip(ids, mask, is_reply, strict=True) if m > learned])
            reply = TOKENIZER.decode([i for i, learned in zip(ids, is_reply, strict=True) if learned])
            assert prompt.endswith("<|im_start|>assistant\n")
            assert reply.startswith("<think>") and reply.endswith("<|im_end|>")
            assert ("<|vision_start|>" in prompt) == (media is not None)
            shown += media is not None
    assert shown > 50


def test_text_by_itself_is_packed_as_a_run_packs_it():
    chat = build.make_chat()
    asked = question((37, 8))
    row = build._row(chat, Example(plain_text(asked), "5", asked))
    assert row.ids[: row.num_prompt] == chat.pack(plain_prompt(asked)).ids


@pytest.mark.slow  # the build below trains in a process whose generators are in another state
def test_the_same_seed_gives_the_same_weights():
    runs = []
    for ambient, seed in ((10, 0), (11, 0), (10, 1)):
        torch.manual_seed(ambient)  # the caller's generator has no say
        runs.append(train("xs", steps=1, seed=seed)[0].state_dict())
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])
    assert not all(torch.equal(runs[0][key], runs[2][key]) for key in runs[0])


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_build_writes_a_folder_that_loads_and_equals_the_training_here(tmp_path):
    build.build(["xs"], tmp_path, steps=2, progress=False)
    built = Member.load(tmp_path / "xs")
    assert len(built.reply([(NOTHING, "Q"), (NOTHING, "R")], temperature=1.0)) == 2
    assert json.loads((tmp_path / "xs" / "build.json").read_text())["steps"] == 2
    here = train("xs", steps=2)[0].bfloat16().state_dict()
    assert all(torch.equal(tensor, here[key].float()) for key, tensor in built.model.state_dict().items())
    with pytest.raises(UserError, match="no tiny model 'xl'"):
        build.build(["xl"], tmp_path)


def test_card_has_every_size_and_states_its_cost():
    assert set(RECORD["models"]) == set(SIZES)
    for size, record in RECORD["models"].items():
        saved = json.loads((tiny_path(size) / "build.json").read_text())
        assert {key: record[key] for key in saved} == saved
        assert record["cpu_seconds"] > 0 and record["steps"] == build.STEPS[size]


@pytest.mark.parametrize("task", TASKS)
def test_card_shows_students_that_can_learn_and_a_teacher_that_can_teach(task):
    for size in STUDENTS:
        sampled = RECORD["models"][size]["sampled"][task]
        assert sampled["1"] >= 0.2 and sampled["3"] <= 0.5
    for name in ("greedy", "sampled"):
        assert min(RECORD["models"]["teacher"][name][task][level] for level in "123") >= 0.85


def test_card_shows_students_graded_by_size():
    means = [
        sum(value for levels in RECORD["models"][size]["sampled"].values() for value in levels.values())
        for size in STUDENTS
    ]
    assert means == sorted(means)


@pytest.mark.parametrize("size", STUDENTS)
@pytest.mark.parametrize("task", CANDIDATE_TASKS)
@pytest.mark.parametrize("level", ["1", "2", "3", "4"])
def test_card_shows_candidates_and_hints_that_help_and_a_teacher_that_writes_them(size, task, level):
    record = RECORD["models"][size]["candidates"][task][level]
    assert record["bcq"] > 2 * record["plain"]
    assert record["bcq"] > record["bcq_both_wrong"] + 0.1
    assert record["hint"] > record["plain"]
    assert record["same_right"] >= 0.95 and record["same_wrong"] >= 0.95
    assert record["good_hints"] >= 0.9


def test_a_usable_hint_has_no_box_and_not_the_answer():
    assert between("hint", "x<hint>\n7+8=15\n</hint>y") == "7+8=15" and between("hint", "<hint>7+8=15") is None
    assert good_hint("7+8=15", "5")
    assert not good_hint("", "45")
    assert not good_hint("7+8=15", "15")
    assert not good_hint(r"7+8=\boxed{15}", "45")


@pytest.mark.parametrize(
    ("size", "task", "level"),
    [
        ("xs", "arithmetic", 1),
        pytest.param("s", "bar_chart", 2, marks=pytest.mark.slow),
        pytest.param("m", "bar_clip", 3, marks=pytest.mark.slow),
        ("teacher", "bar_cards", 4),
    ],
)
def test_shipped_weights_have_the_accuracy_of_the_card(size, task, level):
    member = Member.load(tiny_path(size))
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        recorded = RECORD["models"][size][name][task][str(level)]
        assert within(plain_accuracy(member, task, level, 40, temperature=temperature, seed=1), recorded, 40)


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=pytest.mark.slow if t.startswith("bar") else []) for t in CANDIDATE_TASKS]
)
def test_shipped_student_has_the_candidate_accuracy_of_the_card(teacher, task):
    measured = card.candidate_accuracy(Member.load(tiny_path("s")), teacher, task, 2, 60, seed=1)
    recorded = RECORD["models"]["s"]["candidates"][task]["2"]
    for name in ("bcq", "ncq", "hint", "plain"):
        assert within(measured[name], recorded[name], measured["num_hard"], recorded["num_hard"])
    assert measured["bcq"] > measured["plain"] and measured["hint"] > measured["plain"]


def test_the_teacher_copies_right_and_wrong_traces(teacher):
    questions = held_out("arithmetic", 3, 24)
    traces = [trace for group in groups(Member.load(tiny_path("s")), questions, 2, seed=0) for trace in group]
    traces.append("<think>37+8=45+5=50</think>")
    summaries = compress(teacher, traces)
    same = [s is not None and last_boxed(s) == last_boxed(t) for s, t in zip(summaries, traces, strict=True)]
    assert within(sum(same) / len(same), 0.97, len(same), 1000)
    assert summaries[-1] is not None and last_boxed(summaries[-1]) is None


def test_the_teacher_hints_at_the_sums_of_a_right_trace(teacher):
    terms = [draw_terms(random.Random(seed), 1 + seed % 4, "held_out") for seed in range(40)]
    hints = write_hints(teacher, [clean_trace(chain) for chain in terms])
    exact = [hint == hint_of(chain[0], clean_steps(chain)) for hint, chain in zip(hints, terms, strict=True)]
    assert within(sum(exact) / len(exact), 0.97, len(exact), 1000)


@pytest.mark.parametrize("size", [STUDENTS[0], *(pytest.param(s, marks=pytest.mark.slow) for s in STUDENTS[1:])])
def test_students_read_hints_also_wrong_ones(size):
    """The form of a hint prompt is no switch to right answers."""
    rng = random.Random(0)
    turns, right, told = [], [], []
    while len(turns) < 100:
        terms = draw_terms(rng, 2, "held_out")
        steps = told_steps(rng, terms)
        if steps[-1][1] != sum(terms):
            asked = question(terms)
            turns.append((asked, hint_text(asked, hint_of(terms[0], steps, as_written=True))))
            right.append(str(sum(terms)))
            told.append(str(steps[-1][1]))
    answers = [last_boxed(reply) for reply in Member.load(tiny_path(size)).reply(turns, temperature=1.0)]
    follows = sum(answer == value for answer, value in zip(answers, told, strict=True))
    assert follows > 2 * sum(answer == value for answer, value in zip(answers, right, strict=True))
