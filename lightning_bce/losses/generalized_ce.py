"""Generalized cross-entropy: between cross-entropy and the absolute error, for labels with noise."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import by_target, falling_power, full_precision, sides


def generalized_ce(logits: Tensor, target: Tensor, *, q: float = 0.7) -> Tensor:
    r"""Return the generalized cross-entropy of each element.

    .. math:: \mathrm{GCE} = y \, \frac{1 - p^q}{q} + (1 - y) \, \frac{1 - (1 - p)^q}{q}

    For hard labels of which some are wrong: no mistake costs more than 1 / ``q``, and by the formula the gradient of
    one fades, as p^q, where the model is sure of the opposite. Not to start from a model that is sure and wrong, nor
    for calibrated probabilities: for a soft label the minimum lies beyond it, at the logit of y divided by 1 - ``q``,
    and at ``q`` = 1 at 0 or 1.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        q: How much noise is tolerated, in [0, 1]. At 0 this is binary cross-entropy, at 1 the absolute error.

    Returns:
        Losses, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ or ``q`` lies outside [0, 1].

    Example:
        >>> import torch
        >>> generalized_ce(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.5492, 1.1062])

    References:
        Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, NeurIPS
        2018. https://arxiv.org/abs/1805.07836
    """
    check_number("q", q, at_least=0, at_most=1)
    if q == 0:
        return bce_with_logits(logits, target)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    of_positives, of_negatives = sides(scores, labels)
    return by_target(labels, falling_power(of_positives, q), falling_power(-of_negatives, q))


class GeneralizedCELoss(BinaryLoss):
    """Generalized cross-entropy. See :func:`generalized_ce`.

    Args:
        q: How much noise is tolerated, in [0, 1]. At 0 this is binary cross-entropy, at 1 the absolute error.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``q`` lies outside [0, 1].

    Example:
        >>> import torch
        >>> GeneralizedCELoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 0]))
        tensor(0.8277)
    """

    def __init__(self, *, q: float = 0.7, **options: Any) -> None:
        super().__init__(**options)
        check_number("q", q, at_least=0, at_most=1)
        self.q = q

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`generalized_ce`."""
        return generalized_ce(logits, target, q=self.q)
