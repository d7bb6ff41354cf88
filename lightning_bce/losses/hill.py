"""Hill loss: negatives that the model is sure are positives are taken for missing labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import by_target, full_precision, power_of_probability, sides, softplus


def hill_loss(logits: Tensor, target: Tensor, *, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0) -> Tensor:
    r"""Return the Hill loss of each element.

    .. math:: \mathrm{Hill} = -y \, (1 - p_m)^\gamma \log p_m + (1 - y) (\lambda - p) \, p^2, \quad
              p_m = \sigma(x - m)

    For many labels of which positives are missing: a negative costs at most ``lamb`` - 1, and by the formula its
    gradient vanishes again where the model is sure that it is a positive, so that mislabelled negatives do not harm.
    Not where negatives are right, nor for calibrated probabilities: there such a mistake is never corrected. For a
    soft label the two terms are mixed, and the minimum lies above the label: near 0.77 for 0.3 with the defaults.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        lamb: The paper's lambda, at least 1. At 1.5 the gradient of a negative vanishes at p = 1; below, it turns
            round at p = 2/3 ``lamb`` and a surer mistake costs less; above, it keeps a rest.
        margin: What a positive has to be surer by, in logits, at least 0.
        gamma: Focus of the positives, at least 0.

    Returns:
        Losses, the shape of ``logits``, in float32 or better; those of positives in nats.

    Raises:
        ValueError: If the shapes differ, ``lamb`` is below 1, or ``margin`` or ``gamma`` is negative.

    Example:
        >>> import torch
        >>> hill_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.7019, 0.4804])

    References:
        Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing Labels, 2021.
        https://arxiv.org/abs/2112.07368
    """
    _check(lamb, margin, gamma)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    of_positives, of_negatives = sides(scores, labels)
    return by_target(labels, focal_margin(of_positives, margin, gamma), _negative(of_negatives, lamb))


def focal_margin(scores: Tensor, margin: float, gamma: float) -> Tensor:
    r"""Return :math:`-(1 - p_m)^\gamma \log p_m` with :math:`p_m = \sigma(x - m)`, exact with all derivatives."""
    shifted = scores - margin
    losses = power_of_probability(-shifted, gamma) * softplus(-shifted)
    # The digits that the shift has rounded off are a relative error of exp(-x) where x is large.
    lost = torch.where(shifted.isinf() | (shifted < 0), 0.0, (scores - shifted) - margin).detach()
    return losses * (-(gamma + 1) * lost).exp()


def _negative(scores: Tensor, lamb: float) -> Tensor:
    # In powers of 1 - p where p is large: the slopes of both factors cancel there.
    p, q = torch.sigmoid(scores), torch.sigmoid(-scores)
    above = (lamb - 1) + q * ((3 - 2 * lamb) + q * ((lamb - 3) + q))
    return torch.where(scores < 0, (lamb - p) * p.square(), above)


def _check(lamb: float, margin: float, gamma: float) -> None:
    check_number("lamb", lamb, at_least=1)
    check_number("margin", margin, at_least=0)
    check_number("gamma", gamma, at_least=0)


class HillLoss(BinaryLoss):
    """Hill loss. See :func:`hill_loss`.

    Args:
        lamb: The paper's lambda, at least 1. A negative costs at most ``lamb`` - 1 where the model is sure.
        margin: What a positive has to be surer by, in logits, at least 0.
        gamma: Focus of the positives, at least 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.
            The paper's code sums.

    Raises:
        ValueError: If ``lamb`` is below 1, or ``margin`` or ``gamma`` is negative.

    Example:
        >>> import torch
        >>> HillLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 0]))
        tensor(0.5911)
    """

    def __init__(self, *, lamb: float = 1.5, margin: float = 1.0, gamma: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        _check(lamb, margin, gamma)
        self.lamb = lamb
        self.margin = margin
        self.gamma = gamma

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`hill_loss`."""
        return hill_loss(logits, target, lamb=self.lamb, margin=self.margin, gamma=self.gamma)
