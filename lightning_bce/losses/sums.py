"""LossSums: how much loss over how much weight, by label and by side. Everything downstream of a loss reads these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossSums(NamedTuple):
    """Sums of losses and of the weights that they count with.

    Column 0 holds the negatives, column 1 the positives of each label; an element whose target is above one half
    counts as a positive. Sums are added over batches, ranks and processes and stay exact.

    Args:
        loss: Sums of losses in nats, (C, 2), differentiable where the logits are.
        weight: What these elements count in the denominator of the mean, (C, 2).

    Example:
        >>> import torch
        >>> sums = LossSums(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
        >>> sums.mean()
        tensor(0.7500)
    """

    loss: Tensor
    weight: Tensor

    def mean(self) -> Tensor:
        """Return all loss over all weight as a scalar; without any weight 0 with a gradient of zeros."""
        return safe_ratio(self.loss.sum(), self.weight.sum())

    def detach(self) -> LossSums:
        """Return the sums without their graph."""
        return LossSums(self.loss.detach(), self.weight.detach())

    def merge(self, other: LossSums) -> LossSums:
        """Return the sums over both sets of elements."""
        return LossSums(self.loss + other.loss, self.weight + other.weight)


def safe_ratio(total: Tensor, weight: Tensor) -> Tensor:
    """Return ``total / weight`` and, where the weight is 0, ``total`` itself, which is an attached 0 there."""
    # [no sync] A `where` on the device; `if weight > 0` would make the host wait for it at every step.
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
