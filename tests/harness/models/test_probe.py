"""How a model is read is settled by its numbers: small random models of many architectures."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UserError
from harness.models.forward import LanguageModel
from harness.models.probe import in_fp32, settle
from tests.support.folders import text_model, tokenizer

TOKENIZER = tokenizer()


def settled(kind: str, **options) -> LanguageModel:
    model = LanguageModel(text_model(kind, TOKENIZER, **options).eval())
    settle(model)
    return model


def ways(model: LanguageModel) -> tuple[str, bool, bool]:
    return model.path, model.caches, model.can_share_prompts


def gap(model: LanguageModel) -> float:
    """Largest difference of a log-probability from the module's own forward pass, for two padded sequences."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.num_tokens, (2, 20), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with torch.no_grad():
        hidden = model.hidden(ids, mask)
        ours = [model.logits(hidden[row, :end]).log_softmax(-1) for row, end in enumerate((20, 15))]
        own = [model.module(ids[row : row + 1, :end]).logits[0].log_softmax(-1) for row, end in enumerate((20, 15))]
    return max(float((a - b).abs().max()) for a, b in zip(ours, own, strict=True))


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("llama", {}, ("fast", True, True)),
        ("gemma2", {"head_dim": 16, "sliding_window": 8, "final_logit_softcapping": 3.0}, ("fast", True, False)),
        ("granite", {"logits_scaling": 8.0}, ("fast", True, True)),
        ("mamba2", {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}, ("fast", True, False)),
        ("hyperclovax", {"logits_scaling": 0.25}, ("own", False, False)),  # it multiplies where Granite divides
        ("recurrent_gemma", {"num_hidden_layers": 3, "logits_soft_cap": 3.0, "lru_width": 32}, ("own", False, False)),
        ("rwkv", {}, ("plain", False, False)),  # its state is no cache
    ],
)
def test_a_model_is_read_the_best_way_that_is_right(kind, options, expected):
    model = settled(kind, **options)
    assert ways(model) == expected
    assert gap(model) < 1e-4


@pytest.mark.parametrize("broken", ["head", "cache", "sharing", "everything"])
def test_what_is_wrong_is_not_used(broken, monkeypatch):
    """Parts of our way of reading are damaged, as an architecture that differs would have them."""
    model = LanguageModel(text_model("llama", TOKENIZER).eval())
    if broken in ("head", "everything"):
        model._scale = 1.01
    if broken == "cache":
        monkeypatch.setattr(model, "_cached", lambda cache: {"use_cache": False})
    if broken == "sharing":
        shared = model.hidden_after_prompt
        monkeypatch.setattr(model, "hidden_after_prompt", lambda *args: shared(*args) * 1.01)
    if broken == "everything":
        monkeypatch.setattr(model.module, "forward", lambda **_: 1 / 0)
        with pytest.raises(UserError, match="LlamaForCausalLM cannot be used: its own forward pass fails on text"):
            settle(model)
        return
    settle(model)
    expected = {"head": ("own", False), "cache": ("plain", False), "sharing": ("plain", True)}
    assert (model.path, model.caches) == expected[broken]


def test_in_16_bit_the_models_own_rounding_is_the_bound():
    model = LanguageModel(text_model("llama", TOKENIZER).eval().bfloat16())
    settle(model)
    assert ways(model) == ("fast", True, True)
    model._scale = 1.2
    settle(model)
    assert model.path == "own"


def test_a_student_that_computes_in_16_bit_is_compared_with_its_fp32_weights():
    model = LanguageModel(text_model("llama", TOKENIZER).eval(), compute_dtype=torch.bfloat16)
    settle(model)
    assert ways(model) == ("fast", True, True)


def test_a_model_in_16_bit_computes_in_fp32_for_a_while():
    """The weights are rounded, the arithmetic is not: the same as a copy in fp32 of the rounded weights."""
    narrow = text_model("llama", TOKENIZER, tie_word_embeddings=True).eval()
    for parameter in narrow.parameters():  # as it is loaded: frequencies of positions stay in fp32
        parameter.data = parameter.data.bfloat16()
    wide = text_model("llama", TOKENIZER, tie_word_embeddings=True).eval()
    wide.load_state_dict({name: tensor.float() for name, tensor in narrow.state_dict().items()})
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad(), in_fp32(LanguageModel(narrow)):
        ours = narrow(ids).logits
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, wide(ids).logits, atol=1e-4, rtol=0)
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}


def test_its_own_forward_pass_has_the_gradient_of_its_logits():
    """The gradient that the update forms through `logits` and `backward_logits` is autograd's of the module."""
    model = settled("hyperclovax", logits_scaling=0.25)
    model.banned_ids, model._banned = [5], torch.tensor([5])
    ids, mask = torch.arange(12).reshape(2, 6), torch.ones(2, 6, dtype=torch.long)
    weights = torch.randn(12, model.num_tokens, generator=torch.Generator().manual_seed(0))
    weights[:, 5] = 0.0

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}
        model.module.zero_grad()
        return found

    hidden = model.hidden(ids, mask).flatten(0, 1)
    logits = model.logits(hidden.detach())
    assert (logits[:, 5] == -1e9).all()
    hidden.backward(model.backward_logits(hidden.detach(), logits, weights.clone()))
    ours = gradients()
    (model.module(ids).logits.flatten(0, 1)[:, : model.num_tokens] * weights).sum().backward()
    exact = gradients()
    assert ours.keys() == exact.keys() and len(exact) > 10
    for name, gradient in exact.items():
        torch.testing.assert_close(ours[name], gradient, atol=5e-5, rtol=1e-4)
