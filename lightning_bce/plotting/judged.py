"""What the pictures of scores and decisions share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_bce.plotting.drawing import (
    array,
    number,
)
from lightning_bce.record import Evaluation

if TYPE_CHECKING:
    pass
FEW = 14
"""Labels up to this number are drawn one by one; of more, a band and the worst."""


def threshold_text(evaluation: Evaluation) -> str:
    """Return the threshold of an evaluation in words, or their range."""
    if evaluation.threshold is None:
        return "threshold"
    values = array(evaluation.threshold)
    values = values[~np.isnan(values)]
    if not values.size:
        return "threshold"
    low, high = float(values.min()), float(values.max())
    return f"threshold {number(low)}" if low == high else f"thresholds {number(low)} to {number(high)}"
