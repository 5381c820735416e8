"""Which combinations of engines and endpoints are refused, and which launches are the same run."""

import pytest

from harness.config.compose import compose
from harness.config.deployment import build_method
from harness.config.identity import comparable
from harness.config.schema import from_hydra
from harness.errors import UserError

URL = "http://127.0.0.1:8000/v1"


def make(*overrides):
    config = from_hydra(compose(["student=tiny_xs", "teacher=tiny_teacher", *overrides]))
    build_method(config)
    return config


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_engines_of_trained_students(engine):
    assert make(f"rollout={engine}").rollout.engine == engine


def test_a_student_behind_an_endpoint_is_evaluated_and_not_trained():
    config = make("method=base", "rollout=server", f"student.urls=[{URL}]")
    assert config.student.is_served and config.rollout.engine == "server"
    with pytest.raises(UserError, match=r"cannot give the student's new weights.*teacher.serve=true"):
        make("method=grpo", "rollout=server", f"student.urls=[{URL}]")
    with pytest.raises(UserError, match=r"needs endpoints: student.urls"):
        make("method=base", "rollout=server")
    with pytest.raises(UserError, match="need rollout=server"):
        make("method=base", f"student.urls=[{URL}]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.urls=['http://localhost:99999/v1']"], "teacher.urls: http://localhost:99999/v1 is no address"),
        (["eval.judge.url=ftp://a/v1"], "eval.judge.url: ftp://a/v1 is no address: write http://"),
        (["reward.judge.url='http://a/v1#part'"], "reward.judge.url: http://a/v1#part is no address"),
        (["teacher.urls=[localhost:8000]"], "localhost:8000 is no address: write http://"),
        ([f"teacher.urls=[{URL}]", "teacher.serve=true"], "set one of them"),
        (["teacher.api=grpc"], "teacher.api must be 'tokens' or 'text', got 'grpc'"),
        (
            ["rollout.engine=sglang"],
            "rollout.engine=sglang is not known. Known: server, transformers, vllm. One of your own is named",
        ),
        (["server.max_wait=0"], "server.max_wait must be greater than 0, got 0"),
        (["rollout.vllm.memory_fraction=0"], "memory_fraction must be greater than 0, got 0"),
    ],
)
def test_what_no_run_could_use_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        make(*overrides)


def test_a_teacher_that_has_moved_is_the_same_run_and_another_teacher_is_not():
    def part(**teacher):
        config = {"seed": 0, "server": {"max_wait": 1}, "rollout": {"engine": "vllm", "transfer_timeout": 1}}
        return comparable({**config, "teacher": {"path": "a", "urls": [], **teacher}})

    assert part(urls=[URL]) == part()
    assert part(path="b") != part()
    assert part() == {"seed": 0, "rollout": {"engine": "vllm"}, "teacher": {"path": "a"}}
    assert comparable({"teacher": None}) == {"teacher": None}
