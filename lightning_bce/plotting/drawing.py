"""What the drawings of a run have in common: how they look, how labels are named in them, what they leave out."""

from __future__ import annotations

import math
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_bce.record import Evaluation
from lightning_bce.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Array = NDArray[np.float64]

# Okabe and Ito's colours, which hold for the colour-blind; a hatch or a line style always says the same once more.
NEGATIVE, POSITIVE = "#0072b2", "#d55e00"
OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
HATCH = "////"
INK, FAINT, GRID, UNKNOWN = "#1f2328", "#6e7781", "#d8dee4", "#eaeef2"
COLOURS = "cividis"

WIDTH = 5.0  # inches: one column of a page, half of a screen, and at 10 points still legible on a phone
_STAGES = {"train": "training", "val": "validation", "test": "test"}
_TITLE = 11


class NothingToDraw(ValueError):
    """An evaluation does not hold what a drawing needs."""


class Drawing(ABC):
    """One thing that an evaluation says, as a figure, as text and as a sentence.

    Args:
        evaluation: What to draw.
        history: All evaluations of the run, in the order of time.

    Raises:
        NothingToDraw: If the evaluation does not hold what it needs.
    """

    name: ClassVar[str]
    """In file names and loggers."""
    title: ClassVar[str]
    reading: ClassVar[str]
    """How it is read."""

    def __init__(self, evaluation: Evaluation, history: Sequence[Evaluation] = ()) -> None:
        self.evaluation = evaluation
        self.labels = list(evaluation.labels)
        self.compute(evaluation, history)

    @abstractmethod
    def compute(self, evaluation: Evaluation, history: Sequence[Evaluation]) -> None:
        """Set the numbers that are drawn."""

    @abstractmethod
    def finding(self) -> str:
        """Return what the numbers say here, in a sentence or two."""

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw on an empty figure."""

    @abstractmethod
    def lines(self, width: int) -> Iterator[str]:
        """Yield the drawing in ASCII."""

    @property
    def subject(self) -> str:
        """What was looked at: loss, set and, unless it is a test, whose model may be of an earlier one, the epoch."""
        e = self.evaluation
        which = f" {e.dataloader}" if e.dataloader else ""
        epoch = "" if e.stage == "test" else f", epoch {e.epoch}"
        return f"{visible(e.loss_name)}, {stage_name(e.stage)}{which}{epoch}"

    def figure(self, titled: bool = True) -> Figure:
        """Return a matplotlib figure that no window and no list of pyplot knows; ``figure.savefig(path)`` writes it.

        Args:
            titled: Whether title and subject stand above, or the place where it is shown says them.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Pictures need matplotlib: pip install 'lightning_bce[plot]'.") from error
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained", facecolor="white")
        self.draw(figure)
        if titled:
            figure.suptitle(f"{self.title}\n{plain(self.subject)}", x=0.01, ha="left", fontsize=_TITLE, color=INK)
        return figure

    def text(self, width: int = 78) -> str:
        """Return the drawing in ASCII, but for the names of labels.

        Args:
            width: Characters in a line, at least 40.

        Raises:
            ValueError: If the width is too small.
        """
        if width < 40:
            raise ValueError(f"A drawing of {width} characters is too narrow; 40 are the least.")
        lines = [f"{self.title} ({self.subject})", self.finding(), "", *self.lines(width)]
        wrapped = (textwrap.wrap(line, width) if len(line) > width else [line] for line in lines)
        return "\n".join(part for parts in wrapped for part in parts)


# -- numbers ----------------------------------------------------------------------------------------------------------


def array(values: Any) -> Array:
    """Return a tensor as an array of float64 on the host."""
    return np.asarray(values.detach().cpu().double().numpy())


def ratio(part: Any, whole: Any) -> Any:
    """Return ``part / whole``, and NaN where the whole is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, math.nan), where=whole != 0)


def worst(values: Array, number: int) -> list[int]:
    """Return the places of the smallest values, the smallest first, without NaN."""
    known = np.flatnonzero(~np.isnan(values))
    return [int(i) for i in known[np.argsort(values[known], kind="stable")][:number]]


# -- words ------------------------------------------------------------------------------------------------------------


def stage_name(stage: str) -> str:
    """Return how a stage is called in sentences."""
    return _STAGES.get(stage, visible(stage))


def listed(names: Sequence[str], values: Sequence[str]) -> str:
    """Return names with values behind them, in one line."""
    return ", ".join(f"{shortened(name)} ({value})" for name, value in zip(names, values, strict=True))


def shortened(name: str, length: int = 24) -> str:
    """Return a name without control characters and of limited length; its two ends stay.

    Example:
        >>> shortened("a label whose name has no end", 16)
        'a label ...o end'
    """
    name = visible(name)
    return name if len(name) <= length else f"{name[: length // 2]}...{name[3 - length + length // 2 :]}"


def plain(text: str) -> str:
    r"""Return text that matplotlib shows as it is, where it would take what stands between two $ for mathematics."""
    return text.replace("$", r"\$")


def percent(share: float, digits: int = 1) -> str:
    """Return a share as text."""
    return "unknown" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def number(value: float, digits: int = 3) -> str:
    """Return a number as text."""
    return "unknown" if math.isnan(value) else f"{value:.{digits}g}"


# -- axes -------------------------------------------------------------------------------------------------------------


def dress(axes: Axes, x: str, y: str, title: str = "", grid: str = "both") -> None:
    """Name the axes and give them the looks of all drawings.

    Args:
        axes: To dress.
        x: Name and unit of the horizontal axis; empty where it is shared with the one below.
        y: Name and unit of the vertical axis.
        title: Above.
        grid: Which lines: "x", "y", "both" or "".
    """
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    for direction in ("x", "y") if grid == "both" else tuple(grid and [grid]):
        (axes.xaxis if direction == "x" else axes.yaxis).grid(True, color=GRID, linewidth=0.8)


def legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """Put the names of what the axes show below the figure, where they hide nothing."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            names,
            loc="outside lower left",
            ncols=columns,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=2.6,
        )


def heat_map(
    axes: Axes, values: Array, norm: Any, x: str, y: str, title: str = "", digits: int | None = None
) -> AxesImage:
    """Draw an array as cells; what is unknown is hatched.

    Args:
        axes: Where.
        values: Shares, (rows, columns).
        norm: matplotlib's, from a value to the place in the colours.
        x: Name and unit of the horizontal axis.
        y: Of the vertical axis.
        title: Above.
        digits: Of the percentage within each cell. None leaves it out.

    Returns:
        The image, for a colour bar.
    """
    import matplotlib

    colours = matplotlib.colormaps[COLOURS].with_extremes(bad=(0, 0, 0, 0))
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", interpolation="none", cmap=colours, norm=norm)
    dress(axes, x, y, title, grid="")
    if np.isnan(values).any():
        axes.patch.set(facecolor=UNKNOWN, hatch="xxxx", edgecolor=FAINT, linewidth=0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if digits is not None:
        for (row, column), value in np.ndenumerate(values):
            if not math.isnan(value):
                red, green, blue, _ = colours(norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{100 * value:.{digits}f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return image


def colour_bar(figure: Figure, axes: Any, image: AxesImage, name: str) -> None:
    """Draw what the colours of a heat map mean, in percent."""
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    bar.set_label(name, color=INK)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
