"""How often each label occurs: counted once over the training data, for weights, priors and the first bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.checks import Factor, check_factor, check_target_values
from lightning_bce.losses.class_counts import SMALLEST
from lightning_bce.losses.shapes import fit_weight


class LabelCounts:
    r"""Positives and negatives of each label over a set of samples.

    A soft label counts on both sides, an unknown one on neither, and a weight is how often a sample counts. Weights
    decide the shares and not how much there is: with :math:`K` known labels and sums of weights :math:`W_+, W_-` there
    are :math:`n = K W_+ / (W_+ + W_-)` positives of :math:`K`, whatever the scale of the weights is.

    Args:
        positives: Sum of the weights of each label's positives, one number or (C,).
        negatives: The same of its negatives.
        known: How many labels are known, without weights. None is the sum of the two.
        positions: Dimensions of the output behind that of the labels, 2 for masks (N, C, H, W).

    Raises:
        ValueError: If a count is negative or not finite, or the three differ in shape.

    Example:
        >>> counts = LabelCounts.of(torch.tensor([[1, 0], [0, 0], [0, 0], [0, float("nan")]]))
        >>> counts.positives, counts.total, counts.prior
        (tensor([1., 0.], dtype=torch.float64), tensor([4., 3.], dtype=torch.float64), tensor([0.2500, 0.1667], dtype=torch.float64))
    """  # noqa: E501  what doctest compares is one line

    def __init__(self, positives: Factor, negatives: Factor, known: Factor | None = None, positions: int = 0) -> None:
        for name, value in (("positives", positives), ("negatives", negatives), ("known", known)):
            check_factor(name, value)
        sides = [torch.as_tensor(value, dtype=torch.float64).detach().cpu() for value in (positives, negatives)]
        if known is not None:
            sides.append(torch.as_tensor(known, dtype=torch.float64).detach().cpu())
        if len({side.shape for side in sides}) > 1 or sides[0].ndim > 1 or not sides[0].numel():
            names = ("`positives`", "`negatives`", "`known`")
            came = ", ".join(f"{name} has shape {tuple(side.shape)}" for name, side in zip(names, sides, strict=False))
            raise ValueError(f"{came}; one number for each label, in each of them, was expected.")
        self._positive, self._negative, *rest = (side.reshape(-1) for side in sides)
        self._known = rest[0] if rest else self._positive + self._negative
        self.positions = positions

    @classmethod
    def of(cls, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None) -> LabelCounts:
        """Return the counts of a batch, or of a whole set.

        Args:
            target: Labels in [0, 1], (N,), (N, C) or (N, C, ...), or a single one. NaN is unknown.
            weight: How often each counts: (N,), or the shape of ``target`` with ones where it repeats.
            mask: True where the label is known, in a shape that ``weight`` may have.

        Raises:
            ValueError: If a shape does not fit, or a known label lies outside [0, 1].
        """
        labels = target.detach().cpu().double()
        known = ~labels.isnan()
        if mask is not None:
            known = known & fit_weight("mask", mask.detach().cpu(), labels)
        check_target_values(labels, known)
        factors = labels.new_ones(())
        if weight is not None:
            check_factor("weight", weight)
            factors = fit_weight("weight", weight.detach().cpu().double(), labels)
        counted = torch.where(known, factors, 0.0).expand(labels.shape)
        labels = torch.where(known, labels, 0.0)
        shape = (*labels.shape, 1, 1)[:2]
        positives, negatives, total = (
            part.reshape(*shape, math.prod(labels.shape[2:])).sum((0, 2))
            for part in (counted * labels, counted * (1 - labels), known.double())
        )
        return cls(positives, negatives, total, max(0, labels.ndim - 2))

    def __add__(self, other: LabelCounts) -> LabelCounts:
        """Return the counts of both sets.

        Raises:
            ValueError: If they have not as many labels.
        """
        if self.num_labels != other.num_labels:
            raise ValueError(
                f"There are counts of {self.num_labels} and of {other.num_labels} label(s): those of the same labels "
                "were expected."
            )
        positives, negatives, known = (a + b for a, b in zip(self._sums, other._sums, strict=True))
        return LabelCounts(positives, negatives, known, max(self.positions, other.positions))

    @property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._positive, self._negative, self._known

    @property
    def num_labels(self) -> int:
        """The number of labels C."""
        return len(self._positive)

    @property
    def total(self) -> Tensor:
        """Known labels, (C,) in float64; at least 1, so that every label has a prior."""
        return self._known.clamp(min=1)

    @property
    def positives(self) -> Tensor:
        """Positives of each label, (C,) in float64, of :attr:`total`."""
        weight = self._positive + self._negative
        # Of a label of which nothing is known, half of one. Without weights the factor is 1, and the count as it was.
        of_weight = self._positive * (self.total / torch.where(weight > 0, weight, 1.0))
        # Of a label that always occurs, rounding may make the last digit one more than there are.
        return torch.where(weight > 0, of_weight.minimum(self.total), 0.5)

    @property
    def prior(self) -> Tensor:
        """Frequency of the positives, (C,) in float64; of a label that never or always occurs, half a sample's."""
        return self.positives.clamp(min=SMALLEST).minimum(self.total - SMALLEST) / self.total

    def plain(self) -> dict[str, Any]:
        """Return the counts as plain numbers, as checkpoints hold them."""
        names = ("positives", "negatives", "known")
        sums: dict[str, Any] = {name: part.tolist() for name, part in zip(names, self._sums, strict=True)}
        return {**sums, "positions": self.positions}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> LabelCounts:
        """Return the counts that :meth:`plain` wrote down."""
        return cls(**plain)

    def __repr__(self) -> str:
        """Return the counts by label."""
        return f"LabelCounts(positives={self.positives.tolist()}, total={self.total.tolist()})"
