"""A weighted sum of losses: `0.5 * BCEWithLogitsLoss() + ZLPRLoss()`, each term known by its name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import chain, count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_number
from lightning_bce.losses.label_counts import LabelCounts
from lightning_bce.losses.sums import LossSums

_AVERAGES = ("mean", "weighted_mean", "batchmean")


class CombinedLoss(BinaryLoss):
    r"""The weighted sum of several losses, :math:`\sum_k a_k L_k`, each with its own reduction.

    Written as ``0.5 * BCEWithLogitsLoss() + FocalLoss()``, or with names of one's own as
    ``CombinedLoss({"bce": BCEWithLogitsLoss(), "focal": FocalLoss()}, weights={"bce": 0.5})``.
    :class:`BinaryClassifier` logs each term as ``val_loss/<name>``, exact over the set.

    Terms by element that count alike (all "mean", or all "batchmean") keep their sums by label and side. Otherwise the
    sums have one row for all labels, in which each term is expressed per element of the leading one: the first
    by element, or else the first.

    Args:
        terms: Losses by name. Each averages ("mean", "weighted_mean" or "batchmean"), and all have the
            same ``ignore_index``. Losses on probabilities receive the sigmoid of the logits.
        weights: Factors of at least 0 by name; 1 where none is given.

    Raises:
        ValueError: If there is no term, a term does not average, terms ignore different values, a weight
            names no term, or all weights are 0.
        TypeError: If a term is no loss.

    Example:
        >>> import torch
        >>> from lightning_bce import BCEWithLogitsLoss, FocalLoss
        >>> loss = 0.5 * BCEWithLogitsLoss() + FocalLoss(gamma=2.0)
        >>> loss(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
        tensor(0.5199)
        >>> list(loss.terms)
        ['BCEWithLogitsLoss', 'FocalLoss']
    """

    per_element: ClassVar[bool] = False  # not of every combination; `elementwise` works where it is

    def __init__(self, terms: dict[str, BinaryLoss], weights: dict[str, float] | None = None) -> None:
        for name, term in terms.items():
            if not isinstance(term, BinaryLoss):
                raise TypeError(f"The term {name!r} is {type(term).__name__}; a BinaryLoss was expected.")
            if term.reduction not in _AVERAGES:
                raise ValueError(
                    f"The term {name!r} has reduction {term.reduction!r}; terms average: one of {', '.join(_AVERAGES)}."
                )
        if not terms:
            raise ValueError("`terms` is empty; at least one loss was expected.")
        known = {repr(term.ignore_index): term.ignore_index for term in terms.values()}
        if len(known) > 1:
            raise ValueError(
                f"The terms ignore different values: {', '.join(known)}. Give all the same `ignore_index`."
            )
        super().__init__(ignore_index=next(iter(known.values())), validate="off")  # each term checks for itself
        unknown = set(weights or {}) - set(terms)
        if unknown:
            raise ValueError(f"`weights` names {', '.join(sorted(unknown))}; the terms are {', '.join(terms)}.")
        self.weights = {name: (weights or {}).get(name, 1.0) for name in terms}
        for name, weight in self.weights.items():
            check_number(f"weights[{name}]", weight, at_least=0)
        if not any(self.weights.values()):
            raise ValueError("All `weights` are 0: there is nothing to minimise.")
        self.terms = nn.ModuleDict(terms)
        alike = {term.reduction for term in terms.values()} in ({"mean"}, {"batchmean"})
        self._by_label = alike and all(term.per_element for term in terms.values())
        # A row may not count, as a label without positives does not: a batch of such rows would take all terms with it.
        self.leading = next((name for name, term in terms.items() if term.per_element), next(iter(terms)))

    def term_sums(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> dict[str, LossSums]:
        """Return the sums of each term by its name, without its factor."""
        return {
            name: term.sums(_scores_for(term, logits), target, weight, mask=mask)
            for name, term in self._losses().items()
        }

    def combine(self, term_sums: Mapping[str, LossSums]) -> LossSums:
        """Return the sums of the whole from those of its terms."""
        leading = term_sums[self.leading]
        if self._by_label:
            return LossSums(sum_of([self.weights[n] * sums.loss for n, sums in term_sums.items()]), leading.weight)
        counts = leading.weight.sum(0, keepdim=True)
        per_element = []
        for name, sums in term_sums.items():
            total = sums.weight.sum()
            share = counts.sum() / torch.where(total == 0, 1.0, total)
            per_element.append(self.weights[name] * share * sums.loss.sum(0, keepdim=True))
        return LossSums(sum_of(per_element), counts)

    def sums(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> LossSums:
        """Return the sums of the whole; ``sums(...).mean()`` is the loss."""
        return self.combine(self.term_sums(logits, target, weight, mask=mask))

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of the terms as a scalar in nats."""
        values = [
            self.weights[name] * term(_scores_for(term, logits), target, weight, mask=mask)
            for name, term in self._losses().items()
        ]
        return sum_of(values)

    def losses(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of the terms' losses of each element.

        Raises:
            TypeError: If a term has no loss of an element.
        """
        terms = self._losses()
        of_rows = [name for name, term in terms.items() if not term.per_element]
        if of_rows:
            raise TypeError(
                f"{', '.join(of_rows)} has no loss of a single element, so neither has the sum. Take `term_sums`, or "
                "the losses of the other terms."
            )
        return sum_of(
            [
                self.weights[name] * term.losses(_scores_for(term, logits), target, weight, mask=mask)
                for name, term in terms.items()
            ]
        )

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum of the terms' losses of each element, where all terms have such a form."""
        losses = self._losses()
        return sum_of([self.weights[n] * t.elementwise(_scores_for(t, logits), target) for n, t in losses.items()])

    def observed(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return where every term finds a label."""
        found = [term.observed(logits, target, mask) for term in self._losses().values()]
        seen = [where for where in found if where is not None]
        return functools.reduce(torch.logical_and, seen) if seen else None

    @property
    def couples_samples(self) -> bool:
        """Whether any term does."""
        return any(term.couples_samples for term in self._losses().values())

    def num_rows(self, num_labels: int) -> int:
        """Return the rows of the sums."""
        return num_labels if self._by_label else 1

    def start_epoch(self, epoch: int) -> None:
        """Tell every term which epoch begins."""
        for term in self._losses().values():
            term.start_epoch(epoch)

    @property
    def unresolved(self) -> tuple[str, ...]:
        """The arguments of terms that wait for the training data, as ``term.argument``."""
        return tuple(f"{name}.{argument}" for name, term in self._losses().items() for argument in term.unresolved)

    def resolve(self, counts: LabelCounts) -> dict[str, Any]:
        """Resolve every term."""
        return {
            f"{name}.{argument}": value
            for name, term in self._losses().items()
            for argument, value in term.resolve(counts).items()
        }

    def recheck(self) -> None:
        """Have every term check the values of its next batch."""
        for term in self._losses().values():
            term.recheck()

    def _losses(self) -> dict[str, Any]:
        return dict(self.terms.items())


def scaled(loss: BinaryLoss, factor: float) -> CombinedLoss:
    """Return a loss times a factor of at least 0, with the terms that it has.

    Raises:
        ValueError: If the factor is negative or not finite.
        TypeError: If it is no number.
    """
    check_number("factor", factor, at_least=0)
    if isinstance(loss, CombinedLoss):
        return CombinedLoss(loss._losses(), {name: factor * weight for name, weight in loss.weights.items()})
    return CombinedLoss({type(loss).__name__: loss}, {type(loss).__name__: factor})


def combined(first: BinaryLoss, second: BinaryLoss) -> CombinedLoss:
    """Return the sum of two losses; terms of sums stay terms, and equal names are numbered."""
    terms: dict[str, BinaryLoss] = {}
    weights: dict[str, float] = {}
    for loss in (first, second):
        parts = loss._losses().items() if isinstance(loss, CombinedLoss) else [(type(loss).__name__, loss)]
        for name, term in parts:
            unique = next(n for n in chain([name], (f"{name}_{i}" for i in count(2))) if n not in terms)
            terms[unique] = term
            weights[unique] = loss.weights[name] if isinstance(loss, CombinedLoss) else 1.0
    return CombinedLoss(terms, weights)


def sum_of(values: list[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, without the 0 that ``sum`` begins with."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _scores_for(term: BinaryLoss, logits: Tensor) -> Tensor:
    return (
        logits
        if term.input_space == "logits"
        else torch.sigmoid(logits if logits.dtype.itemsize > 2 else logits.float())
    )
