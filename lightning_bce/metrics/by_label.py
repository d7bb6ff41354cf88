"""What metrics of probabilities share, in the manner of torchmetrics: elements by label, an average over labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import known_labels
from lightning_bce.losses.checks import (
    check_factor,
    check_flag,
    check_probabilities,
    check_shapes,
    check_target_values,
    check_whole,
)
from lightning_bce.losses.shapes import fit_weight
from lightning_bce.losses.stable import full_precision
from lightning_bce.metrics.summed import SummedMetric, add_at, chunks

Average = Literal["micro", "macro", "weighted", "none"]


class Reading(NamedTuple):
    """How predictions and targets are to be read.

    Args:
        num_labels: C of (N, C, ...); None takes any shape for one label.
        ignore_index: Target that marks an unknown label, NaN included.
        from_logits: Whether predictions are logits. None takes a batch for logits if any is outside [0, 1].
        validate_args: Whether values are checked, which waits for the device.
    """

    num_labels: int | None
    ignore_index: float | None
    from_logits: bool | None
    validate_args: bool

    def check(self) -> None:
        """Refuse options that are out of range.

        Raises:
            ValueError: With the option.
            TypeError: If it is of the wrong kind.
        """
        if self.num_labels is not None:
            check_whole("num_labels", self.num_labels, at_least=1)
        if self.from_logits is not None:
            check_flag("from_logits", self.from_logits)
        check_flag("validate_args", self.validate_args)
        if self.ignore_index is not None and 0 <= self.ignore_index <= 1:
            raise ValueError(f"`ignore_index` is {self.ignore_index}, which is also a label. Use -1 or float('nan').")

    def elements(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> Iterator[Elements]:
        """Yield the elements of a batch in pieces.

        Raises:
            ValueError: If shapes differ, or values are checked and wrong.
        """
        check_shapes(preds, target)
        if self.num_labels is not None and (preds.ndim < 2 or preds.shape[1] != self.num_labels):
            raise ValueError(
                f"`preds` has shape {tuple(preds.shape)}; (N, {self.num_labels}, ...) was expected by `num_labels`."
            )
        scores = full_precision(preds.detach())
        known = None if self.ignore_index is None else known_labels(target, self.ignore_index)
        factors = None if weight is None else fit_weight("weight", weight, preds).expand(preds.shape)
        if self.validate_args:
            check_target_values(target, known)
            if self.from_logits is False:
                check_probabilities(preds, known)
            if factors is not None:
                check_factor("weight", factors if known is None else factors[known])
        if known is not None:
            scores = torch.where(known, scores, 0.5)
        logits: bool | Tensor | None = self.from_logits
        if logits is None:
            logits = ((scores < 0) | (scores > 1)).any()
        smallest = torch.finfo(preds.dtype).eps
        columns = [None if t is None else self._columns(t) for t in (scores, target, known, factors)]
        for x, y, k, w in chunks(preds.numel(), preds.numel() // (self.num_labels or 1), *columns):
            assert x is not None and y is not None
            labels, counted = y.to(x.dtype), torch.ones_like(x) if w is None else w.to(x.dtype)
            if k is not None:
                labels, counted = torch.where(k, labels, 0.0), torch.where(k, counted, 0.0)
            yield Elements(x, labels, counted, logits, smallest)

    def _columns(self, values: Tensor) -> Tensor:
        """Return (N, C, ...) as (M, C), what has one label as (M, 1)."""
        if self.num_labels is None:
            return values.reshape(-1, 1)
        return values.movedim(1, -1).reshape(-1, self.num_labels)


class Elements(NamedTuple):
    """Elements by label, (n, C), in float32 or better.

    Args:
        scores: Logits or probabilities, harmless where the label is unknown.
        target: In [0, 1]; 0 where unknown.
        weight: What each counts; 0 where unknown.
        logits: Whether the scores are logits, a bool or a tensor of one.
        smallest: The relative precision of the predictions as they came.
    """

    scores: Tensor
    target: Tensor
    weight: Tensor
    logits: bool | Tensor
    smallest: float

    def choose(self, of_logits: Any, of_probabilities: Any) -> Tensor:
        """Return what a function makes of the scores, by what they are; functions take the scores."""
        if isinstance(self.logits, Tensor):  # [no sync] both, and the device chooses
            return torch.where(self.logits, of_logits(self.scores), of_probabilities(self.scores))
        chosen: Tensor = (of_logits if self.logits else of_probabilities)(self.scores)
        return chosen

    def probability(self) -> Tensor:
        """Return the probabilities."""
        return self.choose(torch.sigmoid, lambda scores: scores)

    def by_bin(self, edges: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of parts, (n, C) each, by label and bin of the probability, (C, R).

        Args:
            edges: Of the bins, (R + 1,), which hold their lower edge, the last one both.
            parts: What to add up, by name.
        """
        bins, labels = len(edges) - 1, self.scores.shape[1]
        inner = edges[1:-1].to(self.scores)
        place = torch.bucketize(self.probability().contiguous(), inner, right=True)  # torch warns of others
        place = place + bins * torch.arange(labels, device=place.device)
        return {name: add_at(place, part, labels * bins).reshape(labels, bins) for name, part in parts.items()}


def totals(parts: Iterator[dict[str, Tensor]], empty: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums over all parts, by name, beginning with those of nothing."""
    for part in parts:
        empty = {name: value + part[name] for name, value in empty.items()}
    return empty


def averaged(values: Tensor, weight: Tensor, positives: Tensor, average: Average) -> Tensor:
    """Return the average over labels as torchmetrics has it, of those that were seen.

    Args:
        values: Of each label, (C,).
        weight: What each label counts, (C,); a label of 0 was not seen, and its value is not used.
        positives: How many positives each has, (C,), which is its share under "weighted".
        average: "macro", "weighted" or "none"; "micro" has to be computed from sums.
    """
    if average == "none":
        return values
    share = (positives if average == "weighted" else torch.ones_like(positives)) * (weight > 0)
    return torch.where(share > 0, values * share, 0.0).sum() / share.sum()


def check_average(average: Average | None) -> Average:
    """Return an average by name.

    Raises:
        ValueError: If there is no such average.
    """
    if average is None:
        return "none"
    if average not in ("micro", "macro", "weighted", "none"):
        raise ValueError(f"`average` is {average!r}; expected 'micro', 'macro', 'weighted', 'none' or None.")
    return average


class LabelMetric(SummedMetric):
    """Base of metrics of probabilities, of one label or of several.

    Args:
        reading: How predictions and targets are read.
        average: Over labels.
        **kwargs: Options of :class:`torchmetrics.Metric`.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_legend_name = "Label"

    def __init__(self, reading: Reading, average: Average | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        reading.check()
        self.reading = reading
        self.average = check_average(average)
        self.num_labels = reading.num_labels or 1

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a value, or one for each label, or a list of them.

        Args:
            val: A result of ``forward`` or ``compute``, or a list of them. None computes one.
            ax: A matplotlib axis to draw on. None makes a new figure.

        Returns:
            Figure and axis.
        """
        return self._plot(val, ax)
