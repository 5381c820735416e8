"""The sides of `benchmarks.step`, each in a process of its own: a step for every line `go`, a JSON line for each.

    python -m benchmarks.step_sides ours|trl SETTING    # SETTING is a `Setting` as JSON

`benchmarks.step` starts them; all that both sides have in common, and all options of TRL, stand here.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from harness.config.schema import ModelConfig, UpdateConfig
from harness.models.chat import Chat
from harness.models.forward import LanguageModel
from harness.models.loading import load_model, load_tokenizer
from harness.rollout.base import Sampling
from harness.rollout.transformers_engine import TransformersEngine
from harness.teacher.local import LocalScorer
from harness.training.update import Updater
from harness.types import Message, Prompt, Question
from methods import registry

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-6, (0.9, 0.999), 1e-8, 0.1, 1.0
NUM_SEQUENCES = 8
MB = 1e6
METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"updates_per_step": 1, "group_size": 4},
    "on_policy_kd": {"jsd_beta": 0.5, "group_size": 1},
}
TRL_COMMON: dict[str, Any] = {
    "per_device_train_batch_size": NUM_SEQUENCES,
    "gradient_accumulation_steps": 1,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "adam_beta1": BETAS[0],
    "adam_beta2": BETAS[1],
    "adam_epsilon": EPS,
    "weight_decay": WEIGHT_DECAY,
    "max_grad_norm": MAX_GRAD_NORM,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "shuffle_dataset": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
}
TRL_GRPO: dict[str, Any] = {
    "num_generations": 4,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "beta": 0.0,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "epsilon": 0.2,
    "epsilon_high": 0.28,
}
TRL_DISTILLATION: dict[str, Any] = {
    "beta": 0.5,
    # Strings: the trainer looks the teacher's dtype up by name.
    "teacher_model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    method: Literal["grpo", "on_policy_kd"]
    model: str
    """A folder with safetensors; the teacher is another copy of it."""
    num_steps: int
    """The warm-up included."""
    num_new_tokens: int
    threads: int

    @property
    def group_size(self) -> int:
        return METHODS[self.method]["group_size"]

    @property
    def num_prompts(self) -> int:
        """A step."""
        return NUM_SEQUENCES // self.group_size


@dataclass(kw_only=True)
class Step:
    """What a side reports of a step. `update` is the step without the rollouts: reward, credit, teacher, optimizer."""

    step: float = 0.0
    rollout: float = 0.0
    num_tokens: int = 0
    """Completion tokens that the loss sees."""
    num_prompt_tokens: int = 0
    """Of all sequences."""

    @property
    def update(self) -> float:
        return self.step - self.rollout


class Side:
    """The pipe to `benchmarks.step`. Whatever a library prints goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._num_done = 0
        self._peak_is_reset = False
        self.current = Step()

    def say(self, row: dict[str, Any]) -> None:
        self._out.write(json.dumps(row) + "\n")

    def wait(self) -> None:
        """Block until the next step may begin. Exits where nobody is there any more."""
        if self._num_done == 0:
            self.say({"ready": True})
        if sys.stdin.readline() != "go\n":
            sys.exit("benchmarks.step has ended")
        self.current = Step()
        self._start = time.perf_counter()

    def done(self) -> None:
        """Report the step. The peak is that of the process since the warm-up, or since its start where that is all
        the system tells."""
        self.current.step = time.perf_counter() - self._start
        row = asdict(self.current) | {"update": self.current.update, "peak_mb": peak_mb()}
        if self._num_done == 0:
            self._peak_is_reset = reset_peak()
        self._num_done += 1
        self.say(row | {"peak_is_reset": self._peak_is_reset})

    @contextmanager
    def rollout(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.current.rollout += time.perf_counter() - start


def run_ours(setting: Setting, side: Side) -> None:
    """Engine, reward, `Method.credit` and `Updater`, as the trainer calls them."""
    config = ModelConfig(name="benchmark", path=setting.model, dtype="float32")
    chat = Chat(load_tokenizer(config), config)
    chat.stop_ids = frozenset()  # every completion has its full length
    student = LanguageModel.for_chat(load_model(config, "cpu"), chat)
    method = registry.build({"name": setting.method, "class": setting.method, **METHODS[setting.method]})
    assert method is not None
    scorer = None
    if method.needs_teacher == "distribution":
        scorer = LocalScorer(LanguageModel.for_chat(load_model(config, "cpu"), chat), 1.0)
    update = UpdateConfig(
        learning_rate=LEARNING_RATE,
        betas=list(BETAS),
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
    )
    updater = Updater(student=student, teacher=scorer, method=method, config=update, temperature=1.0)
    engine = TransformersEngine(student, chat, "student", NUM_SEQUENCES)
    for step in range(setting.num_steps):
        prompts = make_prompts(setting, step)
        side.wait()
        sampling = Sampling(num_rollouts=setting.group_size, step=step, max_new_tokens=setting.num_new_tokens)
        with side.rollout():
            groups = list(engine.generate(prompts, sampling))
        for group in groups:
            for rollout, reward in zip(group.rollouts, toy_rewards(len(group.rollouts)), strict=True):
                rollout.reward = reward
        samples = method.credit(groups)
        updater.fill_old_logprobs(samples)
        updater.update(samples, measure_gap=True)
        updater.gap.finish()
        active = [sample for sample in samples if not sample.inert]
        side.current.num_tokens = sum(sample.num_trained for sample in active)
        side.current.num_prompt_tokens = sum(sample.num_prompt for sample in active)
        side.done()


def run_trl(setting: Setting, side: Side) -> None:
    """`GRPOTrainer` or `DistillationTrainer`, held at the beginning of every step by a callback."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

    class Hold(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            side.wait()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            side.done()

    prompts = [prompt for step in range(setting.num_steps) for prompt in make_prompts(setting, step)]
    data = Dataset.from_dict({"prompt": [list(prompt.messages) for prompt in prompts]})
    options = TRL_COMMON | {
        "output_dir": str(Path(setting.model).parent / "trl"),
        "max_steps": setting.num_steps,
        "max_completion_length": setting.num_new_tokens,
        "generation_kwargs": {"min_new_tokens": setting.num_new_tokens},
    }
    trainer: Any
    if setting.method == "grpo":
        trainer = GRPOTrainer(
            model=setting.model,
            reward_funcs=lambda completions, **kwargs: toy_rewards(len(completions)),
            args=GRPOConfig(**options, **TRL_GRPO),
            train_dataset=data,
            callbacks=[Hold()],
        )
    else:
        trainer = DistillationTrainer(
            model=setting.model,
            teacher_model=setting.model,
            args=DistillationConfig(**options, **TRL_DISTILLATION),
            train_dataset=data,
            callbacks=[Hold()],
        )
    trainer._generate = timed(trainer._generate, side)
    trainer._generate_single_turn = counted(trainer._generate_single_turn, side)
    trainer.train()


def timed(generate: Callable[..., Any], side: Side) -> Callable[..., Any]:
    """TRL's `_generate` (template, sampling, decoding), with its time on the side's clock."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with side.rollout():
            return generate(*args, **kwargs)

    return wrapped


def counted(generate: Callable[..., Any], side: Side) -> Callable[..., Any]:
    """TRL's `_generate_single_turn`: prompt ids in; completion ids out, or these and their log-probabilities."""

    def wrapped(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        out = generate(prompt_ids, *args, **kwargs)
        completion_ids = out[0] if isinstance(out, tuple) else out
        side.current.num_prompt_tokens += sum(map(len, prompt_ids))
        side.current.num_tokens += sum(map(len, completion_ids))
        return out

    return wrapped


def make_prompts(setting: Setting, step: int) -> list[Prompt]:
    """Sums of three numbers of two digits, all of one length; others in every step."""
    return [make_prompt(step * setting.num_prompts + i) for i in range(setting.num_prompts)]


def make_prompt(i: int) -> Prompt:
    numbers = [(7 * i + 31 * k) % 90 + 10 for k in range(3)]
    question = Question(id=str(i), text=f"Compute {'+'.join(map(str, numbers))}.", answer=str(sum(numbers)))
    messages: tuple[Message, ...] = ({"role": "user", "content": question.text},)
    return Prompt(uid=f"{i}/plain", question=question, messages=messages)


def toy_rewards(num_rollouts: int) -> list[float]:
    """1, 0, 1, 0: whatever was sampled, every group has an advantage and is trained on both sides."""
    return [1.0 - i % 2 for i in range(num_rollouts)]


def peak_mb() -> float:
    """The highest resident memory of this process, in decimal MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / MB


def reset_peak() -> bool:
    """Start the peak anew; False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def main(arguments: Sequence[str]) -> None:
    name, text = arguments
    setting = Setting(**json.loads(text))
    torch.set_num_threads(setting.threads)
    {"ours": run_ours, "trl": run_trl}[name](setting, Side())


if __name__ == "__main__":
    main(sys.argv[1:])
