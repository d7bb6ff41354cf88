"""The loss of each epoch, with its parts: as a table for a terminal and as a line for anything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

_BAR = 8
_SAME = 5e-4  # relative change below which there is no arrow


class Epoch(NamedTuple):
    """What is shown of an epoch; NaN where there is nothing.

    Args:
        number: Of the epoch, from 0.
        train: The loss of training.
        val: The loss of the validation.
        negative: What the negatives have of ``val``.
        positive: What the positives have of ``val``.
        precision: The average precision.
        calibration: The calibration error.
    """

    number: int
    train: float = math.nan
    val: float = math.nan
    negative: float = math.nan
    positive: float = math.nan
    precision: float = math.nan
    calibration: float = math.nan


# Field, header, whether more is better, and with how few columns it is still shown: the higher the longer it stays.
_COLUMNS = (
    ("train", "train\nloss", False, 3),
    ("val", "val\nloss", False, 4),
    ("negative", "of\nnegatives", False, 2),
    ("positive", "of\npositives", False, 2),
    ("precision", "average\nprecision", True, 1),
    ("calibration", "calibr.\nerror", False, 1),
)
FORMS: tuple[dict[str, Any], ...] = (
    {},
    {"bars": False},
    {"least": 2, "bars": False},
    {"least": 3, "bars": False},
    {"least": 4, "bars": False},
)
"""Options of :func:`epoch_table`, from wide to narrow."""


def epoch_table(
    epochs: Sequence[Epoch], title: str, *, plain: bool = False, bars: bool = True, least: int = 1
) -> Table:
    """Return the epochs as a table, with an arrow where a value changed since the one before.

    Args:
        epochs: In the order of time; the first is shown too.
        title: What stands above.
        plain: Whether to use ASCII only.
        bars: Whether to draw how much of the loss is of the positives.
        least: How important a column has to be, from 1, which are all, to 4, the validation loss alone.
    """
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.ASCII if plain else box.SIMPLE_HEAD
    )
    table.add_column("epoch", justify="right", no_wrap=True)
    shown = [
        column
        for column in _COLUMNS
        if column[3] >= least and any(not math.isnan(getattr(epoch, column[0])) for epoch in epochs)
    ]
    for name, header, *_ in shown:
        table.add_column(header, justify="right", no_wrap=True)
        if name == "positive" and bars:
            table.add_column("pos.\nshare", no_wrap=True)
    for index, epoch in enumerate(epochs):
        before = epochs[index - 1] if index else None
        cells = [Text(str(epoch.number))]
        for name, _, more_is_better, _ in shown:
            value = getattr(epoch, name)
            cells.append(_cell(value, math.nan if before is None else getattr(before, name), more_is_better, plain))
            if name == "positive" and bars:
                cells.append(Text(_bar(epoch, plain)))
        table.add_row(*cells)
    return table


def epoch_line(epoch: Epoch, before: Epoch | None = None) -> str:
    """Return an epoch as one line in ASCII.

    Args:
        epoch: What to show.
        before: The one before, for the changes.

    Example:
        >>> epoch_line(Epoch(1, 0.5, 0.4, 0.1, 0.3), Epoch(0, 0.6, 0.5, 0.2, 0.3))
        'epoch 1: train loss 0.5 (-16.7%), val loss 0.4 (-20.0%), of negatives 0.1, of positives 0.3 (75%)'
    """
    parts = []
    for name, title in (("train", "train loss"), ("val", "val loss")):
        value, last = getattr(epoch, name), math.nan if before is None else getattr(before, name)
        if not math.isnan(value):
            change = "" if math.isnan(last) or not last else f" ({value / last - 1:+.1%})"
            parts.append(f"{title} {value:.4g}{change}")
    if not math.isnan(epoch.positive):
        share = f" ({epoch.positive / epoch.val:.0%})" if epoch.val else ""
        parts.append(f"of negatives {epoch.negative:.4g}, of positives {epoch.positive:.4g}{share}")
    for name, title in (("precision", "average precision"), ("calibration", "calibration error")):
        value, last = getattr(epoch, name), math.nan if before is None else getattr(before, name)
        if not math.isnan(value):
            change = "" if math.isnan(last) else f" ({value - last:+.4f})"
            parts.append(f"{title} {value:.4f}{change}")
    return f"epoch {epoch.number}: {', '.join(parts) or 'nothing to show'}"


def _cell(value: float, before: float, more_is_better: bool, plain: bool) -> Text:
    if math.isnan(value):
        return Text("")
    number = f"{value:.4f}" if more_is_better else f"{value:.4g}"
    if math.isnan(before):
        return Text(f"{number}  ")
    if abs(value - before) <= _SAME * abs(before):
        return Text(f"{number} =", style="dim")
    up = value > before
    arrow = ("^" if up else "v") if plain else ("▲" if up else "▼")
    return Text.assemble(f"{number} ", (arrow, "green" if up == more_is_better else "red"))


def _bar(epoch: Epoch, plain: bool) -> str:
    share = epoch.positive / epoch.val if epoch.val else math.nan
    if math.isnan(share):
        return ""
    length = round(_BAR * min(max(share, 0.0), 1.0))
    full, empty = ("#", ".") if plain else ("█", "░")
    return f"{full * length}{empty * (_BAR - length)} {share:4.0%}"
