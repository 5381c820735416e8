import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, AutoTokenizer

from harness.builders.tiny.corpus import hint_of, summary_of
from harness.builders.tiny.tokenizer import SPECIAL, TAGS, chat_frame, make_processor, make_tokenizer, sentences
from harness.data.arithmetic import clean_steps, clean_trace, question
from methods import prompts

TOKENIZER = make_tokenizer()


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def tokens(text):
    return TOKENIZER.convert_ids_to_tokens(encode(text))


def chat_ids(text, **options):
    turns = [{"role": "user", "content": text}]
    return TOKENIZER.apply_chat_template(turns, add_generation_prompt=True, return_dict=False, **options)


@given(st.text(alphabet=[chr(i) for i in range(32, 127)] + ["\n"]))
@example("".join(chr(i) for i in range(32, 127)))
@example(prompts.BCQ + prompts.CLOSING + r"<think></think>\boxed{1} <|im_end|> <|im_e <think")
@settings(max_examples=50, deadline=None)
def test_ascii_round_trips(text):
    assert TOKENIZER.decode(encode(text)) == text


@given(st.text(max_size=30))
@example("\u00e9\u4f60\U0001f600\x00\t\r")
@settings(max_examples=25, deadline=None)
def test_any_script_round_trips(text):
    assert TOKENIZER.decode(encode(text)) == text


def test_trace_tokens():
    assert tokens(clean_trace((37, 8, 5))) == [
        "<think>", "3", "7", "+", "8", "=", "4", "5", "+", "5", "=", "5", "0", "</think>", "\\boxed{", "5", "0", "}",
    ]  # fmt: skip


def test_prompt_tokens():
    assert TOKENIZER.convert_ids_to_tokens(chat_ids(prompts.plain_text(question((37, 8))))) == [
        "<|im_start|>", "user\n", "Compute ", "3", "7", "+", "8", ".", "\n\n", prompts.CLOSING, "<|im_end|>", "\u010a",
        "<|im_start|>", "assistant\n",
    ]  # fmt: skip


def test_prompts_are_short():
    """Longer ones mean that the wording of `methods.prompts` changed: the family has to be built anew."""
    terms = (99, 9, 9, 9, 9)
    longest, trace = question(terms), summary_of(clean_trace(terms))
    assert len(chat_ids(prompts.plain_text(longest))) == 20
    assert len(chat_ids(prompts.bcq_text(longest, [trace, trace]))) < 110
    assert len(chat_ids(prompts.ncq_text(longest, ["135"] * 8, [trace] * 8))) < 400
    assert len(chat_ids(prompts.compress_text(clean_trace((37, 8)), max_lines=5))) < 40
    assert len(chat_ids(prompts.hint_text(longest, hint_of(99, clean_steps(terms))))) < 60
    assert len(chat_ids(prompts.write_hint_text(clean_trace((37, 8))))) < 36


def test_sentences_are_the_fixed_parts_of_the_forms():
    assert {prompts.CLOSING, prompts.BCQ, prompts.HINT} <= set(sentences())
    assert "These answers are all wrong: " in sentences()
    assert all(len(encode(sentence)) == 1 for sentence in sentences())


def test_decoding_drops_special_tokens_and_keeps_tags():
    text = "".join(SPECIAL) + "".join(TAGS) + "5"
    assert TOKENIZER.decode(encode(text), skip_special_tokens=True) == "".join(TAGS) + "5"
    assert len(encode(text)) == len(SPECIAL) + len(TAGS) + 1
    assert set(TOKENIZER.all_special_tokens) == set(SPECIAL)
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<pad>")


def test_template_of_several_turns():
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    assert TOKENIZER.apply_chat_template(turns, tokenize=False) == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>Q"
        "<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
    )


def test_template_ignores_enable_thinking():
    """The reply itself starts with <think>, with and without thinking."""
    on, off = (chat_ids("Q", enable_thinking=value) for value in (True, False))
    assert on == off == chat_ids("Q")


def test_template_refuses_what_it_cannot_render():
    with pytest.raises(Exception, match="roles must be"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
    with pytest.raises(Exception, match="content items must be"):
        TOKENIZER.apply_chat_template([{"role": "user", "content": [{"type": "audio"}]}], tokenize=False)


@given(st.text(max_size=20))
@settings(max_examples=10, deadline=None)
def test_chat_frame_is_the_template(text):
    before, after = chat_frame(TOKENIZER)
    assert encode(before + text + after) == chat_ids(text)


def test_saved_folder_loads_as_tokenizer_and_processor(tmp_path):
    make_processor(TOKENIZER).save_pretrained(tmp_path)
    tokenizer, processor = AutoTokenizer.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    text = prompts.plain_text(question((37, 8))) + "\u00e9<think>"
    assert tokenizer.encode(text) == processor.tokenizer.encode(text) == encode(text)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.chat_template == processor.chat_template == TOKENIZER.chat_template
