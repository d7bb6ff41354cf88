"""Panels, bars and tables in ASCII, for terminals and logs."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_SHADES = " .:-=+*#%@"


def panel(
    curves: Mapping[str, Sequence[float]],
    width: int,
    height: int,
    low: float | None = None,
    high: float | None = None,
) -> Iterator[str]:
    r"""Yield the lines of a panel with an axis on its left.

    Args:
        curves: By the character that draws them, a value for each column; NaN leaves its column out.
        width: Columns.
        height: Lines.
        low: The value of the last line. None is the least of all values and 0.
        high: The value of the first line. None is the largest of all values and 0.

    Example:
        >>> print(*panel({"*": [0.0, 1.0, 2.0]}, width=3, height=3), sep="\n")
               2|  *
                | *
               0|*
    """
    finite = [value for values in curves.values() for value in values if math.isfinite(value)]
    low = min(*finite, 0.0, 0.0) if low is None else low
    high = max(*finite, 0.0, 0.0) if high is None else high
    step = (high - low) / (height - 1) or 1.0
    grid = [[" "] * width for _ in range(height)]
    for mark, values in curves.items():
        for column, value in enumerate(values):
            if math.isfinite(value):
                grid[min(max(round((high - value) / step), 0), height - 1)][column] = mark
    for row, cells in enumerate(grid):
        label = f"{high - row * step:8.3g}" if row in (0, height - 1) else " " * 8
        yield f"{label}|{''.join(cells)}".rstrip()


def below(left: str, middle: str, right: str, width: int) -> str:
    """Return the line below a panel: its ends, and between them the name of the axis."""
    inside = width - len(left) - len(right)
    return " " * 9 + left + middle[:inside].center(inside) + right


def at_columns(x: ArrayLike, y: ArrayLike, low: float, high: float, width: int) -> list[float]:
    """Return a curve at the columns of a panel, with straight lines between its points.

    Args:
        x: Of the points, rising.
        y: Of the points.
        low: The first column's x.
        high: The last column's.
        width: Columns.

    Example:
        >>> at_columns([0, 2], [0, 4], 0, 2, width=3)
        [0.0, 2.0, 4.0]
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) == 0:
        return [math.nan] * width
    columns = np.linspace(low, high, width) if high > low else np.full(width, low)
    return [float(value) for value in np.interp(columns, x, y, left=math.nan, right=math.nan)]


def bar(share: float, width: int = 20, mark: str = "#") -> str:
    """Return a bar whose full length stands for a share of 1; nothing for NaN."""
    return "" if math.isnan(share) else mark * round(width * min(max(share, 0.0), 1.0))


def shades(values: Sequence[float], high: float, width: int) -> str:
    """Return values as one line of characters that get darker, every value one or, beyond the width, a selection."""
    chosen = values if len(values) <= width else [values[round(i)] for i in np.linspace(0, len(values) - 1, width)]
    return "".join(
        "?" if math.isnan(v) else _SHADES[round(9 * math.sqrt(min(max(v / (high or 1), 0), 1)))] for v in chosen
    )


def table_lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int, left: Sequence[int] = (0,)
) -> list[str]:
    """Return a table whose columns are right-aligned, as lines without blanks at their ends.

    Args:
        header: A name for each column.
        rows: Cells; nothing in them is markup.
        width: Characters that a line may have; the first column is folded to fit.
        left: Columns that are left-aligned.
    """
    table = Table(box=box.ASCII, show_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(name), justify="left" if index in left else "right", overflow="fold", no_wrap=index > 0)
    for row in rows:
        table.add_row(*map(Text, row))
    written = io.StringIO()
    console = Console(
        file=written, width=width, force_terminal=False, force_jupyter=False, color_system=None, legacy_windows=False
    )
    console.print(table)
    return [line.rstrip() for line in written.getvalue().splitlines()]
