"""SparseTarget: the labels that are not 0, sorted by label once, so that a slice of labels is a slice of memory."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SparseTarget:
    """Targets of (N, C) of which only those that are not 0 are kept: positives, soft labels and unknown ones.

    Sorted by label when it is made, which belongs into the collate function: a worker then does it, and a head finds
    the entries of its labels without looking at the device. A batch of it moves by ``to`` and ``pin_memory``, as
    Lightning and DataLoaders call them.

    Made by :meth:`from_lists`, :meth:`from_sparse` or :meth:`of`.

    Args:
        labels: Label of each entry, (P,), int64, in ascending order.
        rows: Sample of each entry, (P,), int64, ascending within a label.
        shape: (N, C).
        values: Target of each entry in (0, 1], float32, NaN where it is unknown. None means 1 everywhere.
        host_labels: ``labels`` on the CPU. None copies them, which waits for the device.

    Example:
        >>> target = SparseTarget.from_lists([[2], [0, 2], []], num_labels=4)
        >>> target.labels, target.rows
        (tensor([0, 2, 2]), tensor([1, 0, 1]))
    """

    def __init__(
        self,
        labels: Tensor,
        rows: Tensor,
        shape: tuple[int, int],
        values: Tensor | None = None,
        host_labels: Tensor | None = None,
    ) -> None:
        self.labels = labels
        self.rows = rows
        self.shape = (int(shape[0]), int(shape[1]))
        self.values = values
        self.host_labels = labels.cpu() if host_labels is None else host_labels

    # -- how one is made ----------------------------------------------------------------------------------------------

    @classmethod
    def of(cls, target: Any, num_labels: int, ignore_index: float | None = None) -> SparseTarget:
        """Return a target in any form that a head takes.

        Args:
            target: A :class:`SparseTarget`, a sparse tensor (N, C) in COO or CSR layout, a padded list (N, K) of whole
                numbers with -1 where there is no label, or a sequence of lists of labels.
            num_labels: Number of labels C.
            ignore_index: The value in a sparse tensor that marks an unknown label, beside NaN.

        Raises:
            TypeError: If it has another form, with what to write instead.
            ValueError: If a label lies outside the C labels, or a value outside [0, 1].
        """
        if isinstance(target, SparseTarget):
            if target.shape[1] != num_labels:
                raise ValueError(f"The target has {target.shape[1]} labels and the head {num_labels}: make them equal.")
            return target
        if isinstance(target, Tensor) and target.layout != torch.strided:
            if target.shape[1] != num_labels:
                raise ValueError(
                    f"The sparse target has shape {tuple(target.shape)} and the head {num_labels} labels: (N, "
                    f"{num_labels}) was expected. Give `size=(N, {num_labels})` when it is made."
                )
            return cls.from_sparse(target, ignore_index)
        return cls.from_lists(target, num_labels)

    @classmethod
    def from_lists(cls, lists: Tensor | Sequence[Sequence[int]], num_labels: int, unknown: Any = None) -> SparseTarget:
        """Return the target of lists of positive labels. A label that a list names twice counts once.

        Args:
            lists: One list for each sample; or (N, K) whole numbers with -1 where there is no label.
            num_labels: Number of labels C.
            unknown: Lists of labels that are unknown, in one of the same forms. They count nowhere.

        Raises:
            TypeError: If it is a tensor of another kind, with what to write instead.
            ValueError: If a label lies outside of 0 to C - 1, or is both positive and unknown.

        Example:
            >>> SparseTarget.from_lists(torch.tensor([[3, -1], [0, 3]]), num_labels=5).rows
            tensor([1, 0, 1])
        """
        rows, labels, length = _pairs(lists, num_labels)
        key = torch.unique(labels * length + rows)
        values = None
        if unknown is not None:
            more_rows, more_labels, other = _pairs(unknown, num_labels)
            if other != length:
                raise ValueError(f"`unknown` is of {other} samples and the lists of {length}: one list for each.")
            known, key = key, torch.unique(torch.cat([key, more_labels * length + more_rows]))
            both = len(known) + len(torch.unique(more_labels * length + more_rows)) - len(key)
            if both:
                raise ValueError(f"{both} label(s) of a sample are both positive and unknown: leave them out of one.")
            values = torch.where(torch.isin(key, known), 1.0, torch.nan)
        return cls(key // max(length, 1), key % max(length, 1), (length, num_labels), values)

    @classmethod
    def from_sparse(cls, target: Tensor, ignore_index: float | None = None) -> SparseTarget:
        """Return the target of a sparse tensor (N, C) in COO or CSR layout.

        Args:
            target: Labels in [0, 1]; what is not stored is 0. NaN is unknown.
            ignore_index: A further value that marks an unknown label.

        Raises:
            TypeError: If the layout is another one.
            ValueError: If it has not two dimensions, names an element twice or has values outside [0, 1].

        Example:
            >>> dense = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
            >>> SparseTarget.from_sparse(dense.to_sparse()).labels
            tensor([0, 1, 1])
        """
        if target.ndim != 2:
            raise ValueError(f"The sparse target has shape {tuple(target.shape)}; (N, C) was expected.")
        if target.layout == torch.sparse_coo:
            rows, labels = target._indices()
            values = target._values()
        elif target.layout == torch.sparse_csr:
            crow = target.crow_indices()
            rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
            labels, values = target.col_indices(), target.values()
        else:
            raise TypeError(
                f"The target has layout {target.layout}; torch.sparse_coo or torch.sparse_csr was expected. Use "
                "`target.to_sparse_csr()`."
            )
        length = target.shape[0]
        key, order = (labels.long() * length + rows.long()).sort()
        if bool((key[1:] == key[:-1]).any()):
            raise ValueError(
                "The sparse target names an element twice. Make the values one, for example by `coalesce`."
            )
        values = values[order].float()
        if ignore_index is not None:
            values = torch.where(values == ignore_index, torch.nan, values)
        wrong = (values < 0) | (values > 1)
        if bool(wrong.any()):
            found = torch.unique(values[wrong])[:8].tolist()
            raise ValueError(
                f"The sparse target has values outside [0, 1]: {found}. Pass 1 (or probabilities); NaN, or what "
                "`ignore_index` of the loss names, marks an unknown label."
            )
        stored = values != 0
        key, values = key[stored], values[stored]
        ones = bool((values == 1).all())
        return cls(key // max(length, 1), key % max(length, 1), tuple(target.shape), None if ones else values)  # type: ignore[arg-type]

    # -- what it is like ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.shape[0]

    def __repr__(self) -> str:
        """Return shape, entries and device."""
        return f"SparseTarget(shape={self.shape}, entries={len(self.labels)}, device={str(self.labels.device)!r})"

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self.labels.device

    @property
    def ndim(self) -> int:
        """2, as of the dense target."""
        return 2

    def numel(self) -> int:
        """Return how many elements the dense target would have."""
        return self.shape[0] * self.shape[1]

    def to(self, *args: Any, **kwargs: Any) -> SparseTarget:
        """Return the target on another device; the arguments are those of ``Tensor.to``. No dtype changes."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is None:
            return self
        blocking = bool(kwargs.get("non_blocking", False))

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=blocking)

        values = None if self.values is None else moved(self.values)
        return SparseTarget(moved(self.labels), moved(self.rows), self.shape, values, self.host_labels)

    def pin_memory(self) -> SparseTarget:
        """Return the target in memory from which a GPU copies without a wait."""
        values = None if self.values is None else self.values.pin_memory()
        return SparseTarget(self.labels.pin_memory(), self.rows.pin_memory(), self.shape, values, self.host_labels)

    def place(self, label: int) -> int:
        """Return at which entry the labels from ``label`` on begin."""
        return bisect.bisect_left(self.host_labels.numpy(), label)

    def of_labels(self, begin: int, end: int) -> SparseTarget:
        """Return the target of the labels from ``begin`` to before ``end``, counted from ``begin``."""
        where = slice(self.place(begin), self.place(end))
        values = None if self.values is None else self.values[where]
        shape, host = (self.shape[0], end - begin), self.host_labels[where] - begin
        return SparseTarget(self.labels[where] - begin, self.rows[where], shape, values, host)

    def positives(self) -> SparseTarget:
        """Return what is above one half, as a target of ones."""
        if self.values is None:
            return self
        kept = self.values > 0.5
        return SparseTarget(self.labels[kept], self.rows[kept], self.shape)

    def first_rows(self, number: int) -> SparseTarget:
        """Return the target of the first samples."""
        kept = self.rows < number
        values = None if self.values is None else self.values[kept]
        return SparseTarget(self.labels[kept], self.rows[kept], (number, self.shape[1]), values)

    def to_dense(self) -> Tensor:
        """Return (N, C) in float32, NaN where unknown: for few labels, and for tests."""
        dense = torch.zeros(self.shape, device=self.device)
        dense[self.rows, self.labels] = 1.0 if self.values is None else self.values
        return dense


