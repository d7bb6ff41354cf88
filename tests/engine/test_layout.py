"""Blocks: every element of the covered samples once, labels in dimension 1, the rows last, whatever the sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bce.engine.layout import LANES, ROWS, layout_of

SHAPES = [
    (1000,),
    (65536,),
    (65537, 1),
    (257, 14),
    (2048, 1000),
    (2, 5, 224, 224),
    (64, 3, 7, 7),
    (8, 1, 64, 64),
    (3, 5, 33, 50),
    (16, 1000),
    (100_003, 3),
]


def numbered(shape):
    return torch.arange(math.prod(shape)).reshape(shape)


def check(shape, alike):
    layout = layout_of(shape, alike)
    if layout is None:
        return
    elements = numbered(layout.shape)
    blocks = layout.blocks(elements)
    assert blocks.data_ptr() == elements.data_ptr()  # a view: nothing is copied
    assert torch.equal(blocks.flatten().sort().values, elements[: layout.covered].flatten())
    labels = (elements // layout.shape[2]) % layout.shape[1]
    lanes = layout.blocks(labels).movedim(1, 0).flatten(1)
    if layout.repeats == 1:  # a lane holds one label
        assert (lanes == lanes[:, :1]).all()
    sums = layout.blocks(elements).movedim(1, 0).flatten(1).sum(1)
    assert torch.equal(layout.of_labels(sums), elements[: layout.covered].sum((0, 2)))
    # A group's sum is taken in float32; and a size of 1 would be one more thing to compile.
    assert 2 <= blocks.shape[-1] <= 2 * ROWS
    return layout


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_hold_every_element_once_and_sums_come_back_to_their_labels(shape, alike):
    layout = check(shape, alike)
    assert layout is not None
    # What is left out is small: less than one lane's worth and a row for each group.
    left = layout.shape[0] - layout.covered
    assert left * layout.shape[1] * layout.shape[2] < max(0.05 * math.prod(shape), 2 * LANES)


@settings(deadline=None)  # a time limit would fail on a busy machine
@given(st.integers(1, 3000), st.integers(1, 40), st.sampled_from([(), (1,), (5,), (7, 7), (16, 16)]), st.booleans())
def test_any_shape_is_cut_right_or_not_at_all(samples, labels, positions, alike):
    check((samples, labels, *positions), alike)


def test_what_is_too_small_is_not_cut():
    for shape in ((), (3,), (3, 10), (0, 5), (2, 2, 13, 17)):
        assert layout_of(shape) is None


def test_strides_that_allow_no_view_are_copied():
    elements = numbered((256, 8)).T.contiguous().T[:, ::2].unsqueeze(-1)
    layout = layout_of((256, 4), alike=True)
    blocks = layout.blocks(elements)
    assert torch.equal(blocks, layout.blocks(elements.contiguous()))
