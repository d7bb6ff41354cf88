"""The table of a loss by label and side: its rows, its looks, and how it reaches any output stream unharmed."""

from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TextIO

import rich
import torch
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from torch import Tensor

WIDTH_WITHOUT_TERMINAL = 120
_BAR = 10
_LABEL_WIDTH, _LABEL_LEAST = 60, 10
_COLUMNS = {
    "negatives": "negative_weight",
    "positives": "positive_weight",
    "loss": "class_loss",
    "negative_loss": "negative_loss",
    "positive_loss": "positive_loss",
    "share": "share",
    "negative_share": "negative_share",
    "positive_share": "positive_share",
}


def table_rows(names: Sequence[str], result: Mapping[str, Tensor], most: int | None = None) -> list[dict[str, Any]]:
    """Return what :class:`LossTracker` computed as one dictionary for each label, the largest share first.

    Args:
        names: One name for each label.
        result: The output of :meth:`LossTracker.compute`.
        most: How many labels at most. None is all.

    Returns:
        Dictionaries of plain Python values; NaN stands for what was never seen.
    """
    chosen = _by_share(result)[:most]
    values = [result[key][chosen].tolist() for key in _COLUMNS.values()]
    found = [names[label] for label in chosen.tolist()]
    return [{"label": name, **dict(zip(_COLUMNS, row, strict=True))} for name, *row in zip(found, *values, strict=True)]


def rest_of(result: Mapping[str, Tensor], most: int) -> dict[str, Any] | None:
    """Return the sums over the labels that :func:`table_rows` leaves out, and their number; None if there are none."""
    left = _by_share(result)[most:]
    if not len(left):
        return None
    names = ("negatives", "positives", "share", "positive_share")
    # A NaN in a sum stays one, because it is what the total is made of.
    return {"number": len(left), **{name: result[_COLUMNS[name]][left].sum().item() for name in names}}


def _by_share(result: Mapping[str, Tensor]) -> Tensor:
    """Return the labels, the one with the largest share first; NaN, which is no share, is last."""
    return torch.where(result["share"].isnan(), -torch.inf, result["share"]).argsort(descending=True, stable=True)


def loss_table(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    rest: Mapping[str, Any] | None,
    *,
    plain: bool = False,
    bars: bool = True,
    narrow: bool = False,
) -> Table:
    """Return the rows as a table.

    Args:
        rows: The output of :func:`table_rows`.
        title: What stands above.
        rest: The output of :func:`rest_of`, which becomes one row.
        plain: Whether to use ASCII only, for streams that may not take more.
        bars: Whether to draw the shares.
        narrow: Whether to leave out all but label, loss and share.
    """
    table = empty_table(title, plain)
    for header in ("loss",) if narrow else ("count\nneg.", "count\npos.", "loss", "loss of\nneg.", "loss of\npos."):
        table.add_column(header, justify="right", no_wrap=True)  # so that a terminal too narrow is seen to be
    bars = bars and not narrow
    table.add_column("share" if narrow else "share\nof loss", justify="left" if bars else "right", no_wrap=True)
    if not narrow:
        table.add_column("thereof\npos.", justify="right", no_wrap=True)
    for row in rows:
        weights = (row["negatives"], row["positives"])
        loss = _number(row["loss"], sum(weights))
        losses = (_number(row["negative_loss"], weights[0]), _number(row["positive_loss"], weights[1]))
        if narrow:
            table.add_row(Text(row["label"]), loss, _percent(row["share"]))
        else:
            shares = (_share(row["share"], plain, bars), _percent(row["positive_share"]))
            table.add_row(Text(row["label"]), *map(count, weights), loss, *losses, *shares)
    if rest is not None:
        label = Text(f"{rest['number']:,} more", style="dim")
        if narrow:
            table.add_row(label, "", _percent(rest["share"]))
        else:
            shares = (_share(rest["share"], plain, bars), _percent(rest["positive_share"]))
            table.add_row(label, count(rest["negatives"]), count(rest["positives"]), "", "", "", *shares)
    return table


