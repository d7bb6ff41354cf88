"""What scores decide over all thresholds: precision against recall, and true against false positives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from lightning_bce.metrics.score_curves import (
    Bounded,
    ScoreCurve,
    score_auroc,
    score_average_precision,
    score_precision_recall,
    score_roc,
)
from lightning_bce.metrics.score_histogram import ScoreBins
from lightning_bce.plotting.drawing import (
    FAINT,
    GRID,
    INK,
    LINES,
    NEGATIVE,
    OTHERS,
    POSITIVE,
    Array,
    Drawing,
    NothingToDraw,
    array,
    dress,
    legend,
    listed,
    number,
    plain,
    ratio,
    shortened,
    worst,
)
from lightning_bce.plotting.judged import FEW, threshold_text
from lightning_bce.plotting.text_panels import at_columns, bar, below, panel, table_lines
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GRID = np.linspace(0.0, 1.0, 201)


class ThresholdCurve(NamedTuple):
    """A curve over all thresholds, from the highest to the lowest.

    Args:
        x: Recall, or the false positive rate; from 0 to 1. Empty where there is no curve.
        y: Precision, or the true positive rate.
        area: Average precision, or the area under the ROC curve. NaN where there is no curve.
    """

    x: Array
    y: Array
    area: float


def _each(curves: ScoreCurve, areas: Bounded) -> list[ThresholdCurve]:
    """Return the curve of each label, without points that are where the one before is."""
    made = []
    for x, y, area in zip(array(curves.x), array(curves.y), array(areas.value), strict=True):
        moved = np.append(True, (np.diff(x) != 0) | (np.diff(y) != 0)) & (not math.isnan(area))
        made.append(ThresholdCurve(x[moved], y[moved], float(area)))
    return made


class _Curves(Drawing):
    """Curves over all thresholds: of all elements together and, of several labels, of each."""

    area: ClassVar[str]
    x_name: ClassVar[str]
    y_name: ClassVar[str]

    @staticmethod
    def curves(scores: ScoreBins) -> list[ThresholdCurve]:
        """Return the curve of each label."""
        raise NotImplementedError

    @staticmethod
    def at(confusion: Array) -> tuple[float, float]:
        """Return where the decisions of a confusion matrix lie."""
        raise NotImplementedError

    def on_grid(self, curve: ThresholdCurve) -> Array:
        """Return the y of a curve at the places of a grid, for means over labels."""
        raise NotImplementedError

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Compute the curve of all elements and that of each label."""
        if evaluation.scores is None:
            raise NothingToDraw("the evaluation holds no scores")
        edges, count = evaluation.scores.edges, evaluation.scores.count
        self.prevalence = float(ratio(float(count[:, 1].sum()), float(count.sum())))
        (self.together,) = self.curves(ScoreBins(edges, count.sum(0, keepdim=True)))
        if math.isnan(self.together.area):
            raise NothingToDraw("without positives, or without negatives, there is no curve")
        self.by_label = self.curves(ScoreBins(edges, count)) if len(count) > 1 else []
        self.areas: Array = np.asarray([curve.area for curve in self.by_label])
        self.known = [curve for curve in self.by_label if not math.isnan(curve.area)]
        self.worst = worst(self.areas, 3)
        self.macro = math.nan
        self.mean: Array = np.empty(0)
        self.band: tuple[Array, Array] | None = None
        if self.known:
            grid = np.stack([self.on_grid(curve) for curve in self.known])
            self.macro, self.mean = float(np.nanmean(self.areas)), grid.mean(0)
            if len(self.known) > FEW:
                self.band = (np.quantile(grid, 0.05, axis=0), np.quantile(grid, 0.95, axis=0))
        self.confusion = None if evaluation.confusion is None else array(evaluation.confusion)
        self.threshold = threshold_text(evaluation)

    @property
    def chosen(self) -> tuple[float, float] | None:
        """Where the decisions at the threshold lie; over several labels, all of them counted together."""
        if self.confusion is None:
            return None
        place = self.at(self.confusion.sum(0))
        return None if any(map(math.isnan, place)) else place

    def finding(self) -> str:
        """Give the area, and of several labels the worst."""
        said = f"{self.area[0].upper()}{self.area[1:]} {number(self.together.area, 4)}"
        if self.known:
            said += f" over all elements together, {number(self.macro, 4)} as the mean of the labels"
            names = listed([self.labels[i] for i in self.worst], [number(self.areas[i]) for i in self.worst])
            said += f"; worst are {names}"
        said += "."
        missing = len(self.by_label) - len(self.known)
        if missing:
            said += f" Without positives or without negatives, and so without a curve: {missing} of {len(self.labels)}."
        if self.chosen is not None:
            said += f" At the {self.threshold}: {self.y_name} {number(self.chosen[1])}, {self.x_name} "
            said += f"{number(self.chosen[0])}."
        return said

    def draw(self, figure: Figure) -> None:
        """Draw all, and mark the threshold."""
        figure.set_figheight(4.3 + 0.17 * len(self.worst))
        axes = figure.subplots()
        dress(axes, self.x_name, self.y_name)
        self._reference(axes)
        if self.band is not None:
            axes.fill_between(_GRID, *self.band, color=GRID, linewidth=0, label="90 % of the labels")
        elif len(self.known) > 4:
            for index, curve in enumerate(self.known):
                axes.plot(
                    curve.x,
                    curve.y,
                    color=FAINT,
                    linewidth=0.7,
                    alpha=0.6,
                    label="" if index else "each label",
                    zorder=1,
                )
        for i, colour, line in zip(self.worst, OTHERS, LINES[1:], strict=False):
            name = plain(shortened(self.labels[i], 18))
            text = f"{name}, {number(self.areas[i])}"
            axes.plot(self.by_label[i].x, self.by_label[i].y, color=colour, linestyle=line, linewidth=1.4, label=text)
        if self.known:
            axes.plot(_GRID, self.mean, color=INK, linestyle="--", label=f"mean of labels, {number(self.macro)}")
        together = "all together" if self.known else self.area
        area = number(self.together.area, 4 if not self.known else 3)
        axes.plot(self.together.x, self.together.y, color=NEGATIVE, linewidth=2.2, label=f"{together}, {area}")
        if self.chosen is not None:
            axes.plot(
                *self.chosen,
                "o",
                markersize=9,
                markerfacecolor="white",
                markeredgecolor=POSITIVE,
                markeredgewidth=2.5,
                clip_on=False,
                label=self.threshold,
                zorder=5,
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), box_aspect=0.8)
        legend(figure, axes)

    def _reference(self, axes: Axes) -> None:
        raise NotImplementedError

    def lines(self, width: int) -> Iterator[str]:
        """Yield a panel with the curve of all elements together, and a table of the labels."""
        inside = width - 9
        yield f"{self.y_name} against {self.x_name}; * all together" + ("; o threshold" if self.chosen else "")
        curves = {"*": at_columns(self.together.x, self.together.y, 0, 1, inside)}
        if self.chosen is not None:
            curves["o"] = [math.nan] * inside
            curves["o"][round(self.chosen[0] * (inside - 1))] = self.chosen[1]
        yield from panel(curves, inside, 14, 0, 1)
        yield below("0", self.x_name, "1", inside)
        if self.known:
            shown = worst(self.areas, 10)
            rows = [[shortened(self.labels[i]), number(self.areas[i], 4), bar(float(self.areas[i]))] for i in shown]
            if len(self.known) > len(shown):
                rows.append([f"{len(self.known) - len(shown)} more are better", "", ""])
            yield from ["", *table_lines(["label", self.area, ""], rows, width, left=(0, 2))]


