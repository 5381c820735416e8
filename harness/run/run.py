"""One run: config -> checks -> train -> model -> evaluate -> run.json. The only place that puts the parts together."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.deployment import Deployment, build_method, check_devices, resolved, run_label
from harness.config.extras import check_extras
from harness.config.schema import RunConfig
from harness.distributed.rank import check_place, this_place
from harness.errors import UserError, disk_error, first_line
from harness.process.preemption import Preempted, Stopped, fault_point, interruptible, listening, received
from harness.records.files import write_sums
from harness.records.folder import RunFolder, log_prefix, run_dir
from harness.records.log import RunLog
from harness.run.preparation import Preparation, make_models, prepare_process
from methods import registry
from methods.base import Method

if TYPE_CHECKING:
    from harness.distributed.world import World
    from harness.evaluation.asking import Live
    from harness.rollout.base import RolloutEngine

logger = logging.getLogger(__name__)


def run(config: RunConfig, *, overrides: Sequence[str] = (), anew: bool = False, kept: RunConfig | None = None) -> Path:
    """Train (unless the method is `base`), save the model, evaluate. Returns the run folder.

    A run that is done is left alone; one that was interrupted goes on from its newest checkpoint; with `anew` what is
    there is removed when the new run begins. The folder keeps `kept` as its configuration, by default `config`.

    Raises UserError for what a user can fix. Before the run begins (`harness.run.preparation`) nothing is written then
    but a line of the study's refused.jsonl; later run.json has status `failed` and the message. SIGTERM and SIGUSR1
    raise `Stopped`, with all that the run needs to go on written; its status is `interrupted`.

    With several ranks this is rank 0's part; it does not return on another one.
    """
    method = build_method(config)
    config, kept = resolved(config), resolved(kept or config)
    deployment = Deployment.of(config, method)
    place = this_place()
    check_place(config, place)
    check_devices(config)
    check_extras(config)
    if place is None:
        return _lead(config, method, deployment, overrides, None, anew, kept)
    from harness.distributed.follower import follow
    from harness.distributed.world import opened

    with opened(config, deployment, place) as world:
        if place.rank:
            prepare_process(config)
            follow(config, method, deployment, world, log_prefix(config, run_label(config)))
        return _lead(config, method, deployment, overrides, world, anew, kept)


def _lead(
    config: RunConfig,
    method: Method | None,
    deployment: Deployment,
    overrides: Sequence[str],
    world: World | None,
    anew: bool,
    kept: RunConfig,
) -> Path:
    label = run_label(config)
    folder = RunFolder(run_dir(config, label), kept, anew=anew)
    if world is not None:
        world.leader.give_up = lambda loss: _note_end(folder, loss)
    if folder.is_done(config.steps):
        logger.info("%s is done: nothing to do", folder.path)
        folder.close()
        return folder.path
    with closing(folder), closing(RunLog()) as log, listening(config.preempt_grace, partial(_give_up, folder)):
        try:
            with ExitStack() as stack:
                parts = Preparation(config, method, deployment, folder, label, stack, world)
                with interruptible():
                    parts.run_checks()
                _begin(parts, overrides)
                log.write_to(folder.path / "run.log")
                _execute(parts)
        except BaseException as error:
            ending = _ending(error, folder)
            if ending is error:
                raise
            raise ending from error
        folder.finish("done")
    return folder.path


def _begin(parts: Preparation, overrides: Sequence[str]) -> None:
    method_class, plugin = registry.provenance(parts.method)
    parts.folder.start(
        label=parts.label,
        overrides=overrides,
        method_class=method_class,
        plugin=plugin,
        num_steps=parts.num_steps,
        most_steps=parts.most_steps,
        lost_records=None if parts.trainer is None else parts.trainer.lost_records,
    )


def _execute(parts: Preparation) -> None:
    if parts.trainer is not None:
        parts.trainer.train()
        _save(parts)
    if not parts.is_idle:
        with interruptible():
            parts.evaluate()


def _save(parts: Preparation) -> None:
    """Save the student as `model/`."""
    from harness.models.loading import save_model

    aside = parts.folder.path / "model.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    assert parts.models is not None
    save_model(parts.models.finished(), parts.config.student, aside)
    # The weights alone: what else is there may be edited, such as a chat template, and is part of what an evaluation
    # says that it has scored.
    write_sums(aside, "*.safetensors")
    fault_point("model")
    parts.folder.replace_model(aside)


def _ending(error: BaseException, folder: RunFolder) -> BaseException:
    """Note how a run has ended, or that it was refused. Returns what is to be raised."""
    signal = received()
    if signal is not None and not isinstance(error, KeyboardInterrupt | SystemExit):
        if not isinstance(error, Preempted):  # what it needs may have been sent the same signal
            logger.error("at %s: %s", signal, first_line(error), exc_info=error)
        error = Stopped(f"{signal} has ended the run: launched again it goes on")
    elif (remedy := registry.private_import(error)) is not None:
        error = UserError(f"{first_line(error)}: {remedy}")
    elif isinstance(error, registry.MethodError):
        error = UserError(str(error))
    elif isinstance(error, Exception) and not isinstance(error, UserError):
        error = disk_error(error, folder.path) or error
    with suppress(OSError):  # on a full disk there may be room, since what was half written is gone
        if isinstance(error, KeyboardInterrupt | SystemExit):
            folder.end("interrupted")
        elif isinstance(error, UserError):
            _note_end(folder, error)
        else:
            logger.error("the run failed", exc_info=error)
            folder.end("failed", f"{type(error).__name__}: {error}", exit_code=1)
    return error


def _note_end(folder: RunFolder, error: UserError) -> None:
    status = "interrupted" if error.exit_code == os.EX_TEMPFAIL else "failed"
    folder.end(status, str(error), exit_code=error.exit_code)


def _give_up(folder: RunFolder) -> None:
    folder.end("interrupted", "preempt_grace was over before its state was written: the last checkpoint counts")


def live_student(config: RunConfig, logs: Path, stack: ExitStack) -> tuple[RolloutEngine, str, Live]:
    """The student of a configuration as it is, in its engine, the model's identity, and what library tasks read of it.

    Ends with `stack`.
    """
    from harness.evaluation.asking import Live
    from harness.models.chat import Chat
    from harness.models.loading import load_tokenizer

    prepare_process(config)
    chat = Chat(load_tokenizer(config.student), config.student)
    models = make_models(config, Deployment.of(config, None), chat, None, logs=logs, stack=stack)
    return models.engine, models.identity(), Live(chat=chat, model=models.complete)
