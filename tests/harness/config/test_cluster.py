"""Presets of clusters, and what no cluster could be."""

import pytest

from harness.config.cluster import ClusterConfig
from harness.config.compose import compose
from harness.config.identity import differences, plain
from harness.config.schema import from_hydra
from harness.errors import UserError


def cluster(*overrides: str) -> ClusterConfig:
    return from_hydra(compose(["student=qwen3_5_2b", *overrides])).cluster


def test_the_presets():
    """Table 8: 64 H100-80GB as 8 nodes of 6 student and 2 teacher GPUs; 8 * 6 ranks share 384 questions."""
    assert cluster() == ClusterConfig(name="local", num_nodes=1, student_gpus=1, teacher_gpus=0, gpu="")
    published = cluster("cluster=8x8")
    assert published == ClusterConfig(name="8x8", num_nodes=8, student_gpus=6, teacher_gpus=2, gpu="H100-80GB")
    sizes = {name: cluster(f"cluster={name}").world_size for name in ("local", "one_gpu", "1x8", "8x8")}
    assert sizes == {"local": 1, "one_gpu": 1, "1x8": 6, "8x8": 48}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["cluster=9x9"], "cluster=9x9: no such option. Known: 1x8, 8x8, local, one_gpu"),
        (["cluster.num_nodes=0"], "cluster.num_nodes must be greater than 0, got 0"),
        (["cluster.student_gpus=0"], "cluster.student_gpus must be greater than 0, got 0"),
        (["cluster.collective_timeout=0"], "cluster.collective_timeout must be greater than 0, got 0"),
        (["cluster.teacher_gpus=-1"], "cluster.teacher_gpus must be at least 0, got -1"),
        (["cluster.gpu=H100"], "cluster.gpu=H100 is not known. Did you mean 'H100-80GB'"),
        (
            ["cluster.gpu='H100-80GB, A100-40GB'"],
            "mixes types: all ranks step together and get equal shards, so the smallest and slowest decides; ask for "
            "nodes of one type, or plan with cluster.gpu=A100-40GB",
        ),
        # 50 = 48 + 2: two ranks would have two questions
        (["cluster=8x8", "data.batch_size=50"], "=50 cannot be shared equally by 48 ranks"),
        (["cluster=8x8", "data.batch_size=50"], "set data.batch_size=48 or 96"),
        (["cluster=8x8", "data.batch_size=7"], "set data.batch_size=48"),
    ],
)
def test_what_no_cluster_could_be_is_refused(overrides, message):
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        cluster(*overrides)
    assert message in str(error.value)


def test_a_type_named_twice_is_one_type():
    assert cluster("cluster.gpu=H100-80GB+H100-80GB").world_size == 1


def test_a_run_goes_on_on_another_cluster():
    before, after = (from_hydra(compose(["student=qwen3_5_2b", f"cluster={name}"])) for name in ("8x8", "1x8"))
    assert differences(plain(before), after) is None
