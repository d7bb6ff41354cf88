"""Focal loss: cross-entropy that looks away from what is already easy."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import Factor, check_factor, check_number, check_shapes, check_unit
from lightning_bce.losses.count_rules import Rule, alpha_rule, is_rule
from lightning_bce.losses.quality_focal import quality_focal_loss
from lightning_bce.losses.shapes import per_label
from lightning_bce.losses.stable import (
    by_target,
    few_factors,
    first_order,
    folded,
    full_precision,
    power_of_miss,
    power_of_probability,
    product,
    sides,
    softplus,
)

SoftTargets = Literal["linear", "two_term", "quality"]


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Factor | None = None,
    soft_targets: SoftTargets = "linear",
) -> Tensor:
    r"""Return the focal loss of each element.

    .. math:: \mathrm{FL} = \alpha_t (1 - p_t)^\gamma \, \mathrm{BCE}, \quad
              p_t = y p + (1 - y)(1 - p), \quad \alpha_t = \alpha y + (1 - \alpha)(1 - y)

    For hard labels every library agrees. For soft ones there are several definitions, and ``soft_targets`` names
    which: with y = 0.7 and the default ``gamma`` the minima lie at p = 0.88, 0.58 and 0.70.

    - "linear": ``p_t`` is the mixture above, as in torchvision. Pushes the probability beyond the target.
    - "two_term": the losses of both sides are mixed, :math:`\alpha y \, \mathrm{FL}(p) + (1 - \alpha)(1 - y) \,
      \mathrm{FL}(1 - p)`, as in kornia. Holds the probability short of the target.
    - "quality": :math:`|y - p|` takes the place of :math:`1 - p_t`, as in :func:`quality_focal_loss`. The minimum lies
      at the target.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        gamma: Focus, at least 0. At 0 this is binary cross-entropy.
        alpha: Weight of the positives in [0, 1], one number or one for each label (dimension 1); the negatives get
            1 - ``alpha``. None weighs both by 1. The values of a tensor are not checked, which would wait for the
            device. The paper's 0.25 goes with its gamma of 2, which already silences easy negatives.
        soft_targets: One of "linear", "two_term", "quality": what the loss of a soft label is. The last two need a
            ``gamma`` above 0.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, ``gamma`` is negative, ``alpha`` outside [0, 1], or ``soft_targets`` unknown
            or without effect.

    Example:
        >>> import torch
        >>> focal_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.1733, 0.0018])

    References:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017. https://arxiv.org/abs/1708.02002
    """
    _check(gamma, alpha, soft_targets)
    if soft_targets == "two_term":
        return _two_terms(logits, target, gamma, alpha)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    if soft_targets == "quality":
        losses = quality_focal_loss(logits, target, beta=gamma)
    else:
        pieces = folded(scores)
        losses = pieces.cross_entropy_of(labels)
        if gamma > 0:
            losses = power_of_miss(scores, labels, gamma, pieces) * losses
    if alpha is not None:
        losses = weight_of_sides(alpha, labels) * losses
    return losses


def _two_terms(logits: Tensor, target: Tensor, gamma: float, alpha: Factor | None) -> Tensor:
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    of_positives, of_negatives = sides(scores, labels)
    positive = power_of_probability(-of_positives, gamma) * softplus(-of_positives)
    negative = power_of_probability(of_negatives, gamma) * softplus(of_negatives)
    if alpha is not None:
        weight = alpha_by_label(alpha, labels)
        positive, negative = weight * positive, (1 - weight) * negative
    return by_target(labels, positive, negative)


def weight_of_sides(alpha: Factor, target: Tensor) -> Tensor:
    """Return ``alpha`` for positives and 1 - ``alpha`` for negatives, and what lies between for soft labels."""
    weight = alpha_by_label(alpha, target)
    return weight * target + (1 - weight) * (1 - target)


def alpha_by_label(alpha: Factor, target: Tensor) -> float | Tensor:
    """Return a number as it is, and one for each label in a shape that broadcasts to the target's.

    Raises:
        ValueError: If there are not as many numbers as labels.
    """
    if isinstance(alpha, (int, float)):
        return alpha
    return per_label("alpha", torch.as_tensor(alpha, dtype=torch.float64), target).to(target)


def check_alpha(alpha: Factor | Rule | None) -> None:
    """Refuse weights of the positives outside [0, 1]; a tensor's values are checked where a loss is made.

    Raises:
        ValueError: With the number.
        TypeError: If it is no number.
    """
    if is_rule(alpha):
        return
    if alpha is None or isinstance(alpha, (int, float)):
        check_unit("alpha", alpha)
    elif not isinstance(alpha, Tensor):
        check_factor("alpha", alpha)  # type: ignore[arg-type]
        for value in alpha:
            check_unit("alpha", float(value))


def _check(gamma: float, alpha: Factor | Rule | None, soft_targets: SoftTargets) -> None:
    check_number("gamma", gamma, at_least=0)
    check_alpha(alpha)
    if soft_targets not in get_args(SoftTargets):
        raise ValueError(f"`soft_targets` is {soft_targets!r}; expected one of {', '.join(get_args(SoftTargets))}.")
    if soft_targets != "linear" and gamma == 0:
        raise ValueError(
            f"`soft_targets` is {soft_targets!r} and `gamma` 0: without focus there is one cross-entropy of soft "
            "targets only. Leave `soft_targets` out, or give a `gamma` above 0."
        )


class FocalLoss(BinaryLoss):
    """Focal loss. See :func:`focal_loss`.

    Args:
        gamma: Focus, at least 0. At 0 this is binary cross-entropy.
        alpha: Weight of the positives in [0, 1], one number or one for each label (dimension 1); the negatives get
            1 - ``alpha``. None weighs both by 1.
        soft_targets: One of "linear", "two_term", "quality": what the loss of a soft label is. The last two need a
            ``gamma`` above 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``gamma`` is negative, ``alpha`` outside [0, 1], or ``soft_targets`` unknown or without effect.

    Example:
        >>> import torch
        >>> FocalLoss(gamma=2.0)(torch.tensor([0.0, 2.0]), torch.tensor([1, 1]))
        tensor(0.0875)
    """

    alpha: Any  # None, a number, a tensor with one for each label, or a rule until it is resolved

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: Factor | Rule | None = None,
        soft_targets: SoftTargets = "linear",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check(gamma, alpha.tolist() if isinstance(alpha, Tensor) else alpha, soft_targets)
        self.gamma = gamma
        self._number("alpha", alpha, alpha_rule)
        self.soft_targets: SoftTargets = soft_targets

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`focal_loss`."""
        return focal_loss(logits, target, gamma=self.gamma, alpha=self.alpha, soft_targets=self.soft_targets)

    def negatives(self, logits: Tensor) -> Tensor:
        """Return the focal loss of a negative, which is one for all ``soft_targets``."""
        if self.gamma != 0 and not few_factors(self.gamma):
            return super().negatives(logits)
        pieces = first_order(full_precision(logits))
        losses = product(pieces.p, self.gamma) * pieces.softplus if self.gamma else pieces.softplus
        return losses if self.alpha is None else (1 - self.alpha) * losses
