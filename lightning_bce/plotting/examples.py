"""Samples that are images, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDE = 5  # pictures in a row
_LETTERS = 24  # in a line of a title, which is as wide as its picture


def plot_examples(images: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """Draw images in a grid, each with its title.

    Values are stretched from the smallest to the largest of each image, so that normalised inputs can be seen.

    Args:
        images: Of one or three channels, (1, H, W) or (3, H, W), of any dtype.
        titles: One for each, as plain text.

    Returns:
        A matplotlib figure that belongs to no window.

    Raises:
        ValueError: If there is no image, or not a title for each.
        ImportError: If matplotlib is missing.

    Example:
        >>> import torch
        >>> figure = plot_examples([torch.eye(8)[None]], ["row 3"])
        >>> [axis.get_title() for axis in figure.axes]
        ['row 3']
    """
    from matplotlib.figure import Figure

    if not images or len(images) != len(titles):
        raise ValueError(f"There are {len(images)} image(s) and {len(titles)} title(s); one for each was expected.")
    columns = min(_WIDE, len(images))
    rows = math.ceil(len(images) / columns)
    lines = max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(2.2 * columns, (2.2 + 0.2 * lines) * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(_stretched(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        # A `$` would begin a formula.
        text = "\n".join(_shortened(line) for line in title.split("\n"))
        axis.set_title(text, fontsize=9, parse_math=False)
    for axis in axes:
        axis.set_axis_off()
    for axis in axes[len(images) :]:
        axis.remove()
    return figure


def _stretched(image: Tensor) -> Any:
    """Return (H, W) or (H, W, 3) between 0 and 1; what is not finite is 0."""
    values = image.detach().double().cpu()
    finite = values.isfinite()
    low, high = (f(values[finite]) if finite.any() else torch.tensor(0.0) for f in (torch.amin, torch.amax))
    values = torch.where(finite, (values - low) / (high - low if high > low else 1.0), 0.0)
    return values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy()


def _shortened(line: str) -> str:
    return line if len(line) <= _LETTERS else f"{line[: _LETTERS - 1]}…"
