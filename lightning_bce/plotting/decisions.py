"""The decisions at the threshold: what was found, what was missed, what was a false alarm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_bce.plotting.drawing import (
    INK,
    Array,
    Drawing,
    NothingToDraw,
    array,
    colour_bar,
    heat_map,
    listed,
    percent,
    plain,
    ratio,
    shortened,
    worst,
)
from lightning_bce.plotting.judged import threshold_text
from lightning_bce.plotting.text_panels import table_lines
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        self.threshold = threshold_text(evaluation)
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
