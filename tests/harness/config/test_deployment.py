"""Who samples, who scores, who serves and where, and what is refused; what a run builds is in tests/runs."""

from dataclasses import replace
from functools import cache
from typing import cast

import pytest
from omegaconf import DictConfig, OmegaConf

from harness.config.compose import compose
from harness.config.deployment import TeacherPlace, build_method, check_devices, deployed, gpu_problems
from harness.config.schema import RunConfig, from_hydra
from harness.errors import UserError
from harness.preflight.placement import place_texts

GROUPS = ("method", "rollout", "cluster", "data", "recipe")
URLS = "teacher.urls=[http://127.0.0.1:1/v1,http://127.0.0.1:2/v1]"
SERVE = "teacher.serve=true"
COPY = "server.score=false"
VLLM = "rollout=vllm"
PROCESS = "teacher_process=true"
OWN = "cluster.teacher_gpus=2"
RANKS = "cluster.student_gpus=6"


@cache
def composed(*groups: str) -> DictConfig:
    found = compose(["student=tiny_xs", "data.batch_size=48", *groups])
    OmegaConf.set_struct(found, False)
    return found


def config(*overrides: str) -> RunConfig:
    """Groups are composed once; what is set in them is merged, as Hydra does."""
    groups = [word for word in overrides if "." not in word.partition("=")[0] and word.partition("=")[0] in GROUPS]
    rest = OmegaConf.from_dotlist([word for word in overrides if word not in groups])
    return from_hydra(cast(DictConfig, OmegaConf.merge(composed(*groups), rest)))


def teacher(*overrides) -> TeacherPlace:
    place = deployed(config(*overrides)).teacher
    assert place is not None
    return place


@pytest.mark.parametrize(
    ("overrides", "samples", "scores", "serves", "asks", "loads"),
    [
        (["method=zppo"], "transformers", None, False, False, True),
        (["method=zppo", VLLM], "vllm", None, False, False, False),
        (["method=zppo", VLLM, SERVE], "server", None, True, True, False),
        (["method=zppo", URLS], "server", None, False, True, False),
        (["method=zppo", URLS, COPY], "server", None, False, True, False),
        (["method=zppo", PROCESS], "transformers", None, False, False, True),  # no distribution, no process
        (["method=on_policy_kd"], "transformers", "local", False, False, True),
        (["method=on_policy_kd", VLLM], "transformers", "local", False, False, True),
        (["method=on_policy_kd", PROCESS], None, "process", False, False, False),
        (["method=on_policy_kd", URLS], "server", "server", False, True, False),
        (["method=on_policy_kd", SERVE], "server", "server", True, True, False),
        (["method=on_policy_kd", SERVE, COPY], "transformers", "local", False, False, True),  # nobody would ask it
        (["method=on_policy_kd", URLS, COPY, PROCESS], None, "process", False, False, False),
        (["method=off_policy_kd"], "transformers", "local", False, False, True),
        (["method=off_policy_kd", PROCESS], "transformers", "process", False, False, True),
        (["method=off_policy_kd", VLLM], "vllm", "local", False, False, True),
        (["method=off_policy_kd", VLLM, PROCESS], "vllm", "process", False, False, False),
        (["method=off_policy_kd", SERVE, COPY], "server", "local", True, True, True),
        (["method=off_policy_kd", URLS, COPY, PROCESS], "server", "process", False, True, False),
    ],
)
def test_who_samples_and_who_scores(overrides, samples, scores, serves, asks, loads):
    place = teacher(*overrides)
    assert (place.samples, place.scores) == (samples, scores)
    assert (place.serves, place.asks, place.loads) == (serves, asks, loads)
    assert place.num_urls == (2 if asks and not serves else 0)


def test_a_method_without_a_teacher_has_none():
    for overrides in (["method=grpo", SERVE], ["method=base", URLS], ["method=base", "teacher=null"]):
        found = deployed(config(*overrides))
        assert found.teacher is None and (found.sampling_gpus, found.scoring_gpus) == (0, 0)
    with pytest.raises(UserError, match=r"^method=zppo needs a teacher: set teacher=tiny_teacher, or"):
        build_method(config("teacher=null"))


