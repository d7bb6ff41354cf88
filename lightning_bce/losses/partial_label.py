"""Partial cross-entropy: a sample with few known labels counts more for each of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_shapes
from lightning_bce.losses.stable import full_precision


def partial_label_bce(
    logits: Tensor,
    target: Tensor,
    known: Tensor | None = None,
    *,
    slope: float = -4.45,
    offset: float = 5.45,
    power: float = 1.0,
) -> Tensor:
    r"""Return the cross-entropy of known labels times a factor by how many of the sample's labels are known.

    .. math:: g(r) \, \mathrm{BCE}(x, y), \quad g(r) = a r^\gamma + b, \quad
              r = \frac{\text{known labels of the sample}}{C}

    Between two extremes: with a = 0 each known label counts the same, with g(r) = 1 / r each sample does. The default
    gives 1 to a sample of which all is known and 5 to one with a tenth. The factor does not depend on the logit, so
    that the minimiser stays that of cross-entropy, x* = logit(y). Not for data where what is known depends on the
    label: see :func:`unobserved_bce`.

    Args:
        logits: Scores before the sigmoid, (N,), (N, C) or (N, C, ...), floating point.
        target: Labels in [0, 1], the shape of ``logits``; any value where unknown.
        known: True where the label is known, bool, broadcastable to ``logits``. None means everywhere.
        slope: The paper's alpha, a above.
        offset: The paper's beta, b above. The factor must not be negative at any fraction in (0, 1].
        power: The paper's gamma, the exponent of the fraction. ``slope=1, offset=0, power=-1`` is 1 / r.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better, 0 where unknown. Labels are dimension 1, and
        each further position has its own fraction; in (N,) every label is a sample of its own.

    Raises:
        ValueError: If the shapes differ, the factor could be negative, or ``power`` has no effect.

    Example:
        >>> import torch
        >>> known = torch.tensor([[True, True], [True, False]])
        >>> partial_label_bce(torch.zeros(2, 2), torch.ones(2, 2), known)
        tensor([[0.6931, 0.6931],
                [2.2354, 0.0000]])

    References:
        Durand et al., Learning a Deep ConvNet for Multi-label Classification with Partial Labels, CVPR 2019.
        https://arxiv.org/abs/1902.09720
    """
    check_shapes(logits, target)
    _check_factor(slope, offset, power)
    scores = full_precision(logits)
    if known is None:
        return bce_with_logits(scores, target) * (slope + offset)
    factor = _factor(scores, known, slope, offset, power).to(scores.dtype)
    losses = bce_with_logits(torch.where(known, scores, 0.0), torch.where(known, target, 0))
    return torch.where(known, factor * losses, 0.0)


def _factor(scores: Tensor, known: Tensor, slope: float, offset: float, power: float) -> Tensor:
    """Return one factor for each sample and position, (N, 1, ...), or for each element of (N,)."""
    # Few numbers, one for each sample, in float64: the default's 5.45 - 4.45 leaves float32 with half its digits gone.
    wide = scores.dtype if scores.device.type == "mps" else torch.float64
    fraction = known.expand(scores.shape).to(wide)
    if scores.ndim > 1:
        # An unknown sample gets the fraction of one label: no power of 0, and its losses are 0 anyway.
        fraction = (fraction.sum(1, keepdim=True) / max(scores.shape[1], 1)).clamp(min=1 / max(scores.shape[1], 1))
    else:
        fraction = torch.ones_like(fraction)
    return slope * fraction**power + offset


class PartialLabelBCELoss(BinaryLoss):
    """Cross-entropy for partly known labels. See :func:`partial_label_bce`.

    What ``ignore_index`` or the mask marks is unknown. The paper divides by all labels, known or not: that is
    ``reduction="batchmean"`` over C, where no sample is wholly unknown. "mean" divides by the known labels of the
    batch: the ratio between the samples is the same, the scale is not.

    Args:
        slope: Of the factor by the fraction of known labels, the paper's alpha.
        offset: Of that factor, the paper's beta.
        power: Exponent of the fraction, the paper's gamma.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If the factor could be negative, or ``power`` has no effect.

    Example:
        >>> import torch
        >>> loss = PartialLabelBCELoss(ignore_index=-1, reduction="none")
        >>> loss(torch.zeros(2, 2), torch.tensor([[1, 1], [1, -1]]))
        tensor([[0.6931, 0.6931],
                [2.2354, 0.0000]])
    """

    def __init__(self, *, slope: float = -4.45, offset: float = 5.45, power: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        _check_factor(slope, offset, power)
        self.slope = slope
        self.offset = offset
        self.power = power

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bce_with_logits`."""
        return bce_with_logits(logits, target)

    @property
    def couples_samples(self) -> bool:
        """Return False: a factor is that of its own sample."""
        return False

    def context(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the target and the factor of each sample."""
        known = torch.ones_like(logits, dtype=torch.bool) if valid is None else valid
        return target, _factor(logits, known, self.slope, self.offset, self.power)


def _check_factor(slope: float, offset: float, power: float) -> None:
    for name, value in (("slope", slope), ("offset", offset), ("power", power)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"`{name}` is {value!r}; a number was expected.")
        if not math.isfinite(value):
            raise ValueError(f"`{name}` is {value}; it must be finite.")
    if slope == 0 and power != 1:
        raise ValueError(f"`power` is {power}, which has no effect with a `slope` of 0. Leave it out.")
    # The factor is monotone in the fraction: its ends decide. At 0 it is the offset, or grows like the slope.
    at_zero = offset if power > 0 else slope if power < 0 else slope + offset
    if slope + offset < 0 or at_zero < 0 or slope == offset == 0:
        raise ValueError(
            f"`slope` is {slope}, `offset` {offset} and `power` {power}: the factor slope * fraction^power + offset "
            "must not be negative for any fraction in (0, 1], nor 0 for all. The paper's are -4.45, 5.45 and 1."
        )
