"""Soft Dice loss: the overlap of prediction and label, one minus a soft F1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.checks import check_flag, check_number
from lightning_bce.losses.rows import RowLoss
from lightning_bce.losses.tversky import overlap_rows


def dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1.0, mask: Tensor | None = None) -> Tensor:
    r"""Return the soft Dice loss of each row.

    .. math:: \mathrm{Dice} = 1 - \frac{2\,\mathrm{TP} + s}{2\,\mathrm{TP} + \mathrm{FP} + \mathrm{FN} + s}

    with :math:`\mathrm{TP} = \sum \min(p, y)`, :math:`\mathrm{FP} = \sum \max(p - y, 0)` and
    :math:`\mathrm{FN} = \sum \max(y - p, 0)`. For hard labels the counts are the usual products and the probabilities
    stand unsquared in the denominator; V-Net's paper squares them. For soft labels the loss is 0 exactly at p = y,
    where products would ask for 0 and 1.

    For dense masks and rare labels, where the negatives would drown a mean over elements; usually added to
    cross-entropy, because alone it has little gradient far from the overlap. Not where probabilities are needed, as it
    is no proper score and pushes them to 0 and 1; and not by label in small batches, in which a label has few
    positives.

    Args:
        logits: Scores before the sigmoid, (..., E), a row in the last dimension; for a row of each label of (N, C)
            pass ``logits.T``.
        target: Labels in [0, 1], the shape of ``logits``.
        smooth: Added to both sides of the ratio, at least 0, in elements: at 1 a row without positives is pulled
            towards 0. At 0 such a row says nothing, as its loss would be 1 whatever is predicted, and does not count.
            The paper has none.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses in [0, 1], (...,), in float32 or better; 0 for a row that does not count.

    Raises:
        ValueError: If the shapes differ or ``smooth`` is negative.

    Example:
        >>> import torch
        >>> dice_loss(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), torch.tensor([[1, 0], [1, 0]]))
        tensor([0.3333, 0.0795])

    References:
        Milletari et al., V-Net, 2016. https://arxiv.org/abs/1606.04797.
        Wang et al., Dice Semimetric Losses, 2023, for soft labels. https://arxiv.org/abs/2303.16296.
    """
    check_number("smooth", smooth, at_least=0)
    losses, counts = overlap_rows(logits, target, mask, 0.5, 0.5, 1.0, smooth / 2)
    return torch.where(counts, losses, 0.0)


class DiceLoss(RowLoss):
    """Soft Dice loss of each label over the batch, or of each sample. See :func:`dice_loss`.

    Args:
        smooth: Added to both sides of the ratio, at least 0, in elements. At 0 a row without positives does not count.
        batch: Whether a row is a label over all samples and positions of the batch. Else it is a sample over all its
            labels and positions, and takes a weight.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``validate`` and, by label,
            ``class_weight``: see :class:`RowLoss`.

    Raises:
        ValueError: If a number is out of range, or an option would have no effect.

    Example:
        >>> import torch
        >>> DiceLoss()(torch.tensor([[0.0], [2.0]]), torch.tensor([[0], [1]]))
        tensor(0.1832)
    """

    def __init__(self, *, smooth: float = 1.0, batch: bool = True, **options: Any) -> None:
        check_flag("batch", batch)
        self.rows = "label" if batch else "sample"  # the base looks at it to refuse options
        super().__init__(**options)
        check_number("smooth", smooth, at_least=0)
        self.smooth = smooth
        self.batch = batch

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return :func:`dice_loss`; at ``smooth`` 0 rows count that have a positive."""
        return overlap_rows(logits, target, valid, 0.5, 0.5, 1.0, self.smooth / 2)
