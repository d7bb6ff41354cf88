"""The scores of both classes, and where the threshold cuts them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_bce.metrics.score_curves import (
    score_auroc,
)
from lightning_bce.metrics.score_histogram import ScoreBins
from lightning_bce.plotting.drawing import (
    GRID,
    INK,
    NEGATIVE,
    POSITIVE,
    Array,
    Drawing,
    NothingToDraw,
    array,
    dress,
    legend,
    number,
    plain,
    ratio,
    shortened,
    worst,
)
from lightning_bce.plotting.judged import FEW, threshold_text
from lightning_bce.plotting.text_panels import below, panel, table_lines
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class ScoreHistograms(Drawing):
    """The logits of negatives and of positives, with the threshold."""

    name = "scores"
    title = "Scores of negatives and positives"
    reading = (
        "The less the two overlap, the better they are told apart; what lies beyond the threshold is decided wrongly."
    )
    _bins = 48

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Join fine bins to those that are drawn, and take quantiles of each label."""
        if evaluation.scores is None or not float(evaluation.scores.count.sum()) > 0:
            raise NothingToDraw("the evaluation holds no scores")
        edges, count = array(evaluation.scores.edges), array(evaluation.scores.count)
        self.threshold = np.full(len(count), math.nan)
        if evaluation.threshold is not None:
            self.threshold = _logit(array(evaluation.threshold))
        self.threshold_text = threshold_text(evaluation)
        # Bins without an end are drawn as wide as their neighbours.
        edges = edges.copy()
        edges[0] = (
            edges[1] - (edges[2] - edges[1]) if np.isneginf(edges[0]) and len(edges) > 3 else max(edges[0], -50.0)
        )
        edges[-1] = (
            edges[-2] + (edges[-2] - edges[-3]) if np.isposinf(edges[-1]) and len(edges) > 3 else min(edges[-1], 50)
        )
        used = np.flatnonzero(count.sum((0, 1)) > 0)
        first, last = int(used[0]), int(used[-1]) + 1
        every = max(1, math.ceil((last - first) / self._bins))
        cuts = np.append(np.arange(first, last, every), last)
        self.edges: Array = edges[cuts]
        self.total: Array = count.sum((0, 2))
        joined = np.add.reduceat(count.sum(0), cuts[:-1], axis=1)
        joined[:, -1] = count.sum(0)[:, cuts[-2] : last].sum(-1)
        self.density: Array = ratio(joined, joined.sum(1, keepdims=True)) / np.diff(self.edges)
        self.quantiles: Array = np.stack([[_quantiles(edges, side) for side in label] for label in count])
        areas = array(score_auroc(ScoreBins(evaluation.scores.edges, evaluation.scores.count)).value)
        self.shown = list(range(len(count))) if len(count) <= FEW else sorted(worst(areas, FEW))
        self.several = len(count) > 1

    def finding(self) -> str:
        """Compare the medians."""
        if self.several:
            negative, positive = np.nanmedian(self.quantiles[:, :, 1], axis=0)
            said = (
                f"The median logit of a label is {number(negative)} for negatives and {number(positive)} for positives"
            )
        else:
            negative, positive = self.quantiles[0, :, 1]
            said = f"Half of the negatives are below a logit of {number(negative)}, half of the positives above "
            said += number(positive)
        return f"{said}; {self.threshold_text}."

    def draw(self, figure: Figure) -> None:
        """Draw the histograms and, of several labels, the range of each."""
        rows = len(self.shown) if self.several else 0
        figure.set_figheight(3.8 + (0.7 + 0.24 * rows if rows else 0))
        if rows:
            top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.4, 0.24 * rows])
            self._draw_labels(bottom)
        else:
            top = bottom = figure.subplots()
        dress(top, "" if rows else "logit", "share of the class, % per logit", grid="y")
        for side, (name, colour) in enumerate((("negatives", NEGATIVE), ("positives", POSITIVE))):
            if self.total[side] > 0:
                values = 100 * self.density[side]
                top.stairs(values, self.edges, fill=True, facecolor=colour, alpha=0.45, edgecolor="none")
                top.stairs(
                    values,
                    self.edges,
                    color=colour,
                    linewidth=1.5,
                    linestyle="--" if side else "-",
                    label=f"{name}, {self.total[side]:,.0f}",
                )
        at = np.unique(self.threshold[np.isfinite(self.threshold)])
        if len(at) == 1:
            top.axvline(float(at[0]), color=INK, linewidth=1.3, linestyle="-.", label=self.threshold_text)
        elif len(at) > 1:
            top.axvspan(float(at[0]), float(at[-1]), color=GRID, zorder=0, label=self.threshold_text)
        top.set_ylim(bottom=0)
        top.set_xlim(float(self.edges[0]), float(self.edges[-1]))
        _probability_axis(top)
        legend(figure, top)

    def _draw_labels(self, axes: Axes) -> None:
        whole = len(self.shown) == len(self.labels)
        title = (
            "each label: median and 90 % of both classes"
            if whole
            else f"the {len(self.shown)} labels with the lowest AUROC"
        )
        dress(axes, "logit", "", title, grid="x")
        for row, label in enumerate(self.shown):
            for side, (colour, mark) in enumerate(((NEGATIVE, "o"), (POSITIVE, "s"))):
                low, middle, high = self.quantiles[label, side]
                at = row + (0.16 if side else -0.16)
                axes.plot([low, high], [at, at], color=colour, linewidth=2, linestyle=(0, (3, 1)) if side else "-")
                axes.plot(middle, at, mark, color=colour, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5)
            if math.isfinite(self.threshold[label]):
                axes.plot(
                    [self.threshold[label]] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.3, linestyle="-."
                )
        axes.set_yticks(range(len(self.shown)), [plain(shortened(self.labels[i], 18)) for i in self.shown])
        axes.set_ylim(len(self.shown) - 0.4, -0.6)

    def lines(self, width: int) -> Iterator[str]:
        """Yield a panel, and a table of the labels."""
        inside = width - 9
        low, high = float(self.edges[0]), float(self.edges[-1])
        columns = np.linspace(low, high, inside)
        bins = np.clip(np.searchsorted(self.edges, columns, side="right") - 1, 0, len(self.edges) - 2)
        yield "share of the class, % per logit; - negatives, + positives, | threshold"
        curves = {mark: [100 * float(v) for v in self.density[side][bins]] for side, mark in enumerate("-+")}
        lines = list(panel(curves, inside, 12))
        at = np.unique(self.threshold[np.isfinite(self.threshold)])
        if len(at) == 1 and low <= at[0] <= high:
            column = 9 + round((at[0] - low) / (high - low or 1) * (inside - 1))
            lines = [
                f"{x:<{column + 1}}"[:column] + (x[column : column + 1].strip() or "|") + x[column + 1 :] for x in lines
            ]
        yield from lines
        yield below(f"{low:.3g}", "logit", f"{high:.3g}", inside)
        if self.several:
            rows = [
                [
                    shortened(self.labels[i], 18),
                    *("" if np.isnan(q).any() else " ".join(f"{v:>6.2f}" for v in q) for q in self.quantiles[i]),
                ]
                for i in self.shown
            ]
            header = ["logit: 5 %, 50 %, 95 %", "negatives", "positives"]
            yield from ["", *table_lines(header, rows, width)]


def _quantiles(edges: Array, count: Array) -> list[float]:
    if not count.sum() > 0:
        return [math.nan] * 3
    reached = np.append(0.0, count.cumsum() / count.sum())
    return [float(value) for value in np.interp([0.05, 0.5, 0.95], reached, edges)]


def _probability_axis(axes: Axes) -> None:
    shown = np.asarray([1e-6, 1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 1 - 1e-4, 1 - 1e-6])
    low, high = axes.get_xlim()
    inside = [p for p in shown if low <= _logit(np.asarray(p)) <= high]
    above = axes.secondary_xaxis("top")
    above.set_xticks([float(_logit(np.asarray(p))) for p in inside], [f"{p:.6f}".rstrip("0") for p in inside])
    above.set_xlabel("probability", color=INK, fontsize=9)
    above.tick_params(colors=INK, labelsize=8)
    above.spines[:].set_visible(False)


def _logit(probability: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probability) - np.log1p(-probability))
