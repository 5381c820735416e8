"""What a launcher says about a rank, and what is refused before ranks are started."""

import pytest

from harness.config.compose import compose
from harness.config.schema import from_hydra
from harness.distributed.rank import Place, check_place, this_place
from harness.errors import UserError
from harness.run.run import run

TORCHRUN = {
    "RANK": "9", "WORLD_SIZE": "12", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "6", "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
}  # fmt: skip


def config(*overrides):
    return from_hydra(compose(["student=tiny_xs", "data.batch_size=48", *overrides]))


def test_a_place_of_torchrun():
    """12 ranks, 6 a node: rank 9 is the fourth of the second node."""
    place = this_place(TORCHRUN)
    assert place == Place(rank=9, world_size=12, local_rank=3, local_world_size=6, address="gpu01", port=29500)
    assert (place.node, place.num_nodes, place.leads_node, place.is_alone_on_machine) == (1, 2, False, False)
    assert place.environment() == TORCHRUN


def test_a_single_process_has_no_place():
    assert this_place({}) is None
    assert this_place({"WORLD_SIZE": "1"}) is None


def test_half_of_the_variables_are_refused():
    with pytest.raises(UserError, match=r"WORLD_SIZE=12 without RANK: start ranks with torchrun"):
        this_place({"WORLD_SIZE": "12"})
    with pytest.raises(UserError, match="12 ranks on nodes of 5"):
        this_place({**TORCHRUN, "LOCAL_WORLD_SIZE": "5"})


def test_the_ranks_have_to_be_those_of_the_cluster():
    place = this_place(TORCHRUN)
    check_place(config("cluster.num_nodes=2", "cluster.student_gpus=6"), place)
    with pytest.raises(UserError, match=r"set cluster.num_nodes=2 cluster.student_gpus=6, or leave torchrun out"):
        check_place(config(), place)
    with pytest.raises(UserError, match=r"cluster=local has 2 ranks: zppo train or torchrun starts them"):
        run(config("cluster.student_gpus=2", "method=grpo"))
