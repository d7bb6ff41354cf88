"""What one cell of a table says: nothing, a number, or a word."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import polars

MISSING = ("", "?", "NA", "NaN", "nan", "null")
"""Cells that say "unknown" unless the caller says otherwise."""


def require(package: str, install: str | None = None, extra: str = "data") -> None:
    """Import an optional package, or say how to install it.

    Args:
        package: The module to import, such as ``"polars"``.
        install: Its name for pip. None is the name of the module.
        extra: The extra of this package that brings it.

    Raises:
        ImportError: If the package is not installed.

    Example:
        >>> require("polars")
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Reading this data needs the package {install or package!r}, which cannot be imported ({error}). "
            f"Install it with the rest of the data tools: `pip install 'lightning_bce[{extra}]'`."
        ) from error


def shown(value: object, width: int = 80) -> str:
    """Return a value from a file as it may appear in a message: quoted, escaped and cut.

    Args:
        value: Anything; text keeps its quotes, so that blanks and control characters can be seen.
        width: The longest result, in characters.

    Returns:
        ``repr(value)``, or its beginning and an ellipsis.

    Example:
        >>> shown(" <=50K")
        "' <=50K'"
        >>> shown("x" * 100, width=8)
        "'xxxx..."
    """
    text = repr(value[: 2 * width] if isinstance(value, str) else value)
    return text if len(text) <= width else text[: width - 3] + "..."


def listed(values: Iterable[object], most: int = 10) -> str:
    """Return values from a file as a list for a message: the first ``most``, then how many more.

    Args:
        values: What to list.
        most: How many to show.

    Returns:
        The values through :func:`shown`, with commas between.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        "'a', 'b' and 1 more"
    """
    everything = list(values)
    rest = f" and {len(everything) - most} more" if len(everything) > most else ""
    return ", ".join(shown(value) for value in everything[:most]) + rest


def words(column: polars.Series, missing_values: Sequence[str] = MISSING) -> polars.Series:
    """Return a column as text: blanks around it gone, missing cells null.

    Args:
        column: Text, categories, numbers or booleans. A floating-point NaN is missing.
        missing_values: What a missing cell may say. The empty cell is always missing.

    Returns:
        The same rows as ``polars.String``.

    Raises:
        TypeError: If the column holds dates, lists or other things that are neither word nor number.

    Example:
        >>> import polars
        >>> words(polars.Series([" Private", "? ", "", None])).to_list()
        ['Private', None, None, None]
    """
    import polars

    dtype = column.dtype
    if dtype.is_float():
        return words(column.fill_nan(None).cast(polars.String), missing_values)
    if not (
        dtype.is_numeric() or dtype in (polars.String, polars.Categorical, polars.Enum, polars.Boolean, polars.Null)
    ):
        raise TypeError(
            f"Column {shown(column.name)} has the type {dtype}; numbers, text, categories and booleans can be read. "
            f"Leave it out with `drop_columns=[{shown(column.name)}]`, or write it as numbers first."
        )
    text: polars.Series = column.cast(polars.String).str.strip_chars()
    missing = text.is_in(["", *(value.strip() for value in missing_values)])
    return text.set(missing.fill_null(True), None)


def numbers(column: polars.Series, missing_values: Sequence[str] = MISSING) -> tuple[polars.Series, polars.Series]:
    """Return a column as numbers, and where it holds something else.

    The parser is strict: ``1_000``, ``inf``, ``1e400``, ``0x10``, ``1,5`` and full-width digits are not numbers,
    though Python's ``float`` takes some of them.

    Args:
        column: A column that :func:`words` can read.
        missing_values: What a missing cell may say.

    Returns:
        The numbers as float64 with null for what is missing or no finite number, and a mask that is true at the
        latter only.

    Example:
        >>> import polars
        >>> values, wrong = numbers(polars.Series(["1.5", " 2 ", "?", "inf", "1_000"]))
        >>> values.to_list(), wrong.to_list()
        ([1.5, 2.0, None, None, None], [False, False, False, True, True])
    """
    import polars

    if column.dtype.is_numeric() or column.dtype == polars.Boolean:
        parsed = column.cast(polars.Float64).fill_nan(None)
        known = parsed.is_not_null() & ~parsed.is_in(_codes(tuple(missing_values))).fill_null(True)
    else:
        text = words(column, missing_values)
        parsed = text.cast(polars.Float64, strict=False)
        known = text.is_not_null()
    finite = parsed.is_finite().fill_null(False)
    return parsed.set(~(known & finite), None), known & ~finite


def plain_numbers(column: polars.Series, missing_values: Sequence[str] = MISSING) -> npt.NDArray[np.float64] | None:
    """Return what :func:`numbers` returns for a column with neither gaps nor faults, in a tenth of the time.

    Args:
        column: A column of any type.
        missing_values: What a missing cell may say.

    Returns:
        The numbers, or None if the column has other cells, or codes would have to be looked for.

    Example:
        >>> import polars
        >>> plain_numbers(polars.Series([1, 2])), plain_numbers(polars.Series([1, None]))
        (array([1., 2.]), None)
    """
    if not column.dtype.is_numeric() or column.null_count() or _codes(tuple(missing_values)):
        return None
    values = column.to_numpy().astype(np.float64)
    return values if np.isfinite(values).all() else None


@functools.cache
def _codes(missing_values: tuple[str, ...]) -> list[float]:
    """Return the missing values that are numbers, such as -999."""
    import polars

    codes: list[float] = numbers(polars.Series(missing_values, dtype=polars.String), ())[0].drop_nulls().to_list()
    return codes


def canonical(values: Sequence[str]) -> list[str]:
    """Return words in the form in which two spellings of one label agree.

    Blanks and quotes around a word go, and numbers get one spelling: ``'1'``, ``1`` and ``1.0`` are the same label.

    Args:
        values: Words that are not missing.

    Returns:
        As many words.

    Example:
        >>> canonical(["'1'", "1.0", ' ">50K"'])
        ['1.0', '1.0', '>50K']
    """
    import polars

    bare = [value.strip().strip("'\"").strip() for value in values]
    parsed = numbers(polars.Series(bare, dtype=polars.String), ())[0].to_list()
    # `+ 0.0` makes -0.0 and 0.0 one number.
    return [word if number is None else repr(number + 0.0) for word, number in zip(bare, parsed, strict=True)]
