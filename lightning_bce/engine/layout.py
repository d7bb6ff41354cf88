"""How a batch is cut so that losses by label and the gradient come out of one walk over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# [one pass] A compiler fuses two loops into one only where both walk in the same order. The gradient is walked as it
# lies in memory; sums by label walk down the columns, across memory. Cut into groups of a few rows and with the rows of
# a group as the innermost loop, (groups, labels, rows), both have one order: whole cache lines of labels are read, row
# after row, and the sums stay in registers.
ROWS = 128  # in a group: a float32 sum of that many keeps its digits, and the sums of groups are few
LANES = 64  # neighbours in memory that are walked abreast; a few labels are repeated until there are as many
VECTOR = 16  # float32 numbers in the widest register: lanes come in multiples of it


class Layout(NamedTuple):
    """A cut of (M, C, P) elements into blocks in which one order of loops serves the gradient and the sums.

    Args:
        shape: The elements as (M, C, P).
        covered: How many of the M samples the blocks cover. The others are a rest of less than a block.
        cut: The sizes into which they are cut, in the order of memory.
        order: The order of these in which a kernel walks: labels in dimension 1, the rows last.
        repeats: How many times the C labels stand in dimension 1.
    """

    shape: tuple[int, int, int]
    covered: int
    cut: tuple[int, ...]
    order: tuple[int, ...]
    repeats: int = 1

    def blocks(self, elements: Tensor) -> Tensor:
        """Return (M, C, P) elements, the rest left out, in blocks: a view, or a copy where strides allow none."""
        covered = elements[: self.covered]
        try:
            return covered.view(self.cut).permute(self.order)
        except RuntimeError:
            return covered.contiguous().view(self.cut).permute(self.order)

    def of_labels(self, sums: Tensor) -> Tensor:
        """Return sums of the lanes of dimension 1, (L, ...), as sums of the labels, (C, ...)."""
        return sums.view(self.repeats, -1, *sums.shape[1:]).sum(0) if self.repeats > 1 else sums


def layout_of(shape: Sequence[int], alike: bool = False) -> Layout | None:
    """Return how outputs (N,), (N, C) or (N, C, ...) are cut, or None where they are too few or their sizes do not fit.

    Args:
        shape: That of the outputs.
        alike: Whether the formula is the same for every label, so that labels may be repeated.
    """
    samples, labels = (*shape, 1, 1)[:2]
    positions = math.prod(shape[2:])
    whole = (samples, labels, positions)
    if positions >= LANES:
        lanes = _divisor(positions, range(4 * LANES, VECTOR - 1, -1), VECTOR)
        rows = lanes and _divisor(positions // lanes, range(2 * ROWS, 3, -1), 1)
        if lanes and rows:
            cut = (samples, labels, positions // lanes // rows, rows, lanes)
            return Layout(whole, samples, cut, (0, 1, 2, 4, 3))
    if labels == 1:  # every position is one more sample
        samples, positions = samples * positions, 1
        whole = (samples, labels, positions)
    lanes = 1
    if labels == 1:
        lanes = LANES
    elif positions == 1 and alike and labels < 4 * LANES:
        lanes = VECTOR // math.gcd(labels, VECTOR)
        lanes *= math.ceil(LANES / (labels * lanes))
    available = samples // lanes
    if available < 4:  # not two groups of two rows
        return None
    # The number of rows that leaves the smallest rest.
    most = min(ROWS, available // 2)
    candidates = range(most, max(most // 2, 2) - 1, -1)
    rows = min(candidates, key=lambda r: available % r)
    groups = available // rows
    covered = groups * rows * lanes
    if positions > 1:
        return Layout(whole, covered, (groups, rows, labels, positions), (0, 2, 3, 1))
    if labels == 1:
        return Layout(whole, covered, (groups, rows, 1, lanes), (0, 2, 3, 1))
    return Layout(whole, covered, (groups, rows, lanes * labels), (0, 2, 1), repeats=lanes)


def _divisor(number: int, candidates: range, multiple: int) -> int:
    """Return the first of the candidates that divides, one that is a ``multiple`` before any other; 0 for none."""
    fitting = [c for c in candidates if number % c == 0]
    return next((c for c in fitting if c % multiple == 0), fitting[0] if fitting else 0)
