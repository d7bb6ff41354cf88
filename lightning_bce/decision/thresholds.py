"""Thresholds from scores and labels: the best of all that exist, and how sure that is."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.decision.objective import Objective, ObjectiveName
from lightning_bce.decision.rows import Rows, rows_of

_ELEMENTS = 2**20  # of a step: what a label takes with all its temporaries stays in the cache, or near it
_BLOCKS = 1000
_QUANTILES = 128


class TunedThresholds(NamedTuple):
    """Thresholds and what they reach, on the rows that they were found on. Each is (C,), on the CPU.

    Args:
        threshold: In [0, 1], float32.
        value: Of the objective at the threshold; NaN where a label has no answer.
        met: Whether the label has an answer, and it reaches what was asked for.
        threshold_low: Lower end of the interval of the threshold. NaN without a bootstrap or an answer.
        threshold_high: Upper end.
        value_low: Lower end of the interval of the objective at the threshold that was found.
        value_high: Upper end.
    """

    threshold: Tensor
    value: Tensor
    met: Tensor
    threshold_low: Tensor
    threshold_high: Tensor
    value_low: Tensor
    value_high: Tensor


def fit_thresholds(
    probability: Any,
    target: Any,
    objective: ObjectiveName | Objective = "fbeta",
    *,
    weight: Any = None,
    mask: Any = None,
    per_label: bool = True,
    fallback: Any = 0.5,
) -> Tensor:
    """Return the threshold of each label that is best for an objective; see :func:`tune_thresholds`.

    Returns:
        Thresholds (C,) in float32; all the same without ``per_label``.

    Example:
        >>> fit_thresholds(torch.tensor([0.1, 0.2, 0.4, 0.3]), torch.tensor([0, 0, 1, 1]))
        tensor([0.2500])
    """
    return tune_thresholds(
        probability, target, objective, weight=weight, mask=mask, per_label=per_label, fallback=fallback
    ).threshold


def tune_thresholds(
    probability: Any,
    target: Any,
    objective: ObjectiveName | Objective = "fbeta",
    *,
    weight: Any = None,
    mask: Any = None,
    per_label: bool = True,
    fallback: Any = 0.5,
    bootstrap: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> TunedThresholds:
    """Return the thresholds that are best for an objective, what they reach, and intervals of both.

    Every cut between two distinct probabilities is looked at, and those above and below all of them. The threshold lies
    in the middle of the two; ``probability > threshold`` is positive. Of cuts that are equally good the highest is
    taken. A target above one half is positive.

    A label that is never positive or never negative has no answer (under "top_k" one of which nothing is known): it
    keeps its ``fallback``. Where no threshold reaches what "recall_at_precision" or "precision_at_recall" ask for, it
    is the nearest. Both give a warning.

    The intervals are those of a bootstrap of the rows: percentiles of the best threshold, and of the objective at the
    threshold that was found. More than 1,000 rows are drawn in 1,000 groups, row i in group i modulo 1,000, and beyond
    128 positives or negatives of a label it is every 128th part of them at which the best cut of a draw is looked for.
    Draws without both classes are left out.

    Args:
        probability: (N,), (N, 1), (N, C) or (N, C, ...), in [0, 1], a tensor or an array.
        target: Labels in [0, 1] in the same shape; NaN is unknown.
        objective: What is best; a name, or an :class:`Objective` with options.
        weight: What rows or elements count, (N,) or the shape of ``probability``.
        mask: True where the label is known, likewise.
        per_label: Whether each label has its own threshold. If not, the elements of all labels are counted together,
            and get one.
        fallback: A threshold, or one for each label.
        bootstrap: Draws; 0 is none.
        confidence: Of the intervals, in (0, 1).
        seed: Of the draws, which leave torch's own random state alone.
        names: Of the labels, for warnings.

    Raises:
        ValueError: If shapes do not fit, a probability lies outside [0, 1], or an option is out of range.

    Example:
        >>> tuned = tune_thresholds(torch.tensor([0.1, 0.2, 0.4, 0.3]), torch.tensor([0, 1, 0, 1]), "youden")
        >>> tuned.threshold, tuned.value
        (tensor([0.1500]), tensor([0.5000], dtype=torch.float64))
    """
    objective = objective if isinstance(objective, Objective) else Objective(objective)
    check_intervals(bootstrap, confidence)
    rows = rows_of(probability, target, weight, mask)
    if rows.score.numel() and not bool(((rows.score >= 0) & (rows.score <= 1)).all()):
        raise ValueError(
            f"Probabilities from {rows.score.min():g} to {rows.score.max():g} came; [0, 1] was expected. Apply "
            "`torch.sigmoid` to logits first."
        )
    size, labels = rows.score.shape
    given = torch.as_tensor(fallback, dtype=torch.float32).expand(labels)
    draws = _draws(size, bootstrap, seed)
    parts = list(_columns(rows)) if per_label else [_pooled(rows)]
    # What is one column has to know of which row each of its elements is: rows are drawn as a whole.
    group = torch.arange(size) % max(1, min(size, _BLOCKS))
    group = group if per_label else group.repeat_interleave(labels)
    found = [_tuned(part, objective, draws, group, confidence) for part in parts]
    tuned = TunedThresholds(*(torch.cat(values) for values in zip(*found, strict=True)))
    _warn(tuned, objective, names if per_label or labels == 1 else ["all labels"])
    tuned = TunedThresholds(*(value if per_label else value.expand(labels).clone() for value in tuned))
    return tuned._replace(threshold=torch.where(tuned.threshold.isnan(), given, tuned.threshold))


def check_intervals(bootstrap: int, confidence: float) -> None:
    """Refuse a number of draws, or a confidence, that is out of range.

    Raises:
        ValueError: If so.
    """
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, int) or bootstrap < 0:
        raise ValueError(f"`bootstrap` is {bootstrap!r}; a number of draws was expected, or 0 for none.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` is {confidence}; a number in (0, 1) was expected, such as 0.95.")


def _columns(rows: Rows) -> Iterator[Rows]:
    """Yield the rows by a few labels at a time, contiguous by label: (C, n)."""
    step = max(1, _ELEMENTS // max(1, len(rows.score)))
    for start in range(0, rows.score.shape[1], step):
        yield Rows(*(part[:, start : start + step].T.contiguous() for part in rows))


def _pooled(rows: Rows) -> Rows:
    return Rows(*(part.reshape(1, -1) for part in rows))


def _draws(size: int, bootstrap: int, seed: int) -> Tensor | None:
    """Return how often each group of rows is in each draw, (draws, groups)."""
    if not bootstrap or not size:
        return None
    groups = min(size, _BLOCKS)
    drawn = torch.randint(groups, (bootstrap, groups), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(bootstrap, groups, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
    )


class _Sorted(NamedTuple):
    """Elements by falling probability, (C, n); those of weight 0 come last, with probability -1."""

    probability: Tensor
    positive: Tensor
    negative: Tensor
    order: Tensor


def _sorted(rows: Rows) -> _Sorted:
    # In the precision of the prediction, whose ties are then these ties.
    probability = torch.where(rows.weight > 0, rows.score.float(), -1.0)
    probability, order = probability.sort(dim=1, descending=True, stable=True)
    weight = rows.weight.double().gather(1, order)
    positive = torch.where(rows.target.gather(1, order) > 0.5, weight, 0.0)
    return _Sorted(probability, positive, weight - positive, order)


def _tuned(rows: Rows, objective: Objective, draws: Tensor | None, group: Tensor, confidence: float) -> TunedThresholds:
    elements = _sorted(rows)
    probability = elements.probability
    tp, fp = (_from_zero(side.cumsum(1)) for side in (elements.positive, elements.negative))
    positives, negatives = tp[:, -1:], fp[:, -1:]
    judged = objective.judge(tp, fp, positives, negatives)
    # Cut i has i elements above it. No threshold parts equal probabilities, and none is below 0.
    possible = torch.ones(tp.shape, dtype=torch.bool)
    if probability.shape[1]:
        possible[:, 1:] = probability > 0
        possible[:, 1:-1] &= probability[:, :-1] != probability[:, 1:]
    cut = _first_best(torch.where(possible, judged.rank, -torch.inf))
    answer = (positives > 0) & (negatives > 0) if objective.needs_both_classes else positives + negatives > 0
    padded = torch.nn.functional.pad(probability.clamp_min(0.0), (1, 1))
    padded[:, 0] = 1.0
    threshold = _between(padded.gather(1, cut), padded.gather(1, cut + 1))
    value = judged.value.gather(1, cut)
    nan = torch.full_like(value, torch.nan)
    interval = (nan, nan, nan, nan)
    if draws is not None:
        interval = _intervals(elements, objective, draws, group, cut, confidence)
    return TunedThresholds(
        torch.where(answer, threshold, torch.nan).flatten(),
        torch.where(answer, value, nan).flatten(),
        (answer & judged.met.gather(1, cut)).flatten(),
        *(torch.where(answer, end, torch.nan).flatten() for end in interval),
    )


def _intervals(
    elements: _Sorted, objective: Objective, draws: Tensor, group: Tensor, cut: Tensor, confidence: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the ends of the intervals of threshold and value, each (C, 1).

    Of each group of rows it is counted how much lies in which bin of the probability; a draw is then a sum over groups,
    which is one matrix product for all draws.
    """
    bins, number = _bins(elements, cut)
    labels, groups = len(bins), draws.shape[1]
    highest = torch.full((labels, number), -1.0).scatter_reduce_(1, bins, elements.probability, "amax")
    lowest = torch.full((labels, number), 2.0).scatter_reduce_(1, bins, elements.probability, "amin")
    # The next lower probability, over bins without an element.
    below = _to_the_right(highest.flip(1).cummax(1).values.flip(1)).clamp_min(0.0)
    cuts = torch.nn.functional.pad(_between(lowest.clamp(0.0, 1.0), below), (1, 0))
    cuts[:, :1] = _between(torch.ones(labels, 1), highest.amax(1, keepdim=True).clamp_min(0.0))
    possible = torch.nn.functional.pad((lowest > 0) & (lowest <= 1), (1, 0), value=True)
    chosen = torch.where(cut > 0, bins.gather(1, (cut - 1).clamp_min(0)) + 1, 0) if bins.shape[1] else cut

    place = group[elements.order] * number + bins
    ends: list[list[Tensor]] = []
    share = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    for label in range(labels):
        tp, fp = (
            _from_zero((draws @ _counts(place[label], side[label], groups * number).reshape(groups, number)).cumsum(1))
            for side in (elements.positive, elements.negative)
        )
        positives, negatives = tp[:, -1:], fp[:, -1:]
        judged = objective.judge(tp, fp, positives, negatives)
        best = _first_best(torch.where(possible[label], judged.rank, -torch.inf)).squeeze(1)
        whole = (positives > 0) & (negatives > 0) if objective.needs_both_classes else positives + negatives > 0
        threshold = torch.where(whole[:, 0], cuts[label, best].double(), torch.nan)
        value = torch.where(whole[:, 0], judged.value[:, int(chosen[label])], torch.nan)
        ends.append([*threshold.nanquantile(share), *value.nanquantile(share)])
    low, high, value_low, value_high = (torch.stack(side)[:, None] for side in zip(*ends, strict=True))
    return low.float(), high.float(), value_low, value_high


