"""Parquet files whose labels are a column of lists: list<int> of label numbers beside dense features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_bce.data.cells import listed, shown
from lightning_bce.data.label_lists import Lists, ManyLabelTable
from lightning_bce.data.reading import read_table

if TYPE_CHECKING:
    import polars


class Columns(NamedTuple):
    """Which column is what.

    Args:
        label: Lists of label numbers.
        value: Lists of what each label says, as long as those, or None.
        features: Numbers, or lists of them that are equally long. None takes all that are left.
        id: Names or whole numbers of the rows, or None.
        weight: Weights of the rows, or None.
    """

    label: str
    value: str | None
    features: Sequence[str] | None
    id: str | None
    weight: str | None


def read_list_columns(path: str, columns: Columns, num_labels: int | None, *, labelled: bool) -> ManyLabelTable:
    """Return the rows of a Parquet file.

    Args:
        path: The file.
        columns: Which column is what.
        num_labels: The number of labels C. None is one more than the largest in the file.
        labelled: Whether there have to be labels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, of another type or has faulty rows, with the number of the first, from 0.

    Warns:
        UserWarning: If rows name a label twice, which then counts once.
    """
    table, fingerprint = read_table(path)
    named = [columns.label, columns.value, columns.id, columns.weight, *(columns.features or [])]
    optional = () if labelled else (columns.label, columns.value, columns.weight)
    missing = [name for name in named if name is not None and name not in table.columns and name not in optional]
    if missing:
        raise ValueError(f"{path} has no column {listed(missing)}; it has {listed(table.columns)}.")
    taken = set(named[:4])
    features = [name for name in table.columns if name not in taken] if columns.features is None else columns.features
    if not features:
        raise ValueError(f"{path} has no column of features: all are labels, values, ids or weights.")
    labels = _labels(table, columns, num_labels, path) if labelled else None
    found = 0 if labels is None or not len(labels.indices) else int(labels.indices.max()) + 1
    inputs = torch.from_numpy(np.concatenate([_feature(table[name], path) for name in features], axis=1))
    weight = None if columns.weight is None or not labelled else _weight(table[columns.weight], path)
    ids = torch.arange(table.height) if columns.id is None else _ids(table[columns.id], path)
    sizes = (inputs.shape[1], num_labels or max(found, 1))
    return ManyLabelTable(inputs, labels, *sizes, ids, weight, fingerprint, list(features))


def _labels(table: polars.DataFrame, columns: Columns, num_labels: int | None, path: str) -> Lists:
    import polars

    column = table[columns.label]
    if not isinstance(column.dtype, (polars.List, polars.Array)) or not column.dtype.inner.is_integer():
        raise ValueError(
            f"{path}: column {shown(columns.label)} has the type {column.dtype}; lists of whole numbers were expected, "
            "the labels of each row. Name the column of labels with `label_column`."
        )
    start, index = _flat(column, path)
    _refuse_rows(start, (index < 0) | (index >= (num_labels or 2**31)), index, column.name, path, _range(num_labels))
    value: Tensor | None = None
    if columns.value is not None:
        values = table[columns.value]
        if not isinstance(values.dtype, (polars.List, polars.Array)) or not values.dtype.inner.is_numeric():
            raise ValueError(
                f"{path}: column {shown(values.name)} has the type {values.dtype}; lists of numbers were expected, as "
                "long as those of the labels."
            )
        other, value = _flat(values, path)
        if not torch.equal(start, other):
            row = int((start != other).nonzero()[0]) - 1
            raise ValueError(
                f"{path}, row {row} has {int(start[row + 1] - start[row])} label(s) and "
                f"{int(other[row + 1] - other[row])} value(s) in {shown(values.name)}: one for each was expected."
            )
        value = value.float()
        what = "a value from 0 to 1 was expected, or NaN for an unknown label"
        _refuse_rows(start, (value < 0) | (value > 1), value, values.name, path, what)
    return _each_once(Lists(start, index.to(torch.int32), value), columns.label, path)


def _range(num_labels: int | None) -> str:
    if num_labels is None:
        return "labels are counted from 0"
    return f"labels from 0 to {num_labels - 1} were expected, as `total_labels` or the training file says"


def _each_once(lists: Lists, name: str, path: str) -> Lists:
    """Return the lists with every label once and without those that are 0, in ascending order."""
    rows = lists.row_of_each()
    most = int(lists.indices.max()) + 1 if len(lists.indices) else 1
    key, order = (rows * most + lists.indices).sort(stable=True)
    same = torch.zeros_like(key, dtype=torch.bool)
    same[1:] = key[1:] == key[:-1]
    value = None if lists.value is None else lists.value[order]
    if bool(same.any()):
        row = int(key[same][0] // most)
        if value is not None:
            raise ValueError(
                f"{path}, row {row} names label {int(key[same][0] % most)} twice in {shown(name)}, and each has a "
                "value: name it once."
            )

        warnings.warn(
            f"{path} names {int(same.sum())} label(s) twice in a row, first in row {row}: they count once.",
            stacklevel=2,
        )
    kept = ~same if value is None else value != 0  # true for NaN
    key = key[kept]
    size = torch.bincount(key // most, minlength=len(lists))
    start = torch.cat([size.new_zeros(1), size.cumsum(0)])
    return Lists(start, (key % most).to(torch.int32), None if value is None else value[kept])


def _flat(column: polars.Series, path: str) -> tuple[Tensor, Tensor]:
    """Return starts and entries of a column of lists."""
    import polars

    if isinstance(column.dtype, polars.Array):
        column = column.arr.to_list()
    _refuse_null(column, path, "an empty list says that a row has none")
    size = torch.from_numpy(column.list.len().to_numpy().astype(np.int64))
    entries = column.filter(column.list.len() > 0).explode()
    if entries.null_count():
        empty = column.list.eval(polars.element().is_null().any()).list.first().fill_null(False)
        raise ValueError(
            f"{path}, row {empty.arg_true()[0]} has a null in a list of {shown(column.name)}: leave it out of the list."
        )
    start = torch.cat([size.new_zeros(1), size.cumsum(0)])
    dtype = np.int64 if entries.dtype.is_integer() else np.float32
    return start, torch.from_numpy(entries.to_numpy().astype(dtype))


def _refuse_rows(start: Tensor, wrong: Tensor, entries: Tensor, name: str, path: str, what: str) -> None:
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        row = int(torch.searchsorted(start, place, right=True)) - 1
        raise ValueError(f"{path}, row {row} has {entries[place].item():g} in {shown(name)}: {what}.")


def _refuse_null(column: polars.Series, path: str, advice: str) -> None:
    if column.null_count():
        raise ValueError(
            f"{path}, row {column.is_null().arg_true()[0]} has no value in {shown(column.name)}: {advice}."
        )


def _feature(column: polars.Series, path: str) -> Any:
    """Return a column of numbers or of equally long lists, (N, 1) or (N, D), in float32."""
    import polars

    numeric = column.dtype.is_numeric() or column.dtype == polars.Boolean
    if isinstance(column.dtype, (polars.List, polars.Array)) and column.dtype.inner.is_numeric():
        start, entries = _flat(column, path)
        sizes = start.diff()
        if bool((sizes != sizes[:1]).any()):
            row = int((sizes != sizes[0]).nonzero()[0])
            raise ValueError(
                f"{path}, row {row} has {int(sizes[row])} numbers in {shown(column.name)} and row 0 {int(sizes[0])}: "
                "features of a list are as many in each row."
            )
        values = entries.numpy().reshape(len(sizes), -1)
    elif numeric:
        _refuse_null(column, path, "fill it in, or leave the row out")
        values = column.to_numpy().reshape(-1, 1)
    else:
        raise ValueError(
            f"{path}: column {shown(column.name)} has the type {column.dtype}; features are numbers, or lists of them. "
            "Name the columns to take with `feature_columns`, or say what this one is."
        )
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype=np.float32)
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"{path}, row {row} has NaN or infinity in {shown(column.name)}: fill it in, or leave the row out."
        )
    return values


def _weight(column: polars.Series, path: str) -> Tensor:
    if not column.dtype.is_numeric():
        raise ValueError(f"{path}: column {shown(column.name)} has the type {column.dtype}; weights are numbers.")
    _refuse_null(column, path, "every row needs a weight, 0 if it does not count")
    weight = torch.from_numpy(column.to_numpy().astype(np.float32))
    wrong = ~(torch.isfinite(weight) & (weight >= 0))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{path}, row {row} has the weight {weight[row].item():g} in {shown(column.name)}: finite numbers of at "
            "least 0 were expected."
        )
    return weight


def _ids(column: polars.Series, path: str) -> Tensor | list[str]:
    _refuse_null(column, path, "every row needs an id, or leave `id_column` out")
    if column.dtype.is_integer():
        return torch.from_numpy(column.to_numpy().astype(np.int64))
    return [str(value) for value in column.to_list()]


def is_parquet(path: str) -> bool:
    """Return whether a file is read as Parquet, by its suffix."""
    return Path(path).suffix.lower() == ".parquet"
