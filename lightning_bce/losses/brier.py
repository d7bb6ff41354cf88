"""Brier score: the squared distance of the probability from the label, a bounded proper score."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_shapes
from lightning_bce.losses.stable import full_precision, residual


def brier_loss(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the Brier score of each element.

    .. math:: \mathrm{Brier} = (p - y)^2

    A proper score: the minimum lies at p = y, and for noisy labels at their mean. For probabilities that must be right
    on average while single labels are wrong, because none costs more than 1. Not to start a training with: by the
    formula itself the gradient of a confident mistake vanishes, as p (1 - p), where cross-entropy keeps it.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.

    Returns:
        Losses in [0, 1] without a unit, the shape of ``logits``, in float32 or better. Exact where they are small too:
        1 - p of a sure positive is not rounded to 0.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> brier_loss(torch.tensor([0.0, 20.0]), torch.tensor([1.0, 1.0]))
        tensor([2.5000e-01, 4.2484e-18])

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review, 1950.
    """
    check_shapes(logits, target)
    scores = full_precision(logits)
    return residual(scores, target.to(scores.dtype)).square()


class BrierLoss(BinaryLoss):
    """Brier score. See :func:`brier_loss`.

    Args:
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Example:
        >>> import torch
        >>> BrierLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 1]))
        tensor(0.1321)
    """

    @property
    def log_odds_shift(self) -> Tensor | None:
        """0: the score is proper."""
        return torch.zeros(())

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`brier_loss`."""
        return brier_loss(logits, target)
