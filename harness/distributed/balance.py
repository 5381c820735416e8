"""Who gets what: samples by their tokens, prompts in blocks. Functions of their arguments alone. Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def balanced(sizes: Sequence[int], num_shares: int) -> list[list[int]]:
    """Indices of the items of each share, ascending, such that the shares' sums are near each other.

    Longest first, each to the share that has least, of equal ones to the first: no share has more than the mean and
    the largest item. A share may be empty.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    sums = [0] * num_shares
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = min(range(num_shares), key=lambda s: (sums[s], len(shares[s]), s))
        shares[least].append(index)
        sums[least] += sizes[index]
    return [sorted(share) for share in shares]


def blocks(num_items: int, num_shares: int) -> list[range]:
    """Consecutive blocks of sizes that differ by at most one, the larger ones first."""
    size, more = divmod(num_items, num_shares)
    starts = [size * i + min(i, more) for i in range(num_shares + 1)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def rows_of(num_rows: int, num_shares: int, share: int) -> range:
    """The rows of a tensor that a rank holds: pieces of equal size, the last ones shorter or empty (`torch.chunk`)."""
    size = -(-num_rows // num_shares)
    return range(min(size * share, num_rows), min(size * (share + 1), num_rows))
