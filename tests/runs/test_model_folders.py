"""What a user's model folder holds is read right, or refused in one line before anything is sampled."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.app import main
from harness.models import loading
from tests.support.folders import CHATML, damage, edit, save, text_model, tokenizer

USER = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def train(student: Path, outputs: Path, *options: str) -> int:
    words = ["train", "method=grpo", "student=hf", f"student.path={student}", "data=arithmetic", "eval=none", "steps=1"]
    words += ["data.batch_size=2", "data.num_questions=20", "method.group_size=2", "rollout.max_response_tokens=4"]
    return main([*words, "student.dtype=float32", "num_threads=1", f"outputs={outputs}", *options])


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    made = tokenizer()
    return save(tmp_path_factory.mktemp("llama"), text_model(made=made), made)


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def refusal(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> str:
    """The one line that refuses a run of which nothing is written."""
    assert train(student, tmp_path / "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert not list((tmp_path / "out").rglob("run.json"))
    (line,) = lines
    return line


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no head", "lacks lm_head.weight:"),
        ("one missing", "lacks model.layers.1.mlp.up_proj.weight:"),
        ("prefixed", "lacks lm_head.weight and 20 more"),
        ("one more", "has weights that its architecture does not know, among them model.extra.weight:"),
        ("shape", "for model.norm.weight ((16,) and not (32,))"),
        ("nan", "no numbers (NaN or infinite) in model.layers.0.mlp.up_proj.weight"),
        ("-inf", "no numbers (NaN or infinite) in model.layers.0.mlp.up_proj.weight"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(folder, tmp_path, capsys, how, message):
    damage(folder, how)
    assert message in refusal(folder, tmp_path, capsys)


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(folder, tmp_path, capsys):
    made = tokenizer(more=("<|a|>", "<|b|>"))
    made.save_pretrained(folder)
    rows = len(made) - 2
    assert f"has embeddings of {rows} tokens and the tokenizer ids up to {rows + 1}" in refusal(
        folder, tmp_path, capsys
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }", "cannot be rendered"),
        ("{% for m in messages %}{{ raise_exception('never') }}{% endfor %}", "cannot be rendered (never)"),
        (CHATML.replace("{{ m.content }}", "").replace("{{ p.text }}", ""), "drops the question"),
        (USER, "ignores add_generation_prompt"),
    ],
)
def test_a_template_that_cannot_ask_is_refused(folder, tmp_path, capsys, template, message):
    (folder / "chat_template.jinja").write_text(template)
    line = refusal(folder, tmp_path, capsys)
    assert message in line and "student.chat_template=FILE" in line


def test_several_templates_without_a_default_are_refused(folder, tmp_path, capsys):
    (folder / "chat_template.jinja").unlink()
    named = [{"name": name, "template": CHATML} for name in ("rag", "tool_use")]
    edit(folder / "tokenizer_config.json", chat_template=named)
    assert "multiple chat templates" in refusal(folder, tmp_path, capsys)


def test_an_architecture_without_sdpa_and_without_a_window_is_trained(tmp_path, caplog):
    made = tokenizer()
    shape = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2}
    student = save(tmp_path / "mamba2", text_model("mamba2", made, **shape), made)
    assert train(student, tmp_path / "out") == 0
    assert "has no sdpa attention, so eager attention is used" in caplog.text


def test_an_architecture_whose_memory_is_not_known_is_trained(tmp_path, caplog):
    made = tokenizer()
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    linear = {f"linear_{name}_head_dim": 16 for name in ("key", "value")} | {"linear_num_key_heads": 1}
    options = {"head_dim": 16, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 2} | moe | linear
    student = save(tmp_path / "qwen3_next", text_model("qwen3_next", made, num_hidden_layers=4, **options), made)
    with caplog.at_level("INFO", logger="harness"):
        assert train(student, tmp_path / "out") == 0
    assert "qwen3_next has layers whose memory is not estimated" in caplog.text


def test_a_type_that_is_slow_here_is_said_with_its_option(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loading, "SLOW", 0.0)  # fp32 itself takes as long as fp32
    assert train(folder, tmp_path / "out") == 0
    assert "as long as float32 on this CPU: set student.dtype=float32" in caplog.text
