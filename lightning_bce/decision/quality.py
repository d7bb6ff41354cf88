"""How good probabilities are: log-loss, Brier score and calibration error, also of a calibration, on rows apart."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.decision.calibration import Method, fit_calibration
from lightning_bce.decision.rows import Rows, rows_of
from lightning_bce.metrics import multilabel_brier_score, multilabel_log_loss


class Quality(NamedTuple):
    """How good the probabilities of each label are, (C,); NaN where nothing is known.

    Args:
        log_loss: Cross-entropy in nats.
        brier: Mean squared distance from the label.
        error: Expected calibration error, over 15 equal bins.
        weight: What the label counts in a mean over labels.
    """

    log_loss: Tensor
    brier: Tensor
    error: Tensor
    weight: Tensor

    def mean(self, name: str) -> float:
        """Return one of them over all labels, each by what it counts."""
        value = getattr(self, name)
        return float((value * self.weight).nansum() / self.weight.sum())


def quality(rows: Rows) -> Quality:
    """Return how good the probabilities are whose log-odds the rows hold.

    Args:
        rows: Log-odds, labels and weights.

    Example:
        >>> ones = torch.ones(4, 1)
        >>> quality(Rows(torch.zeros(4, 1), ones, ones)).brier
        tensor([0.2500], dtype=torch.float64)
    """
    x, y, w = (part.double() for part in rows)
    log_loss, brier = (
        metric(x, y, x.shape[1], w, average="none", from_logits=True, validate_args=False)
        for metric in (multilabel_log_loss, multilabel_brier_score)
    )
    return Quality(log_loss, brier, calibration_error(torch.sigmoid(x), y, weight=w), w.sum(0))


def cross_calibrated(rows: Rows, method: Method, per_label: bool | None, folds: int) -> Rows:
    """Return the rows with log-odds that were calibrated on the other rows.

    Row i is in fold i modulo ``folds``, and gets the calibration that was fitted on all other folds. What is measured
    on the rows of the fit itself looks better than it is; isotonic regression has no calibration error there at all.

    Args:
        rows: Logits, labels and weights.
        method: Of the calibration.
        per_label: Likewise.
        folds: How many, at least 2.
    """
    score = rows.score.float().clone()
    fold = torch.arange(len(score)) % folds
    for index in range(min(folds, len(score))):
        held = fold == index
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Nothing can be calibrated", UserWarning)  # the whole fit says so
            rest = (part[~held] for part in rows)
            logits, target, weight = rest
            fitted = fit_calibration(logits, target, method, weight=weight, per_label=per_label)
        score[held] = fitted.logits(rows.score[held])
    return rows._replace(score=score)


def calibration_error(probability: Any, target: Any, *, weight: Any = None, mask: Any = None, bins: int = 15) -> Tensor:
    r"""Return the expected calibration error of each label: how far probabilities are from how often they came true.

    .. math:: \sum_b \frac{w_b}{\sum w} \left| \bar p_b - \bar y_b \right|

    over equal bins of the probability. It is :func:`lightning_bce.metrics.multilabel_calibration_error`, which says
    more of it, with weights.

    Args:
        probability: (N,), (N, 1), (N, C) or (N, C, ...), in [0, 1].
        target: Labels in [0, 1] in the same shape; NaN is unknown.
        weight: What rows or elements count.
        mask: True where the label is known.
        bins: How many.

    Returns:
        (C,), NaN where nothing is known.

    Example:
        >>> calibration_error(torch.tensor([0.9, 0.9, 0.9, 0.9]), torch.tensor([1, 1, 1, 0]))
        tensor([0.1500], dtype=torch.float64)
    """
    rows = rows_of(probability, target, weight, mask)
    labels = rows.score.shape[1]
    sums = torch.zeros(2, labels * bins, dtype=torch.float64)  # of the difference, and of the weight
    place = (rows.score.float() * bins).long().clamp(0, bins - 1) + torch.arange(labels) * bins
    difference = rows.weight.double() * (rows.score.double() - rows.target.double())
    for total, part in zip(sums, (difference, rows.weight.double()), strict=True):
        total.index_add_(0, place.flatten(), part.flatten())
    difference, known = sums.reshape(2, labels, bins).unbind()
    return difference.abs().sum(1) / known.sum(1)
