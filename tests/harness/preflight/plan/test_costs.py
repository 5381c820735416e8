"""FLOPs, seconds and disk of a run by hand."""

import pytest

from harness.config.compose import compose
from harness.config.deployment import deployed
from harness.config.gpus import GPUS
from harness.config.schema import RunConfig, from_hydra
from harness.models.shapes import ModelShape, shape_of
from harness.preflight.plan.costs import Cost, cost_of, decode_rate, published
from harness.preflight.plan.counting import Assumptions, StepCount

COUNT = StepCount(
    tokens={
        "tokens/student_generated": 3e6, "tokens/student_prompt": 1e6, "tokens/student_update": 2e6,
        "tokens/student_rescored": 0.0, "tokens/teacher_generated": 1e6, "tokens/teacher_prompt": 0.0,
        "tokens/teacher_scored": 5e5,
    },
    num_student=96, num_teacher=48, num_samples=96, longest=16_384,
)  # fmt: skip
ASSUMED = Assumptions(mfu=0.5, rollout_rate=1000.0)


def config(*overrides: str) -> RunConfig:
    lines = ["student=qwen3_5_2b", "cluster=8x8", "steps=10", "rollout=vllm", *overrides]
    return from_hydra(compose(list({line.partition("=")[0]: line for line in lines}.values())))


def cost(run: RunConfig, student: ModelShape, teacher: ModelShape | None) -> Cost:
    return cost_of(run, deployed(run), student, teacher, COUNT, ASSUMED)


def test_flops_are_the_harnesss_own():
    """2N a token generated or read, 6N trained, 8N with checkpointing; the teacher at its own N."""
    run = config()
    student, teacher = shape_of(run.student), shape_of(run.teacher)
    n, t = student.num_parameters, teacher.num_parameters
    found = cost(run, student, teacher)
    assert found.step_flops == {
        "flops/student_generation": 2.0 * n * 4e6, "flops/student_update": n * 6.0 * 2e6,
        "flops/teacher_generation": 2.0 * t * 1e6, "flops/teacher_scoring": 2.0 * t * 5e5,
    }  # fmt: skip
    assert found.run_flops == 10 * sum(found.step_flops.values())
    again = cost(config("update.gradient_checkpointing=true"), student, teacher)
    assert again.step_flops["flops/student_update"] == n * 8.0 * 2e6


def test_seconds_of_a_step():
    """48 ranks at half of 989.4 TFLOPS; the student's 3e6 tokens at 1000 a second on each, behind 1e6 of prompts."""
    run = config()
    student = shape_of(run.student)
    n, useful = student.num_parameters, 48 * 0.5 * 989.4e12
    found = cost(run, student, None)
    assert found.step_seconds == pytest.approx(
        {"rollout": 3e6 / 48_000 + 2 * n * 1e6 / useful, "update": 6 * n * 2e6 / useful, "scoring": 0.0}
    )
    assert found.hours == pytest.approx(10 * sum(found.step_seconds.values()) / 3600)


def test_a_teacher_on_gpus_of_its_own_works_beside_the_student():
    run = config()
    student, teacher = shape_of(run.student), shape_of(run.teacher)
    alone = cost(run, student, None).step_seconds["rollout"]
    # 48 rollouts on 16 GPUs: 3 at a time, each step reads 30.4 GB of weights and three caches
    rate = decode_rate(
        teacher, GPUS["H100-80GB"], num_sequences=3, mean_tokens=12_288 / 2 + 1024, engine="vllm", assumed=ASSUMED
    )
    asking = 1e6 / (16 * rate)
    assert cost(run, student, teacher).step_seconds["rollout"] == pytest.approx(max(alone, asking))
    # A server of each node on the GPU of its first rank: 48 rollouts on 8, after the student's.
    shared = config("cluster.teacher_gpus=0", "teacher.serve=true")
    rate = decode_rate(
        teacher, GPUS["H100-80GB"], num_sequences=6, mean_tokens=12_288 / 2 + 1024, engine="server", assumed=ASSUMED
    )
    assert cost(shared, student, teacher).step_seconds["rollout"] == pytest.approx(alone + 1e6 / (8 * rate))


