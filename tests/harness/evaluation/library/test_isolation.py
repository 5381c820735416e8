"""What the evaluation libraries do to a process, seen from a fresh one: an import happens once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[2]

PROGRAM = """
import importlib.util, json, logging, os, ssl, sys, warnings
from pathlib import Path

import filelock, loguru, requests, torch, transformers, datasets
from PIL import ImageFile
from torch.distributed import distributed_c10d

from harness.config.schema import EvalConfig, RewardConfig
from harness.evaluation.evaluate import evaluate
from harness.rewards.workers import Grader

spec = importlib.util.spec_from_file_location("conftest_of_evaluation", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)


def state():
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "loguru": dict(loguru.logger._core.handlers),
        "logging": (root.level, list(root.handlers), logging.getLogger("datasets").level),
        "warnings": list(warnings.filters),
        "truncated": ImageFile.LOAD_TRUNCATED_IMAGES,
        "timeout": distributed_c10d.default_pg_timeout,
        "filelock": filelock._api.FileLockMeta.__call__,
        "ssl": (ssl.SSLContext.__reduce__, hasattr(ssl.SSLContext, "_orig_reduce")),
        "distributed": torch.distributed.is_initialized(),
        "threads": (torch.get_num_threads(), torch.get_default_dtype()),
    }


def script(prompt):
    ignores_all = any(f == ("ignore", None, Warning, None, 0) for f in warnings.filters)
    seen.append((ImageFile.LOAD_TRUNCATED_IMAGES, ignores_all))
    return ("2", "stop") if live else conftest.four_kinds(prompt)


class Engine(conftest.ScriptedEngine):
    def generate(self, prompts, sampling):
        for group in super().generate(prompts, sampling):
            for rollout in group.rollouts if live else ():
                rollout.completion_ids = live.chat.encode_text(rollout.text)
            yield group


seen = []
sizes = {"levels": [1], "num_questions": 3, "temperature": 0.0, "max_response_tokens": 48}
live = None
if sys.argv[2] in ("lm_eval", "lmms_eval"):
    import yaml
    from harness.config.schema import ModelConfig
    from harness.evaluation.asking import Live
    from harness.models.chat import Chat
    from harness.models.loading import load_tokenizer

    model = ModelConfig(name="tiny", path="tiny:xs")
    live = Live(chat=Chat(load_tokenizer(model), model))
    rows = [{"question": "Compute 1+1.", "answer": "2"}, {"question": "Compute 2+1.", "answer": "3"}]
    Path("tasks").mkdir()
    Path("tasks/rows.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    files = {"test": str(Path("tasks/rows.jsonl").absolute())}
    share = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    task = {
        "task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "question", "doc_to_target": "answer", "metric_list": [share],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 8, "max_new_tokens": 8},
    }
    Path("tasks/own.yaml").write_text(yaml.safe_dump(task))
    config = EvalConfig(suite="own", tasks=[f"{sys.argv[2]}:own"], task_paths=["tasks"])
    score = 50.0
else:
    config = EvalConfig(suite="mini", mini_tasks=sys.argv[2].split(","), **sizes)
    score = 33.33
grader = Grader(RewardConfig())
warnings.filterwarnings("ignore", message="a filter of the run")
before = state()
for repeat in range(2):
    names = {"model_name": "scripted", "identity": str(repeat)}
    scores = evaluate(config, Engine(script), grader, out_dir=Path("out"), live=live, **names)
    after = state()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"evaluation {repeat} changed {[(before[name], after[name]) for name in changed]}"
    assert {round(s["score"], 2) for s in scores} == {score}, scores
grader.close()
assert set(seen) == {(False, False)}, f"the engine ran with the settings of lmms-eval: {seen}"
loaded = [name for name in ("lm_eval", "lmms_eval") if name in sys.modules]
Path("loaded").write_text(",".join(loaded))
"""


@pytest.mark.parametrize(
    ("tasks", "libraries"),
    [
        ("arithmetic", ""),
        pytest.param("lm_eval", "lm_eval", marks=pytest.mark.slow),
        pytest.param("lmms_eval", "lmms_eval", marks=pytest.mark.slow),
    ],
)
def test_the_process_is_as_before_and_only_needed_libraries_are_loaded(
    tasks: str, libraries: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("FROM_THE_WORKING_FOLDER=1\n")
    # As in the second process of a launcher, where lm-eval would give no results and lmms-eval half of them.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HERE / "conftest.py"), tasks],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "loaded").read_text() == libraries


def test_what_is_quiet_inside_leaves_the_outside_quiet() -> None:
    from loguru import logger

    from harness.evaluation.library.isolation import quiet_lmms_eval
    from harness.evaluation.library.upstream import upstream_module

    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]))
    try:
        with quiet_lmms_eval():
            upstream_module.cache_clear()
            upstream_module("lmms_eval.api.metrics")
            exec("logger.info('inside')", {"__name__": "lmms_eval.evaluator", "logger": logger})
        exec("logger.info('outside')", {"__name__": "lmms_eval.evaluator", "logger": logger})
    finally:
        logger.remove(sink)
    assert said == ["outside"]


def test_the_tasks_of_a_library_leave_the_path_alone() -> None:
    from harness.evaluation.library.upstream import upstream_module

    before, variables = list(sys.path), dict(os.environ)
    upstream_module.cache_clear()
    sys.modules.pop("lmms_eval.tasks.ocrbench_v2.utils", None)
    upstream_module("lmms_eval.tasks.ocrbench_v2.utils")
    assert sys.path == before and dict(os.environ) == variables
