"""Curves and areas over all thresholds from binned scores, with a bound of what the bins hide.

Between the edges of a bin the order of its negatives and positives is not known. The curves pass through the points
that are: those at the edges. Of the areas the functions return an estimate and how far the exact value can be from it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import sum_dtype
from lightning_bce.metrics.score_histogram import ScoreBins


class ScoreCurve(NamedTuple):
    """A curve over thresholds, from the highest to the lowest.

    Args:
        x: (C, S + 1): the rate of false positives, or recall.
        y: (C, S + 1): the rate of true positives (recall), or precision.
        threshold: Of the logit, at least which is a positive decision, (S + 1,).
    """

    x: Tensor
    y: Tensor
    threshold: Tensor


class Bounded(NamedTuple):
    """A number for each label, and how far the exact one can be from it, (C,) both."""

    value: Tensor
    error: Tensor


def score_roc(scores: ScoreBins) -> ScoreCurve:
    """Return the ROC curve of each label: the rate of false positives, that of true positives, thresholds.

    Its points are exact, for decisions that are positive at the threshold and above. A rate without any element is NaN.

    Args:
        scores: From :class:`ScoreHistogram`.

    Example:
        >>> scores = ScoreBins(torch.tensor([-torch.inf, 0.0, torch.inf]), torch.tensor([[[3, 1], [1, 1]]]))
        >>> score_roc(scores).x
        tensor([[0.0000, 0.2500, 1.0000]], dtype=torch.float64)
        >>> score_roc(scores).y
        tensor([[0.0000, 0.5000, 1.0000]], dtype=torch.float64)
    """
    above = _at_least(scores)
    rates = above / above[..., -1:]
    return ScoreCurve(rates[:, 0], rates[:, 1], scores.edges.flip(0))


def score_precision_recall(scores: ScoreBins) -> ScoreCurve:
    """Return the precision-recall curve of each label: recall, precision, thresholds.

    Its points are exact, for decisions that are positive at the threshold and above. Precision without a positive
    decision is 1, as in scikit-learn; recall without a positive is NaN.

    Args:
        scores: From :class:`ScoreHistogram`.

    Example:
        >>> scores = ScoreBins(torch.tensor([-torch.inf, 0.0, torch.inf]), torch.tensor([[[3, 1], [1, 1]]]))
        >>> score_precision_recall(scores).y
        tensor([[1.0000, 0.5000, 0.3333]], dtype=torch.float64)
    """
    negatives, positives = _at_least(scores).unbind(1)
    decided = negatives + positives
    precision = torch.where(decided > 0, positives / decided, 1.0)
    return ScoreCurve(positives / positives[:, -1:], precision, scores.edges.flip(0))


def score_auroc(scores: ScoreBins) -> Bounded:
    r"""Return the area under the ROC curve of each label.

    Pairs within a bin count one half, so that the exact value is at most
    :math:`\frac12 \sum_b \frac{n_b}{N} \frac{p_b}{P}` away: with S bins that are evenly filled, 1 / 2S. NaN where a
    side is missing.

    Args:
        scores: From :class:`ScoreHistogram`.

    Example:
        >>> scores = ScoreBins(torch.tensor([-torch.inf, 0.0, torch.inf]), torch.tensor([[[3, 1], [1, 1]]]))
        >>> score_auroc(scores)
        Bounded(value=tensor([0.6250], dtype=torch.float64), error=tensor([0.2500], dtype=torch.float64))
    """
    wide = scores.count.to(sum_dtype(scores.count))
    rates = wide / wide.sum(-1, keepdim=True)
    negatives, positives = rates.unbind(1)
    below = negatives.cumsum(-1) - negatives
    return Bounded((positives * (below + negatives / 2)).sum(-1), (positives * negatives).sum(-1) / 2)


def score_average_precision(scores: ScoreBins) -> Bounded:
    r"""Return the average precision of each label, :math:`\sum_k (R_k - R_{k-1}) P_k`.

    With A positives and F negatives above a bin of p positives and n negatives, the k-th positive of the bin is taken
    to have :math:`n (k - 1/2) / p` of its negatives above. The exact value lies between that with all negatives of each
    bin above its positives, and that with all of them below and its positives tied; the error is the larger distance.
    NaN without a positive.

    Args:
        scores: From :class:`ScoreHistogram`.

    Example:
        >>> scores = ScoreBins(torch.tensor([-torch.inf, 0.0, torch.inf]), torch.tensor([[[3, 1], [1, 1]]]))
        >>> [round(part.item(), 4) for part in score_average_precision(scores)]
        [0.5556, 0.2778]
    """
    n, p = scores.count.to(sum_dtype(scores.count)).flip(-1).unbind(1)
    above_n, above_p = n.cumsum(-1) - n, p.cumsum(-1) - p
    some = p.clamp(min=1)
    # The precision of the k-th positive is (A + k) / (c + r k), whose sum over k has a closed form.
    ratio = 1 + n / some
    shift = (above_p + above_n - n / (2 * some)) / ratio
    middle = (p + (above_p - shift) * _harmonic(shift, p)) / ratio
    passed = above_n + n
    low = p - passed * _harmonic(above_p + passed, p)
    high = p * (above_p + p) / (above_p + some + above_n)
    total = p.sum(-1)
    middle, low, high = (part.sum(-1) / total for part in (middle, low, high))
    return Bounded(middle, torch.maximum(high - middle, middle - low))


def _harmonic(shift: Tensor, terms: Tensor) -> Tensor:
    """Return the sum of 1 / (shift + k) for k from 1 to ``terms``."""
    return torch.digamma(shift + terms + 1) - torch.digamma(shift + 1)


def _at_least(scores: ScoreBins) -> Tensor:
    """Return how many elements are at each edge or above, from the highest, (C, 2, S + 1)."""
    counts = scores.count.to(sum_dtype(scores.count)).flip(-1).cumsum(-1)
    return torch.cat([torch.zeros_like(counts[..., :1]), counts], -1)
