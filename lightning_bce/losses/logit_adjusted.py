"""Logit-adjusted cross-entropy: learn what the label's frequency does not say already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import Factor, check_factor, check_number, check_shapes
from lightning_bce.losses.count_rules import Rule, is_rule, prior_rule
from lightning_bce.losses.shapes import per_label
from lightning_bce.losses.stable import full_precision


def logit_adjusted_bce(logits: Tensor, target: Tensor, *, prior: Factor, tau: float = 1.0) -> Tensor:
    r"""Return the cross-entropy of logits moved by those of the labels' frequencies.

    .. math:: \mathrm{BCE}(x + \tau \, \mathrm{logit}(\pi_c), y)

    For rare labels that count as much as common ones: trained so, the plain logit ranks by the balanced error, and 0
    is its threshold. The minimiser is x* = logit(y) - tau logit(pi). The sigmoid of the plain logit is therefore no
    probability of these data; that of ``logits + tau * logit(prior)`` is. Not for labels with frequencies near one
    half, where it is cross-entropy.

    Args:
        logits: Scores before the sigmoid and before the adjustment, (N,), (N, C) or (N, C, ...), floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        prior: Frequency of the positives in (0, 1), one number or one for each label (dimension 1). The values of a
            tensor are not checked here, which would wait for the device.
        tau: Strength, at least 0. At 0 this is binary cross-entropy.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, the number of priors is wrong, one lies outside (0, 1), or ``tau`` is
            negative.

    Example:
        >>> import torch
        >>> logit_adjusted_bce(torch.zeros(1, 2), torch.ones(1, 2), prior=[0.5, 0.1])
        tensor([[0.6931, 2.3026]])

    References:
        Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021. https://arxiv.org/abs/2007.07314
        The paper treats the softmax; this is the same step for independent labels.
    """
    check_shapes(logits, target)
    check_number("tau", tau, at_least=0)
    if not isinstance(prior, Tensor):
        check_prior(prior)
        prior = torch.as_tensor(prior, dtype=torch.float64)
    scores = full_precision(logits)
    shift = tau * torch.logit(full_precision(per_label("prior", prior, logits)))
    return bce_with_logits(scores + shift.to(scores), target)


class LogitAdjustedLoss(BinaryLoss):
    """Logit-adjusted cross-entropy. See :func:`logit_adjusted_bce`.

    Args:
        prior: Frequency of the positives in (0, 1), one number or one for each label; "auto" is that of the training
            data.
        tau: Strength, at least 0. At 0 this is binary cross-entropy.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If a prior lies outside (0, 1) or ``tau`` is negative.

    Example:
        >>> import torch
        >>> LogitAdjustedLoss(prior=[0.5, 0.1])(torch.zeros(1, 2), torch.tensor([[1, 1]]))
        tensor(1.4979)
    """

    prior: Tensor

    def __init__(self, *, prior: Factor | Rule, tau: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_number("tau", tau, at_least=0)
        if not is_rule(prior):
            check_prior(prior)  # type: ignore[arg-type]
        self._constant("prior", prior, prior_rule)
        self.tau = tau

    @property
    def log_odds_shift(self) -> Tensor | None:
        """Minus ``tau`` times the logit of the prior."""
        return -self.tau * torch.logit(self.prior)

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`logit_adjusted_bce`."""
        return logit_adjusted_bce(logits, target, prior=self.prior, tau=self.tau)


def check_prior(prior: Factor) -> None:
    """Refuse frequencies that are not one number, or one for each label, strictly between 0 and 1.

    Raises:
        ValueError: With what was given.
        TypeError: If it is no number.
    """
    if prior is None:
        raise TypeError("`prior` is None; the frequency of the positives, in (0, 1), was expected.")
    check_factor("prior", prior)
    values = torch.as_tensor(prior, dtype=torch.float64).detach()
    if values.ndim > 1 or values.numel() == 0:
        raise ValueError(f"`prior` has shape {tuple(values.shape)}; one number, or one for each label, was expected.")
    wrong = (values <= 0) | (values >= 1)
    if values.device.type != "meta" and bool(wrong.any()):
        raise ValueError(
            f"`prior` must lie between 0 and 1; got {values[wrong].flatten()[:8].tolist()}. For a label that never or "
            "always occurs, count half a sample: `max(n, 0.5) / N`. Percentages are to be divided by 100, counts by N."
        )