class PrecisionRecall(_Curves):
    """Precision against recall over all thresholds."""

    name = "precision_recall"
    title = "Precision and recall"
    reading = "Each point is a threshold. The dotted line is what guessing reaches, the share of positives."
    area = "average precision"
    x_name, y_name = "recall", "precision"

    @staticmethod
    def curves(scores: ScoreBins) -> list[ThresholdCurve]:
        """Return precision against recall, with the average precision."""
        return _each(score_precision_recall(scores), score_average_precision(scores))

    @staticmethod
    def at(confusion: Array) -> tuple[float, float]:
        """Return recall and precision of a confusion matrix."""
        true = confusion[1, 1]
        return float(ratio(true, confusion[1].sum())), float(ratio(true, confusion[:, 1].sum()))

    def on_grid(self, curve: ThresholdCurve) -> Array:
        """Return the precision at which each recall is first reached."""
        at = np.searchsorted(curve.x, np.maximum(_GRID, 1e-12) - 1e-13)
        return np.asarray(curve.y[np.minimum(at, len(curve.x) - 1)])

    def _reference(self, axes: Axes) -> None:
        text = f"guessing, {number(self.prevalence)}"
        axes.plot([0, 1], [self.prevalence] * 2, color=FAINT, linewidth=1, linestyle=":", label=text)


class ROC(_Curves):
    """The rate of true against that of false positives, over all thresholds."""

    name = "roc"
    title = "ROC curve"
    reading = (
        "Each point is a threshold: how many positives it finds, at how many false alarms. Guessing is the diagonal."
    )
    area = "AUROC"
    x_name, y_name = "false positive rate", "true positive rate"

    @staticmethod
    def curves(scores: ScoreBins) -> list[ThresholdCurve]:
        """Return the true against the false positive rate, with the area below."""
        return _each(score_roc(scores), score_auroc(scores))

    @staticmethod
    def at(confusion: Array) -> tuple[float, float]:
        """Return the false and the true positive rate of a confusion matrix."""
        return float(ratio(confusion[0, 1], confusion[0].sum())), float(ratio(confusion[1, 1], confusion[1].sum()))

    def on_grid(self, curve: ThresholdCurve) -> Array:
        """Return the true positive rate at each false positive rate."""
        last = np.append(np.diff(curve.x) > 0, True)  # of several points above each other the highest
        return np.asarray(np.interp(_GRID, curve.x[last], curve.y[last]))

    def _reference(self, axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="guessing, 0.5")
