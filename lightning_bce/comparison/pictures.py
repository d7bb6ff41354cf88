"""Pictures of a comparison: paired differences with their intervals, and the critical-difference diagram."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any

from lightning_bce.comparison.compare import Comparison
from lightning_bce.comparison.judging import Judgement
from lightning_bce.comparison.scores import SCORES
from lightning_bce.plotting.drawing import GRID, INK, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which hold for the colour-blind; the shape of the mark says the same once more.
_LOOKS = {
    "better": ("#009e73", "^", "better"),
    "worse": ("#d55e00", "v", "worse"),
    "equal": ("#0072b2", "s", "no difference worth having"),
    "open": ("#6e7781", "o", "not told apart"),
}
_BAND = "#f0f3f6"
_PER_ROW = 3
_FAR = 6.0
"""How many times as far out as the median an interval may reach and still be drawn to scale."""


def draw_differences(compared: Comparison) -> Figure:
    """Draw how much better than the reference each loss is, with intervals, a panel for each data set.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure_class = _figure_class()
    from matplotlib.lines import Line2D

    judgements, settings = compared.judgements, compared.plan.settings
    columns = min(_PER_ROW, len(judgements))
    lines = math.ceil(len(judgements) / columns)
    losses = len(compared.plan.losses) - 1
    figure: Figure = figure_class(
        figsize=(2.6 + 2.9 * columns, 1.3 + lines * (0.75 + 0.3 * losses)), layout="constrained", facecolor="white"
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, judgement in zip(axes.flat, judgements, strict=False):
        _panel(axis, judgement, settings.worth)
    for axis in axes.flat[len(judgements) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_yticks(range(losses), [_shortened(row.label) for row in judgements[0].rows[1:]])
        axis.set_ylim(losses - 0.4, -0.6)
    states = {row.state for judgement in judgements for row in judgement.rows[1:]}
    handles = [
        Line2D([], [], color=colour, marker=mark, linestyle="-", label=name)
        for state, (colour, mark, name) in _LOOKS.items()
        if state in states
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    title = SCORES[settings.metric].title
    how = f"{100 * (1 - settings.alpha):g} % intervals; the band is what is not worth having"
    figure.suptitle(
        f"Better than BCE with a tuned threshold by how much {title}?\n{how}", x=0.01, ha="left", fontsize=10
    )
    return figure


def _panel(axis: Axes, judgement: Judgement, worth: float) -> None:
    axis.axvspan(-worth, worth, color=_BAND, zorder=0)
    axis.axvline(0, color=INK, linewidth=0.8, zorder=1)
    low, high = _limits(judgement, worth)
    for place, row in enumerate(judgement.rows[1:]):
        colour, mark, _ = _LOOKS.get(row.state, _LOOKS["worse"])
        if row.estimate is None:
            axis.text(0, place, "failed", ha="center", va="center", fontsize=8, color=colour)
        elif not low <= row.estimate.mean <= high:  # far off: drawn to scale it would hide all others
            left = row.estimate.mean < low
            text = f"\u2190 {row.estimate.mean:+.2f}" if left else f"{row.estimate.mean:+.2f} \u2192"
            edge, side = (low, "left") if left else (high, "right")
            axis.text(edge, place, text, ha=side, va="center", fontsize=8, color=colour)
        else:
            if math.isfinite(row.interval[0]):
                axis.plot(row.interval, [place, place], color=colour, linewidth=1.6, solid_capstyle="butt", zorder=2)
            axis.plot(row.estimate.mean, place, color=colour, marker=mark, markersize=6, zorder=3)
    margin = 0.06 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    axis.locator_params(axis="x", nbins=4)
    axis.set_title(plain(judgement.name), loc="left", fontsize=10, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.grid(True, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)


def _limits(judgement: Judgement, worth: float) -> tuple[float, float]:
    """Return what a panel shows: all intervals, without those that lie many times as far out as most."""
    spans = [
        (min(ends), max(ends))
        for row in judgement.rows[1:]
        if row.estimate is not None
        for ends in [[row.estimate.mean, *(end for end in row.interval if math.isfinite(end))]]
    ]
    if not spans:
        return -max(worth, 0.01), max(worth, 0.01)
    far = _FAR * max(worth, statistics.median(max(abs(low), abs(high)) for low, high in spans))
    near = [span for span in spans if max(map(abs, span)) <= far] or spans
    low, high = min(-worth, *(span[0] for span in near)), max(worth, *(span[1] for span in near))
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def draw_critical_difference(compared: Comparison) -> Figure | None:
    """Draw the mean ranks over data sets; a bar joins losses that Nemenyi's test does not tell apart.

    Returns:
        The figure, or None where there are no ranks over several data sets.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if compared.ranks is None:
        return None
    figure_class = _figure_class()
    means, distance = compared.ranks.mean, compared.ranks.critical_difference
    labels = [candidate.label for candidate in compared.plan.losses]
    order = sorted(range(len(labels)), key=lambda place: means[place])
    count, groups = len(order), cliques([means[place] for place in order], distance)
    half = math.ceil(count / 2)
    depth = 1.0 + 0.35 * len(groups) + 0.5 * half
    figure: Figure = figure_class(figsize=(8, 1.2 + 0.42 * depth), layout="constrained", facecolor="white")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set_ylim(depth, -1.6)
    axis.set_xlim(1 - 0.75 * (count - 1), count + 0.75 * (count - 1))
    line: dict[str, Any] = {"color": INK, "linewidth": 1.0, "solid_capstyle": "butt"}
    axis.plot([1, count], [0, 0], **line)
    for tick in range(1, count + 1):
        axis.plot([tick, tick], [-0.12, 0], **line)
        axis.text(tick, -0.2, str(tick), ha="center", va="bottom", fontsize=8, color=INK)
    shown = min(distance, count - 1)
    axis.plot([1, 1 + shown], [-1.0, -1.0], color=_LOOKS["worse"][0], linewidth=2)
    told = f"critical difference {distance:.2f}" + (": more than all ranks" if distance > count - 1 else "")
    axis.text(1, -1.1, told, ha="left", va="bottom", fontsize=8, color=INK)
    for level, (first, last) in enumerate(groups):
        height = 0.35 + 0.35 * level
        ends = [means[order[first]] - 0.04, means[order[last]] + 0.04]
        axis.plot(ends, [height, height], color="#0072b2", linewidth=3.5, solid_capstyle="butt")
    below = 0.35 * len(groups) + 0.5
    for position, place in enumerate(order):
        left = position < half
        row = position if left else count - 1 - position
        height = below + 0.5 * row
        edge = 1 - 0.08 * (count - 1) if left else count + 0.08 * (count - 1)
        axis.plot([means[place], means[place], edge], [0, height, height], **{**line, "linewidth": 0.8})
        text = f"{_shortened(labels[place], 34)}  {means[place]:.2f}"
        weight = "bold" if place == 0 else "normal"
        axis.text(
            edge + (-0.03 if left else 0.03) * (count - 1), height, text, ha="right" if left else "left", va="center",
            fontsize=8, color=INK, fontweight=weight,
        )  # fmt: skip
    figure.suptitle(
        f"Mean rank over {len(compared.judgements)} data sets, 1 the best; a bar joins what is not told apart",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    return figure


def cliques(means: list[float], distance: float) -> list[tuple[int, int]]:
    """Return the first and last place of each largest group of ranks that lie within a distance.

    Args:
        means: Mean ranks in ascending order.
        distance: What is not told apart.

    Example:
        >>> cliques([1.0, 1.5, 2.4, 4.0], 1.0)
        [(0, 1), (1, 2)]
    """
    found: list[tuple[int, int]] = []
    for first, mean in enumerate(means):
        last = max(place for place, other in enumerate(means) if other - mean <= distance)
        if last > first and not any(last <= end for _, end in found):
            found.append((first, last))
    return found


def _shortened(label: str, length: int = 36) -> str:
    return plain(label if len(label) <= length else f"{label[: length - 3]}...")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'lightning_bce[plot]'.") from error
    return Figure
