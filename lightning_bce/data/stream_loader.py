"""Batches out of row groups: blocks are read by workers, shuffled inside, and cut into batches as they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_bce.data.labels import Value, parse_labels, refuse_unknown
from lightning_bce.data.preprocessing import TablePreprocessor
from lightning_bce.data.roles import ids, weights
from lightning_bce.data.row_groups import ParquetSource
from lightning_bce.data.row_plan import Block, RowSplit, batch_ranges, batch_sizes, blocks, without_first
from lightning_bce.data.tensors import Batch


@dataclass
class BlockReader(Dataset[Batch]):
    """Reads blocks of a part and makes columns of batches of them. It travels to workers.

    Args:
        source: The row groups.
        part: The part whose rows are read.
        split: Which rows are the part's.
        preprocessor: Makes the features.
        targets: The label columns; empty for rows without labels.
        positive: The positive values, see :func:`parse_labels`.
        label_words: The words that labels may say, with ``positive``.
        missing_targets: ``"error"`` or ``"ignore"``.
        weight_column: The column of weights, or None.
        id_column: The column of names, or None for row numbers over all files.
        features: The columns that features are made of.
    """

    source: ParquetSource
    part: str
    split: RowSplit
    preprocessor: TablePreprocessor
    targets: list[str]
    positive: Value | list[Value] | None
    label_words: list[str]
    missing_targets: Literal["error", "ignore"]
    weight_column: str | None
    id_column: str | None
    features: list[str]

    def __post_init__(self) -> None:
        """Choose the columns to read."""
        others = [self.weight_column if self.targets else None, self.id_column]
        self.columns = [*self.features, *self.targets, *(name for name in others if name is not None)]

    def sizes(self) -> list[int]:
        """Return the part's rows in each row group, which needs no reading."""
        return [len(self.split.rows(self.part, number, group.rows)) for number, group in enumerate(self.source.groups)]

    def __getitem__(self, block: Block) -> Batch:
        """Return the rows of a block, one row group after the other in memory."""
        # Each row group is written to its rows' places, so that the block is not copied once more to shuffle it.
        places = (
            np.arange(block.rows)
            if block.entropy is None
            else np.random.default_rng(list(block.entropy)).permutation(block.rows)
        )
        columns: dict[str, Any] = {}
        done = 0
        for number, start, stop in block.pieces:
            where = torch.from_numpy(places[done : done + stop - start])
            for name, values in self._piece(number, start, stop).items():
                if isinstance(values, Tensor):
                    if name not in columns:
                        columns[name] = values.new_empty((block.rows, *values.shape[1:]))
                    columns[name][where] = values
                else:
                    names = columns.setdefault(name, [""] * block.rows)
                    for place, value in zip(where.tolist(), values, strict=True):
                        names[place] = value
            done += stop - start
        return columns

    def _piece(self, number: int, start: int, stop: int) -> Batch:
        group = self.source.groups[number]
        rows = self.split.rows(self.part, number, group.rows)[start:stop]
        table = self.source.read(number, self.columns)
        if len(rows) < group.rows:
            table = table[rows]
        try:
            batch: Batch = {"inputs": self.preprocessor.transform(table.select(self.features), rows.tolist())}
            if self.targets:
                target, _ = parse_labels(
                    table,
                    self.targets,
                    positive=self.positive,
                    missing_values=self.preprocessor.missing_values,
                    known=self.label_words,
                )
                if self.missing_targets == "error":
                    refuse_unknown(target, self.targets, rows)
                batch["target"] = torch.from_numpy(target)
                if self.weight_column is not None:
                    batch["weight"] = weights(table[self.weight_column], rows)
            batch["id"] = (
                torch.from_numpy(rows + group.start) if self.id_column is None else ids(table[self.id_column], rows)
            )
        except ValueError as error:
            raise ValueError(f"{group}: {error}") from error
        return batch


class BlockOrder(Sampler[Block]):
    """The blocks of an epoch, for the workers to take in turn.

    Lightning calls ``set_epoch`` before each epoch; in a plain loop :class:`StreamLoader` counts. The epoch travels
    with each block, so that it reaches workers that live through several.

    Args:
        sizes: The part's rows in each row group.
        rows_in_block: See :func:`blocks`.
        rank: Number of this rank.
        world_size: Number of ranks.
        seed: Shuffles; None keeps the order of the files.
    """

    def __init__(self, sizes: list[int], *, rows_in_block: int, rank: int, world_size: int, seed: int | None) -> None:
        self.sizes, self.rows_in_block = sizes, rows_in_block
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.epoch = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def plan(self) -> tuple[list[Block], int]:
        """Return the blocks of this rank, without those of the ``skip`` first rows, and how many of these remain."""
        shuffle = None if self.seed is None else (self.seed, self.epoch)
        planned = blocks(
            self.sizes,
            rows_in_block=self.rows_in_block,
            rank=self.rank,
            world_size=self.world_size,
            shuffle=shuffle,
        )
        return without_first(planned, self.skip)

    def __iter__(self) -> Iterator[Block]:
        """Return the blocks of this rank."""
        return iter(self.plan()[0])


