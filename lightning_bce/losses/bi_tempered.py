"""Bi-tempered logistic loss: a bounded loss of a probability with a heavy tail, for labels with noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import by_target, falling_power, full_precision, power_of_probability, sides, softplus

_STEPS = 6  # of Newton's method, which doubles the digits in each
_TERMS = 17  # of 0.1


def bi_tempered_loss(logits: Tensor, target: Tensor, *, t1: float = 0.8, t2: float = 1.2) -> Tensor:
    r"""Return the binary bi-tempered logistic loss of each element.

    .. math:: y \, \ell(p) + (1 - y) \, \ell(1 - p), \quad
              \ell(p) = -\log_{t_1} p - \frac{1 - p^{2 - t_1} - (1 - p)^{2 - t_1}}{2 - t_1}, \quad
              \log_t u = \frac{u^{1 - t} - 1}{1 - t}

    where p is not the sigmoid but the tempered probability, the solution of
    :math:`\log_{t_2} p - \log_{t_2} (1 - p) = x`: the tempered softmax of the logits x and 0. At
    ``t1`` = ``t2`` = 1 this is binary cross-entropy.

    For hard labels of which some are wrong: with ``t1`` below 1 no mistake costs more than 1 / (1 - ``t1``), and by
    the formula its gradient fades; with ``t2`` above 1 probabilities near the decision are less sure. For a soft label
    the minimum lies where the tempered probability is y; the sigmoid of that logit is surer than y, so this is not for
    those who read the sigmoid as a probability. The paper subtracts what a soft label alone costs, a constant.

    Computed in float64, because p is found by iteration (on MPS, which has none, in float32 with fewer digits).

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        t1: Temperature of the loss in [0, 1]. Below 1 it is bounded.
        t2: Temperature of the probability, at least 1. Above 1 its tail is heavy.

    Returns:
        Losses, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, ``t1`` lies outside [0, 1] or ``t2`` is below 1.

    Example:
        >>> import torch
        >>> bi_tempered_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0]))
        tensor([0.5394, 1.4531])

    References:
        Amid et al., Robust Bi-Tempered Logistic Loss Based on Bregman Divergences, NeurIPS 2019.
        https://arxiv.org/abs/1906.03361
    """
    _check(t1, t2)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    wide = scores if scores.device.type == "mps" else scores.double()
    of_positives, of_negatives = sides(_logit_of_tempered(wide, t2 - 1), labels)
    losses = by_target(labels.to(wide.dtype), _of_positive(of_positives, 1 - t1), _of_positive(-of_negatives, 1 - t1))
    return losses.to(scores.dtype)


def _logit_of_tempered(scores: Tensor, k: float) -> Tensor:
    """Return log(p / (1 - p)) of the tempered probability, with two derivatives."""
    if k == 0:
        return scores
    bounded = ~scores.isinf()
    size = torch.where(bounded, scores, 0.0)
    size = torch.where(size < 0, -size, size)  # not abs, which has no slope at 0
    logit = torch.log1p(k * size.detach()) / k
    for _ in range(_STEPS):
        logit = _newton(logit, size.detach(), k)
    # The root has no gradient; a step from it has the first derivative right, two have the first three.
    logit = _newton(_newton(logit, size, k), size, k)
    return torch.where(bounded, torch.where(scores < 0, -logit, logit), scores.detach())


def _newton(logit: Tensor, size: Tensor, k: float) -> Tensor:
    r"""Return a better root of :math:`s = \log(1 + k x \sigma(s)^k) / k`, which is the equation of p solved for s."""
    grown = k * size * (-k * softplus(-logit)).exp()
    rate = grown / (1 + grown) * torch.sigmoid(-logit)
    return logit - (logit - torch.log1p(grown) / k) / (1 - rate)


def _of_positive(logit: Tensor, r: float) -> Tensor:
    r"""Return :math:`\ell(p)` with :math:`r = 1 - t_1`, as a sum of two positive terms."""
    miss = torch.sigmoid(-logit)
    # The integral of v (1 - v)^(r - 1) from 0 to 1 - p: the difference of two powers, or for a small one its series.
    direct = (falling_power(logit, r) if r > 0 else softplus(-logit)) - falling_power(logit, 1 + r)
    coefficients = [1.0]
    for j in range(_TERMS):
        coefficients.append(coefficients[-1] * (1 - r + j) / (j + 1))
    small = torch.where(miss < 0.1, miss, 0.05)
    series = torch.zeros_like(small)
    for j in range(_TERMS, -1, -1):
        series = series * small + coefficients[j] / (j + 2)
    integral = torch.where(miss < 0.1, small.square() * series, direct)
    return integral + power_of_probability(-logit, 1 + r) / (1 + r)


def _check(t1: float, t2: float) -> None:
    check_number("t1", t1, at_least=0, at_most=1)
    check_number("t2", t2, at_least=1)


class BiTemperedLoss(BinaryLoss):
    """Binary bi-tempered logistic loss. See :func:`bi_tempered_loss`.

    Args:
        t1: Temperature of the loss in [0, 1]. Below 1 no mistake costs more than 1 / (1 - ``t1``).
        t2: Temperature of the probability, at least 1. Above 1 its tail is heavy.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``t1`` lies outside [0, 1] or ``t2`` is below 1.

    Example:
        >>> import torch
        >>> BiTemperedLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1, 0]))
        tensor(0.9962)
    """

    def __init__(self, *, t1: float = 0.8, t2: float = 1.2, **options: Any) -> None:
        super().__init__(**options)
        _check(t1, t2)
        self.t1 = t1
        self.t2 = t2

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bi_tempered_loss`."""
        return bi_tempered_loss(logits, target, t1=self.t1, t2=self.t2)

    def _reason_against_blocks(self, logits: Tensor) -> str | None:
        return "its probability is found in eight steps of iteration, which would take minutes to compile"
