"""Devices with their numbers, and threads that keep the GPU of the thread that has started them.

CUDA has a current device for each thread of the host, and it is the first GPU until the thread sets another one. So a
name without a number means one GPU here and another one in a thread or a process that a library starts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def device_of(name: str | torch.device) -> str:
    """A device of a configuration as every thread and process understands it.

    `auto` is a GPU where there is one, and a GPU without a number is the current one of this thread.

    Example: with `torch.cuda.set_device(3)`, `auto` and `cuda` are `cuda:3`. `cuda:1` and `cpu` stay what they are.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{torch.cuda.current_device()}" if name == "cuda" and torch.cuda.is_available() else name


def use_device(name: str | torch.device) -> None:
    """Make a GPU the current one of this thread; any other device has no such thing."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def _current() -> str:
    """The GPU of this thread. Where CUDA has not begun there is none to keep, and this does not begin it."""
    return device_of("cuda") if torch.cuda.is_initialized() else "cpu"


class DeviceThread(threading.Thread):
    """A daemon whose current GPU is that of the thread that has made it."""

    def __init__(self, target: Callable[..., Any], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, name=name, args=args, daemon=True)
        self._device = _current()

    def run(self) -> None:
        use_device(self._device)
        super().run()


def device_pool(num_threads: int, name: str) -> ThreadPoolExecutor:
    """Threads whose current GPU is that of the thread that calls this."""
    return ThreadPoolExecutor(num_threads, name, initializer=use_device, initargs=(_current(),))
