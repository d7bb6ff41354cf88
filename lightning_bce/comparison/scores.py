"""What a run is judged by: scores of test rows, each row with a weight, so that a bootstrap is a row of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Judged(NamedTuple):
    """What a run says of the rows it is judged on; all arrays are (N, C).

    Args:
        logits: Scores of the model; only their order counts.
        probability: Probabilities after calibration.
        decision: Whether a label is decided to be positive, by the threshold that was tuned on other rows.
        target: Labels, positive above one half.
        known: Where labels are known.
    """

    logits: Array
    probability: Array
    decision: Array
    target: Array
    known: Array


class Score(NamedTuple):
    """A score and how it is read.

    Args:
        title: Its name in sentences.
        short: Its name in tables.
        higher_is_better: Whether more is better.
        of: The function of ``(judged, label, rows, weight)`` for one label, with weights (B, N) and values (B,).
    """

    title: str
    short: str
    higher_is_better: bool
    of: Callable[..., Array]


def scores(judged: Judged, precision: float, weight: Array | None = None) -> dict[str, Array]:
    """Return every score, the mean over the labels for which it is defined.

    AUROC and average precision of a label need both classes, F1 and the recall a positive. What no label defines is
    NaN.

    Args:
        judged: What the run says of N rows.
        precision: The least precision of ``recall_at_precision``, in (0, 1].
        weight: Weights of the rows, (B, N), at least 0. None weighs all by 1.

    Returns:
        For each name in :data:`SCORES` the values, (B,).

    Example:
        >>> column = lambda *values: np.array(values)[:, None]
        >>> judged = Judged(
        ...     column(-1.0, 1.0, 2.0), column(0.2, 0.6, 0.9), column(False, True, True), column(0, 0, 1),
        ...     np.ones((3, 1), bool),
        ... )
        >>> {name: round(value.item(), 4) for name, value in scores(judged, 0.9).items()}
        {'average_precision': 1.0, 'auroc': 1.0, 'f1': 0.6667, 'log_loss': 0.4149, 'brier': 0.1367, 'recall_at_precision': 1.0}
    """  # noqa: E501
    return {name: score_of(name, judged, precision, weight) for name in SCORES}


def score_of(name: str, judged: Judged, precision: float, weight: Array | None = None) -> Array:
    """Return one score of :func:`scores`."""
    weight = np.ones((1, len(judged.target))) if weight is None else weight
    values = []
    for label in range(judged.target.shape[1]):
        rows = np.flatnonzero(judged.known[:, label])
        columns = Judged(*(part[rows, label] for part in judged))
        values.append(SCORES[name].of(columns, weight[:, rows], precision))
    stacked = np.stack(values)
    defined = ~np.isnan(stacked)
    count = defined.sum(axis=0)
    total: Array = np.where(defined, stacked, 0.0).sum(axis=0)
    mean: Array = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return mean


def _curve(judged: Judged, weight: Array) -> tuple[Array, Array]:
    """Return the weights of true and of false positives at each distinct score, the highest first, (B, K)."""
    order = np.argsort(-judged.logits, kind="stable")
    ordered = judged.logits[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else order
    positive = (judged.target[order] > 0.5) * weight[:, order]
    true = np.cumsum(positive, axis=1)[:, last]
    return true, np.cumsum(weight[:, order], axis=1)[:, last] - true


def _undefined(values: Array, *needed: Array) -> Array:
    # A draw of a bootstrap may hold no row of a class.
    enough = np.all([part > 0 for part in needed], axis=0)
    return np.where(enough, values, np.nan)


def _totals(true: Array, false: Array) -> tuple[Array, Array]:
    zero = np.zeros(len(true))
    return (true[:, -1], false[:, -1]) if true.shape[1] else (zero, zero)


def _precision_and_recall(true: Array, false: Array) -> tuple[Array, Array]:
    positives, _ = _totals(true, false)
    found = true + false
    precision = np.divide(true, found, out=np.zeros_like(true), where=found > 0)
    return precision, np.divide(true, positives[:, None], out=np.zeros_like(true), where=positives[:, None] > 0)


def _average_precision(judged: Judged, weight: Array, _: float) -> Array:
    true, false = _curve(judged, weight)
    precision, recall = _precision_and_recall(true, false)
    return _undefined((np.diff(recall, axis=1, prepend=0.0) * precision).sum(axis=1), *_totals(true, false))


def _auroc(judged: Judged, weight: Array, _: float) -> Array:
    true, false = _curve(judged, weight)
    positives, negatives = _totals(true, false)
    before = np.concatenate([np.zeros((len(true), 1)), true[:, :-1]], axis=1)[:, : true.shape[1]]
    area = (np.diff(false, axis=1, prepend=0.0) * (before + true) / 2).sum(axis=1)
    pairs = positives * negatives
    return _undefined(np.divide(area, pairs, out=np.zeros_like(area), where=pairs > 0), positives, negatives)


def _recall_at_precision(judged: Judged, weight: Array, least: float) -> Array:
    true, false = _curve(judged, weight)
    precision, recall = _precision_and_recall(true, false)
    best = np.where(precision >= least, recall, 0.0).max(axis=1, initial=0.0)
    return _undefined(best, _totals(true, false)[0])


def _f1(judged: Judged, weight: Array, _: float) -> Array:
    positive = judged.target > 0.5
    hits = 2.0 * (weight @ (positive & judged.decision))
    counted = weight @ (positive.astype(float) + judged.decision)
    values = np.divide(hits, counted, out=np.zeros_like(hits), where=counted > 0)
    return _undefined(values, weight @ positive.astype(float))


def _log_loss(judged: Judged, weight: Array, _: float) -> Array:
    # A probability of 0 or 1 is infinitely wrong once; scikit-learn clips at the same place.
    p = np.clip(judged.probability.astype(float), np.finfo(float).eps, 1 - np.finfo(float).eps)
    return _mean(-(judged.target * np.log(p) + (1 - judged.target) * np.log1p(-p)), weight)


def _brier(judged: Judged, weight: Array, _: float) -> Array:
    return _mean((judged.probability - judged.target) ** 2, weight)


def _mean(values: Array, weight: Array) -> Array:
    total = weight.sum(axis=1)
    return _undefined(np.divide(weight @ values, total, out=np.zeros_like(total), where=total > 0), total)


SCORES = {
    "average_precision": Score("average precision", "AP", True, _average_precision),
    "auroc": Score("AUROC", "AUROC", True, _auroc),
    "f1": Score("F1", "F1", True, _f1),
    "log_loss": Score("log-loss", "log-loss", False, _log_loss),
    "brier": Score("Brier", "Brier", False, _brier),
    "recall_at_precision": Score("recall at precision", "R at P", True, _recall_at_precision),
}
"""The scores by name. F1 is that of the decisions; log-loss (nats) and Brier are those after calibration;
the recall is the largest on the test rows' own curve at which the precision is still the one asked for."""