@pytest.mark.parametrize(
    ("overrides", "engine", "serves", "is_trained", "device", "in_vllm"),
    [
        (["method=grpo"], "transformers", False, True, "auto", False),
        (["method=grpo", VLLM, "device=cuda:0"], "vllm", False, True, "cuda:0", True),
        (["method=base"], "transformers", False, False, "auto", False),
        (["method=base", "rollout=server", "student.serve=true"], "server", True, False, None, True),
        (["method=base", "rollout=server", "student.urls=[http://a/v1]"], "server", False, False, None, False),
    ],
)
def test_where_the_student_is(overrides, engine, serves, is_trained, device, in_vllm):
    student = deployed(config(*overrides)).student
    assert (student.engine, student.serves, student.is_trained) == (engine, serves, is_trained)
    assert (student.device, student.in_vllm) == (device, in_vllm)


@pytest.mark.parametrize(
    ("overrides", "devices", "beside", "own_gpus"),
    [
        ([], ("auto",), True, ()),
        (["device=cuda:1"], ("cuda:1",), True, ()),
        (["teacher_device=cuda"], ("cuda",), True, ()),
        (["teacher_device=cuda:0"], ("cuda:0",), True, ()),
        (["teacher_device=cuda:1"], ("cuda:1",), False, ()),
        (["teacher_device=cuda", "device=cuda:1"], ("cuda",), False, ()),
        (["teacher_device=cpu"], ("cpu",), False, ()),
        (["device=cpu"], ("cpu",), True, ()),
        (["device=cpu", "teacher_device=cuda"], ("cuda",), False, ()),
        (["device=cpu", OWN], ("cpu",), True, ()),  # no GPU is meant, whatever the cluster is
        ([OWN], ("cuda:1", "cuda:2"), False, (1, 2)),
        ([OWN, "teacher_device=cuda:1"], ("cuda:1",), False, ()),
        ([OWN, "teacher_device=cuda"], ("cuda",), True, ()),
        ([OWN, RANKS], ("cuda:6", "cuda:7"), False, (6, 7)),
        ([OWN, RANKS, PROCESS], ("cuda:6", "cuda:7"), False, (6, 7)),
        ([OWN, RANKS, "teacher_device=cuda"], ("cuda",), True, ()),
        ([OWN, URLS], (), False, ()),
        ([OWN, SERVE], (), False, (1, 2)),
    ],
)
def test_devices_of_a_teacher_that_scores(overrides, devices, beside, own_gpus):
    place = teacher("method=on_policy_kd", *overrides)
    assert (place.devices, place.beside, place.own_gpus) == (devices, beside, own_gpus)


def test_an_engine_takes_the_teachers_gpus_and_a_copy_is_where_it_is_put():
    place = teacher("method=off_policy_kd", VLLM, OWN, RANKS, "teacher_device=cuda")
    assert place.own_gpus == (6, 7) and place.devices == ("cuda",) and place.beside
    assert teacher("method=zppo", VLLM, OWN, RANKS, "teacher_device=cuda").devices == ()


def test_an_engine_of_others_stands_where_vllm_would():
    """Its weights are its own; nothing says that it is a vLLM."""
    own = "rollout.engine=my_package:open_engine"
    for asked in (["method=zppo"], ["method=off_policy_kd", "server.score=false"]):
        theirs = deployed(config(*asked, own, OWN, RANKS))
        vllms = deployed(config(*asked, VLLM, OWN, RANKS))
        assert theirs.student.engine == "my_package:open_engine" and not theirs.student.in_vllm
        assert theirs.teacher is not None and vllms.teacher is not None
        assert not theirs.teacher.in_vllm and theirs.teacher.takes_gpus == vllms.teacher.takes_gpus
        assert (theirs.sampling_gpus, theirs.num_gpus) == (vllms.sampling_gpus, vllms.num_gpus)
        assert replace(theirs.teacher, samples=vllms.teacher.samples) == vllms.teacher
    assert place_texts(teacher("method=zppo", own, OWN))[0] == "my_package:open_engine on GPUs 1, 2 of each node"
    with pytest.raises(UserError, match="a teacher in an engine needs GPUs of its own where there are several ranks"):
        deployed(config("method=zppo", own, RANKS, "cluster.gpu=H100-80GB"))


