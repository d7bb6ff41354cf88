"""What a function of another library is to these tests: how to call it, and how ours is told the same definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_bce import BinaryLoss

COUNTS = [40.0, 900.0, 300.0]
"""Positives of three labels among 1000 samples."""
PER_LABEL = [2.0, 0.5, 3.0]
PER_SAMPLE = torch.linspace(0.25, 2.0, 7)


@dataclass(frozen=True)
class Function:
    """A function of a library, and ours of the same definition.

    Args:
        library: Its name in the table.
        name: The function, as its users write it.
        loss: Our class.
        theirs: Takes the library, logits and target.
        ours: Takes logits and target, and returns as many values.
        options: What is set, for the name of the test.
        soft: Whether the definitions agree for soft targets too.
        shows: What the entry is there to show. With "mask" the target has -1 where the label is unknown.
        rows: Whether the loss is that of a whole batch and not of each element.
        labels: How many labels the batch has.
        slack: What a constant in their denominator may change, beside rounding.
    """

    library: str
    name: str
    loss: str
    theirs: Callable[[Any, Tensor, Tensor], Tensor]
    ours: Callable[[Tensor, Tensor], Tensor]
    options: str = ""
    soft: bool = False
    shows: Literal["", "mask", "weights"] = ""
    rows: bool = False
    labels: int = 3
    slack: float = 0.0

    def __str__(self) -> str:
        return " ".join(filter(None, (self.library, self.loss, self.name, self.options)))


def elements(loss: type[BinaryLoss], **options: Any) -> BinaryLoss:
    """Return a loss without reduction."""
    return loss(**({"reduction": "none"} | options))
