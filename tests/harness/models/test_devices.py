"""Devices have numbers, and threads that reach an engine keep the GPU of the one that has started them.

There is no GPU here: `torch.cuda` is made to say that the current one is the fourth, and records its calls.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
import torch

from harness.config.schema import ModelConfig
from harness.distributed.follower import start_sampling
from harness.models.devices import DeviceThread, device_of, device_pool, use_device
from harness.models.loading import load_model
from harness.rollout.base import Sampling
from tests.layers import Tree

ENGINE_CALLS = {"generate", "load_weights", "sleep", "wake"}


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, int]]:
    """(thread, GPU) of every `torch.cuda.set_device`."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    monkeypatch.setattr(
        "torch.cuda.set_device", lambda d: calls.append((threading.current_thread().name, torch.device(d).index))
    )
    return calls


@pytest.mark.parametrize(
    ("name", "expected"),
    [("auto", "cuda:3"), ("cuda", "cuda:3"), (torch.device("cuda"), "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_gpu_has_a_number(told, name, expected):
    assert device_of(name) == expected


def test_without_a_gpu_there_is_none():
    assert (device_of("auto"), device_of("cuda:0")) == ("cpu", "cuda:0")


def test_a_cpu_is_never_the_current_gpu(told):
    for name in ("cpu", "cuda:2", "cuda"):  # one without a number is the current one already
        use_device(name)
    assert [gpu for _, gpu in told] == [2]


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_weights_go_to_the_gpu_of_this_thread(told, monkeypatch, device):
    """transformers copies them in threads of its own, in which `cuda` is the first GPU."""
    places = set()

    def copied(tensor, device=None, dtype=None):
        places.add(str(device))
        return tensor[...].to(dtype)

    monkeypatch.setattr("transformers.core_model_loading._materialize_copy", copied)
    monkeypatch.setattr("transformers.modeling_utils.caching_allocator_warmup", lambda *args, **kwargs: None)
    with suppress(RuntimeError):  # what a tied head is given in the end is no copy, and there is no driver
        load_model(ModelConfig(name="s", path="tiny:xs", dtype="float32"), device)
    assert places == {"cuda:3"}


def test_threads_keep_the_gpu_of_the_one_that_starts_them(told):
    thread = DeviceThread(lambda: None, "work")
    thread.start()
    thread.join()
    with device_pool(1, "pool") as pool:
        name = pool.submit(lambda: threading.current_thread().name).result()
    assert told == [("work", 3), (name, 3)]
    assert thread.daemon


def test_a_thread_does_not_begin_cuda(told, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    monkeypatch.setattr("torch.cuda.current_device", lambda: pytest.fail("CUDA was begun"))
    DeviceThread(lambda: None, "work").start()
    device_pool(1, "pool").submit(int).result()
    assert told == []


def test_a_rank_samples_on_its_own_gpu(told):
    """Its thread sets the GPU before it calls the engine; the connection is a real one."""
    seen = []

    class Engine:
        def generate(self, prompts, sampling):
            seen.append((threading.current_thread().name, list(told)))
            return iter(())

    ended = threading.Event()
    ours, theirs = Pipe()
    world = SimpleNamespace(follower=SimpleNamespace(lanes={"student": theirs}, wait_for_end=ended.set))
    start_sampling(world, {"student": Engine()})
    ours.send((0, [], Sampling()))
    ours.close()  # that is the end of its thread
    assert ended.wait(10)
    assert seen[0] == ("student", [("student", 3)])


# --- the rule ---


def threads(tree: ast.AST) -> Iterator[ast.Call]:
    """Threads and pools of threads that a file makes without `harness.models.devices`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("Thread", "ThreadPoolExecutor"):
                yield node


def reach(tree: ast.AST, names: set[str]) -> set[str]:
    """Names that functions of a file call, and those that they call of the same file."""
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    called: set[str] = set()
    waiting = list(names)
    while waiting:
        for node in ast.walk(functions[waiting.pop()]):
            if isinstance(node, ast.Attribute | ast.Name):
                name = node.attr if isinstance(node, ast.Attribute) else node.id
                is_clock = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "time"
                if name not in called and not is_clock:
                    called.add(name)
                    waiting += [name] * (name in functions)
    return called


def test_no_other_thread_reaches_an_engine():
    """A pool may be given anything of its file, a thread has its target."""
    tree = Tree()
    made = 0
    for name, path in tree.files.items():
        text = path.read_text(encoding="utf-8")
        if not name.startswith("harness.") or name == "harness.models.devices" or "Thread" not in text:
            continue
        parsed = ast.parse(text)
        functions = {node.name for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef)}
        for call in threads(parsed):
            made += 1
            targets = [word.value for word in call.keywords if word.arg == "target"]
            given = {getattr(t, "attr", getattr(t, "id", "")) for t in targets} & functions
            found = reach(parsed, given or functions) & ENGINE_CALLS
            assert not found, f"{name}, line {call.lineno}: a thread that calls {found}: use harness.models.devices"
    assert made > 10
