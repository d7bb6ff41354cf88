"""Varifocal loss: positives count by their quality, negatives by how wrong they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number
from lightning_bce.losses.stable import full_precision, power_of_probability, softplus


def varifocal_loss(logits: Tensor, target: Tensor, *, negative_weight: float = 0.75, gamma: float = 2.0) -> Tensor:
    r"""Return the varifocal loss of each element.

    .. math:: \mathrm{VFL} = \begin{cases}
              y \, \mathrm{BCE} & y > 0 \\
              -w_- \, p^\gamma \log(1 - p) & y = 0 \end{cases}

    The paper calls the factor of the negatives :math:`\alpha`, which in this library is the weight of the positives;
    here it is ``negative_weight``.

    For targets that are the quality of a positive, such as the overlap of a box, and 0 for a negative: good positives
    count most, easy negatives hardly. Not for smoothed or mixed labels: 0 is told from every other value, and a label
    of 0.001 is a positive that counts for nothing. For a soft label above 0 the minimum lies at p = y.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Qualities in [0, 1], the shape of ``logits``; exactly 0 for a negative.
        negative_weight: Factor of the negatives, at least 0. The positives have 1.
        gamma: Focus of the negatives, at least 0. The positives have none.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, or ``negative_weight`` or ``gamma`` is negative.

    Example:
        >>> import torch
        >>> varifocal_loss(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.5, 0.0]))
        tensor([0.6931, 0.3466, 0.1300])

    References:
        Zhang et al., VarifocalNet: An IoU-aware Dense Object Detector, CVPR 2021. https://arxiv.org/abs/2008.13367
    """
    check_number("negative_weight", negative_weight, at_least=0)
    check_number("gamma", gamma, at_least=0)
    scores = full_precision(logits)
    positive = bce_with_logits(scores, target)
    labels = target.to(scores.dtype)
    is_negative = labels == 0
    # Not the scores of positives: the cost of an infinite one, were it a negative, would make its gradient NaN.
    of_negatives = torch.where(is_negative, scores, 0.0)
    negative = negative_weight * power_of_probability(of_negatives, gamma) * softplus(of_negatives)
    return torch.where(is_negative, negative, labels * positive)


class VarifocalLoss(BinaryLoss):
    """Varifocal loss. See :func:`varifocal_loss`.

    Args:
        negative_weight: Factor of the negatives, at least 0: the paper's ``alpha``. The positives have 1.
        gamma: Focus of the negatives, at least 0. The positives have none.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.
            The paper divides the sum by the number of positives.

    Raises:
        ValueError: If ``negative_weight`` or ``gamma`` is negative.

    Example:
        >>> import torch
        >>> VarifocalLoss()(torch.tensor([0.0, 0.0]), torch.tensor([1, 0]))
        tensor(0.4116)
    """

    def __init__(self, *, negative_weight: float = 0.75, gamma: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        check_number("negative_weight", negative_weight, at_least=0)
        check_number("gamma", gamma, at_least=0)
        self.negative_weight = negative_weight
        self.gamma = gamma

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`varifocal_loss`."""
        return varifocal_loss(logits, target, negative_weight=self.negative_weight, gamma=self.gamma)
