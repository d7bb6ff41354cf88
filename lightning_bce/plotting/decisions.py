"""What the scores decide: curves over all thresholds, the scores of both classes, the decisions at the threshold."""

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
    colour_bar,
    dress,
    heat_map,
    legend,
    listed,
    number,
    percent,
    plain,
    ratio,
    shortened,
    worst,
)
from lightning_bce.plotting.text_panels import at_columns, bar, below, panel, table_lines
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = 14
"""Labels up to this number are drawn one by one; of more, a band and the worst."""
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
            if len(self.known) > _FEW:
                self.band = (np.quantile(grid, 0.05, axis=0), np.quantile(grid, 0.95, axis=0))
        self.confusion = None if evaluation.confusion is None else array(evaluation.confusion)
        self.threshold = _thresholds(evaluation)

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


def _thresholds(evaluation: Evaluation) -> str:
    if evaluation.threshold is None:
        return "threshold"
    values = array(evaluation.threshold)
    values = values[~np.isnan(values)]
    if not values.size:
        return "threshold"
    low, high = float(values.min()), float(values.max())
    return f"threshold {number(low)}" if low == high else f"thresholds {number(low)} to {number(high)}"


def _logit(probability: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(probability) - np.log1p(-probability))


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
        self.threshold_text = _thresholds(evaluation)
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
        self.shown = list(range(len(count))) if len(count) <= _FEW else sorted(worst(areas, _FEW))
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


class Decisions(Drawing):
    """The confusion matrix at the threshold; of several labels, the rates of each."""

    name = "confusion"
    title = "Decisions at the threshold"
    reading = (
        "Recall is the share of positives that are found, precision that of positive decisions which are right, "
        "specificity that of negatives left alone; F1 is between recall and precision."
    )
    rates = ("recall", "precision", "specificity", "F1")
    _most = 24

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Compute the rates of all labels together and of each."""
        if evaluation.confusion is None or not float(evaluation.confusion.sum()) > 0:
            raise NothingToDraw("the evaluation holds no decisions")
        self.count = array(evaluation.confusion)
        self.threshold = _thresholds(evaluation)
        self.together: Array = self.count.sum(0)
        self.by_label: Array = np.stack([_rates(one) for one in self.count])
        order = worst(self.by_label[:, 3], len(self.count))
        self.unknown = len(self.count) - len(order)
        order += [i for i in range(len(self.count)) if i not in set(order)]
        self.shown = order if len(order) <= self._most + 1 else order[: self._most]

    def finding(self) -> str:
        """Count the decisions of all labels together."""
        (_, false_positive), (false_negative, true_positive) = self.together
        recall, precision, _, f1 = _rates(self.together)
        said = (
            f"At the {self.threshold}, {true_positive:,.0f} of {true_positive + false_negative:,.0f} positives are "
            f"found (recall {percent(recall)}), with {false_positive:,.0f} false alarms (precision "
            f"{percent(precision)}); F1 {percent(f1)}."
        )
        if len(self.count) > 1:
            low = worst(self.by_label[:, 3], 3)
            f1s = listed([self.labels[i] for i in low], [percent(self.by_label[i, 3]) for i in low])
            said += f" The lowest F1 have {f1s}."
        return said

    def draw(self, figure: Figure) -> None:
        """Draw the matrix, or a row of rates for each label."""
        from matplotlib.colors import Normalize

        if len(self.count) == 1:
            figure.set_figheight(3.4)
            axes = figure.subplots()
            shares = ratio(self.together, self.together.sum(1, keepdims=True))
            image = heat_map(axes, shares, Normalize(0, 1), "decision", "truth")
            for (row, column), share in np.ndenumerate(shares):
                colour = "black" if share > 0.55 else "white"
                text = f"{self.together[row, column]:,.0f}\n{percent(share)}" if not math.isnan(share) else "no element"
                axes.text(column, row, text, ha="center", va="center", fontsize=11, color=colour if share >= 0 else INK)
            axes.set_xticks([0, 1], ["negative", "positive"])
            axes.set_yticks([0, 1], ["negative", "positive"])
            name = "share of the row, %"
        else:
            rows = np.stack([_rates(self.together), *self.by_label[self.shown]])
            figure.set_figheight(1.5 + 0.25 * len(rows))
            axes = figure.subplots()
            more = len(self.count) - len(self.shown)
            left_out = f"{more} labels of higher or unknown F1 are left out" if more else ""
            image = heat_map(axes, rows, Normalize(0, 1), "rate at the threshold", "", left_out, digits=1)
            names = [plain(shortened(self.labels[i], 22)) for i in self.shown]
            axes.set_yticks(range(len(rows)), ["all together", *names])
            axes.set_xticks(range(4), self.rates)
            axes.axhline(0.5, color="white", linewidth=3)
            name = "rate, %"
        colour_bar(figure, axes, image, name)

    def lines(self, width: int) -> Iterator[str]:
        """Yield the matrix, and a table of the labels."""
        rows = [
            [f"truth {name}", *(f"{c:,.0f} ({percent(float(ratio(c, counts.sum())))})" for c in counts)]
            for name, counts in zip(("negative", "positive"), self.together, strict=True)
        ]
        yield from table_lines(["", "decided negative", "decided positive"], rows, width)
        if len(self.count) > 1:
            shown = self.shown[: self._most]
            cells = [[shortened(self.labels[i]), *(percent(float(v)) for v in self.by_label[i])] for i in shown]
            if len(self.count) > len(shown):
                cells.append([f"{len(self.count) - len(shown)} more: higher F1", "", "", "", ""])
            yield from ["", *table_lines(["label", *self.rates], cells, width)]


def _rates(confusion: Array) -> Array:
    """Return recall, precision, specificity and F1 of a confusion matrix, (4,)."""
    (true_negative, false_positive), (false_negative, true_positive) = confusion
    return np.asarray(
        [
            ratio(true_positive, true_positive + false_negative),
            ratio(true_positive, true_positive + false_positive),
            ratio(true_negative, true_negative + false_positive),
            ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        ]
    )