def test_scoring_takes_the_gpus_that_hold_the_teacher():
    """5e5 tokens at 2 FLOPs a weight: on all 48 ranks, on the 16 teacher GPUs, or at two endpoints."""
    run = config("method=on_policy_kd")
    student, teacher = shape_of(run.student), shape_of(run.teacher)
    flops = 2 * teacher.num_parameters * 5e5 / (0.5 * 989.4e12)
    for overrides, num_gpus in (
        (["teacher_device=cuda"], 48),
        ([], 16),
        (["teacher.urls=[http://a/v1,http://b/v1]"], 2),
    ):
        found = cost(config("method=on_policy_kd", *overrides), student, teacher)
        assert found.step_seconds["scoring"] == pytest.approx(flops / num_gpus)


def test_the_rate_of_decoding():
    """2B: 4.43 GB of weights, a cache of 6 * 2 * 2 * 512 bytes a token, 19.8 MB of states; 60 % of 3.35 TB/s allow 453
    steps a second with one sequence, of which 100 count."""
    shape, gpu = shape_of(config().student), GPUS["H100-80GB"]
    assert decode_rate(shape, gpu, num_sequences=1, mean_tokens=0, engine="vllm", assumed=Assumptions()) == 100.0
    read = shape.weight_bytes + 512 * shape.cache_bytes(8000)
    rate = decode_rate(shape, gpu, num_sequences=512, mean_tokens=8000, engine="vllm", assumed=Assumptions())
    assert rate == pytest.approx(512 * 0.6 * 3.35e12 / read) and rate < 51_200


def test_no_hours_without_a_gpu():
    run = config("cluster=local")
    found = cost(run, shape_of(run.student), None)
    assert found.step_seconds is None and found.hours is None


@pytest.mark.parametrize(
    ("overrides", "bytes_a_weight"),
    [
        ([], 2 * 12 + 2),  # two checkpoints of weights and two fp32 moments, and the model in 16 bit
        (["update.optimizer=adamw_bf16"], 2 * 8 + 2),
        (["checkpoint.keep_last=3"], 4 * 12 + 2),
        (["checkpoint.keep_every=5", "checkpoint.every=5"], 4 * 12 + 2),  # those of steps 5 and 10 stay
    ],
)
def test_disk(overrides, bytes_a_weight):
    """4e6 tokens of text a step: 2 bytes of each of 10 steps, 24 of as many as lie between checkpoints."""
    run = config(*overrides)
    student = shape_of(run.student)
    text = 4e6 * (2 * 10 + 24 * min(10, run.checkpoint.every))
    assert cost(run, student, None).disk_bytes == bytes_a_weight * student.num_parameters + text


@pytest.mark.clause("C092")
@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 10),
        (["steps=null", "data=zppo77k"], 200),  # 76,800 / 384
        (["steps=null", "data.num_questions=960", "data.epochs=2"], 5),
        (["steps=null", "data.pool_size=384", "data.epochs=3"], 3),
    ],
)
def test_steps(overrides, steps):
    run = config(*overrides)
    assert cost(run, shape_of(run.student), None).num_steps == steps


def test_table_9():
    """Table 9, for its own setting: 384 questions a step, 12,288 tokens, 200 steps."""

    def beside(label: str, *overrides: str) -> tuple[float, float] | None:
        run = config("steps=200", *overrides)
        return published(label, run, cost(run, shape_of(run.student), None))

    assert beside("zppo") == (79, 9.8e20)
    assert beside("off_policy_kd", "student=qwen3_5_0_8b") == (85, 4.7e20)
    assert beside("grpo_replay", "student=qwen3_5_9b") == (93, 3.1e21)
    assert beside("hint") is beside("zppo", "rollout.max_response_tokens=4096") is beside("zppo", "steps=100") is None
