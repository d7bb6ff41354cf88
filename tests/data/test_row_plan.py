"""Laws of the plan of a stream: every row once, over parts, ranks, blocks and batches."""

import numpy as np
import pytest

from lightning_bce.data.row_plan import RowSplit, batch_ranges, batch_sizes, blocks

UNEVEN = [7, 1, 33, 2, 19, 5, 11]


def rows_of(planned):
    return [(piece.group, row) for block in planned for piece in block.pieces for row in range(piece.start, piece.stop)]


ALL = [(group, row) for group, size in enumerate(UNEVEN) for row in range(size)]


@pytest.mark.parametrize("shuffle", [None, (0, 0), (3, 5)])
@pytest.mark.parametrize("rows_in_block", [1, 8, 1000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 9, 78])
def test_every_row_is_read_once_over_all_ranks(ranks, rows_in_block, shuffle):
    plans = [
        blocks(UNEVEN, rows_in_block=rows_in_block, rank=rank, world_size=ranks, shuffle=shuffle)
        for rank in range(ranks)
    ]
    assert sorted(row for plan in plans for row in rows_of(plan)) == ALL
    lengths = [len(rows_of(plan)) for plan in plans]
    assert max(lengths) - min(lengths) <= 1
    for plan, length in zip(plans, lengths, strict=True):
        assert sum(block.rows for block in plan) == length
        assert all(block.rows >= rows_in_block for block in plan[:-1])


def test_order_follows_seed_and_epoch():
    def order(seed, epoch):
        return blocks(UNEVEN, rows_in_block=8, shuffle=(seed, epoch))

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    assert rows_of(blocks(UNEVEN, rows_in_block=8)) == ALL


@pytest.mark.parametrize("batch_size", [2, 3, 4, 64])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_all_ranks_have_as_many_batches_of_at_least_one_row(ranks, batch_size):
    for rows in range(ranks, 41):
        sizes = [batch_sizes(rows, batch_size, rank, ranks) for rank in range(ranks)]
        assert len({len(of_rank) for of_rank in sizes}) == 1
        assert sum(map(sum, sizes)) == rows
        assert all(1 <= size <= batch_size for of_rank in sizes for size in of_rank)
        assert all(size == batch_size for of_rank in sizes for size in of_rank[:-2])


def test_rows_of_batches_are_all_rows_in_order():
    ranges = [of_batch for rank in range(3) for of_batch in batch_ranges(40, 7, rank, 3)]
    assert [row for of_batch in ranges for row in of_batch] == list(range(40))


def test_parts_share_no_row_and_are_all_rows_of_a_group():
    split = RowSplit({"train": 0.65, "val": 0.15, "test": 0.2}, seed=3)
    parts = [split.rows(part, 4, 1000) for part in split.fractions]
    assert sorted(np.concatenate(parts)) == list(range(1000))
    for rows, fraction in zip(parts, split.fractions.values(), strict=True):
        assert abs(len(rows) / 1000 - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / 1000)
    other = RowSplit(split.fractions, seed=4)
    assert split.rows("val", 4, 1000).tolist() != split.rows("val", 5, 1000).tolist()
    assert split.rows("val", 4, 1000).tolist() != other.rows("val", 4, 1000).tolist()


@pytest.mark.parametrize("test", [0.0, 0.3])
def test_a_part_of_no_share_has_no_row_and_no_row_is_lost_to_rounding(test):
    split = RowSplit({"train": 1.0 - 0.1 - test, "val": 0.1, "test": test}, seed=0)
    sizes = {part: sum(len(split.rows(part, group, 997)) for group in range(20)) for part in split.fractions}
    assert sum(sizes.values()) == 20 * 997 and (sizes["test"] == 0) == (test == 0)
