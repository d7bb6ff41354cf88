"""Columns of a table that are no features: weights, ids, and columns that should not be features."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_bce.data.cells import numbers, shown, words
from lightning_bce.data.splits import Rows

if TYPE_CHECKING:
    import polars


def refuse_two_roles(roles: dict[str, list[str]]) -> None:
    """Refuse columns with two uses.

    Args:
        roles: For each argument the columns it names.

    Raises:
        ValueError: If a column is named twice.

    Example:
        >>> refuse_two_roles({"target": ["y"], "id_column": []})
    """
    used: dict[str, str] = {}
    for argument, names in roles.items():
        for name in names:
            if name in used:
                raise ValueError(f"`{used[name]}` and `{argument}` both name the column {shown(name)}: choose one.")
            used[name] = argument


def warn_of_row_numbers(column: polars.Series) -> None:
    """Warn of a first feature that counts the rows.

    Args:
        column: Its cells.

    Warns:
        UserWarning: If they are 0, 1, 2, ... or 1, 2, 3, ...

    Example:
        >>> import polars
        >>> warn_of_row_numbers(polars.Series("age", [39, 52, 17]))
    """
    values = numbers(column)[0]
    if len(values) > 2 and values[0] in (0.0, 1.0) and (values.diff().drop_nulls() == 1.0).sum() == len(values) - 1:
        warnings.warn(
            f"The first column, {shown(column.name)}, counts the rows: it says nothing about new rows, and may give "
            "labels away if the file is sorted. Use it as `id_column=0` or leave it out with `drop_columns=[0]`.",
            stacklevel=2,
        )


def weights(column: polars.Series, row_numbers: Rows) -> torch.Tensor:
    """Return a column of weights.

    Args:
        column: Its cells.
        row_numbers: Their numbers in the file, for messages.

    Raises:
        ValueError: If a weight is missing, negative or no finite number.

    Example:
        >>> import numpy as np, polars
        >>> weights(polars.Series("w", [0.5, 2.0]), np.arange(2))
        tensor([0.5000, 2.0000])
    """
    values = numbers(column)[0]
    bad = (values.is_null() | (values < 0)).fill_null(True)
    if bad.any():
        row = int(bad.arg_true()[0])
        raise ValueError(
            f"Row {row_numbers[row]} (counted from 0) has the weight {shown(column[row])} in column "
            f"{shown(column.name)}: weights must be finite numbers of at least 0."
        )
    return torch.from_numpy(values.to_numpy().astype(np.float32))


def ids(column: polars.Series, row_numbers: Rows) -> list[str]:
    """Return a column of names as texts.

    Args:
        column: Its cells.
        row_numbers: Their numbers in the file, for messages.

    Raises:
        ValueError: If one is missing.

    Example:
        >>> import numpy as np, polars
        >>> ids(polars.Series("name", ["a", " b"]), np.arange(2))
        ['a', 'b']
    """
    text = words(column, ())
    if text.null_count():
        row = int(text.is_null().arg_true()[0])
        raise ValueError(f"Row {row_numbers[row]} (counted from 0) has no id in column {shown(column.name)}: add it.")
    return text.to_list()