class StreamLoader:
    """Hands out the batches of a part; its length is the number of this rank's batches, as in :func:`batch_sizes`.

    In memory are the block that is cut, one that waits for each worker, and one that each worker makes. Workers are
    spawned: polars' threads do not survive a fork. A script that uses them needs ``if __name__ == "__main__":``.

    Args:
        reader: Reads the blocks.
        batch_size: Rows in a batch.
        num_workers: Processes that read. 0 reads in this process.
        rows_in_block: Rows that are shuffled together, to the end of the row group that reaches it.
        rank: Number of this rank.
        world_size: Number of ranks.
        seed: Shuffles; None keeps the order of the files.
    """

    def __init__(
        self,
        reader: BlockReader,
        *,
        batch_size: int,
        num_workers: int = 0,
        rows_in_block: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
    ) -> None:
        sizes = reader.sizes()
        self.order = BlockOrder(sizes, rows_in_block=rows_in_block, rank=rank, world_size=world_size, seed=seed)
        self._epoch = self._done = 0
        self._resumed: tuple[int, int] | None = None
        self.batch_sizes = batch_sizes(sum(sizes), batch_size, rank, world_size)
        # What Lightning asks for: the sampler to tell the epoch to, and in prediction the rows of each batch.
        self.batch_sampler = _IndexBatchSamplerWrapper(self.order)  # type: ignore[arg-type]  # its length is not asked for
        self.batch_sampler.sampler = self.order  # type: ignore[attr-defined]
        self.batch_sampler.seen_batch_indices = (
            batch_ranges(sum(sizes), batch_size, rank, world_size) if seed is None else []  # type: ignore[assignment]
        )
        self._blocks = DataLoader(
            reader,
            batch_size=None,
            sampler=self.order,
            num_workers=num_workers,
            prefetch_factor=1 if num_workers else None,
            multiprocessing_context="spawn" if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Without a generator of its own, each pass over a loader draws a number from the global random state.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return len(self.batch_sizes)

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were handed out; Lightning puts it into checkpoints."""
        return {"epoch": self._epoch, "done": self._done % max(len(self), 1), "batches": len(self)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where another loader was: if the next pass is of the same epoch, it begins behind what was handed out.

        Of another epoch it is where Lightning was done with that epoch, as under ``limit_train_batches``.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If an epoch had another number of batches.
        """
        if state_dict["done"] and state_dict["batches"] != len(self):
            raise ValueError(
                f"The checkpoint was made after {state_dict['done']} of {state_dict['batches']} batches of an epoch, "
                f"and an epoch now has {len(self)}: resume with the same files, `batch_size` and number of devices, "
                "or from a checkpoint of the end of an epoch."
            )
        self._resumed = state_dict["epoch"], state_dict["done"]

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        resumed, self._resumed, self._epoch = self._resumed, None, self.order.epoch
        skipped = resumed[1] if resumed is not None and resumed[0] == self._epoch else 0
        self._done = skipped
        self.order.skip = sum(self.batch_sizes[:skipped])
        wanted = iter(self.batch_sizes[skipped:])
        size = next(wanted, 0)
        rest: Batch = {}
        arriving, unwanted = iter(self._blocks), self.order.plan()[1]
        # Not by the sampler: a loader with workers asks it twice in its first pass.
        self.order.epoch += 1
        for block in arriving:
            start, rows = unwanted, _rows(block)
            unwanted = 0
            while rows - start >= size - _rows(rest) and size:
                stop = start + size - _rows(rest)
                self._done += 1
                yield _joined(rest, _cut(block, start, stop))
                start, rest, size = stop, {}, next(wanted, 0)
            if start < rows:
                # A copy: a view would keep the whole block.
                rest = _joined(rest, _cut(block, start, rows), copy=True)


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values()))) if batch else 0


def _cut(block: Batch, start: int, stop: int) -> Batch:
    return {name: column[start:stop] for name, column in block.items()}


def _joined(first: Batch, second: Batch, copy: bool = False) -> Batch:
    if first:
        return {
            name: torch.cat([first[name], column]) if isinstance(column, Tensor) else first[name] + column
            for name, column in second.items()
        }
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in second.items()} if copy else second
