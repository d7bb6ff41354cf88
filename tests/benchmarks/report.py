"""What is written and printed of the rows: a CSV, tables, a plot, and the lines of docs/speed.md."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = dict[str, Any]

COLUMNS = [
    *("device", "dtype", "threads", "family", "contender", "labels", "batch", "elements", "status", "rounds"),
    *("median_s", "min_s", "ns_per_element", "ratio_to_fused", "extra_bytes_per_element"),
    *("value_error", "gradient_error"),
]
TITLES = {"focal": "focal loss", "bce": "cross-entropy", "asl": "asymmetric loss"}
FAMILIES = [*TITLES, "floor"]
FLOOR = {"one multiplication": (":", "#999999"), "physical limit": ("-", "#000000")}
# Okabe and Ito's, which colour-blind readers tell apart
COLOURS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


def write_csv(rows: list[Row], path: Path) -> None:
    """Write every number."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            digits = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(digits)


def print_tables(rows: list[Row]) -> None:
    """Print a table for each number of threads and dtype: nanoseconds an element and the ratio to our fused loss."""
    console = Console(width=None if Console().is_terminal else 180)
    for threads, dtype in _unique((row["threads"], row["dtype"]) for row in rows):
        those = [row for row in rows if (row["threads"], row["dtype"]) == (threads, dtype)]
        sizes = sorted({row["batch"] for row in those if "batch" in row})
        table = Table(
            title=f"{those[0]['device']}, {dtype}, {threads} thread{'s' * (threads > 1)}: ns an element, median "
            "(times ours fused); most extra memory in bytes an element",
        )
        table.add_column("")
        for elements in sizes:
            table.add_column(f"{elements:,}", justify="right")
        table.add_column("extra", justify="right")
        family = None
        for name in _unique(row["contender"] for row in those):
            mine = [row for row in those if row["contender"] == name]
            if family not in (None, mine[0]["family"]):
                table.add_section()
            family = mine[0]["family"]
            cells = {row.get("batch", sizes[0]): _cell(row) for row in mine}
            table.add_row(name, *(cells.get(elements, "") for elements in sizes), _extra(mine))
        console.print(table)


def headline(rows: list[Row]) -> str:
    """Return the lines of docs/speed.md: at 2^24 elements, or the most there are, in the first dtype."""
    sizes = {row["batch"] for row in rows if row["status"] == "measured"}
    elements = 2**24 if 2**24 in sizes else max(sizes)
    lines = []
    for threads in _unique(row["threads"] for row in rows):
        found = {
            row["contender"]: row
            for row in rows
            if row["status"] == "measured" and (row["threads"], row["dtype"]) == (threads, rows[0]["dtype"])
            if row["batch"] == elements
        }
        lines += [
            f"{elements:,} elements, {rows[0]['dtype']}, {threads} thread{'s' * (threads > 1)}:",
            "",
            "| fused, and how many times faster than | eager | compiled | extra memory of these, bytes an element |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, row in found.items():
            if ", " in name or "sums" in name or row["family"] == "floor":
                continue
            compiled = found.get(f"{name}, compiled", {})
            ratios = [f"{r['ratio_to_fused']:.1f}" if r.get("ratio_to_fused") else "" for r in (row, compiled)]
            lines.append(f"| {name} | {ratios[0]} | {ratios[1]} | {_extra([row])}, {_extra([compiled])} |")
        lines.append("")
        if {"FocalLoss, fused", "torch BCE"} <= set(found):
            focal = found["FocalLoss, fused"]
            bare = {name: row["median_s"] / focal["median_s"] for name, row in found.items()}
            lines.append(
                f"FocalLoss, fused: {1e3 * focal['median_s']:.1f} ms, {_extra([focal])} extra bytes an element, "
                f"{bare['torch BCE']:.1f} times faster than torch's BCE, {1 / bare['one multiplication']:.1f} times "
                f"one multiplication, {1 / bare['physical limit']:.1f} times the physical limit."
            )
        lines += [*_small(rows, threads), ""]
    return "\n".join(lines)


def _small(rows: list[Row], threads: int) -> list[str]:
    """Return what a call costs: the times of the least elements, at which little else is paid."""
    least = min(row["batch"] for row in rows if row["status"] == "measured")
    times = [
        f"{row['contender']} {1e6 * row['median_s']:.0f}"
        for row in rows
        if row["status"] == "measured" and (row["threads"], row["dtype"]) == (threads, rows[0]["dtype"])
        if row["batch"] == least and row["family"] == "bce"
    ]
    return [f"At {least:,} elements, in microseconds: {', '.join(times)}."] if times else []


def write_plot(rows: list[Row], path: Path) -> None:
    """Draw the time of an element against the size, in the first dtype and with the most threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    threads, dtype = max(row["threads"] for row in rows), rows[0]["dtype"]
    those = [row for row in rows if (row["threads"], row["dtype"], row["status"]) == (threads, dtype, "measured")]
    those = [row for row in those if "sums" not in row["contender"]]  # one line with the fused loss
    families = _unique(row["family"] for row in those if row["family"] != "floor")
    figure, axes = pyplot.subplots(
        1, len(families), figsize=(4.6 * len(families), 5.6), sharex=True, sharey=True, squeeze=False
    )
    for axis, family in zip(axes[0], families, strict=True):
        colour: dict[str, str] = {}
        for name in _unique(row["contender"] for row in those if row["family"] in (family, "floor")):
            line = sorted((row["elements"], row["ns_per_element"]) for row in those if row["contender"] == name)
            if name in FLOOR:
                style, of_line = FLOOR[name]
            else:
                style = "--" if name.endswith(", compiled") else "-"
                of_line = colour.setdefault(name.removesuffix(", compiled"), COLOURS[len(colour) % len(COLOURS)])
            width = 2.6 if name.endswith(", fused") else 1.4
            axis.plot(*zip(*line, strict=True), style, color=of_line, linewidth=width, marker=".", label=name)
        axis.set(xscale="log", yscale="log", title=TITLES[family], xlabel="elements of a batch")
        axis.grid(alpha=0.25, which="major")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    axes[0, 0].set_ylabel("forward and backward, ns an element")
    figure.suptitle(f"{those[0]['device'].upper()}, {dtype}, {threads} thread{'s' * (threads > 1)}: medians")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _cell(row: Row) -> str:
    if row["status"] != "measured":
        return str(row["status"].partition(":")[0])
    ratio = "" if row["ratio_to_fused"] is None else f" ({row['ratio_to_fused']:.2f})"
    return f"{row['ns_per_element']:.3g}{ratio}"


def _extra(rows: list[Row]) -> str:
    found = [row["extra_bytes_per_element"] for row in rows if row.get("extra_bytes_per_element") is not None]
    return f"{found[-1]:.1f}" if found else ""


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
