"""Which rows come when: parts, order, ranks and batches, from the seed, the epoch and the sizes of row groups alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from lightning_bce.data.splits import Rows

# [streams] One seed, several uses that must not be correlated: the second number of an entropy says which.
_SPLIT, _ORDER, _SHUFFLE = 0, 1, 2


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of a part's rows in a row group."""

    group: int
    start: int
    stop: int


class Block(NamedTuple):
    """Row groups that are in memory together; with an entropy their rows are shuffled together."""

    pieces: tuple[Piece, ...]
    entropy: tuple[int, ...] | None

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(frozen=True)
class RowSplit:
    """Deals rows to parts, each row on its own, so that a part has rows of every row group.

    A folder is often sorted, by time or by label; whole row groups would make parts that differ. In return a part of
    15 per cent is read at the cost of reading everything.

    Args:
        fractions: Share of the rows for each part, with the sum 1.
        seed: Decides which rows go where, together with the number of the row group.

    Example:
        >>> split = RowSplit({"train": 0.5, "val": 0.5}, seed=0)
        >>> sorted([*split.rows("train", 0, 5), *split.rows("val", 0, 5)]) == [0, 1, 2, 3, 4]
        True
    """

    fractions: Mapping[str, float]
    seed: int

    def rows(self, part: str, group: int, count: int) -> Rows:
        """Return the part's rows among the ``count`` rows of a row group, in ascending order."""
        if self.fractions[part] >= 1:
            return np.arange(count)
        drawn = np.random.default_rng([self.seed, _SPLIT, group]).random(count)
        names = list(self.fractions)
        above = sum(self.fractions[name] for name in names[: names.index(part)])
        # The last part ends at 1 whatever the sum rounds to, and an empty one must not get what rounding leaves.
        last = not any(self.fractions[name] for name in names[names.index(part) + 1 :])
        below = 1.0 if last and self.fractions[part] else above + self.fractions[part]
        return np.flatnonzero((drawn >= above) & (drawn < below))


def blocks(
    sizes: Sequence[int],
    *,
    rows_in_block: int,
    rank: int = 0,
    world_size: int = 1,
    shuffle: tuple[int, int] | None = None,
) -> list[Block]:
    """Return what a rank reads in an epoch.

    The row groups, in the order of the epoch, are one long list of rows, of which each rank takes an equal stretch, to
    within one row. Where a stretch begins within a row group, both neighbours read that row group and each takes its
    own rows. Workers take the blocks in turn, so that the order of the rows does not depend on how many there are.

    Args:
        sizes: The part's rows in each row group.
        rows_in_block: A block ends with the row group that reaches this.
        rank: Number of this rank.
        world_size: Number of ranks.
        shuffle: Seed and epoch, or None for the order of the files.

    Example:
        >>> [block.pieces for block in blocks([3, 2], rows_in_block=1, rank=0, world_size=2)]
        [(Piece(group=0, start=0, stop=2),)]
        >>> [block.pieces for block in blocks([3, 2], rows_in_block=9, rank=1, world_size=2)]
        [(Piece(group=0, start=2, stop=3), Piece(group=1, start=0, stop=2))]
    """
    order: Iterable[int] = range(len(sizes))
    if shuffle is not None:
        order = np.random.default_rng([shuffle[0], _ORDER, shuffle[1]]).permutation(len(sizes)).tolist()
    begin, end = stretch(sum(sizes), rank, world_size)
    found: list[Block] = []
    pieces: list[Piece] = []
    before = 0
    for group in order:
        start, stop = max(begin - before, 0), min(end - before, sizes[group])
        before += sizes[group]
        if start < stop:
            pieces.append(Piece(group, start, stop))
        if pieces and (sum(piece.stop - piece.start for piece in pieces) >= rows_in_block or before >= end):
            entropy = None if shuffle is None else (shuffle[0], _SHUFFLE, shuffle[1], rank, len(found))
            found.append(Block(tuple(pieces), entropy))
            pieces = []
    return found


def without_first(planned: list[Block], rows: int) -> tuple[list[Block], int]:
    """Return the blocks without those that lie in the first ``rows`` rows, and how many of these rows are left.

    Example:
        >>> left, rows = without_first(blocks([3, 2, 2], rows_in_block=1), 4)
        >>> [block.rows for block in left], rows
        ([2, 2], 1)
    """
    first = 0
    while first < len(planned) and rows >= planned[first].rows:
        rows -= planned[first].rows
        first += 1
    return planned[first:], rows


def stretch(rows: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return where a rank's rows begin and end: all ranks have equally many, to within one.

    Example:
        >>> [stretch(7, rank, 2) for rank in (0, 1)]
        [(0, 3), (3, 7)]
    """
    return rows * rank // world_size, rows * (rank + 1) // world_size


def batch_sizes(rows: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[int]:
    """Return the sizes of a rank's batches: as many batches on every rank, and every row in one.

    Batches are full but for the last. Where another rank has a batch more, because its stretch is one row longer, the
    last full batch of this rank gives one row to a batch of its own. Only with batches of one row that cannot be.

    Args:
        rows: Rows of all ranks.
        batch_size: Rows in a full batch.
        rank: Number of this rank.
        world_size: Number of ranks.

    Example:
        >>> batch_sizes(9, 4, rank=0, world_size=2), batch_sizes(9, 4, rank=1, world_size=2)
        ([3, 1], [4, 1])
    """
    begin, end = stretch(rows, rank, world_size)
    most = -(-rows // world_size)
    batches = min(-(-most // batch_size), end - begin)
    ends = [min((i + 1) * batch_size, end - begin - (batches - 1 - i)) for i in range(batches)]
    return [stop - start for start, stop in pairwise([0, *ends])]


def batch_ranges(rows: int, batch_size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """Return the rows of each batch of a rank, numbered over the part, where they come in order.

    Example:
        >>> batch_ranges(9, 4, rank=1, world_size=2)
        [range(4, 8), range(8, 9)]
    """
    ends = list(accumulate(batch_sizes(rows, batch_size, rank, world_size), initial=stretch(rows, rank, world_size)[0]))
    return [range(start, stop) for start, stop in pairwise(ends)]
