"""What is asked of vLLM exists in the installed release, by its sources: runners of GPUs cannot be imported on a CPU.

With `VLLM_SOURCES=FOLDER`, the unpacked wheel of another release, that one is read.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from functools import cache
from pathlib import Path

import pytest

from harness.config.engines import RolloutConfig, VllmConfig
from harness.config.schema import ModelConfig
from harness.models.loading import resolve_path
from harness.rollout import vllm_engine
from harness.serving.vllm_options import ALWAYS, STUDENT, engine_options, model_options

pytestmark = pytest.mark.vllm

SMALL = ModelConfig(name="s", path="tiny:hybrid")
CLASSES = {
    "EngineArgs": "engine/arg_utils.py",
    "SamplingParams": "sampling_params.py",
    "LLMEngine": "v1/engine/llm_engine.py",
}
OF_OTHERS = ("shutdown", "get_vocab_size", "load_weights", "close")
"""Methods of its parts, and of our engine."""
WORKERS = ("v1/worker/gpu_worker.py", "v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py")
"""The worker, and the runners V1 and V2: a GPU takes V2."""


@cache
def parsed(file: str) -> ast.Module:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations
    folder = os.environ.get("VLLM_SOURCES") or spec.submodule_search_locations[0]
    return ast.parse((Path(folder) / file).read_text(encoding="utf-8"))


def fields(name: str) -> set[str]:
    found = next(n for n in ast.walk(parsed(CLASSES[name])) if isinstance(n, ast.ClassDef) and n.name == name)
    return {n.target.id for n in found.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def parameters(file: str, function: str) -> set[str]:
    found = [n for n in ast.walk(parsed(file)) if isinstance(n, ast.FunctionDef) and n.name == function]
    assert found, f"{file} has no {function}"
    arguments = found[0].args
    names = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    return names | ({"*"} if arguments.kwarg else set())


def calls() -> list[tuple[str, set[str]]]:
    """Every call in our engine, as (written function, keywords)."""
    tree = ast.parse(Path(vllm_engine.__file__).read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), {word.arg for word in node.keywords if word.arg}) for node in found]


def test_options_are_fields_of_the_engines_arguments():
    options = engine_options(RolloutConfig(vllm=VllmConfig(cache_gib=1, max_model_len=64)), resolve_path(SMALL))
    named = {*options, *ALWAYS, *STUDENT, *model_options(SMALL)}
    named |= next(words for function, words in calls() if function == "EngineArgs")
    assert named <= fields("EngineArgs")
    assert next(words for function, words in calls() if function == "SamplingParams") <= fields("SamplingParams")


def test_calls_of_the_engine_are_in_its_signature():
    made = [(f.rpartition(".")[2], w) for f, w in calls() if f.startswith(("self._engine.", "engine.", "LLMEngine."))]
    made = [(name, words) for name, words in made if name not in OF_OTHERS]
    assert {name for name, _ in made} >= {"from_engine_args", "add_request", "step", "sleep", "wake_up"}
    for name, words in made:
        assert words <= parameters(CLASSES["LLMEngine"], name), name


def test_both_runners_take_weights_one_by_one():
    assert any(f == "worker.reload_weights" and w == {"weights_iterator"} for f, w in calls())
    for file in WORKERS:
        assert parameters(file, "reload_weights") & {"weights_iterator", "*"}, file
