from __future__ import annotations

import json
import subprocess
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

from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.loading import (
    load_model,
    load_processor,
    load_tokenizer,
    num_parameters,
    resolve_path,
    same_tokenizer,
    save_model,
    source_file,
    text_config,
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
    monkeypatch.chdir(tmp_path)
    assert resolve_path(config("model")) == "model"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no model folder /no/such/folder"),
        ("a/b/c", "no model folder a/b/c"),
        ("package:of_others", "no model folder package:of_others"),
        ("tiny:xxl", "no tiny model 'xxl'"),
    ],
)
def test_paths_that_do_not_exist_are_refused(path, message):
    with pytest.raises(UserError, match=message):
        resolve_path(config(path))


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
    with pytest.raises(UserError, match=r"has no weights: put the model's model\.safetensors there"):
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
def test_the_unpacked_smollm2_is_an_ordinary_folder(smollm2, tmp_path):
    source = config(smollm2)
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


CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
raise RuntimeError("code of the model")
"""


@pytest.fixture
def coded(folder):
    """A model of an architecture that only its own code knows."""
    described = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model", "AutoModelForImageTextToText": "Model"}
    described |= {"model_type": "own", "auto_map": {auto: f"code.{name}" for auto, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(described))
    for name in ("tokenizer_config.json", "processor_config.json"):
        own = {"tokenizer_class": "Own", "processor_class": "Own"}
        auto_map = {"AutoTokenizer": ["code.Own", None], "AutoProcessor": "code.Own"}
        (folder / name).write_text(json.dumps(own | {"auto_map": auto_map}))
    (folder / "code.py").write_text(CODE)
    return folder


@pytest.mark.parametrize("load", [lambda c: load_model(c, "cpu"), load_tokenizer, load_processor, text_config])
def test_code_of_a_model_does_not_run_and_nobody_is_asked(coded, monkeypatch, load):
    monkeypatch.setattr("builtins.input", lambda *given: pytest.fail("asked on the terminal"))
    with pytest.raises(UserError, match=r"has code of its own: .* student\.trust_remote_code=true") as error:
        load(config(coded))
    assert "\n" not in str(error.value) and num_parameters(config(coded)) == 0


def test_code_of_a_model_runs_where_the_flag_says_so(coded, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(RuntimeError, match="code of the model"):
        text_config(config(coded, trust_remote_code=True))


def test_an_attention_of_the_hub_is_code_too(folder):
    with pytest.raises(UserError, match=r"attn_implementation=a/b is code of a hub repository: use sdpa"):
        load_model(config(folder, attn_implementation="a/b"), "cpu")


@pytest.fixture
def pickled(folder):
    """The same weights as a pickle, whose reading is an error."""
    torch.save(load_model(config(folder), "cpu").state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def unread(monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *given, **options: pytest.fail("a pickle was read"))


@pytest.mark.slow
@pytest.mark.slow  # another torch; `test_doctor_agrees.py` has the refusal
def test_a_pickle_is_refused_with_a_command_that_converts_it(pickled, tmp_path, unread):
    before = load_model(config(pickled), "cpu").state_dict()
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has its weights as a pickle") as error:
        load_model(config(pickled), "cpu")
    assert "\n" not in str(error.value)
    command = (
        str(error.value).partition('python -c "')[2].partition('"')[0].replace("NEW_FOLDER", str(tmp_path / "new"))
    )
    subprocess.run([sys.executable, "-c", command], check=True, capture_output=True)
    after = load_model(config(tmp_path / "new"), "cpu").state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_pickle_beside_safetensors_is_left_alone(pickled, unread):
    assert load_model(config(pickled), "cpu").num_parameters() > 0


@pytest.mark.parametrize("named", ["index", "config", "adapter"])
def test_a_pickle_behind_another_name_is_refused(pickled, unread, named):
    if named == "index":
        (pickled / "model.safetensors").unlink()
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
        (pickled / "model.safetensors.index.json").write_text(json.dumps(index))
        message = r"has weights in pytorch_model\.bin, which is no safetensors file"
    elif named == "config":
        described = json.loads((pickled / "config.json").read_text())
        (pickled / "config.json").write_text(json.dumps(described | {"transformers_weights": "adapter_model.bin"}))
        message = r"has weights in adapter_model\.bin"
    else:
        (pickled / "adapter_config.json").write_text("{}")
        message = "has an adapter, not a complete model"
    with pytest.raises(UserError, match=message):
        load_model(config(pickled), "cpu")


def test_safetensors_that_are_none_are_one_line(folder):
    """A pickle under that name is not read as one."""
    torch.save({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="cannot load the model of"):
        load_model(config(folder), "cpu")


def test_an_architecture_that_writes_no_text_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(UserError, match="is a t5, which transformers has no model of that writes text"):
        load_model(config(folder), "cpu")
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the configuration of"):
        load_model(config(folder), "cpu")


def test_a_model_that_is_read_says_nothing(caplog):
    load_model(ModelConfig(name="xs", path="tiny:xs", dtype="float32"), "cpu")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("transformers")] == []