def _bins(elements: _Sorted, cut: Tensor) -> tuple[Tensor, int]:
    """Return the bin of each element, (C, n), rising with falling probability, and how many there are.

    A bin ends at each 128th part of the positives and of the negatives, at the single ones if there are no more: the
    best cut lies just below a positive. Ties are in one bin, and the cut that was found is the end of one.
    """
    size = elements.probability.shape[1]
    index = torch.arange(size)
    starts = torch.ones(elements.probability.shape, dtype=torch.bool)
    starts[:, 1:] = elements.probability[:, 1:] != elements.probability[:, :-1]
    first = torch.where(starts, index, 0).cummax(1).values
    bins = (index >= cut).long()
    for side in (elements.positive, elements.negative):
        above, total = side.cumsum(1) - side, side.sum(1, keepdim=True)
        # The number, not the weight: each of few is a bin of its own.
        number = (side > 0).sum(1, keepdim=True)
        part = torch.where(number <= _QUANTILES, (side > 0).cumsum(1) - (side > 0).long(), above / total * _QUANTILES)
        bins += part.gather(1, first).nan_to_num().floor().long().clamp(0, _QUANTILES)
    return bins, 2 * _QUANTILES + 2


def _counts(place: Tensor, weight: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64).index_add_(0, place, weight)


