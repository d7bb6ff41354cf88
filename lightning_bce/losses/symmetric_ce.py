"""Symmetric cross-entropy: cross-entropy both ways, for labels with noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import folded, full_precision


def symmetric_ce(
    logits: Tensor, target: Tensor, *, ce_weight: float = 0.1, rce_weight: float = 1.0, log_zero: float = -4.0
) -> Tensor:
    r"""Return the symmetric cross-entropy of each element.

    .. math:: \mathrm{SCE} = w_{\mathrm{CE}} \, \mathrm{BCE}
              - w_{\mathrm{RCE}} \left[ p \log y + (1 - p) \log(1 - y) \right]

    where a logarithm is at least ``log_zero``, the paper's A, because a hard label has one of 0. For a hard label the
    second term is the absolute error, multiplied by -``log_zero``: it tolerates wrong labels, the first term learns.
    The paper calls the weights :math:`\alpha` and :math:`\beta`; here ``alpha`` is the weight of the positives.

    For hard labels of which some are wrong. Not for calibrated probabilities, nor for soft labels: for these the
    minimum lies far beyond the label, near 0.03 for 0.3 with the defaults.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        ce_weight: Factor of binary cross-entropy, at least 0. Also the gradient that a confident mistake keeps: by the
            formula that of the second term fades, as p (1 - p).
        rce_weight: Factor of the reverse cross-entropy, at least 0.
        log_zero: The least logarithm of a label, below 0.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, a weight is negative, both are 0, or ``log_zero`` is not below 0.

    Example:
        >>> import torch
        >>> symmetric_ce(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([2.0693, 0.4895])

    References:
        Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, ICCV 2019.
        https://arxiv.org/abs/1908.06112
    """
    _check(ce_weight, rce_weight, log_zero)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    of_positive, of_negative = _floored_logs(labels, log_zero)
    pieces = folded(scores)
    losses = -rce_weight * (pieces.p * of_positive + pieces.q * of_negative)
    if ce_weight > 0:
        losses = ce_weight * bce_with_logits(scores, labels) + losses
    return losses


def _floored_logs(labels: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return log y and log(1 - y), both at least ``floor`` and with finite slopes."""
    least = math.exp(floor)
    of_positive = torch.where(labels > least, labels.clamp(min=least).log(), floor)
    of_negative = torch.where(1 - labels > least, torch.log1p(-labels.clamp(max=-math.expm1(floor))), floor)
    return of_positive, of_negative


def _check(ce_weight: float, rce_weight: float, log_zero: float) -> None:
    check_number("ce_weight", ce_weight, at_least=0)
    check_number("rce_weight", rce_weight, at_least=0)
    check_number("log_zero", log_zero, below=0)
    if ce_weight == rce_weight == 0:
        raise ValueError("`ce_weight` and `rce_weight` are both 0: no loss is left. Give one of them.")


class SymmetricCELoss(BinaryLoss):
    """Symmetric cross-entropy. See :func:`symmetric_ce`.

    Args:
        ce_weight: Factor of binary cross-entropy, at least 0: the paper's ``alpha``.
        rce_weight: Factor of the reverse cross-entropy, at least 0: the paper's ``beta``.
        log_zero: The least logarithm of a label, below 0: the paper's ``A``.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If a weight is negative, both are 0, or ``log_zero`` is not below 0.

    Example:
        >>> import torch
        >>> SymmetricCELoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 1]))
        tensor(1.2794)
    """

    def __init__(
        self, *, ce_weight: float = 0.1, rce_weight: float = 1.0, log_zero: float = -4.0, **options: Any
    ) -> None:
        super().__init__(**options)
        _check(ce_weight, rce_weight, log_zero)
        self.ce_weight = ce_weight
        self.rce_weight = rce_weight
        self.log_zero = log_zero

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`symmetric_ce`."""
        return symmetric_ce(
            logits, target, ce_weight=self.ce_weight, rce_weight=self.rce_weight, log_zero=self.log_zero
        )