def _pairs(lists: Any, num_labels: int) -> tuple[Tensor, Tensor, int]:
    """Return rows and labels of lists, and how many lists there are."""
    if isinstance(lists, Tensor):
        if lists.is_floating_point() or lists.is_complex() or lists.dtype == torch.bool or lists.ndim != 2:
            raise TypeError(
                f"The target is a dense tensor of shape {tuple(lists.shape)}, {lists.dtype}; lists of labels (N, K), "
                "whole numbers with -1 where there is no label, or a sparse tensor were expected. For a dense target: "
                "`target.to_sparse_csr()`."
            )
        if lists.shape[1] == num_labels and num_labels > 1 and not bool((lists > 1).any()):
            raise TypeError(
                f"The target has shape {tuple(lists.shape)} with no value above 1, which is what a dense target of "
                f"{num_labels} labels looks like; lists of labels were expected. For a dense target: "
                "`target.to_sparse_csr()`."
            )
        given, length = lists.long(), len(lists)
        rows = torch.arange(length, device=lists.device)[:, None].expand(given.shape)
        present = given != -1
        rows, labels = rows[present], given[present]
    else:
        try:
            length = len(lists)
            labels = torch.tensor([int(label) for labels in lists for label in labels], dtype=torch.int64)
            rows = torch.repeat_interleave(
                torch.arange(length), torch.tensor([len(labels) for labels in lists], dtype=torch.int64)
            )
        except TypeError as error:
            raise TypeError(
                f"The target is {type(lists).__name__}; a list of labels for each sample, (N, K) whole numbers padded "
                "with -1, or a sparse tensor (N, C) was expected."
            ) from error
    wrong = (labels < 0) | (labels >= num_labels)
    if bool(wrong.any()):
        found = torch.unique(labels[wrong])[:8].tolist()
        raise ValueError(f"Labels lie from 0 to {num_labels - 1}; got {found}. In padded lists -1 is no label.")
    return rows, labels, length
