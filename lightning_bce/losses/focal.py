"""Focal loss: cross-entropy that looks away from what is already easy."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_at_least_zero, check_unit
from lightning_bce.losses.stable import full_precision, power_of_miss


def focal_loss(logits: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    r"""Return the focal loss of each element.

    .. math:: \mathrm{FL} = \alpha_t (1 - p_t)^\gamma \, \mathrm{BCE}, \quad
              p_t = y p + (1 - y)(1 - p), \quad \alpha_t = \alpha y + (1 - \alpha)(1 - y)

    For soft targets ``p_t`` is this linear mixture, as in torchvision; the loss is then no proper score and pushes
    the probability beyond the target.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        gamma: Focus, at least 0. At 0 this is binary cross-entropy.
        alpha: Weight of the positives in [0, 1]; the negatives get 1 - ``alpha``. None weighs both by 1. The paper's
            0.25 goes with its gamma of 2, which already silences easy negatives.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, ``gamma`` is negative or ``alpha`` outside [0, 1].

    Example:
        >>> import torch
        >>> focal_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.1733, 0.0018])

    References:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017. https://arxiv.org/abs/1708.02002
    """
    check_at_least_zero("gamma", gamma)
    check_unit("alpha", alpha)
    losses = bce_with_logits(logits, target)
    labels = target.to(losses.dtype)
    if gamma > 0:
        losses = power_of_miss(full_precision(logits), labels, gamma) * losses
    if alpha is not None:
        losses = (alpha * labels + (1 - alpha) * (1 - labels)) * losses
    return losses


class FocalLoss(BinaryLoss):
    """Focal loss. See :func:`focal_loss`.

    Args:
        gamma: Focus, at least 0. At 0 this is binary cross-entropy.
        alpha: Weight of the positives in [0, 1]; the negatives get 1 - ``alpha``. None weighs both by 1.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``gamma`` is negative or ``alpha`` outside [0, 1].

    Example:
        >>> import torch
        >>> FocalLoss(gamma=2.0)(torch.tensor([0.0, 2.0]), torch.tensor([1, 1]))
        tensor(0.0875)
    """

    def __init__(self, *, gamma: float = 2.0, alpha: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        check_at_least_zero("gamma", gamma)
        check_unit("alpha", alpha)
        self.gamma = gamma
        self.alpha = alpha

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`focal_loss`."""
        return focal_loss(logits, target, gamma=self.gamma, alpha=self.alpha)
