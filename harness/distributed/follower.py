"""Every rank but the first: it makes its part of the models, and does what rank 0 says until it says the end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

from harness.config.deployment import Deployment
from harness.config.schema import RunConfig
from harness.distributed.build import RankModels
from harness.distributed.engine import serve
from harness.distributed.world import World
from harness.errors import UserError
from harness.models.chat import Chat
from harness.models.devices import DeviceThread
from harness.models.loading import load_tokenizer
from harness.rollout.base import RolloutEngine
from methods.base import Method


def follow(config: RunConfig, method: Method | None, deployment: Deployment, world: World, logs: Path) -> NoReturn:
    """Rank 0 ends this process (`harness.distributed.links`). An error here ends the run, which says whose it was."""
    with ExitStack() as stack, _told(world):
        _follow(config, method, deployment, world, logs, stack)
    os._exit(1)


def _follow(
    config: RunConfig, method: Method | None, deployment: Deployment, world: World, logs: Path, stack: ExitStack
) -> None:
    follower = world.follower
    chat = Chat(load_tokenizer(config.student), config.student)
    models = RankModels(config, deployment, chat, world, logs=logs, stack=stack)
    if method is not None:
        models.updater(method, models.open_teacher(method))
    start_sampling(world, models.engines)
    while True:
        follower.doing = "between commands"
        name, arguments = follower.lanes["work"].recv()
        follower.doing = f"during {name}"
        follower.lanes["work"].send(world.commands[name](**arguments))


def start_sampling(world: World, engines: Mapping[str, RolloutEngine]) -> None:
    """One thread a connection, on this rank's GPU."""
    for lane, engine in engines.items():
        DeviceThread(_sample, lane, (world, lane, engine)).start()


def _sample(world: World, lane: str, engine: RolloutEngine) -> None:
    with _told(world):
        serve(world.follower.lanes[lane], engine)


@contextmanager
def _told(world: World) -> Iterator[None]:
    """What is raised in here is sent to rank 0, which then ends all."""
    try:
        yield
    except UserError as error:
        world.follower.fault(str(error), error.exit_code)
    except EOFError:  # of rank 0 itself, which the watch says
        pass
    except BaseException as error:
        traceback.print_exception(error)
        sys.stderr.flush()
        world.follower.fault(f"{type(error).__name__}: {error}", 1)
    world.follower.wait_for_end()
