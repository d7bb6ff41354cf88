"""Quality focal loss: focal loss whose focus is the distance from the label, so that soft labels keep their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number
from lightning_bce.losses.stable import full_precision, power, power_of_probability, residual


def quality_focal_loss(logits: Tensor, target: Tensor, *, beta: float = 2.0) -> Tensor:
    r"""Return the quality focal loss of each element.

    .. math:: \mathrm{QFL} = |y - p|^\beta \, \mathrm{BCE}

    For soft labels that are meant, such as qualities, mixed samples or a teacher's probabilities: its minimum lies at
    p = y and is 0, where :func:`focal_loss` goes beyond. For hard labels the two are equal. Not where soft labels are
    guesses, which it would hardly correct near the guess: over several labels for one input the minimum is not their
    mean.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        beta: Focus, at least 0. At 0 this is binary cross-entropy. At p = y and a soft label, up to 1 it has a kink and
            below 2 an infinite curvature, for which 0 is returned.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ or ``beta`` is negative.

    Example:
        >>> import torch
        >>> quality_focal_loss(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0]))
        tensor([0.0000, 0.0018])

    References:
        Li et al., Generalized Focal Loss, NeurIPS 2020. https://arxiv.org/abs/2006.04388
    """
    check_number("beta", beta, at_least=0)
    losses = bce_with_logits(logits, target)
    if beta == 0:
        return losses
    return _power_of_distance(full_precision(logits), target.to(losses.dtype), beta) * losses


def _power_of_distance(logits: Tensor, target: Tensor, beta: float) -> Tensor:
    hard = (target == 0) | (target == 1)
    of_hard = power_of_probability(torch.where(target == 1, -logits, logits), beta)
    distance = residual(logits, torch.where(hard, 0.5, target))
    if beta == 2:  # the one power that has a curvature at 0
        return torch.where(hard, of_hard, distance.square())
    away = torch.where(distance == 0, 0.5, distance.abs())
    of_soft = torch.where(distance == 0, 0.0, power(away, away.log(), beta))
    return torch.where(hard, of_hard, of_soft)


class QualityFocalLoss(BinaryLoss):
    """Quality focal loss. See :func:`quality_focal_loss`.

    Args:
        beta: Focus, at least 0. At 0 this is binary cross-entropy.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``beta`` is negative.

    Example:
        >>> import torch
        >>> QualityFocalLoss()(torch.tensor([0.0, 2.0]), torch.tensor([0.5, 1.0]))
        tensor(0.0009)
    """

    def __init__(self, *, beta: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        check_number("beta", beta, at_least=0)
        self.beta = beta

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`quality_focal_loss`."""
        return quality_focal_loss(logits, target, beta=self.beta)
