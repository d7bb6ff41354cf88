"""Reliability: whether what is called probable comes true as often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_bce.metrics.reliability_curve import wilson_interval
from lightning_bce.plotting.drawing import (
    FAINT,
    GRID,
    LINES,
    NEGATIVE,
    OTHERS,
    Array,
    Drawing,
    NothingToDraw,
    array,
    dress,
    legend,
    listed,
    number,
    percent,
    plain,
    ratio,
    shortened,
    worst,
)
from lightning_bce.plotting.text_panels import bar, table_lines
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ReliabilityDiagram(Drawing):
    """How often what is predicted with some probability comes true, and how often it is predicted."""

    name = "reliability"
    title = "Reliability of the probabilities"
    reading = (
        "On the diagonal, what is called 70 % probable comes true in 70 % of the cases; below it the model promises "
        "too much. Bars are 95 % intervals (Wilson); below, how many predictions there are."
    )

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Compute the mean probability and the share of positives of each bin, and the calibration errors."""
        reliability = evaluation.reliability
        if reliability is None or not float(reliability.count.sum()) > 0:
            raise NothingToDraw("the evaluation holds no reliability")
        self.edges = array(reliability.edges)
        count, probability, positive = map(array, (reliability.count, reliability.probability, reliability.positive))
        self.count: Array = count.sum(0)
        self.probability: Array = ratio(probability.sum(0), self.count)
        self.positive: Array = ratio(positive.sum(0), self.count)
        self.low, self.high = map(array, wilson_interval(reliability.positive.sum(0), reliability.count.sum(0)))
        gaps = np.abs(probability - positive).sum(1)
        self.errors: Array = ratio(gaps, count.sum(1))
        self.error = float(np.abs(probability.sum(0) - positive.sum(0)).sum() / self.count.sum())
        self.by_label = (ratio(probability, count), ratio(positive, count))
        self.worst = worst(-self.errors, 2) if len(count) > 1 else []

    def finding(self) -> str:
        """Give the calibration error, and the bin that adds the most to it."""
        at = int(np.nanargmax(self.count * np.abs(self.probability - self.positive)))
        said = (
            f"Expected calibration error {number(self.error)}. Most of it is of {self.count[at]:,.0f} predictions of "
            f"{percent(self.probability[at])} on average, of which {percent(self.positive[at])} came true."
        )
        if self.worst:
            names = listed([self.labels[i] for i in self.worst], [number(self.errors[i]) for i in self.worst])
            said += f" The largest errors of single labels have {names}."
        return said

    def draw(self, figure: Figure) -> None:
        """Draw the diagram, and the counts below."""
        figure.set_figheight(5.4)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        dress(top, "", "share that is positive")
        top.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="reliable")
        for i, colour, line in zip(self.worst, OTHERS, LINES[1:], strict=False):
            known = ~np.isnan(self.by_label[0][i])
            x, y = (values[i][known] for values in self.by_label)
            text = f"{plain(shortened(self.labels[i], 18))}, {number(self.errors[i])}"
            top.plot(x, y, color=colour, linestyle=line, marker=".", linewidth=1.2, label=text)
        known = self.count > 0
        middle = self.positive[known]
        top.errorbar(
            self.probability[known],
            middle,
            yerr=np.maximum(np.stack([middle - self.low[known], self.high[known] - middle]), 0),
            color=NEGATIVE,
            marker="o",
            markersize=5,
            linewidth=1.8,
            elinewidth=1,
            capsize=2,
            label=f"{'all together' if self.worst else 'predictions'}, {number(self.error)}",
        )
        top.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        dress(bottom, "predicted probability", "predictions", grid="y")
        bottom.bar(
            self.edges[:-1],
            self.count,
            np.diff(self.edges),
            align="edge",
            color=GRID,
            edgecolor=FAINT,
            linewidth=0.6,
        )
        if self.count.max() > 50 * max(float(np.median(self.count)), 1.0):
            bottom.set_yscale("log")
            bottom.set_ylabel("predictions, log")
            bottom.set_ylim(bottom=0.7)
        legend(figure, top)

    def lines(self, width: int) -> Iterator[str]:
        """Yield a table with a row for each bin."""
        size = max(8, width - 58)
        rows = []
        for i in np.flatnonzero(self.count > 0):
            promised, kept = float(self.probability[i]), float(self.positive[i])
            cells = list(f"{bar(kept, size):<{size}}|")
            cells[min(round(promised * size), size)] = "o"
            rows.append(
                [
                    f"{self.edges[i]:.2f}-{self.edges[i + 1]:.2f}",
                    f"{self.count[i]:,.0f}",
                    percent(promised),
                    percent(kept),
                    "".join(cells),
                ]
            )
        header = ["probability", "count", "predicted", "positive", "# positive, o predicted"]
        yield from table_lines(header, rows, width, left=(0, 4))
