"""What the plots of our metrics have in common."""

from __future__ import annotations

from typing import Any

from torchmetrics.utilities.plot import _error_on_missing_matplotlib


def axes(ax: Any) -> tuple[Any, Any]:
    """Return figure and axis: the given one, or new ones.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed, in torchmetrics' words.
    """
    _error_on_missing_matplotlib()
    if ax is not None:
        return ax.figure, ax
    import matplotlib.pyplot as plt

    return plt.subplots()
