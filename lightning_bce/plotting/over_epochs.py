"""The loss over training: from which side, and from which label."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lightning_bce.plotting.drawing import (
    HATCH,
    INK,
    NEGATIVE,
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
    stage_name,
)
from lightning_bce.plotting.text_panels import at_columns, below, panel, shades
from lightning_bce.record import Evaluation
from lightning_bce.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED_ALL, _NAMED_SOME = 30, 20


class LossParts(NamedTuple):
    """The mean loss of each evaluation of a stage, in two parts that add up to it.

    Args:
        at: Epochs, or steps where an epoch has several evaluations, (E,).
        negative: The part of the negatives in nats, (E,).
        positive: The part of the positives, (E,).
    """

    at: Array
    negative: Array
    positive: Array


def _time(lines: Sequence[Evaluation]) -> tuple[Array, str]:
    epochs = [line.epoch for line in lines]
    if len(set(epochs)) == len(epochs):
        return np.asarray(epochs, dtype=float), "epoch"
    return np.asarray([line.step for line in lines], dtype=float), "step of the optimizer"


class LossOverEpochs(Drawing):
    """The mean loss over training, as the sum of what negatives and positives add to it."""

    name = "loss"
    title = "Loss over training"
    reading = "The height is the mean loss; the two areas are what negatives and positives add to it."

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Divide the loss of each side by the weight of both."""
        self.parts: dict[str, LossParts] = {}
        self.time = "epoch"
        for stage in ("train", "val"):
            lines = [line for line in history if line.stage == stage]
            if lines:
                at, self.time = _time(lines)
                loss = np.stack([array(line.loss).sum(0) for line in lines])
                weight = np.asarray([array(line.weight).sum() for line in lines])
                sides = ratio(loss, weight[:, None])
                self.parts[stage] = LossParts(at, sides[:, 0], sides[:, 1])
        if not self.parts:
            raise NothingToDraw("the history holds no epoch of training or validation")

    @property
    def subject(self) -> str:
        """The loss; sets and epochs are on the axes."""
        return visible(self.evaluation.loss_name)

    def finding(self) -> str:
        """Say when the loss was lowest and what became of it since."""
        stage, parts = list(self.parts.items())[-1]
        total = parts.negative + parts.positive
        if np.isnan(total).all():
            return f"The {stage_name(stage)} loss is not known."
        best = int(np.nanargmin(total))
        share = percent(float(ratio(parts.positive[best], total[best])))
        said = (
            f"The {stage_name(stage)} loss is lowest in {self.time} {parts.at[best]:g}, at {number(total[best], 4)} "
            f"nats, {share} of it from positives."
        )
        if best < len(total) - 1 and math.isfinite(total[-1]):
            said += f" It ends at {number(total[-1], 4)}."
        return said

    def draw(self, figure: Figure) -> None:
        """Draw an axis for each stage, of one scale."""
        from matplotlib.ticker import MaxNLocator

        figure.set_figheight(1.2 + 1.7 * len(self.parts))
        rows = figure.subplots(len(self.parts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (stage, parts) in zip(rows, self.parts.items(), strict=True):
            total = parts.negative + parts.positive
            last = axes is rows[-1]
            dress(axes, self.time if last else "", "loss, nats", stage_name(stage), grid="y")
            if len(total) == 1:
                axes.bar(parts.at, parts.negative, 0.6, color=NEGATIVE, label="part of the negatives")
                axes.bar(
                    parts.at,
                    parts.positive,
                    0.6,
                    bottom=parts.negative,
                    color=POSITIVE,
                    hatch=HATCH,
                    edgecolor="white",
                    linewidth=0,
                    label="part of the positives",
                )
                axes.set_xlim(parts.at[0] - 1.5, parts.at[0] + 1.5)
            elif (parts.negative < 0).any() or (parts.positive < 0).any():  # what is below 0 cannot be stacked
                axes.plot(parts.at, parts.negative, color=NEGATIVE, label="part of the negatives")
                axes.plot(parts.at, parts.positive, "--", color=POSITIVE, label="part of the positives")
            else:
                axes.fill_between(
                    parts.at, 0, parts.negative, color=NEGATIVE, linewidth=0, label="part of the negatives"
                )
                axes.fill_between(
                    parts.at,
                    parts.negative,
                    total,
                    facecolor=POSITIVE,
                    hatch=HATCH,
                    edgecolor="white",
                    linewidth=0,
                    label="part of the positives",
                )
            if len(total) > 1:
                axes.plot(
                    parts.at, total, color=INK, linewidth=1.2, marker="." if len(total) <= 30 else "", label="loss"
                )
                axes.margins(x=0.02)
            if stage == "val" and not np.isnan(total).all():
                best = int(np.nanargmin(total))
                axes.plot(
                    parts.at[best],
                    total[best],
                    linestyle="none",
                    marker="o",
                    markersize=8,
                    markerfacecolor="none",
                    markeredgecolor=INK,
                    clip_on=False,
                    label="lowest",
                )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if min((p.negative + p.positive).min() for p in self.parts.values()) >= 0:
            rows[0].set_ylim(bottom=0)
        legend(figure, rows[-1])

    def lines(self, width: int) -> Iterator[str]:
        """Yield a panel for each stage."""
        inside = width - 9
        yield "* loss, - part of the negatives, + part of the positives, in nats"
        for stage, parts in self.parts.items():
            low, high = float(parts.at[0]), float(parts.at[-1])
            values = {"-": parts.negative, "+": parts.positive, "*": parts.negative + parts.positive}
            yield from ("", stage_name(stage))
            yield from panel({m: at_columns(parts.at, v, low, high, inside) for m, v in values.items()}, inside, 10)
            yield below(f"{low:g}", self.time, f"{high:g}", inside)


class SharesOverEpochs(Drawing):
    """The share of each label in the loss over training; of a single label, or of a loss without labels, by side."""

    name = "shares"
    title = "Which labels the loss comes from"
    reading = (
        "Each row is a label, each column an evaluation; the brighter a cell, the more of the loss is this label's."
    )

    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Divide the loss of each label by that of all, and order the labels by the last evaluation."""
        stage = "val" if any(line.stage == "val" for line in history) else evaluation.stage
        rows = evaluation.loss.shape[0]
        lines = [line for line in history if line.stage == stage and line.loss.shape[0] == rows]
        lines = lines or [evaluation]
        self.stage = lines[-1].stage
        self.at, self.time = _time(lines)
        losses = np.stack([array(line.loss) for line in lines], axis=1)  # (rows, E, 2)
        self.by_side = rows == 1
        losses = losses[0].T if self.by_side else losses.sum(-1)
        names = ["negatives", "positives"] if self.by_side else self.labels
        with np.errstate(invalid="ignore"):
            shares = ratio(losses, losses.sum(0, keepdims=True))
        self.order = list(range(2)) if self.by_side else np.argsort(-shares[:, -1], kind="stable").tolist()
        self.names = [names[i] for i in self.order]
        self.shares: Array = shares[self.order]

    @property
    def subject(self) -> str:
        """Loss and set; the epochs are on the axis."""
        return f"{visible(self.evaluation.loss_name)}, {stage_name(self.stage)}"

    def finding(self) -> str:
        """Name the labels that the most comes from."""
        last = self.shares[:, -1]
        if np.isnan(last).all():
            return "The shares are not known."
        if self.by_side:
            return f"In the end {percent(last[1])} of the {stage_name(self.stage)} loss come from positives."
        most = listed(self.names[:3], [percent(share) for share in last[:3]])
        said = f"In the end most of the {stage_name(self.stage)} loss comes from {most}."
        if len(last) > 3:
            half = int(np.searchsorted(np.nancumsum(last), 0.5)) + 1
            said += f" {half} of {len(last)} labels carry half of it."
        return said

    def draw(self, figure: Figure) -> None:
        """Draw all labels with their names, or the first with names and all others as thin rows."""
        from matplotlib.colors import PowerNorm

        count = len(self.names)
        named = count if count <= _NAMED_ALL else _NAMED_SOME
        known = self.shares[~np.isnan(self.shares)]
        norm = PowerNorm(0.5, 0.0, max(float(known.max()) if known.size else 1.0, 1e-6))
        height = 0.6 + 0.24 * max(named, 4)
        digits = 0 if named <= 15 and len(self.at) <= 15 else None
        if named == count:
            figure.set_figheight(height + 0.9)
            axes = [figure.subplots()]
        else:
            figure.set_figheight(height + 3.2)
            axes = list(figure.subplots(2, 1, height_ratios=[height, 2.2]))
        title = "" if named == count else f"the {named} labels with the largest share at the end"
        below_all = self.time if named == count else ""
        image = heat_map(axes[0], self.shares[:named], norm, below_all, "", title, digits)
        axes[0].set_yticks(range(named), [plain(shortened(name, 22)) for name in self.names[:named]])
        if named < count:
            rest = f"the other {count - named} labels"
            heat_map(axes[1], self.shares[named:], norm, self.time, "label, by its rank", rest)
            unit = 10 if count <= 300 else 100
            step = unit * math.ceil((count - named) / (6 * unit))
            ranks = [named + 1, *range(named + step - named % step, count - step // 2, step), count]
            axes[1].set_yticks([rank - named - 1 for rank in ranks], [str(rank) for rank in ranks])
        for one in axes:
            self._epochs(one, labelled=one is axes[-1])
        colour_bar(figure, axes, image, "share of the loss, %")

    def _epochs(self, axes: Axes, labelled: bool) -> None:
        every = max(1, math.ceil(len(self.at) / 12))
        ticks = list(range(0, len(self.at), every))
        axes.set_xticks(ticks, [f"{self.at[i]:g}" if labelled else "" for i in ticks])

    def lines(self, width: int) -> Iterator[str]:
        """Yield a line for each label, with a character for each evaluation."""
        name_width = min(24, max(map(len, self.names)), width // 3)
        inside = width - name_width - 10
        known = self.shares[~np.isnan(self.shares)]
        high = float(known.max()) if known.size else 1.0
        shown = min(len(self.names), _NAMED_SOME if len(self.names) > _NAMED_ALL else len(self.names))
        yield f"share in each evaluation, dark is more (@ {percent(high)}), and in the last"
        for name, row in zip(self.names[:shown], self.shares, strict=False):
            yield f"{shortened(name, name_width):<{name_width}} |{shades(list(row), high, inside)}| {percent(row[-1])}"
        if shown < len(self.names):
            rest = np.nansum(self.shares[shown:], axis=0)
            name = f"{len(self.names) - shown} more"
            yield f"{name:<{name_width}} |{shades(list(rest), high, inside)}| {percent(rest[-1])}"
