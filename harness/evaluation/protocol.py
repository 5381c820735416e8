"""What a score depends on besides the model: one decoding specification, and the hash that tells protocols apart.

Imports no torch and no evaluation library, so that a report or a scheduler can tell whether scores are
comparable.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import OmegaConf

from harness.config import EvalConfig
from harness.rollout.base import Sampling
from methods.prompts import CLOSING

TASK_VERSION = 1
"""Raised whenever the questions or the scoring of a built-in suite change."""


def protocol_settings(config: EvalConfig, grader_name: str) -> dict[str, Any]:
    """Everything that can change a score: the evaluation's options but `every`, the closing instruction, the task
    version and the grader. JSON values; numbers have the types of `EvalConfig`, so that 0 and 0.0 are one setting.
    """
    options = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(options, dict)
    settings = {str(key): value for key, value in options.items() if key != "every"}
    return settings | {"closing": CLOSING, "task_version": TASK_VERSION, "grader": grader_name}


def protocol_hash(config: EvalConfig, grader_name: str) -> str:
    """12 hex digits of the SHA-256 of `protocol_settings` as JSON with sorted keys. The same in every process."""
    text = json.dumps(protocol_settings(config, grader_name), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def eval_sampling(config: EvalConfig) -> Sampling:
    """One completion a question; evaluation has its own seed, so scores do not depend on the run's."""
    return Sampling(
        num_rollouts=1,
        seed=config.seed,
        step=0,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        presence_penalty=config.presence_penalty,
        repetition_penalty=config.repetition_penalty,
        max_new_tokens=config.max_response_tokens,
    )


def generation_kwargs(config: EvalConfig) -> dict[str, Any]:
    """The same decoding as the libraries state it. `until` is empty: its default cuts at the first blank line."""
    return {
        "until": [],
        "do_sample": config.temperature > 0,
        "max_gen_toks": config.max_response_tokens,
        "temperature": float(config.temperature),
        "top_p": config.top_p,
        "top_k": config.top_k,
        "min_p": config.min_p,
        "presence_penalty": config.presence_penalty,
        "repetition_penalty": config.repetition_penalty,
    }
