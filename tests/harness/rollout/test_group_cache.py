from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from harness.rollout.group_cache import FIRST_ROOM, GroupCache, Heads

LAYERS = (Heads(6, 2, 8, 0.3), Heads(6, 2, 8, 0.7))


class Plain:
    """Every sequence with all keys and values of its own, by torch's attention."""

    def __init__(self) -> None:
        self.kept: list[list[torch.Tensor]] = []

    def enter(self, prompts: list[torch.Tensor], sizes: list[int]) -> None:
        self.kept += [list(prompt) for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]

    def attend(self, number: int, heads_RKD: torch.Tensor) -> torch.Tensor:
        found = []
        for layers, heads_KD in zip(self.kept, heads_RKD, strict=True):
            q, k, v = heads_KD.split([6, 2, 2])
            layers[number] = torch.cat([layers[number], torch.stack([k, v]).unsqueeze(2)], 2)
            keys, values = layers[number].repeat_interleave(3, 1)
            found.append(F.scaled_dot_product_attention(q[:, None], keys, values, scale=LAYERS[number].scale).flatten())
        return torch.stack(found)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_attention_is_that_of_sequences_with_caches_of_their_own(seed):
    """Groups enter, sequences leave, places are taken again and moved together, rooms grow."""
    generator = torch.Generator().manual_seed(seed)
    cache, plain = GroupCache(LAYERS, 3), Plain()

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    lengths: list[int] = []
    for step in range(FIRST_ROOM + 14):
        if step in (0, 3, 9, 20):
            sizes = torch.randint(1, 4, (2,), generator=generator).tolist()
            prompts = [random(2, 2, 2, int(length), 8) for length in torch.randint(1, 12, (2,), generator=generator)]
            cache.enter(prompts, sizes)
            plain.enter(prompts, sizes)
            lengths += [prompt.shape[3] for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
        assert cache.advance().tolist() == lengths
        lengths = [length + 1 for length in lengths]
        for number in range(2):
            heads_RKD = random(len(lengths), 10, 8)
            found, expected = cache.attend(number, heads_RKD), plain.attend(number, heads_RKD)
            torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        rows = [row for row in range(len(lengths)) if torch.rand((), generator=generator) > 0.08] or [0]
        cache.keep(torch.tensor(rows))
        plain.kept, lengths = [plain.kept[row] for row in rows], [lengths[row] for row in rows]
        assert cache.num_groups <= len(rows)
        if step > 20:
            cache.compact()


def test_places_are_taken_again_and_empty_ones_go():
    cache = GroupCache(LAYERS, 4)
    prompt = torch.zeros(2, 2, 2, 5, 8)
    for _ in range(6):
        cache.enter([prompt] * 3, [4, 1, 2])
        cache.advance()
        assert cache._kept.shape[2] == 3 * 4 and cache.num_groups == 3
        cache.keep(torch.tensor([], dtype=torch.long))
    cache.enter([prompt] * 3, [4, 4, 2])
    cache.keep(torch.tensor([1, 6, 7]))
    cache.compact()
    assert cache._kept.shape[2] == 2 * 2 and cache._prompts.shape[2] == 2
    assert cache.advance().tolist() == [5, 5, 5]
