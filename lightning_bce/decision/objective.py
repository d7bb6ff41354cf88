"""What a threshold is to be best for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

ObjectiveName = Literal[
    "fbeta",
    "balanced_accuracy",
    "mcc",
    "youden",
    "recall_at_precision",
    "precision_at_recall",
    "cost",
    "top_k",
]


class Judged(NamedTuple):
    """What an objective says of cuts.

    Args:
        rank: The larger, the better.
        value: What is reported.
        met: Whether the cut satisfies what was asked for.
    """

    rank: Tensor
    value: Tensor
    met: Tensor


@dataclass(frozen=True)
class Objective:
    r"""What a threshold is to be best for, as a function of the four counts.

    With TP, FP, FN, TN the weights of the elements on each side of the threshold:

    - ``"fbeta"``: :math:`(1 + \beta^2) TP / ((1 + \beta^2) TP + \beta^2 FN + FP)`,
    - ``"balanced_accuracy"``: the mean of recall :math:`TP / (TP + FN)` and specificity :math:`TN / (TN + FP)`,
    - ``"youden"``: recall + specificity - 1, which is best where balanced accuracy is,
    - ``"mcc"``: Matthews' correlation; 0 where a margin of the table is empty,
    - ``"recall_at_precision"``: the most recall with precision ``at_least``; if no threshold reaches it, the one with
      the most precision,
    - ``"precision_at_recall"``: the most precision with recall ``at_least``; if none reaches it, the most recall,
    - ``"cost"``: the least :math:`(c_{FP} FP + c_{FN} FN)` per element,
    - ``"top_k"``: the ``k`` elements with the highest scores are positive: as many as possible without being more than
      ``k``, where scores are tied. The value is their precision. It is by label, "how many cases can be looked at", and
      not by sample.

    Args:
        name: One of the above.
        beta: Of "fbeta", above 0. None is 1. Recall counts ``beta`` times as much as precision.
        at_least: Of "recall_at_precision" and "precision_at_recall", in (0, 1].
        false_positive_cost: Of "cost", at least 0. None is 1.
        false_negative_cost: Of "cost", at least 0. None is 1.
        k: Of "top_k": a share of the elements below 1, or their number from 1 on. A share holds for sets of any size.

    Raises:
        ValueError: If an option is out of range, missing, or has no effect.

    Example:
        >>> Objective("recall_at_precision", at_least=0.9).at_least
        0.9
    """

    name: ObjectiveName = "fbeta"
    beta: float | None = None
    at_least: float | None = None
    false_positive_cost: float | None = None
    false_negative_cost: float | None = None
    k: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range or has no effect."""
        if self.name not in get_args(ObjectiveName):
            raise ValueError(
                f"`objective` is {self.name!r}; expected one of {', '.join(get_args(ObjectiveName))}. "
                "F1 is 'fbeta' with `beta` 1."
            )
        floor = ("recall_at_precision", "precision_at_recall")
        for option, names in (
            ("beta", ("fbeta",)),
            ("at_least", floor),
            ("false_positive_cost", ("cost",)),
            ("false_negative_cost", ("cost",)),
            ("k", ("top_k",)),
        ):
            value = getattr(self, option)
            if value is not None and self.name not in names:
                raise ValueError(
                    f"`{option}` has no effect with objective {self.name!r}; it is of {' and '.join(names)}."
                )
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{option}` is {value}; a finite number of at least 0 was expected.")
        if self.beta is not None and self.beta == 0:
            raise ValueError("`beta` is 0: that is precision alone. Use 'precision_at_recall' with `at_least`.")
        if self.name in floor and (self.at_least is None or not 0 < self.at_least <= 1):
            raise ValueError(f"`at_least` is {self.at_least}; {self.name!r} needs a number in (0, 1].")
        if self.name == "cost" and self.false_positive_cost == 0 and self.false_negative_cost == 0:
            raise ValueError("Both costs are 0: every threshold is as good as another.")
        if self.name == "top_k" and not self.k:
            raise ValueError(f"`k` is {self.k}; 'top_k' needs a share below 1, or a number of elements from 1 on.")

    @property
    def needs_both_classes(self) -> bool:
        """Whether a label without positives, or without negatives, has no answer."""
        return self.name != "top_k"

    def judge(self, tp: Tensor, fp: Tensor, positives: Tensor, negatives: Tensor) -> Judged:
        """Judge cuts.

        Args:
            tp: Weight of the positives above the cut, in float64.
            fp: Weight of the negatives above it, in the shape of ``tp``.
            positives: Weight of all positives, broadcastable.
            negatives: Weight of all negatives, broadcastable.
        """
        fn, tn = positives - tp, negatives - fp
        if self.name == "fbeta":
            square = (1.0 if self.beta is None else self.beta) ** 2
            return _plain(_ratio((1 + square) * tp, (1 + square) * tp + square * fn + fp))
        if self.name in ("balanced_accuracy", "youden"):
            youden = tp / positives - fp / negatives
            return _plain(youden if self.name == "youden" else (youden + 1) / 2)
        if self.name == "mcc":
            margins = (tp + fp).sqrt() * (tn + fn).sqrt() * (positives * negatives).sqrt()
            return _plain(_ratio(tp * tn - fp * fn, margins))
        if self.name == "cost":
            costs = [1.0 if c is None else c for c in (self.false_positive_cost, self.false_negative_cost)]
            cost = (costs[0] * fp + costs[1] * fn) / (positives + negatives)
            return Judged(-cost, cost, torch.ones_like(cost, dtype=torch.bool))
        selected, precision = tp + fp, _ratio(tp, tp + fp)
        if self.name == "top_k":
            k = float(self.k or 0)
            most = k * (positives + negatives) if k < 1 else torch.full_like(positives, k)
            within = selected <= most * (1 + 1e-12)
            return Judged(torch.where(within, selected, -1.0), precision, within & (selected > 0))
        recall, least = tp / positives, (self.at_least or 0.0) - 1e-12
        if self.name == "recall_at_precision":
            met = (precision >= least) & (selected > 0)
            # Above 1 what meets the target, by recall; below it the rest, by how near it comes.
            return Judged(torch.where(met, 1 + recall, precision.where(selected > 0, -1.0)), recall, met)
        met = recall >= least
        return Judged(torch.where(met, 1 + precision, recall), precision, met)


def _plain(value: Tensor) -> Judged:
    return Judged(value, value, torch.ones_like(value, dtype=torch.bool))


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator, 0.0)
