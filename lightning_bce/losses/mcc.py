"""MCC loss: one minus Matthews' correlation of prediction and label, which sees all four counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.checks import check_number
from lightning_bce.losses.rows import RowLoss, Rows, known_rows
from lightning_bce.losses.stable import folded, residual
from lightning_bce.losses.tversky import soft_counts


def mcc_loss(logits: Tensor, target: Tensor, *, smooth: float = 1e-5, mask: Tensor | None = None) -> Tensor:
    r"""Return the Matthews correlation loss of each row.

    .. math::
        1 - \frac{\mathrm{TP}\,\mathrm{TN} - \mathrm{FP}\,\mathrm{FN}}
        {\sqrt{(\mathrm{TP} + \mathrm{FP})(\mathrm{TP} + \mathrm{FN})(\mathrm{TN} + \mathrm{FP})
        (\mathrm{TN} + \mathrm{FN})} + s}

    with the soft counts of :func:`tversky_loss` and :math:`\mathrm{TN} = \sum \min(1 - p, 1 - y)`. For hard labels
    these are the usual products. For soft labels the loss is 0 at p = y, but for ``smooth``.

    For imbalanced labels and masks where right negatives should count as well, which overlap ignores; predicting one
    side everywhere costs 1, whichever is the larger. Not where probabilities are needed, and not by label in small
    batches. A row with one side only has no correlation and does not count.

    Args:
        logits: Scores before the sigmoid, (..., E), a row in the last dimension; for a row of each label of (N, C)
            pass ``logits.T``.
        target: Labels in [0, 1], the shape of ``logits``.
        smooth: Added to the denominator, above 0, in elements squared, so that predicting one side everywhere is no
            division by zero. The paper has none; 1e-5 is MONAI's.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses in [0, 2], (...,), in float32 or better; 0 for a row that does not count.

    Raises:
        ValueError: If the shapes differ or ``smooth`` is not above 0.

    Example:
        >>> import torch
        >>> mcc_loss(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), torch.tensor([[1, 0], [1, 0]]))
        tensor([1.0000, 0.2384])

    References:
        Abhishek and Hamarneh, Matthews Correlation Coefficient Loss for Deep Convolutional Networks, 2020.
        https://arxiv.org/abs/2010.13454
    """
    losses, counts = _rows(logits, target, mask, smooth)
    return torch.where(counts, losses, 0.0)


class MCCLoss(RowLoss):
    """Matthews correlation loss of each label over the batch. See :func:`mcc_loss`.

    Args:
        smooth: Added to the denominator, above 0, in elements squared.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``class_weight``, ``validate``: see
            :class:`RowLoss`.

    Raises:
        ValueError: If ``smooth`` is not above 0, or an option would have no effect.

    Example:
        >>> import torch
        >>> MCCLoss()(torch.tensor([[0.0], [2.0]]), torch.tensor([[0], [1]]))
        tensor(0.5882)
    """

    rows: Rows = "label"

    def __init__(self, *, smooth: float = 1e-5, **options: Any) -> None:
        super().__init__(**options)
        check_number("smooth", smooth, above=0)
        self.smooth = smooth

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return :func:`mcc_loss`; rows count that have both sides."""
        return _rows(logits, target, valid, self.smooth)


def _rows(logits: Tensor, target: Tensor, mask: Tensor | None, smooth: float) -> tuple[Tensor, Tensor]:
    check_number("smooth", smooth, above=0)
    scores, labels, valid = known_rows(logits, target, mask)
    # Parts of the row and not counts: the product of four counts of 1e10 is no float32.
    size = valid.sum(-1).clamp(min=1).to(scores.dtype)
    tp, fp, fn = (count / size for count in soft_counts(scores, labels, valid))
    true_negative = torch.where(residual(scores, labels) > 0, folded(scores).q, 1 - labels)
    tn = torch.where(valid, true_negative, 0.0).sum(-1) / size
    spread = _root((tp + fp) * (tn + fn)) * _root((tp + fn) * (tn + fp))
    counts = (labels > 0).any(-1) & (valid & (labels < 1)).any(-1)
    return 1 - (tp * tn - fp * fn) / (spread + smooth / size**2), counts


def _root(values: Tensor) -> Tensor:
    """Return the square root, and 0 without a gradient where the second derivative would overflow."""
    there = values > torch.finfo(values.dtype).tiny ** 0.5
    return torch.where(there, torch.where(there, values, 1.0).sqrt(), 0.0)
