"""Rows whose labels are lists, and whose features may be: kept one after the other, handed out as whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_bce.data.tensors import Batch
from lightning_bce.heads import SparseInputs, SparseTarget


@dataclass(frozen=True)
class Lists:
    """A list of whole numbers for each row, all of them one after the other, as in a sparse matrix of CSR form.

    Args:
        start: At which entry each row begins, and at the end how many there are, (N + 1,), int64.
        indices: The numbers, (P,), int32, which is enough for labels and features and half of what int64 takes.
        value: What each entry says, (P,), float32. None is 1 everywhere.
    """

    start: Tensor
    indices: Tensor
    value: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.start) - 1

    def of_rows(self, rows: Tensor) -> Lists:
        """Return the lists of these rows, in this order."""
        begin = self.start[rows]
        size = self.start[rows + 1] - begin
        start = torch.cat([size.new_zeros(1), size.cumsum(0)])
        where = torch.repeat_interleave(begin - start[:-1], size) + torch.arange(int(start[-1]))
        return Lists(start, self.indices[where], None if self.value is None else self.value[where])

    def row_of_each(self) -> Tensor:
        """Return the row of each entry, (P,), int64."""
        return torch.repeat_interleave(torch.arange(len(self)), self.start.diff())


@dataclass
class ManyLabelTable:
    """What a file holds.

    Args:
        inputs: Features of each row, as lists or (N, F).
        labels: Labels of each row; values in (0, 1] are soft ones, NaN is unknown. None where the file has none.
        num_features: The number of features F.
        num_labels: The number of labels C.
        ids: Names or numbers of the rows.
        weight: Weight of each row, (N,), or None.
        fingerprint: Size and checksum of the file.
        feature_columns: The columns that the features came from, in their order; None where they are numbered.
    """

    inputs: Lists | Tensor
    labels: Lists | None
    num_features: int
    num_labels: int
    ids: Tensor | list[str]
    weight: Tensor | None
    fingerprint: dict[str, int]
    feature_columns: list[str] | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)


class ManyLabelRows(Dataset[Batch]):
    """Rows of a table as a dataset that hands out whole batches, with their targets sorted by label.

    A batch is made in the process that loads it: ``inputs`` are :class:`SparseInputs` or float32 (N, F), ``target`` is
    a :class:`SparseTarget`, ``id`` numbers or names, and where there are weights ``weight`` is float32 (N,).

    Args:
        table: The file.
        rows: Which of its rows, by number.
        dense: Whether lists of features become (N, F).
        labelled: Whether batches have a target and a weight.
    """

    def __init__(self, table: ManyLabelTable, rows: Tensor, *, dense: bool, labelled: bool) -> None:
        self.table = table
        self.rows = rows
        self.dense = dense
        self.labelled = labelled

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch of these rows, in this order."""
        rows = self.rows[torch.as_tensor(indices, dtype=torch.int64)]
        table = self.table
        batch: Batch = {"inputs": self._inputs(rows)}
        if self.labelled and table.labels is not None:
            batch["target"] = target_of(table.labels.of_rows(rows), table.num_labels)
            if table.weight is not None:
                batch["weight"] = table.weight[rows]
        ids = table.ids
        batch["id"] = ids[rows] if isinstance(ids, Tensor) else [ids[row] for row in rows.tolist()]
        return batch

    def _inputs(self, rows: Tensor) -> SparseInputs | Tensor:
        if isinstance(self.table.inputs, Tensor):
            return self.table.inputs[rows]
        lists = self.table.inputs.of_rows(rows)
        assert lists.value is not None
        sparse = SparseInputs(lists.indices.long(), lists.value, lists.start[:-1])
        return sparse.to_dense(self.table.num_features) if self.dense else sparse


def target_of(labels: Lists, num_labels: int) -> SparseTarget:
    """Return lists of labels, each label once in a row, as a target.

    Args:
        labels: The lists.
        num_labels: Number of labels C.

    Example:
        >>> target_of(Lists(torch.tensor([0, 2, 2]), torch.tensor([3, 1], dtype=torch.int32)), 4)
        SparseTarget(shape=(2, 4), entries=2, device='cpu')
    """
    length = max(len(labels), 1)
    key, order = (labels.indices.long() * length + labels.row_of_each()).sort()
    value = None if labels.value is None else labels.value[order]
    return SparseTarget(key // length, key % length, (len(labels), num_labels), value)
