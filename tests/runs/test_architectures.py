"""Text architectures at random weights: how each is read, and that what is sampled and trained is transformers' own.

`python -P tests/runs/test_architectures.py` prints the table of all architectures.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.app import main
from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.models.batching import one_pass, pad
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_tokenizer
from harness.models.probe import open_model
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.teacher.base import hidden_of
from harness.types import Question, TrainingSample
from methods.base import plain_prompt, rollout_sample
from tests.support.families import TEXT, VISION, text_family, vision_family
from tests.support.folders import save, tokenizer

OWN = {"hyperclovax", "llama4_text", "modernbert-decoder", "recurrent_gemma", "xlstm"}
"""Those of which only the own forward pass gives the logits."""
UNCACHED = {"mamba", "falcon_mamba", "minimax", "rwkv"}
"""Those whose state cannot be kept for a padded batch."""
SAMPLE = ("gpt2", "cohere2", "rwkv")
SLOW = [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in TEXT]
QUESTIONS = [
    Question(id=str(i), text=text, answer="") for i, text in enumerate(("Compute 17+25.", "Add 1 and 2, now."))
]


def opened(name: str, folder: Path) -> tuple[LanguageModel, Chat]:
    save(folder, text_family(name), tokenizer())
    config = ModelConfig(name=name, path=str(folder), dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    return open_model(config, "cpu", chat), chat


@pytest.fixture(scope="module", params=SLOW)
def architecture(request, tmp_path_factory) -> tuple[str, Path, LanguageModel, Chat]:
    folder = tmp_path_factory.mktemp("models") / request.param
    return (request.param, folder, *opened(request.param, folder))


def own_logprobs(model: LanguageModel, sample: TrainingSample) -> torch.Tensor:
    """Of every trained token, by the plain call of transformers; ids that are never sampled are left out."""
    ids = torch.tensor([sample.token_ids])
    logits = (
        model.module(ids, use_cache=False)
        .logits[0, :, : model.num_tokens]
        .index_fill(1, torch.tensor(model.banned_ids), -1e9)
    )
    places = [i for i, mask in enumerate(sample.loss_mask) if mask]
    return logits.log_softmax(-1)[[i - 1 for i in places], ids[0, places]]


def test_the_way_of_each_architecture(architecture):
    name, _, model, _ = architecture
    expected = ("own", False) if name in OWN else ("plain", False) if name in UNCACHED else ("fast", True)
    assert (model.path, model.caches) == expected


def test_engine_and_trainer_are_transformers_own_forward(architecture):
    _, _, model, chat = architecture
    engine = TransformersEngine(model, chat, "student", 8)
    groups = engine.generate([plain_prompt(q) for q in QUESTIONS], Sampling(num_rollouts=2, max_new_tokens=5, seed=1))
    samples = [rollout_sample(group.uid, r, advantage=1.0) for group in groups for r in group.rollouts]
    batch = pad(one_pass(samples), model.device)
    parameters = dict(model.module.named_parameters())
    logits = model.logits(hidden_of(model, batch)).log_softmax(-1)
    trained = logits.gather(1, batch.tokens.ids_N.unsqueeze(1)).squeeze(1)
    own = torch.cat([own_logprobs(model, sample) for sample in samples])
    sampled = torch.tensor([p for s in samples for p, m in zip(s.rollout_logprobs, s.loss_mask, strict=True) if m])
    assert (trained - own).abs().max() < 1e-4
    assert (sampled - own).abs().max() < 5e-4  # states that are carried on are rounded otherwise
    ours, exact = (
        torch.autograd.grad(value.mean(), list(parameters.values()), allow_unused=True) for value in (trained, own)
    )
    for weight, a, b in zip(parameters, ours, exact, strict=True):
        assert (a is None) == (b is None), weight
        assert a is None or (a - b).abs().max() <= 5e-5 * max(1.0, float(b.abs().max())), weight


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", "on_policy_kd"])
def test_two_steps_are_trained_and_the_model_loads_in_transformers(architecture, tmp_path, method):
    _, folder, _, _ = architecture
    words = ["train", f"method={method}", "student=hf", f"student.path={folder}", "student.dtype=float32"]
    words += ["teacher=hf", f"teacher.path={folder}", "teacher.dtype=float32"] if method == "on_policy_kd" else []
    words += ["data=arithmetic", "data.batch_size=2", "data.num_questions=20", "steps=2", "eval=none"]
    words += ["rollout.max_response_tokens=8", "num_threads=1", f"outputs={tmp_path / 'out'}"]
    assert main([*words, *(["method.group_size=2"] if method == "grpo" else [])]) == 0
    (saved,) = (tmp_path / "out").rglob("model")
    _, found = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not any(found.values())


def test_at_most_eight_architectures_take_the_own_forward_pass():
    assert len(TEXT) >= 60 and len(OWN) <= 8 and TEXT.keys() >= OWN | UNCACHED


def print_table() -> None:
    """How every architecture is read, and how often each way is taken."""
    import tempfile

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        for name in (*TEXT, *VISION):
            folder = Path(place) / name
            try:
                if name in VISION:
                    config = ModelConfig(name=name, path=str(vision_family(name, folder)), dtype="float32")
                    chat = Chat(load_tokenizer(config), config)
                    model = open_model(config, "cpu", chat)
                else:
                    model, _ = opened(name, folder)
                way, cached = model.path, "cached" if model.caches else "not cached"
            except UserError as error:
                way, cached = "refused", str(error)
            counts[way] += 1
            print(f"| {name} | {way} | {cached} |", flush=True)
    print(dict(counts))


if __name__ == "__main__":
    print_table()
