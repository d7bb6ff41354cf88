"""own_rows: the rows that samplers repeat are found, and every row counts once whatever the sizes."""

from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.testing import assert_close
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler, SubsetRandomSampler

from lightning_bce.data.own_rows import first_rows, own_rows

SIZES = [(rows, ranks, size) for rows in range(1, 9) for ranks in (1, 2, 3, 5) for size in (1, 2, 3, 7)]


def a_trainer(loader, ranks, stage="val"):
    loaders = {f"{name}_dataloaders": loader if name == stage else None for name in ("val", "test", "predict")}
    return SimpleNamespace(world_size=ranks, **loaders)


def counted(loader, ranks, stage="val", dataloader_idx=0):
    """Return the rows of a rank that count."""
    one = loader if isinstance(loader, DataLoader) else loader[dataloader_idx]
    trainer, found = a_trainer(loader, ranks, stage), []
    for index, batch in enumerate(one):
        batch = batch.reshape(-1)
        own = own_rows(trainer, stage, index, dataloader_idx, len(batch))
        cut = first_rows(batch, own)
        assert own_rows(trainer, stage, index, dataloader_idx, len(cut)) == own
        assert_close(first_rows(cut, own), cut)
        found += cut.tolist()
    return found


def sampler_of(kind, rows, ranks, rank):
    data, options = range(rows), {"num_replicas": ranks, "rank": rank}
    if kind == "wrapped":
        return DistributedSamplerWrapper(SubsetRandomSampler(data), shuffle=False, **options)
    return DistributedSampler(data, shuffle=kind == "shuffled", **options)


@pytest.mark.parametrize("kind", ["in order", "shuffled", "wrapped"])
def test_over_all_ranks_every_row_counts_once(kind):
    torch.manual_seed(0)
    for rows, ranks, size in SIZES:
        found = []
        for rank in range(ranks):
            # An order that all ranks draw alike, as Lightning sees to.
            with torch.random.fork_rng():
                loader = DataLoader(range(rows), size, sampler=sampler_of(kind, rows, ranks, rank))
                found += counted(loader, ranks)
        assert sorted(found) == list(range(rows)), (rows, ranks, size)


def test_without_batching_every_item_counts_once():
    for rows, ranks in ((1, 2), (3, 2), (4, 2), (7, 3)):
        found = []
        for rank in range(ranks):
            sampler = sampler_of("in order", rows, ranks, rank)
            found += counted(DataLoader(torch.arange(rows), batch_size=None, sampler=sampler), ranks)
        assert sorted(found) == list(range(rows))


def test_a_last_batch_that_is_dropped_takes_the_repeated_row_with_it():
    for size, expected in ((2, [1, 3, 5]), (3, [1, 3, 5]), (4, [1, 3, 5])):  # 7 rows: rank 1 has 1, 3, 5 and 0 again
        loader = DataLoader(range(7), size, sampler=sampler_of("in order", 7, 2, 1), drop_last=True)
        assert counted(loader, 2) == expected[: len(loader) * size]


def test_the_dataloader_of_the_stage_is_looked_at():
    even, uneven = (DataLoader(range(n), 4, sampler=sampler_of("in order", n, 2, 1)) for n in (8, 7))
    for stage in ("val", "test", "predict"):
        assert counted([even, uneven], 2, stage, 1) == [1, 3, 5]
        assert counted([even, uneven], 2, stage, 0) == [1, 3, 5, 7]
        assert counted({"a": uneven, "b": even}["a"], 2, stage) == [1, 3, 5]
    assert own_rows(a_trainer(uneven, 2), "train", 0, 0, 4) is None
    assert own_rows(a_trainer(uneven, 2), "test", 0, 0, 4) is None


class InParts(DistributedSampler):
    """A user's sampler, which gives each rank neighbours."""

    def __iter__(self):
        return iter(range(self.rank * self.num_samples, min((self.rank + 1) * self.num_samples, len(self.dataset))))


class Backwards(BatchSampler):
    """A user's batch sampler, for which the repeated row is not the last."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


@pytest.mark.parametrize(
    "sampler",
    [
        SequentialSampler(range(7)),
        DistributedSampler(range(7), num_replicas=2, rank=1, drop_last=True, shuffle=False),
        InParts(range(7), num_replicas=2, rank=1),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_a_sampler_that_repeats_nothing_is_left_alone(sampler):
    assert counted(DataLoader(range(7), 4, sampler=sampler), 2) == list(sampler)


def test_a_row_that_cannot_be_found_is_warned_of():
    sampler = sampler_of("in order", 7, 2, 1)
    moved = DataLoader(range(7), batch_sampler=Backwards(sampler, 2, False))
    with pytest.warns(UserWarning, match=r"counts twice: .* because Backwards orders the rows by itself\. .*devices=1"):
        assert counted(moved, 2) == [5, 0, 1, 3]
    doubled = DataLoader(range(7), 3, sampler=sampler, collate_fn=lambda rows: torch.tensor(rows + rows))
    with pytest.warns(UserWarning, match=r"drawn from 1 row\(s\) and has 2"):
        assert len(counted(doubled, 2)) == 8


def test_what_holds_for_all_rows_is_not_cut():
    scalar = torch.ones(())
    assert first_rows(None, 3) is None
    assert first_rows(scalar, 0) is scalar
    assert first_rows(torch.ones(1, 3), 0).shape == (0, 3)
