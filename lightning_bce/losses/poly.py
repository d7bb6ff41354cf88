"""Poly loss: cross-entropy with a free first coefficient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import Factor, check_number, check_shapes
from lightning_bce.losses.count_rules import Rule, alpha_rule
from lightning_bce.losses.focal import check_alpha, weight_of_sides
from lightning_bce.losses.stable import by_target, full_precision, power_of_miss, sides, softplus

_TERMS = 13  # of 1 / 16, which leaves less than the last digit of float64


def poly_bce(
    logits: Tensor, target: Tensor, *, epsilon: float = 1.0, gamma: float = 0.0, alpha: Factor | None = None
) -> Tensor:
    r"""Return the Poly-1 loss of each element.

    .. math:: \mathrm{Poly} = \alpha_t \left[ (1 - p_t)^\gamma \, \mathrm{BCE} + \epsilon (1 - p_t)^{\gamma + 1} \right]

    with :math:`p_t` and :math:`\alpha_t` of :func:`focal_loss`. Cross-entropy is the series
    :math:`\sum_j (1 - p_t)^j / j`; this makes its first coefficient :math:`1 + \epsilon`. :math:`\alpha_t` weighs both
    terms.

    For one more number to tune where cross-entropy or focal loss already serves: above 0 it holds on to examples that
    are nearly right, below 0 it lets go of them. Not for calibrated probabilities: with a ``gamma`` of 0 and a soft
    label the minimum lies beyond the label, on its side of 0.5, for a positive ``epsilon``, and short of it for a
    negative one; with a ``gamma`` above 0 it lies beyond as that of :func:`focal_loss` does.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        epsilon: What is added to the first coefficient, at least -1: below, a right prediction would cost more the
            surer it is. At 0 this is focal loss. The paper has 2 for ImageNet and -1 for detection.
        gamma: Focus, at least 0. At 0 the formula is that of cross-entropy.
        alpha: Weight of the positives in [0, 1], one number or one for each label (dimension 1); the negatives get
            1 - ``alpha``. None weighs both by 1.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, ``epsilon`` is below -1, ``gamma`` negative or ``alpha`` outside [0, 1].

    Example:
        >>> import torch
        >>> poly_bce(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([1.1931, 0.2461])

    References:
        Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, ICLR 2022.
        https://arxiv.org/abs/2204.12511
    """
    _check(epsilon, gamma, alpha)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    of_positives, of_negatives = sides(scores, labels)
    # The first term of the series apart from the rest: with epsilon = -1 it cancels, and both parts are positive.
    rest = by_target(labels, _without_first(-of_positives), _without_first(of_negatives))
    losses = rest + (1 + epsilon) * by_target(labels, torch.sigmoid(-of_positives), torch.sigmoid(of_negatives))
    if gamma > 0:
        losses = power_of_miss(scores, labels, gamma) * losses
    if alpha is not None:
        losses = weight_of_sides(alpha, labels) * losses
    return losses


def _without_first(z: Tensor) -> Tensor:
    """Return softplus(z) - sigmoid(z), the cross-entropy without the first term of its series."""
    miss = torch.sigmoid(z)
    # -log(1 - q) = 2 artanh(w) with w = q / (2 - q), and 2 w - q = q w.
    w = miss / (2 - miss)
    square = w.square()
    series = torch.full_like(w, 1 / (2 * _TERMS + 1))
    for term in range(_TERMS - 1, 0, -1):
        series = series * square + 1 / (2 * term + 1)
    return torch.where(miss < 0.4, w * (miss + 2 * square * series), softplus(z) - miss)


def _check(epsilon: float, gamma: float, alpha: Factor | Rule | None) -> None:
    check_number("epsilon", epsilon, at_least=-1)
    check_number("gamma", gamma, at_least=0)
    check_alpha(alpha)


class PolyLoss(BinaryLoss):
    """Cross-entropy or focal loss with a free first coefficient. See :func:`poly_bce`.

    Args:
        epsilon: What is added to the first coefficient, at least -1. At 0 this is focal loss.
        gamma: Focus, at least 0. At 0 the formula is that of cross-entropy.
        alpha: Weight of the positives in [0, 1], one number or one for each label; the negatives get 1 - ``alpha``.
            None weighs both by 1. "auto" or a rule of :func:`alpha_rule` computes it from the training data.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``epsilon`` is below -1, ``gamma`` negative or ``alpha`` outside [0, 1].

    Example:
        >>> import torch
        >>> PolyLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 1]))
        tensor(0.7196)
    """

    alpha: Any  # None, a number, a tensor with one for each label, or a rule until it is resolved

    def __init__(
        self, *, epsilon: float = 1.0, gamma: float = 0.0, alpha: Factor | Rule | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        _check(epsilon, gamma, alpha.tolist() if isinstance(alpha, Tensor) else alpha)
        self.epsilon = epsilon
        self.gamma = gamma
        self._number("alpha", alpha, alpha_rule)

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`poly_bce`."""
        return poly_bce(logits, target, epsilon=self.epsilon, gamma=self.gamma, alpha=self.alpha)
