from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from harness.config.schema import ModelConfig
from harness.models.chat import Chat
from harness.models.loading import load_tokenizer
from harness.types import Prompt, Question
from tests.support.folders import CHATML, MARKS, tokenizer

PARTS = CHATML.replace("{% if m.content is string %}{{ m.content }}{% else %}", "").replace(
    "{% endfor %}{% endif %}<|im_end|>", "{% endfor %}<|im_end|>"
)
CHANNELS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ROLES = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n<think>{% endif %}"
)


def chat_of(folder, template: str, special=MARKS, *, config: dict | None = None, **options) -> Chat:
    """The chat of a folder that `save_pretrained` wrote."""
    tokenizer(template, special, **options).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | (config or {})))
    model = ModelConfig(name="toy", path=str(folder))
    return Chat(load_tokenizer(model), model)


def banned(chat: Chat) -> set[str]:
    return {chat.decode_prompt([i]) for i in chat.banned_ids}


def stops(chat: Chat) -> set[str]:
    return {chat.decode_prompt([i]) for i in chat.stop_ids}


def packed(chat: Chat, text: str) -> str:
    question = Question(id="q", text=text, answer="")
    prompt = Prompt(uid="q", question=question, messages=({"role": "user", "content": text},))
    return chat.decode_prompt(chat.pack(prompt).ids)


def test_a_template_that_wants_parts_gets_parts(tmp_path):
    chat = chat_of(tmp_path, PARTS)
    assert packed(chat, "Compute 2+2.") == "<|im_start|>user\nCompute 2+2.<|im_end|>\n<|im_start|>assistant\n"
    assert stops(chat) == {"<|im_end|>"}


def test_a_template_that_drops_a_longer_text_is_refused(tmp_path):
    cut = chat_of(tmp_path, CHATML.replace("{{ m.content }}", "{{ m.content[:40] }}"))
    assert "Compute 2+2." in packed(cut, "Compute 2+2.")
    with pytest.raises(Exception, match=r"drops the question's text: repair it, or give another \(student.chat_templ"):
        packed(cut, "Compute the sum of all the numbers below one hundred.")


def test_a_mark_of_thinking_may_be_written_whether_it_is_special_or_not(tmp_path):
    chat = chat_of(tmp_path, CHATML, more=("<think>", "</think>"))
    assert banned(chat) == set(MARKS) - {"<|im_end|>"}
    assert packed(chat, "a <think> b </think>").startswith("<|im_start|>user\na <think> b </think><|im_end|>")
    assert chat.decode(chat.encode_text("<think>b</think>c")) == "<think>b</think>c"


@pytest.mark.parametrize(
    ("template", "special", "options", "never", "ends"),
    [
        (
            CHANNELS,
            ("<|pad|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>", "<|call|>"),
            {},
            {"<|pad|>", "<|start|>"},
            {"<|end|>"},
        ),
        (
            LLAMA3,
            ("<|bos|>", "<|x|>", "<|eos|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot|>", "<|python|>"),
            {"bos_token": "<|bos|>", "pad_token": "<|x|>"},
            {"<|bos|>", "<|x|>", "<|start_header_id|>"},
            {"<|eot|>", "<|eos|>"},
        ),
        (
            ROLES,
            ("<pad>", "<eop>", "<eos>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<think>"),
            {},
            {"<pad>", "[gMASK]", "<sop>", "<|assistant|>", "<|user|>", "<|system|>"},
            {"<eos>"},
        ),
    ],
)
def test_what_opens_a_turn_is_never_sampled_and_marks_of_channels_are(
    tmp_path, template, special, options, never, ends
):
    chat = chat_of(tmp_path, template, special, **options)
    assert (banned(chat), stops(chat)) == (never, ends)


def test_placeholders_that_a_configuration_names_are_never_sampled(tmp_path):
    special = ("<pad>", "<|im_start|>", "<|im_end|>", "<soft>", "<tool>")
    assert "<soft>" not in banned(chat_of(tmp_path, CHATML, special))
    assert "<soft>" in banned(chat_of(tmp_path, CHATML, special, config={"image_token_index": 3}))


def test_a_reply_ends_by_the_models_configuration_too(tmp_path):
    assert stops(chat_of(tmp_path, CHATML, config={"eos_token_id": 0})) == {"<|endoftext|>", "<|im_end|>"}
    nested = {"text_config": {"eos_token_id": [0, 1]}}
    assert stops(chat_of(tmp_path, CHATML, config=nested)) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_a_template_that_renders_no_reply_leaves_its_end_to_the_tokenizer(tmp_path):
    refuses = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    chat = chat_of(tmp_path, CHATML.replace("{% for m in messages %}", refuses))
    assert stops(chat) == {"<|im_end|>"} and "<|im_start|>" in banned(chat)


def test_a_template_that_only_the_processor_has_is_read(tmp_path):
    tokenizer(None).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    assert load_tokenizer(ModelConfig(name="toy", path=str(tmp_path))).chat_template == CHATML
