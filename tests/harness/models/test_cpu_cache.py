"""The sampling cache against transformers' own, through any order of new tokens and reordered rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from harness.config.schema import ModelConfig
from harness.models.cpu import ROOM, GrowingLayer, sampling_cache
from harness.models.loading import load_model


@settings(max_examples=25, deadline=None)
@given(
    moves=st.lists(st.one_of(st.integers(1, 80), st.lists(st.integers(0, 2), min_size=1, max_size=4)), max_size=12),
    seed=st.integers(0, 9),
)
def test_it_holds_what_a_dynamic_layer_holds(moves, seed):
    """A number appends as many tokens, a list takes those rows (of however many there are)."""
    rng = torch.Generator().manual_seed(seed)
    ours, theirs, num_rows = GrowingLayer(), DynamicLayer(), 3
    for move in [5, *moves]:
        if isinstance(move, list):
            rows = torch.tensor([row % num_rows for row in move])
            num_rows = len(rows)
            ours.reorder_cache(rows)
            theirs.reorder_cache(rows)
        else:
            keys, values = torch.randn(2, num_rows, 2, move, 4, generator=rng)
            returned = ours.update(keys, values)
            assert all(map(torch.equal, returned, theirs.update(keys, values)))
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_a_token_moves_no_other():
    layer = GrowingLayer()
    layer.update(*torch.randn(2, 1, 1, 3, 2))
    where = layer.keys.data_ptr()
    for _ in range(ROOM):
        layer.update(*torch.randn(2, 1, 1, 1, 2))
    assert layer.keys.data_ptr() == where and layer.keys.shape[-2] == 3 + ROOM
    layer.update(*torch.randn(2, 1, 1, 1, 2))  # full: twice the size, elsewhere
    assert layer.keys.data_ptr() != where and layer.key_buffer.shape[-2] == 2 * (3 + ROOM) + 1


def test_attention_layers_of_a_model_grow():
    cache = sampling_cache(load_model(ModelConfig(name="xs", path="tiny:xs", dtype="float32"), "cpu").config)
    assert cache.layers and all(type(layer) is GrowingLayer for layer in cache.layers)
