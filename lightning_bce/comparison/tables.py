"""What a comparison came to as tables: for the terminal, for Markdown, and every run as CSV and Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.table import Table as RichTable

from lightning_bce.comparison.compare import Comparison
from lightning_bce.comparison.judging import COSTS, Judgement, Row
from lightning_bce.comparison.scores import SCORES
from lightning_bce.data.cells import require
from lightning_bce.files import whole_file

_LABEL = 20


class Table(NamedTuple):
    """A table of texts.

    Args:
        title: What it shows.
        head: The names of the columns; the first is that of the rows.
        rows: The cells.
    """

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return the table as GitHub renders it."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for place, name in enumerate(self.head):
            longest = max([len(name), *(len(row[place]) for row in self.rows)])
            # A long label wraps and leaves the numbers whole.
            width = longest if place else min(longest, _LABEL)
            table.add_column(name, justify="right" if place else "left", min_width=width, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


_STATES = {
    "better": "better",
    "worse": "worse",
    "equal": "as good",
    "open": "not told apart",
    "failed": "failed",
}


def differences(judgement: Judgement, compared: Comparison) -> Table:
    """Return how each loss differs from the reference on a data set."""
    settings = compared.plan.settings
    title = SCORES[settings.metric].title
    level = f"{100 * (1 - settings.alpha):g} % interval"
    rows = []
    for row in judgement.rows:
        value = _number(row.scores[settings.metric][0])
        if row.estimate is None:
            told = "the reference" if row is judgement.rows[0] else _STATES[row.state]
            rows.append([row.label, value, "", "", "", told])
            continue
        rows.append(
            [row.label, value, f"{row.estimate.mean:+.4f}", _interval(row), _p(row.p_value), _STATES[row.state]]
        )
    return Table(
        f"{judgement.name}: {title} on test rows, {judgement.splits} split{'s' if judgement.splits > 1 else ''}",
        ["loss", SCORES[settings.metric].short, "better by", level, "p (Holm)", "verdict"],
        rows,
    )


def all_scores(judgement: Judgement, compared: Comparison) -> Table:
    """Return every score and cost of each loss on a data set."""
    settings = compared.plan.settings
    costs = [name for name in COSTS if name != ("seconds" if settings.accelerator == "cpu" else "cpu_seconds")]
    titles = [score.short for score in SCORES.values()]
    titles[-1] += f" {settings.precision:g}"
    any_failed = any(row.failed for row in judgement.rows)
    rows = [
        [row.label]
        + [_number(row.scores[name][0], 3) for name in SCORES]
        + [_three_digits(row.scores[name][0]) for name in costs]
        + ([str(row.failed)] if any_failed else [])
        for row in judgement.rows
    ]
    return Table(
        f"{judgement.name}: means on test rows, threshold and calibration from validation rows",
        ["loss", *titles, *(COSTS[name] for name in costs), *(["failed"] if any_failed else [])],
        rows,
    )


def over_all(compared: Comparison) -> Table:
    """Return the metric of each loss on each data set, with its difference to the reference, and the mean ranks."""
    settings, judgements = compared.plan.settings, compared.judgements
    rows = []
    for place, candidate in enumerate(compared.plan.losses):
        cells = [_with_difference(judgement.rows[place], settings.metric) for judgement in judgements]
        if compared.ranks is not None:
            cells.append(f"{compared.ranks.mean[place]:.2f}")
        rows.append([candidate.label, *cells])
    return Table(
        f"{SCORES[settings.metric].title} on test rows; in brackets the interval of the difference to the reference",
        ["loss", *(one.name for one in judgements), *(["mean rank"] if compared.ranks is not None else [])],
        rows,
    )


_MARKS = {"better": " ▲", "worse": " ▼"}


def _with_difference(row: Row, metric: str) -> str:
    mean = row.scores[metric][0]
    if math.isnan(mean):
        return "failed"
    if row.estimate is None:
        return f"{mean:.3f}"
    low, high = row.interval
    return f"{mean:.3f} [{low:+.3f}, {high:+.3f}]{_MARKS.get(row.state, '')}"


def ranked(compared: Comparison) -> Table | None:
    """Return the mean ranks over data sets, the best first; None where there are none."""
    if compared.ranks is None:
        return None
    labels, means = [candidate.label for candidate in compared.plan.losses], compared.ranks.mean
    p_values = ["", *(_p(value) for value in compared.ranks.wilcoxon[1:])]
    count, distance = len(compared.judgements), compared.ranks.critical_difference
    return Table(
        f"ranks over {count} data sets; critical difference {distance:.2f}",
        ["loss", "mean rank", f"p against {labels[0]} (Wilcoxon, Holm)"],
        [[labels[i], f"{means[i]:.2f}", p_values[i]] for i in sorted(range(len(labels)), key=means.__getitem__)],
    )


def markdown(compared: Comparison) -> str:
    """Return the summary for a README: one table over all data sets, and the verdicts."""
    lines = [over_all(compared).markdown(), ""]
    lines += [f"- **{name}**: {text}" for name, text in compared.verdicts.items()]
    over = compared.verdict_over_data
    if over is not None:
        lines += ["", over]
    return "\n".join(lines) + "\n"


def records(compared: Comparison) -> list[dict[str, Any]]:
    """Return every run as a flat record: what it was, how it was judged, what it took, and where its file lies."""
    found = []
    for task in compared.plan.tasks:
        result = compared.runs[task.key].result
        rows = result.get("rows") or {}
        searched = result.get("searched")
        found.append(
            {
                "data": task.data_name,
                "loss": task.label,
                "seed": task.specification["split"]["seed"],
                "fold": task.specification["split"].get("fold"),
                **{name: result.get(name) for name in (*SCORES, *COSTS, "best_epoch", "failed_trials")},
                "searched": json.dumps(searched) if searched else None,
                **{f"rows_{part}": rows.get(part) for part in ("train", "val", "test")},
                "error": result["error"],
                "key": task.key,
            }
        )
    return found


def write_runs(compared: Comparison, folder: Path) -> list[Path]:
    """Write every run as ``runs.csv`` and ``runs.parquet``, each at once.

    Raises:
        ImportError: If polars is not installed.
    """
    require("polars")
    import polars

    # By all rows: the first of them may be a failed run, whose numbers are all missing.
    frame = polars.DataFrame(records(compared), infer_schema_length=None)
    paths = [folder / "runs.csv", folder / "runs.parquet"]
    for path in paths:
        with whole_file(path) as file:
            (frame.write_csv if path.suffix == ".csv" else frame.write_parquet)(file)
    return paths


def shown(compared: Comparison) -> Iterable[Table]:
    """Yield the tables of a comparison in the order in which they are read."""
    for judgement in compared.judgements:
        yield differences(judgement, compared)
        yield all_scores(judgement, compared)
    table = ranked(compared)
    if table is not None:
        yield table


def _number(value: float, digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _three_digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _interval(row: Row) -> str:
    low, high = row.interval
    return f"[{low:+.4f}, {high:+.4f}]" if math.isfinite(low) else "unknown"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plan_table(compared_plan: Any, seconds: Sequence[float | None]) -> Table:
    """Return what a plan would run on each data set, and how long that takes at most."""
    count = len(compared_plan.losses) * len(compared_plan.settings.splits())
    rows = []
    for one, estimate in zip(compared_plan.data, seconds, strict=True):
        sizes = " + ".join(str(one.sizes[part]) for part in ("train", "val", "test"))
        rows.append(
            [one.name, sizes, str(one.num_labels), f"{100 * one.positives:.1f} %", str(count)]
            + ([] if estimate is None else [f"{estimate:.3g}"])
        )
    head = ["data", "rows: train + val + test", "labels", "positives", "runs"]
    return Table("plan", head + (["s a run, at most"] if None not in seconds else []), rows)
