"""Who gets what: every item once, near-equal sums, the rows that torch cuts."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.distributed.balance import balanced, blocks, rows_of

sizes = st.lists(st.integers(1, 12_288), max_size=40)
shares = st.integers(1, 9)


def test_longest_first_to_the_share_with_least():
    """9 to the first, 7 to the second, 5 to the second (7 < 9), 4 to the first (9 < 12), 1 to the second (12 < 13)."""
    assert balanced([4, 9, 1, 7, 5], 2) == [[0, 1], [2, 3, 4]]


def test_there_may_be_fewer_items_than_shares():
    assert balanced([3], 3) == [[0], [], []]
    assert balanced([], 2) == [[], []]


@given(sizes, shares)
def test_every_item_once_and_sums_within_the_largest_item_of_each_other(lengths, num):
    found = balanced(lengths, num)
    assert sorted(i for share in found for i in share) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in share) for share in found]
    assert max(sums) - min(sums) <= max(lengths, default=0)
    assert found == balanced(list(lengths), num)


@given(st.integers(0, 50), shares)
def test_blocks_are_consecutive_and_of_near_equal_size(num_items, num):
    found = blocks(num_items, num)
    assert [i for block in found for i in block] == list(range(num_items))
    lengths = [len(block) for block in found]
    assert len(lengths) == num and max(lengths) - min(lengths) <= 1


@given(st.integers(0, 50), shares)
def test_rows_are_those_of_torch_chunk(num_rows, num):
    """FSDP2 cuts the first dimension with `torch.chunk`; what is left over has no rows."""
    chunks = [chunk.tolist() for chunk in torch.arange(num_rows).chunk(num)] if num_rows else []
    expected = [*chunks, *[[]] * (num - len(chunks))]
    assert [list(rows_of(num_rows, num, share)) for share in range(num)] == expected
