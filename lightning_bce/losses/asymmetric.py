"""Asymmetric loss: negatives are focused on more than positives, and the easiest are dropped."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_flag, check_number, check_shapes
from lightning_bce.losses.stable import (
    by_target,
    few_factors,
    folded,
    full_precision,
    in_dtype,
    power,
    power_of_probability,
    product,
    sides,
    softplus,
)


def asymmetric_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 0.0,
    clip: float = 0.05,
    detach_focus: bool = False,
) -> Tensor:
    r"""Return the asymmetric loss of each element.

    .. math:: \mathrm{ASL} = -y \, (1 - p)^{\gamma_+} \log p - (1 - y) \, p_m^{\gamma_-} \log(1 - p_m), \quad
              p_m = \max(p - m, 0)

    For many labels of which few are positive in a sample. Not for calibrated probabilities: with the defaults a
    positive needs no confidence and a negative gives none, so that a probability is far above the frequency. For a
    soft label the two terms are mixed, and the minimum lies above the label: near 0.60 for 0.3 with the defaults.

    With a ``clip`` above 0 a negative costs at most -log ``clip``, and its gradient vanishes where it is most wrong:
    the paper drops mislabelled negatives so. With ``clip`` 0 every mistake keeps its gradient.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        gamma_neg: Focus of the negatives, at least 0.
        gamma_pos: Focus of the positives, at least 0. The paper's 0; its code has 1.
        clip: The margin m in [0, 1). A negative with p below it costs nothing.
        detach_focus: Whether the factors :math:`(1 - p)^{\gamma_+}` and :math:`p_m^{\gamma_-}` count as constants in
            the gradient. An option of the paper's code. Needs a focus above 0.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, a focus is negative, ``clip`` lies outside [0, 1), or ``detach_focus`` would
            have no effect because both are 0.

    Example:
        >>> import torch
        >>> asymmetric_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.6931, 0.8464])

    References:
        Ridnik et al., Asymmetric Loss For Multi-Label Classification, ICCV 2021. https://arxiv.org/abs/2009.14119
    """
    _check(gamma_neg, gamma_pos, clip, detach_focus)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    of_positives, of_negatives = sides(scores, labels)
    if gamma_pos == 0:  # without a factor nothing can become NaN, and both sides may share their pieces
        positive = folded(scores).softplus_of_minus()
    else:
        positive = _focused(-of_positives, gamma_pos, detach_focus)
    if clip:
        negative = _clipped(scores, gamma_neg, clip, detach_focus)
    else:
        negative = _focused(of_negatives, gamma_neg, detach_focus)
    return by_target(labels, positive, negative)


def _focused(scores: Tensor, gamma: float, detach_focus: bool) -> Tensor:
    focus = power_of_probability(scores, gamma)
    return (focus.detach() if detach_focus else focus) * softplus(scores)


def _clipped(scores: Tensor, gamma: float, clip: float, detach_focus: bool) -> Tensor:
    r"""Return :math:`-p_m^\gamma \log(1 - p_m)`, exact and with exact derivatives on both sides of the margin."""
    threshold = math.log(clip) - math.log1p(-clip)
    nearest = in_dtype(threshold, scores.dtype)
    counts = ~(scores <= nearest)  # a NaN counts
    pieces = folded(scores)
    # p - m cancels near the margin; as a difference of logits, x - logit m, it does not.
    distance = torch.where(counts, scores - nearest, 1.0) - (threshold - nearest)
    exact = -(1 - clip) * pieces.p * torch.expm1(-distance)
    above = pieces.p - clip
    above = torch.where(counts, above + (exact - above).detach(), 0.25)
    # 1 - p_m from p_m or from 1 - p, whichever has the digits; what 1 - p_m rounds off of p_m, its logarithm gets back.
    near = above < 0.5
    remainder = torch.where(near, 1 - above, pieces.q + clip)
    rounded = torch.where(near, (1 - remainder) - above, 0.0) / remainder
    losses = -(remainder.log() + rounded.detach())
    if gamma > 0:
        focus = product(above, gamma) if few_factors(gamma) else power(above, above.log(), gamma)
        losses = (focus.detach() if detach_focus else focus) * losses
    return torch.where(counts, losses, 0.0)


def _check(gamma_neg: float, gamma_pos: float, clip: float, detach_focus: bool) -> None:
    check_number("gamma_neg", gamma_neg, at_least=0)
    check_number("gamma_pos", gamma_pos, at_least=0)
    check_number("clip", clip, at_least=0, below=1)
    check_flag("detach_focus", detach_focus)
    if detach_focus and gamma_neg == gamma_pos == 0:
        raise ValueError("`detach_focus` is True and both focuses are 0: there is nothing to detach. Leave it out.")


class AsymmetricLoss(BinaryLoss):
    """Asymmetric loss. See :func:`asymmetric_loss`.

    Args:
        gamma_neg: Focus of the negatives, at least 0.
        gamma_pos: Focus of the positives, at least 0. The paper's 0; its code has 1.
        clip: Probability in [0, 1) below which a negative costs nothing.
        detach_focus: Whether the focusing factors count as constants in the gradient. Needs a focus above 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.
            The paper's code sums; with a mean the learning rate is another.

    Raises:
        ValueError: If a focus is negative, ``clip`` lies outside [0, 1), or ``detach_focus`` would have no effect.

    Example:
        >>> import torch
        >>> AsymmetricLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 0]))
        tensor(0.7698)
    """

    def __init__(
        self,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        detach_focus: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check(gamma_neg, gamma_pos, clip, detach_focus)
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.clip = clip
        self.detach_focus = detach_focus

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`asymmetric_loss`."""
        return asymmetric_loss(
            logits,
            target,
            gamma_neg=self.gamma_neg,
            gamma_pos=self.gamma_pos,
            clip=self.clip,
            detach_focus=self.detach_focus,
        )
