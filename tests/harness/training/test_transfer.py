"""The hand-over of weights: an engine on a copy of the student stands for one with weights of its own."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from harness.config.schema import UpdateConfig
from harness.errors import UserError
from harness.models.forward import LanguageModel
from harness.rollout.transformers_engine import TransformersEngine
from harness.testing.lab import lab
from harness.training.transfer import Transfer
from harness.training.update import Updater
from methods.grpo import GRPO


class OwnWeights(TransformersEngine):
    """With a copy of the weights; `lost` names tensors that it silently leaves as they were."""

    def __init__(self, model, chat, lost=()):
        super().__init__(model, chat, "student", 64)
        self.has_own_weights = True
        self.lost = lost
        self.gate: threading.Event | None = None

    def load_weights(self, named_tensors):
        if self.gate is not None:
            self.gate.wait()
        super().load_weights((name, tensor) for name, tensor in named_tensors if name not in self.lost)


@pytest.fixture
def student() -> LanguageModel:
    return lab().fresh_student()


def make(student, engine=None, *, temperature=0.8, timeout=60.0):
    engine = engine or OwnWeights(lab().fresh_student(), lab().chat)
    updater = Updater(
        student=student, teacher=None, method=GRPO(GRPO.Config()), config=UpdateConfig(), temperature=temperature
    )
    transfer = Transfer(
        engine, student, logprobs=updater.logprobs, dtype="float32", temperature=temperature, timeout=timeout
    )
    return engine, transfer


def move(student, scale=0.05):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def test_the_engine_has_the_new_weights_and_the_probe_agrees(student):
    engine, transfer = make(student)
    before = copy.deepcopy(student.module.state_dict())
    move(student)
    row = transfer(1)
    own = engine._model.module.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in student.module.state_dict().items())
    assert not torch.equal(own["lm_head.weight"], before["lm_head.weight"])
    assert set(row) == {"transfer/probe_gap", "transfer/probe_gap_max"}
    assert row["transfer/probe_gap"] <= row["transfer/probe_gap_max"] < 1e-4


@pytest.mark.parametrize("name", ["embed_tokens", "q_proj", "down_proj", "norm.weight"])
def test_the_probe_is_red_when_a_tensor_is_withheld(student, name):
    names = [full for full, _ in student.module.named_parameters() if name in full and "visual" not in full]
    _, transfer = make(student, OwnWeights(lab().fresh_student(), lab().chat, lost=(names[0],)))
    move(student)
    with pytest.raises(UserError, match="not those of the student after step 4"):
        transfer(4)


def test_the_probe_is_red_when_the_engine_samples_at_another_temperature(student):
    engine, transfer = make(student, temperature=0.8)
    sample = engine.generate
    engine.generate = lambda prompts, sampling: sample(
        prompts, type(sampling)(**(vars(sampling) | {"temperature": 1.0}))
    )
    with pytest.raises(UserError, match="another temperature"):
        transfer(0)


def test_the_deadline_is_red_when_the_receiver_stalls(student):
    engine, transfer = make(student, timeout=0.2)
    engine.gate = threading.Event()
    try:
        with pytest.raises(UserError, match=r"step 7 in rollout.transfer_timeout=0.2 s"):
            transfer(7)
    finally:
        engine.gate.set()


def test_what_the_engine_raises_reaches_the_run(student):
    _, transfer = make(student)
    student.module.register_parameter("unknown", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match="unknown"):
        transfer(1)


def test_an_engine_that_shares_the_students_tensors_is_probed_once(student):
    _, transfer = make(student, TransformersEngine(student, lab().chat, "student", 64))
    assert transfer(0)["transfer/probe_gap"] < 1e-5
    assert set(transfer(1)) == set()
