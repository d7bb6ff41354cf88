"""Easy and hard examples: how many there are, and how much of loss and gradient is theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_bce.plotting.drawing import (
    FAINT,
    HATCH,
    INK,
    NEGATIVE,
    POSITIVE,
    Array,
    Drawing,
    NothingToDraw,
    array,
    dress,
    legend,
    percent,
    plain,
    ratio,
    shortened,
)
from lightning_bce.plotting.text_panels import at_columns, bar, below, panel, table_lines
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDES = ("negatives", "positives")
_COLOURS = (NEGATIVE, POSITIVE)


class HardnessShares(Drawing):
    """The share of examples, of loss and of gradient in bins of p_t, the probability of what is true."""

    name = "hardness"
    title = "Easy and hard examples"
    reading = (
        "p_t is the probability that the model gives to what is true: left of one half it is wrong. Where loss and "
        "gradient have more of their share than there are examples, the loss looks hard."
    )

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Divide each bin by the sum of all, both sides together."""
        hardness = evaluation.hardness
        if hardness is None or not float(hardness.count.sum()) > 0:
            raise NothingToDraw("the evaluation holds no examples by hardness")
        self.edges = array(hardness.edges)
        values = {"examples": hardness.count, "loss": hardness.loss, "gradient": hardness.gradient}
        self.shares: dict[str, Array] = {}
        for name, value in values.items():
            parts = array(value)
            self.shares[name] = ratio(parts, parts.sum())

    def finding(self) -> str:
        """Say what those beyond one half, which the model gets wrong, have of it all."""
        wrong = self.edges[1:] <= 0.5 + 1e-9
        part = {name: percent(float(share[:, wrong].sum())) for name, share in self.shares.items()}
        return (
            f"Examples with p_t below 0.5 are {part['examples']} of all; {part['loss']} of the loss and "
            f"{part['gradient']} of the gradient come from them."
        )

    def draw(self, figure: Figure) -> None:
        """Draw three axes of bars, one below the other."""
        figure.set_figheight(5.2)
        rows = figure.subplots(3, 1, sharex=True, sharey=True)
        left, width = self.edges[:-1], np.diff(self.edges)
        for axes, (name, share) in zip(rows, self.shares.items(), strict=True):
            x = "p_t, the probability of what is true" if axes is rows[-1] else ""
            dress(axes, x, "share, %", name, grid="y")
            if np.isnan(share).all():
                axes.text(
                    0.5, 0.5, f"this loss has no {name} by example", transform=axes.transAxes, ha="center", color=INK
                )
                continue
            below_ = np.zeros(len(left))
            for side, (label, colour) in enumerate(zip(_SIDES, _COLOURS, strict=True)):
                height = 100 * share[side]
                axes.bar(
                    left,
                    height,
                    width,
                    bottom=below_,
                    align="edge",
                    color=colour,
                    hatch=HATCH if side else None,
                    edgecolor="white",
                    linewidth=0.4,
                    label=label,
                )
                below_ = below_ + height
            axes.axvline(0.5, color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
        rows[0].set_xlim(0, 1)
        legend(figure, rows[0])

    def lines(self, width: int) -> Iterator[str]:
        """Yield a table with a row for each bin."""
        size = max(6, width - 48)
        high = max(float(np.nansum(self.shares["loss"], axis=0).max()), 1e-12)
        header = ["p_t", "examples", "loss", "gradient", "loss (negatives -, positives +)"]
        rows = []
        for i, (low, high) in enumerate(zip(self.edges[:-1], self.edges[1:], strict=True)):
            parts = self.shares["loss"][:, i] / high
            drawn = bar(parts[0], size, "-") + bar(parts[1], size, "+")
            rows.append(
                [f"{low:.2f}-{high:.2f}", *(percent(float(s[:, i].sum())) for s in self.shares.values()), drawn]
            )
        yield from table_lines(header, rows, width, left=(0, 4))


class LossConcentration(Drawing):
    """How much of the loss the easiest examples have: the focal loss's figure 4."""

    name = "distribution"
    title = "Cumulative distribution of the loss"
    reading = (
        "Examples stand in the order of their loss. On the diagonal all have the same; the further a curve hangs below "
        "it, the fewer examples carry the loss (Lin et al., 2017, figure 4)."
    )

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Add up counts and losses of each side from the smallest losses on."""
        distribution = evaluation.distribution
        if distribution is None:
            raise NothingToDraw("the evaluation holds no distribution of the loss")
        count, loss = array(distribution.count), array(distribution.loss)
        self.count: Array = count.sum(1)
        self.curves: dict[str, tuple[Array, Array]] = {}
        for side, name in enumerate(_SIDES):
            if count[side].sum() > 0 and loss[side].sum() > 0:
                some = count[side] > 0
                x, y = (np.concatenate([[0.0], values[side][some].cumsum()]) for values in (count, loss))
                self.curves[name] = (x / x[-1], y / y[-1])
        if not self.curves:
            raise NothingToDraw("the distribution of the loss is empty")

    def carried(self, hardest: float = 0.1) -> dict[str, float]:
        """Return the share of the loss that the hardest examples of each side carry."""
        return {name: 1 - float(np.interp(1 - hardest, x, y)) for name, (x, y) in self.curves.items()}

    def finding(self) -> str:
        """Say what the hardest tenth carries."""
        parts = [f"of the {name} {percent(share)}" for name, share in self.carried().items()]
        return f"The hardest tenth carries, {' and '.join(parts)} of their loss."

    def draw(self, figure: Figure) -> None:
        """Draw a curve for each side."""
        figure.set_figheight(4.2)
        axes = figure.subplots()
        dress(axes, "fraction of the examples, least loss first", "cumulative normalized loss")
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", label="all examples alike")
        for side, name in enumerate(_SIDES):
            if name in self.curves:
                x, y = self.curves[name]
                axes.plot(
                    x,
                    y,
                    color=_COLOURS[side],
                    linewidth=2,
                    linestyle="--" if side else "-",
                    label=f"{name}, {self.count[side]:,.0f}",
                )
        axes.set(xlim=(0, 1), ylim=(0, 1))
        legend(figure, axes)

    def lines(self, width: int) -> Iterator[str]:
        """Yield a panel with both curves."""
        inside = width - 9
        marks = {"negatives": "-", "positives": "+"}
        yield "cumulative normalized loss; - negatives, + positives"
        curves = {marks[name]: at_columns(x, y, 0, 1, inside) for name, (x, y) in self.curves.items()}
        yield from panel(curves, inside, 14, 0, 1)
        yield below("0", "fraction of the examples, least loss first", "1", inside)


class GradientByLabel(Drawing):
    """The derivative of the mean loss by each label's logit: how both sides pull at the last layer."""

    name = "gradient"
    title = "How each label pulls at the last layer"
    reading = (
        "The derivative of the mean loss by a label's logit. Negatives pull it down (right), positives up (left); the "
        "diamond is what remains, the gradient of the label's bias. Where the model has converged it is near 0."
    )
    _most = 24

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Divide by the weight of the mean, and order the labels by how much they pull."""
        gradient = array(evaluation.gradient)
        if np.isnan(gradient).all():
            raise NothingToDraw("the gradient is not known")
        self.gradient: Array = ratio(gradient, array(evaluation.weight).sum())
        pull = np.abs(self.gradient).sum(1)
        self.order = [int(i) for i in np.argsort(-np.nan_to_num(pull, nan=-1), kind="stable")]
        names = self.labels if len(self.labels) == len(gradient) else ["all"]
        rows = [(names[i], self.gradient[i]) for i in self.order]
        self.rows, rest = rows[: self._most], rows[self._most :]
        self.rest = ""
        if rest:
            negative, positive = np.nansum([sides for _, sides in rest], axis=0)
            self.rest = f"{len(rest)} labels that pull less: together {negative:.2g} and {positive:.2g}"

    def finding(self) -> str:
        """Name the label that pulls most, and compare the sides."""
        name, (negative, positive) = self.rows[0]
        sides = np.nansum(np.abs(self.gradient), axis=0)
        share = float(ratio(sides[1], sides.sum()))
        said = f"{percent(share)} of the pull comes from positives."
        if len(self.rows) > 1:
            part = float(ratio(abs(negative) + abs(positive), sides.sum()))
            said += f" {shortened(name)} pulls most, {percent(part)} of all."
        return said

    def draw(self, figure: Figure) -> None:
        """Draw a bar for each side of each label."""
        count = len(self.rows)
        figure.set_figheight(1.5 + 0.25 * max(count, 3))
        axes = figure.subplots()
        dress(axes, "derivative of the mean loss by the logit, nats per logit", "", self.rest, grid="x")
        values = np.stack([value for _, value in self.rows])
        at = np.arange(count)
        for side, (label, colour) in enumerate(zip(_SIDES, _COLOURS, strict=True)):
            axes.barh(
                at,
                values[:, side],
                0.72,
                color=colour,
                hatch=HATCH if side else None,
                edgecolor="white",
                linewidth=0.4,
                label=label,
            )
        axes.plot(
            values.sum(1),
            at,
            "D",
            color="white",
            markeredgecolor=INK,
            markersize=4.5,
            linestyle="none",
            label="together",
        )
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(at, [plain(shortened(name, 22)) for name, _ in self.rows])
        axes.set_ylim(max(count, 3) - 0.4 - (max(count, 3) - count) / 2, -0.6 - (max(count, 3) - count) / 2)
        legend(figure, axes, columns=3)

    def lines(self, width: int) -> Iterator[str]:
        """Yield a table with bars to both sides."""
        size = max(4, (width - 62) // 2)
        high = max(float(np.nanmax(np.abs(np.stack([v for _, v in self.rows])))), 1e-300)
        rows = []
        for name, (negative, positive) in self.rows:
            drawn = f"{bar(abs(positive) / high, size, '+'):>{size}}|{bar(abs(negative) / high, size, '-')}"
            rows.append([shortened(name, 20), *(f"{v:.2e}" for v in (negative, positive, negative + positive)), drawn])
        yield from table_lines(
            ["label", "negatives", "positives", "together", "nats per logit"], rows, width, left=(0, 4)
        )
        if self.rest:
            yield self.rest
