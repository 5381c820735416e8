"""The rollouts of a step on disk: one parquet file, one row a rollout (docs/run_folder.md documents the columns)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from harness.records.files import put_in_place, sync
from harness.rewards.match import candidate_match
from harness.types import RolloutGroup, TrainingSample

ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int32()), ("uid", pa.string()), ("kind", pa.string()), ("sampler", pa.string()),
        ("question_id", pa.string()), ("replayed", pa.bool_()), ("index", pa.int32()), ("prompt_text", pa.string()),
        ("response_text", pa.string()), ("num_prompt_tokens", pa.int32()), ("num_response_tokens", pa.int32()),
        ("num_prefix_tokens", pa.int32()), ("finish_reason", pa.string()), ("answer", pa.string()),
        ("gold", pa.string()), ("reward", pa.float32()), ("training_reward", pa.float32()), ("verdict", pa.string()),
        ("positive_answer", pa.string()), ("negative_answers", pa.list_(pa.string())), ("match", pa.string()),
        ("trained", pa.bool_()), ("advantage", pa.float32()), ("positive_position", pa.int32()),
        ("source", pa.string()),
    ]
)  # fmt: skip


def is_readable(file: Path) -> bool:
    """Whether a step's file is there, with its beginning and its end."""
    try:
        return "response_text" in pq.read_schema(file).names
    except (OSError, pa.ArrowInvalid):
        return False


def write_rollouts(
    file: Path,
    step: int,
    groups: Sequence[RolloutGroup],
    samples: Sequence[TrainingSample],
    prompt_texts: Mapping[str, str],
) -> None:
    """Write a row a rollout, `prompt_texts` by group uid; atomically, so that a file is complete or absent.

    Samples belong to rollouts by (uid, sampler, index): a method may have worked on copies.
    """
    trained = {(s.uid, s.rollout.sampler, s.rollout.index): s for s in samples if s.rollout is not None}
    rows = []
    for group in groups:
        for rollout in group.rollouts:
            sample = trained.get((group.uid, rollout.sampler, rollout.index))
            credited = rollout if sample is None or sample.rollout is None else sample.rollout
            advantage = None
            if sample is not None and sample.advantages is not None:
                advantage = sample.advantages[-1]
            rows.append(
                {
                    "step": step,
                    "uid": group.uid,
                    "kind": group.prompt.kind,
                    "sampler": rollout.sampler,
                    "question_id": group.prompt.question.id,
                    "replayed": group.replayed,
                    "index": rollout.index,
                    "prompt_text": prompt_texts[group.uid],
                    "response_text": rollout.text,
                    "num_prompt_tokens": len(rollout.prompt_ids),
                    "num_response_tokens": len(rollout.completion_ids),
                    "num_prefix_tokens": rollout.num_prefix,
                    "finish_reason": rollout.finish_reason,
                    "answer": rollout.answer,
                    "gold": group.prompt.question.answer,
                    "reward": rollout.reward if rollout.is_graded else None,
                    "training_reward": credited.training_reward,
                    "verdict": rollout.verdict,
                    "positive_answer": group.prompt.positive_answer,
                    "negative_answers": list(group.prompt.negative_answers),
                    "match": candidate_match(rollout, group.prompt),
                    "trained": sample is not None,
                    "advantage": advantage,
                    "positive_position": group.prompt.positive_position,
                    "source": group.prompt.question.source,
                }
            )
    unfinished = file.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA), unfinished)
    sync(unfinished)
    put_in_place(unfinished, file)