def test_the_part_of_each_rank():
    """Local ranks take the teacher's GPUs in turn; only the first one of a node starts a server or an engine."""
    place = teacher("method=off_policy_kd", OWN, RANKS)
    assert [place.device(rank) for rank in range(4)] == ["cuda:6", "cuda:7", "cuda:6", "cuda:7"]
    assert place.at(5) == place and place.samples_everywhere
    served = teacher("method=off_policy_kd", SERVE, OWN, RANKS)
    assert served.at(0) is served and served.is_everywhere and not served.samples_everywhere
    assert (served.at(1).samples, served.at(1).scores, served.at(1).serves) == (None, "server", False)
    engine = teacher("method=off_policy_kd", VLLM, OWN, RANKS)
    assert (engine.at(1).samples, engine.at(1).scores, engine.at(1).loads) == (None, "local", True)
    assert not teacher("method=zppo", RANKS).is_everywhere


@pytest.mark.parametrize(
    ("overrides", "sampling", "scoring", "is_aside"),
    [
        (["method=zppo"], 1, 0, False),
        (["method=zppo", OWN], 1, 0, True),
        (["method=zppo", RANKS, OWN], 1, 0, True),  # one copy, at the first rank
        (["method=zppo", VLLM, RANKS, OWN], 2, 0, True),
        (["method=zppo", SERVE, RANKS, OWN, "cluster.num_nodes=8"], 16, 0, True),
        (["method=zppo", SERVE, RANKS], 1, 0, False),
        (["method=zppo", URLS, RANKS, OWN], 2, 0, True),
        (["method=off_policy_kd", RANKS, "cluster.num_nodes=2"], 12, 12, False),
        (["method=off_policy_kd", RANKS, OWN, "cluster.num_nodes=2"], 4, 4, True),
        (["method=off_policy_kd", VLLM, RANKS, OWN, "teacher_device=cuda"], 2, 6, True),
        (["method=off_policy_kd", URLS, RANKS, OWN], 2, 2, True),
        (["method=off_policy_kd", "teacher_device=cuda:1"], 1, 1, True),
        (["method=on_policy_kd", PROCESS], 0, 1, False),
    ],
)
def test_gpus_that_sample_and_that_score(overrides, sampling, scoring, is_aside):
    found = deployed(config(*overrides))
    assert (found.sampling_gpus, found.scoring_gpus) == (sampling, scoring)
    assert found.teacher is not None and found.teacher.is_aside == is_aside


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        (["device=cpu"], 0),
        ([], 1),
        (["device=cuda"], 1),
        (["device=cuda:0", "teacher_device=cuda:1"], 2),
        (["device=cuda:3"], 4),
        (["device=cpu", "teacher_device=cuda"], 1),
        (["device=cuda:0", "teacher_device=cuda:1", "method=grpo"], 1),  # nothing is put there
        (["cluster=1x8", VLLM], 8),
        (["cluster=8x8", "method=grpo", "data.batch_size=384"], 8),
        (["device=cpu", "cluster=1x8"], 0),
        (["method=base", "rollout=server", "student.urls=[http://a/v1]"], 0),
        (["method=base", "rollout=server", "student.serve=true"], 1),
    ],
)
def test_gpus_of_a_run(overrides, number):
    assert deployed(config(*overrides)).num_gpus == number


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["update.optimizer=adamw_8bit"], "set update.optimizer=adamw_bf16"),
        (["device=cuda:1"], "device=cuda:1 is one GPU for several ranks: set device=cuda"),
        (["teacher_device=cuda:1"], "teacher_device=cuda:1 is one GPU for several ranks: set teacher_device=cuda"),
        ([VLLM, "device=cuda"], "set cluster.teacher_gpus"),
        ([VLLM, "cluster.gpu=H100-80GB"], "set cluster.teacher_gpus"),
        (["method=base", "rollout=server", "student.urls=[http://127.0.0.1:1/v1]"], "set cluster=local"),
    ],
)
def test_what_several_ranks_cannot_do(overrides, message):
    build_method(config(*overrides))
    with pytest.raises(UserError) as error:
        build_method(config(*overrides, "cluster.student_gpus=2"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_vllm_in_one_process_is_on_the_first_gpu():
    """It takes that one, whatever the trainer's is."""
    with pytest.raises(
        UserError, match=r"^device=cuda:1 and vLLM in one process .* set CUDA_VISIBLE_DEVICES=1 and dev"
    ):
        build_method(config(VLLM, "device=cuda:1", "method=grpo"))
    build_method(config(VLLM, "device=cuda:0", "method=grpo"))
    build_method(config("device=cuda:1", "method=grpo"))


@pytest.mark.parametrize("more", ["method=grpo", "device=cpu", "cluster.teacher_gpus=1", SERVE])
def test_several_ranks_may_have_a_teacher_on_vllm_that_shares_no_gpu_with_them(more):
    build_method(config(VLLM, "cluster.gpu=H100-80GB", "cluster.student_gpus=2", more))


def test_an_endpoint_scores_what_is_compared_at_1_however_boldly_the_models_sample(monkeypatch):
    """A divergence of the models' own distributions is; one at the temperature of sampling is refused."""
    served = config("method=on_policy_kd", URLS, "rollout.temperature=0.5")
    assert deployed(served).scoring_gpus == 2
    monkeypatch.setattr(type(build_method(served)), "logit_temperature", lambda self, sampling: sampling)
    with pytest.raises(UserError, match=r"compares distributions at rollout.temperature=0.5, and an endpoint scores"):
        deployed(served)


def test_a_student_keeps_off_the_teachers_gpus():
    with pytest.raises(UserError, match=r"^device=cuda:1 is a GPU of the teacher's .*: set device=cuda:0, or"):
        build_method(config("device=cuda:1", "cluster.teacher_gpus=1"))
    build_method(config("device=cuda:1", "cluster.teacher_gpus=1", "method=grpo"))
    build_method(config("device=cuda:2", "cluster.teacher_gpus=1"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster=1x8"], "cluster=1x8 names GPUs and this machine has none (zppo doctor says why): set cluster=local"),
        (["cluster=one_gpu"], "or device=cpu where a CPU is meant"),
        (["cluster.student_gpus=2"], "cluster=local names GPUs"),
        (["cluster.teacher_gpus=1"], "cluster=local names GPUs"),
        (["device=cuda"], "device=cuda and this machine has no GPU: set device=cpu"),
        (["device=cpu", "teacher_device=cuda:1"], "teacher_device=cuda:1 and this machine has no GPU"),
    ],
)
def test_gpus_that_are_named_have_to_be_there(overrides, message, monkeypatch):
    chosen = config(*overrides)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    check_devices(chosen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError) as error:
        check_devices(chosen)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster.teacher_gpus=1"], "cluster=local needs 2 GPUs a node (1 for the student, 1 for the teacher) and"),
        (
            ["device=cuda:0", "teacher_device=cuda:1"],
            "teacher_device=cuda:1, and GPUs are cuda:0 to cuda:0 here: set teacher_device",
        ),
    ],
)
def test_a_gpu_that_is_missing_is_not_replaced_by_the_students(overrides, message, monkeypatch):
    """One process, in which a teacher's own GPU would else be the student's."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    check_devices(config(*overrides))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(UserError) as error:
        check_devices(config(*overrides))
    assert message in str(error.value)
    check_devices(config(*overrides, "method=grpo", "cluster.teacher_gpus=0"))


def test_what_a_plan_cannot_know_is_refused_where_the_gpus_are():
    """Nothing says whether these ranks have GPUs."""
    chosen = config(VLLM, "cluster.student_gpus=2")
    found = deployed(chosen)
    assert list(gpu_problems(chosen, found, 2)) == [
        "a teacher in an engine needs GPUs of its own where there are several ranks: set cluster.teacher_gpus"
    ]
    (problem,) = gpu_problems(chosen, found, 1, where="node 3")
    assert problem.startswith("cluster=local needs 2 GPUs a node (2 for the student, 0 for the teacher) and node 3 sh")


@pytest.mark.parametrize("overrides", [[], ["device=cpu", "cluster=1x8"], ["device=cpu", "cluster.student_gpus=2"]])
def test_a_cpu_that_is_meant_is_taken(overrides, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_devices(config(*overrides))


@pytest.mark.parametrize("source", ["jsonl", "parquet", "hub"])
def test_a_recipe_cuts_no_data_of_a_user(source):
    assert config().data.pool_size == 240  # of the recipe of tiny students
    chosen = config(f"data={source}", "data.path=mine").data
    assert (chosen.pool_size, chosen.epochs) == (None, 15)
    assert config(f"data={source}", "data.path=mine", "data.pool_size=7").data.pool_size == 7
    assert config(f"data={source}", "data.path=mine", "recipe=tiny").data.pool_size is None