def empty_table(title: str, plain: bool) -> Table:
    """Return a table with a column of labels."""
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=box.ASCII if plain else box.SIMPLE_HEAD
    )
    table.add_column("label", overflow="fold", max_width=_LABEL_WIDTH)
    return table


def print_loss_table(rows: Sequence[Mapping[str, Any]], title: str, rest: Mapping[str, Any] | None) -> None:
    """Write the table to ``sys.stdout`` as it is now; see :func:`print_table`.

    Args:
        rows: The output of :func:`table_rows`.
        title: What stands above.
        rest: The output of :func:`rest_of`, which becomes one row.
    """

    def form(plain: bool, bars: bool = True, narrow: bool = False) -> Table:
        return loss_table(rows, title, rest, plain=plain, bars=bars, narrow=narrow)

    forms = (form, partial(form, bars=False), partial(form, narrow=True))
    print_table(forms, [row["label"] for row in rows], "`monitor.table()`")


def print_table(forms: Sequence[Callable[[bool], Table]], labels: Sequence[str], instead: str) -> None:
    """Write a table to ``sys.stdout`` as it is now.

    A terminal gets colours and its own width; one too narrow for the table gets fewer columns. Anything else gets plain
    lines without escape codes, with characters that its encoding does not have written out. A stream that takes
    nothing more gives a warning, not an error: a table is not worth a run.

    Args:
        forms: The table, from the widest form to the narrowest, each made with whether to use ASCII only.
        labels: What its first column shows, which can be folded.
        instead: What returns the table where it cannot be printed.
    """
    # While rich shows a progress bar, it stands in for the terminal, to write above the bar.
    stream: TextIO | None = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    if stream is None:
        return
    try:
        terminal = stream.isatty()
        encoding = stream.encoding or "ascii"
        plain = not terminal or not encoding.lower().startswith("utf")
        lines = io.StringIO()
        if plain:
            width = None if terminal else WIDTH_WITHOUT_TERMINAL
            console = Console(
                file=lines,
                force_terminal=False,
                force_jupyter=False,
                color_system=None,
                legacy_windows=False,
                width=width,
            )
        else:
            console = Console(force_jupyter=False) if stream is sys.stdout else rich.get_console()
        unbounded = console.options.update(width=10_000)  # else the answer is cut to what there is
        for form in forms:
            table = form(plain)
            widest = Measurement.get(console, unbounded, Text("\n".join(labels)))
            foldable = max(0, min(widest.maximum, _LABEL_WIDTH) - _LABEL_LEAST)
            if Measurement.get(console, unbounded, table).maximum - foldable <= console.width:
                break
        console.print(table)
        if plain:
            write_plain("\n".join(line.rstrip() for line in lines.getvalue().splitlines()))
        sys.stdout.flush()
    except (OSError, ValueError) as error:  # a closed pipe, a full disk, a closed file
        warnings.warn(f"The table could not be printed ({error}). {instead} returns it.", stacklevel=2)


def write_plain(text: str) -> None:
    """Write a text and a line feed to ``sys.stdout`` as it is now, what its encoding does not have written out."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    sys.stdout.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def count(weight: float) -> str:
    """Return a number of elements as text; under fractional weights with one decimal."""
    return f"{weight:,.0f}" if weight.is_integer() else f"{weight:,.1f}"


def _number(value: float, weight: float) -> str:
    # What was never seen is an empty cell; a NaN that was seen stays in sight.
    return f"{value:.4g}" if weight else ""


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.1%}"


def _share(share: float, plain: bool, bar: bool) -> str:
    if math.isnan(share) or not bar:
        return _percent(share)
    return f"{share:>6.1%} {('#' if plain else '█') * round(_BAR * min(max(share, 0.0), 1.0))}"