def _between(upper: Tensor, lower: Tensor) -> Tensor:
    """Return the middle of two numbers in float32, which is below the upper one also where they are neighbours."""
    middle = ((upper.double() + lower.double()) / 2).float()
    return torch.where(middle < upper, middle, lower)


def _first_best(rank: Tensor) -> Tensor:
    """Return the first place of the largest value, (..., 1); one that differs by rounding only is as large."""
    most = rank.amax(-1, keepdim=True)
    return (rank >= most - 1e-12 * most.abs()).int().argmax(-1, keepdim=True)


def _from_zero(running: Tensor) -> Tensor:
    return torch.nn.functional.pad(running, (1, 0))


def _to_the_right(values: Tensor) -> Tensor:
    """Return what lies one place further right; at the end -1."""
    return torch.nn.functional.pad(values[:, 1:], (0, 1), value=-1.0)


def _warn(tuned: TunedThresholds, objective: Objective, names: Sequence[str] | None) -> None:
    labels = [f"label {i}" for i in range(len(tuned.met))] if names is None else names
    silent = [name for name, value in zip(labels, tuned.value.isnan().tolist(), strict=True) if value]
    if silent:
        warnings.warn(
            f"No threshold can be found for {_some(silent)}: "
            + ("positives and negatives are needed" if objective.needs_both_classes else "no label is known")
            + ". They keep the one they had.",
            stacklevel=3,
        )
    unmet = [
        name
        for name, met, value in zip(labels, tuned.met.tolist(), tuned.value.isnan().tolist(), strict=True)
        if not met and not value
    ]
    if unmet:
        what = "a single element" if objective.at_least is None else f"{objective.at_least:g}"
        warnings.warn(
            f"No threshold reaches what {objective.name!r} asks for ({what}) for {_some(unmet)}. They have the "
            "nearest.",
            stacklevel=3,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
