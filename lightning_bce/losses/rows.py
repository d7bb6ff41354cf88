"""The base of losses that no single element has: rankings of a sample's labels, overlaps of a label over the batch."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_shapes
from lightning_bce.losses.shapes import fit_weight, per_label
from lightning_bce.losses.stable import full_precision
from lightning_bce.losses.sums import LossSums, safe_ratio

Rows = Literal["label", "sample", "position"]


class RowLoss(BinaryLoss):
    r"""Base of the losses whose smallest unit is a row of elements and not an element.

    A new loss writes :meth:`rowwise` and says what a row is by :attr:`rows`. The base brings outputs of any shape into
    rows (R, E) and gives masks, weights, reductions, :class:`LossSums`, the checks and a spec for checkpoints.

    A row counts or does not: :meth:`rowwise` decides, and one of which nothing is known never does. With losses
    :math:`\ell_r`, factors :math:`w_r` (``class_weight`` where a row is a label, ``weight`` where it is a sample) and
    the rows :math:`V` that count, "sum" is :math:`\sum_{r \in V} w_r \ell_r` and "mean" is that over :math:`|V|`.
    "none" returns one value for each row: (C,) where a row is a label, (N,) where it is a sample, the shape of the
    output without its labels where it is a position; 0 where it does not count. A mean over nothing is 0 with a
    gradient of zeros.

    :class:`LossSums` are (C, 2) where a row is a label, and otherwise (1, 2), one row for all labels. A loss that
    splits by side has its parts in the columns, and each row counts one half in both. A loss that does not stands
    wholly in column 1, with its count: overlap is about the positives. In both ``sums(...).mean()`` is the mean.

    Ignored elements are taken out of their row exactly. Where a row is a label, or rows are coupled, the loss depends
    on how samples are put into batches and on ranks (:attr:`couples_samples`): the value of an epoch, and the gradient
    of accumulated batches and ranks, is the mean over the rows of all batches, and not that of all samples at once.

    Args:
        reduction: One of "none", "mean", "sum".
        ignore_index: Target value that marks an unknown label, NaN included. Such an element counts nowhere.
        class_weight: One factor of at least 0 for each label, where a row is a label. Scales the loss, not the
            denominator. "auto" or a rule of :func:`class_weight_rule` computes it from the training data.
        validate: Whether target values are checked at the "first_batch" (that waits for the device once), "always" or
            not at all ("off"). Shapes are always checked. Compiled code does not check values.

    Raises:
        ValueError: If an option is out of range, or could have no effect in this loss.

    Example:
        >>> import torch
        >>> class Count(RowLoss):
        ...     '''How far the number of positives of a sample is missed.'''
        ...     rows = "sample"
        ...     def rowwise(self, logits, target, valid):
        ...         missed = torch.where(valid, logits.sigmoid() - target, 0.0).sum(-1)
        ...         return missed.square(), valid.any(-1)
        >>> Count()(torch.zeros(2, 3), torch.tensor([[1, 1, 0], [0, 0, 0]]))
        tensor(1.2500)
    """

    per_element: ClassVar[bool] = False

    rows: Rows = "sample"
    """What a row is, for outputs (N, C, ...).

    - "label": a label over all samples and positions, C rows of N * P elements,
    - "sample": a sample over all labels and positions, N rows of C * P elements,
    - "position": a sample's labels, at each position where there are several, N * P rows of C elements.
    """

    couples_rows: ClassVar[bool] = False
    """Whether the loss of a row depends on the other rows too, so that no weight can belong to one."""

    hard_targets: ClassVar[bool] = False
    """Whether the formula knows positives and negatives only. Targets other than 0 and 1 are then refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        name = type(self).__name__
        if self.fused is not None:
            raise ValueError(
                f"`fused` is {self.fused}, and one pass over the elements cannot compute {name}: its gradient at an "
                "element needs the sums over the row first. Leave it out; `torch.compile` fuses what can be."
            )
        if self.reduction in ("weighted_mean", "batchmean"):
            raise ValueError(
                f"`reduction` is {self.reduction!r}, which divides by what single elements count, and {name} has no "
                "loss of a single element. Use 'mean' (over the rows that count), 'sum' or 'none'."
            )
        if self.class_weight is not None and self.rows != "label":
            raise ValueError(
                f"`class_weight` has no meaning in {name}: the loss of a {self.rows} is of all its labels together."
            )

    @abstractmethod
    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each row and which rows count.

        Args:
            logits: (R, E) in float32 or float64; 0 where unknown.
            target: (R, E) in the same dtype; 0 where unknown.
            valid: (R, E), False where unknown: leave these elements out of every sum.

        Returns:
            Losses (R,), or (R, 2) for the parts of the negatives and of the positives, which add up to the loss, and
            bool (R,), True where the row counts. Values where it does not are not used, but have to be finite.
        """

    @property
    def couples_samples(self) -> bool:
        """Whether a row is a label, or rows are coupled: the cut into batches then matters."""
        return self.rows == "label" or self.couples_rows

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Refuse: an element has no loss of its own here."""
        raise TypeError(f"{type(self).__name__} has no loss of a single element; call it, or `sums` or `rowwise`.")

    def num_rows(self, num_labels: int) -> int:
        """Return how many rows :meth:`sums` has: one for each label, or one for all."""
        return num_labels if self.rows == "label" else 1

    def sums(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> LossSums:
        """Return loss and weight of the batch, (C, 2) where a row is a label and else (1, 2), the loss differentiable.

        Args:
            logits: Model output, (N,), (N, 1), (N, C) or (N, C, ...).
            target: Labels in [0, 1] of any real dtype, the shape of ``logits``.
            weight: Factors of at least 0, one for each sample (N,), or the shape of ``logits`` with ones where it
                repeats. Refused where a row is a label, and where rows are coupled.
            mask: True where the label is known: (N,), or the shape of ``logits`` with ones where it repeats.

        Raises:
            ValueError: If shapes differ, values are checked and wrong, or a weight has no row to belong to.
        """
        losses, counts = self._by_row(logits, target, weight, mask)
        split = losses.ndim == 2
        counted = counts.to(losses.dtype)
        if split:
            sides = torch.stack([counted / 2, counted / 2], -1)
        else:
            losses, sides = (torch.stack([torch.zeros_like(t), t], -1) for t in (losses, counted))
        if self.rows != "label":
            losses, sides = losses.sum(0, keepdim=True), sides.sum(0, keepdim=True)
        return LossSums(losses, sides)

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the reduced loss in nats or its own unit, in float32 or better. The arguments are those of `sums`."""
        if self.reduction == "none":
            return self.losses(logits, target, weight, mask=mask)
        losses, counts = self._by_row(logits, target, weight, mask)
        if self.reduction == "sum":
            return losses.sum()
        return safe_ratio(losses.sum(), counts.sum().to(losses.dtype))

    def losses(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each row, 0 where it does not count: (C,) of labels, (N,) of samples, or (N, ...)."""
        losses, _ = self._by_row(logits, target, weight, mask)
        losses = losses.sum(-1) if losses.ndim == 2 else losses
        if self.rows == "position":
            return losses.reshape(*logits.shape[:1], *logits.shape[2:])
        return losses.reshape(logits.shape[:1]) if self.rows == "sample" else losses

    def _by_row(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted losses, (R,) or (R, 2), and which rows count, (R,)."""
        self._refuse_unresolved()
        check_shapes(logits, target)
        factor = None if weight is None else self._of_rows(weight, logits)
        known = self.valid(logits, target, mask)
        self._check_values(logits, target, weight, known)
        scores = full_precision(logits)
        labels = target.to(scores.dtype)
        if known is None:
            valid = torch.ones_like(scores, dtype=torch.bool)
        else:  # before the formula: what is unknown may be NaN
            valid = known.expand(scores.shape)
            scores, labels = torch.where(valid, scores, 0.0), torch.where(valid, labels, 0.0)
        scores, labels, valid = (self._layout(t) for t in (scores, labels, valid))
        losses, counts = self._checked_rows(self.rowwise(scores, labels, valid), scores)
        counts = counts & valid.any(-1)
        if self.class_weight is not None:
            factor = per_label("class_weight", self.class_weight, logits).reshape(-1)
        keep = counts
        if losses.ndim == 2:
            keep = counts[:, None]
            factor = None if factor is None else factor[:, None]
        if factor is not None:
            losses = losses * torch.where(keep, factor.to(losses.dtype), 0.0)
        return torch.where(keep, losses, 0.0), counts

    def _layout(self, values: Tensor) -> Tensor:
        """Return (N, C, ...) as rows (R, E)."""
        samples, labels = (*values.shape, 1, 1)[:2]
        positions = math.prod(values.shape[2:])
        values = values.reshape(samples, labels, positions)
        if self.rows == "label":
            return values.transpose(0, 1).reshape(labels, samples * positions)
        if self.rows == "sample":
            return values.reshape(samples, labels * positions)
        return values.transpose(1, 2).reshape(samples * positions, labels)

    def _of_rows(self, weight: Tensor, logits: Tensor) -> Tensor:
        """Return the factor of each row, (R,), from one for each sample."""
        name = type(self).__name__
        if self.rows == "label":
            raise ValueError(
                f"`weight` has no meaning in this {name}: its unit is a label over the whole batch, which no sample's "
                "weight belongs to. Leave it out, use `class_weight`, or leave samples out by `mask`."
            )
        if self.couples_rows:
            raise ValueError(
                f"`weight` has no meaning in {name}: each sample is in the losses of the others too. Leave it out, or "
                "leave samples out by `mask`."
            )
        fitted = fit_weight("weight", weight, logits)
        ones = fitted.shape[1:2] if self.rows == "position" else fitted.shape[1:]
        if any(size != 1 for size in ones):
            raise ValueError(
                f"`weight` has shape {tuple(weight.shape)}; {name} has one loss for all labels of a {self.rows}, so "
                f"that a weight belongs to a {self.rows} and not to an element. Expected (N,), or 1 in the place of "
                "the labels."
            )
        if self.rows == "sample":
            return fitted.reshape(-1)
        return fitted.expand(*logits.shape[:1], *[1] * (logits.ndim > 1), *logits.shape[2:]).reshape(-1)

    def _checked_rows(self, result: Any, scores: Tensor) -> tuple[Tensor, Tensor]:
        count = scores.shape[0]
        if isinstance(result, tuple) and len(result) == 2 and all(isinstance(part, Tensor) for part in result):
            losses, counts = result
            if losses.shape in ((count,), (count, 2)) and losses.is_floating_point():
                if counts.shape == (count,) and counts.dtype == torch.bool:
                    return losses, counts
            what = f"shapes {tuple(losses.shape)} and {tuple(counts.shape)}, {losses.dtype} and {counts.dtype}"
        else:
            what = type(result).__name__
        raise TypeError(
            f"{type(self).__name__}.rowwise returned {what}; floating-point losses of shape ({count},) or ({count}, 2) "
            f"and bool of shape ({count},) were expected. Leave weights and the mean to RowLoss."
        )

    def _refuse_values(self, logits: Tensor, target: Tensor, weight: Tensor | None, valid: Tensor | None) -> None:
        super()._refuse_values(logits, target, weight, valid)
        if not self.hard_targets or not target.is_floating_point():
            return
        values = target if valid is None else target[valid.expand(target.shape)]
        between = values[(values > 0) & (values < 1)]
        if between.numel():
            raise ValueError(
                f"{type(self).__name__} knows positives and negatives only, and `target` has {between.numel()} "
                f"value(s) between 0 and 1, such as {between[0].item():g}. Round them, or use a loss for soft labels."
            )


def known_rows(logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and target in float32 or better with zeros where they are unknown, and where they are known.

    Args:
        logits: Scores, (..., E), a row in the last dimension.
        target: Labels, the shape of ``logits``.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Raises:
        ValueError: If the shapes differ, or there is no dimension to be the row.
        TypeError: If the mask is not bool.
    """
    check_shapes(logits, target)
    if logits.ndim == 0:
        raise ValueError("`logits` is a single number; a row of them was expected: (E,) or (..., E).")
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    if mask is None:
        return scores, labels, torch.ones_like(scores, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise TypeError(f"`mask` has dtype {mask.dtype}; torch.bool was expected, True where the label is known.")
    if mask.shape != logits.shape:
        raise ValueError(
            f"`mask` has shape {tuple(mask.shape)} and `logits` {tuple(logits.shape)}: they must be equal."
        )
    return torch.where(mask, scores, 0.0), torch.where(mask, labels, 0.0), mask


def logsumexp_where(where: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the sum of exponentials over the chosen entries of each row, and whether there are any.

    Without any the value says nothing, and its gradient is zeros: that of minus infinity would bring NaN along.
    """
    any_chosen = where.any(-1)
    kept = torch.where(where, values, -torch.inf)
    return torch.where(any_chosen[..., None], kept, 0.0).logsumexp(-1), any_chosen


def mean_where(where: Tensor, values: Tensor) -> Tensor:
    """Return the mean over the chosen entries of each row; without any 0 with a gradient of zeros."""
    return torch.where(where, values, 0.0).sum(-1) / where.sum(-1).clamp(min=1).to(values.dtype)
