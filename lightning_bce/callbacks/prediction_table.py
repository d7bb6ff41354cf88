"""Predictions as a table: batches of any rank put into the order of the data, and files that are whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.files import Columns


class Part(NamedTuple):
    """The predictions of a batch, on the CPU.

    Args:
        dataloader: Which dataloader it came from.
        rows: Numbers of its rows in the dataset, (N,), or None if Lightning does not know them.
        probability: (N, C), or of the labels that are named, (N, K).
        decision: (N, C), bool; None where labels are named.
        id: The samples' names or numbers, or None.
        label: The numbers of the most probable labels, (N, K), or None.
    """

    dataloader: int
    rows: Tensor | None
    probability: Tensor
    decision: Tensor | None
    id: list[Any] | None
    label: Tensor | None = None


def columns_of(parts: Sequence[Part], names: Sequence[str], best: int | None = None) -> Columns:
    """Return the columns of the table, one row for each row of the data, in the data's order.

    Rows that came twice, because a sampler pads the data for the ranks, stand once. Without row numbers the order is
    that of arrival. With several dataloaders the first column says which.

    Args:
        parts: Batches in any order.
        names: One name for each label. Where the parts name the most probable labels, none if they have no names.
        best: How many labels the parts name. None if they hold decisions.

    Raises:
        ValueError: If the parts do not fit together.
    """
    _check_together(parts, len(names) if best is None else best)
    loaders = sorted({part.dataloader for part in parts})
    merged = [_in_order([part for part in parts if part.dataloader == loader]) for loader in loaders]
    ids: list[Any] = [identity for part in merged for identity in part.id or []]
    if not all(isinstance(identity, int) for identity in ids):
        ids = [_text(identity) for identity in ids]
    columns: Columns = {}
    if len(loaders) > 1:
        columns["dataloader"] = [part.dataloader for part in merged for _ in range(len(part.probability))]
    columns["id"] = ids
    for rank in range(best or 0):
        labels = [label for part in merged if part.label is not None for label in part.label[:, rank].tolist()]
        columns[f"label_{rank + 1}"] = labels
        if names:
            columns[f"name_{rank + 1}"] = [_text(names[label]) for label in labels]
        columns[f"probability_{rank + 1}"] = [p for part in merged for p in part.probability[:, rank].tolist()]
    for i, name in enumerate(names if best is None else ()):
        suffix = f"_{_text(name)}" if len(names) > 1 else ""
        columns[f"probability{suffix}"] = [p for part in merged for p in part.probability[:, i].tolist()]
        decisions = [part.decision[:, i].tolist() for part in merged if part.decision is not None]
        columns[f"decision{suffix}"] = [int(d) for part in decisions for d in part]
    return columns


def _check_together(parts: Sequence[Part], labels: int) -> None:
    found = sorted({part.probability.shape[1] for part in parts} | {labels})
    if len(found) > 1:
        raise ValueError(f"Batches have {' and '.join(map(str, found))} labels: one table needs the same in each.")
    if len({part.label is None for part in parts}) > 1:
        raise ValueError("Some batches have decisions and some the most probable labels: one table needs one of them.")
    if len({part.id is None for part in parts}) > 1:
        raise ValueError("Some batches came with 'id' and some without. Return it from every `predict_step`, or never.")


def _in_order(parts: Sequence[Part]) -> Part:
    """Return the batches of a dataloader as one, sorted by row, each row once, with an id for each."""
    probability = torch.cat([part.probability for part in parts])
    decision = _together([part.decision for part in parts])
    label = _together([part.label for part in parts])
    known = [part.rows for part in parts if part.rows is not None]
    rows = torch.cat(known) if len(known) == len(parts) else torch.arange(len(probability))
    order = torch.argsort(rows, stable=True)
    in_order = rows[order]
    first = torch.ones_like(in_order, dtype=torch.bool)
    first[1:] = in_order[1:] != in_order[:-1]
    order = order[first]
    ids = rows[order].tolist()
    if parts[0].id is not None:
        given = [identity for part in parts for identity in part.id or []]
        ids = [given[i] for i in order.tolist()]
    return Part(
        parts[0].dataloader,
        rows[order],
        probability[order],
        None if decision is None else decision[order],
        ids,
        None if label is None else label[order],
    )


def _together(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Return what every batch has as one tensor, or None."""
    found = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(found) if found else None


def _text(value: object) -> str:
    # A name read from a damaged file can hold what no file takes, and this is no time to fail.
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
