"""Rows of whole tensors: a batch is one index operation, and its order depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler

Batch = dict[str, Any]
T = TypeVar("T")


class TensorRows(Dataset[Batch]):
    """A dataset of columns that hands out whole batches.

    A ``DataLoader`` that finds ``__getitems__`` asks for all rows of a batch at once; with :func:`as_it_is` as its
    ``collate_fn`` no row is ever built on its own.

    Args:
        columns: The columns of a batch, each a tensor (N, ...) or a list of N strings.

    Raises:
        ValueError: If the columns differ in length, or there is none.

    Example:
        >>> rows = TensorRows({"inputs": torch.eye(3), "id": ["a", "b", "c"]})
        >>> rows.__getitems__([2, 0])
        {'inputs': tensor([[0., 0., 1.],
                [1., 0., 0.]]), 'id': ['c', 'a']}
    """

    def __init__(self, columns: Mapping[str, Tensor | list[str]]) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"The columns have the lengths {lengths}: there must be a column, and all equally long.")
        self.columns = dict(columns)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def __getitem__(self, index: int) -> Batch:
        """Return one row, without a batch dimension."""
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these rows, in this order."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        return {
            name: column[where] if isinstance(column, Tensor) else [column[index] for index in indices]
            for name, column in self.columns.items()
        }


def as_it_is(batch: T) -> T:
    """Return a batch unchanged: the ``collate_fn`` for :class:`TensorRows`, at module level so that workers find it.

    Args:
        batch: What ``TensorRows.__getitems__`` returned.

    Returns:
        The same object.

    Example:
        >>> as_it_is({"id": ["a"]})
        {'id': ['a']}
    """
    return batch


class EpochShuffle(RandomSampler):
    """Shuffle by (seed, epoch), so that a resumed run sees the order an uninterrupted one would have seen.

    Lightning calls ``set_epoch`` before each epoch; in a plain loop the epoch counts itself. Under a distributed
    strategy Lightning replaces this sampler by a shuffling ``DistributedSampler``.

    Args:
        rows: The dataset; only its length is asked for.
        seed: At least 0. The global random state is neither used nor changed.

    Example:
        >>> sampler = EpochShuffle(TensorRows({"id": list("abcdef")}), seed=0)
        >>> first, second = list(sampler), list(sampler)
        >>> sampler.set_epoch(0)
        >>> first != second, list(sampler) == first
        (True, True)
    """

    def __init__(self, rows: TensorRows, seed: int = 0) -> None:
        super().__init__(rows)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yield every row once and move on to the next epoch."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.data_source))
        self.epoch += 1
        return iter(order.tolist())
