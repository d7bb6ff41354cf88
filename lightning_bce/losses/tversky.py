"""Tversky loss: an overlap in which a false alarm and a miss have prices of their own; focal with a power of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_bce.losses.checks import check_flag, check_number
from lightning_bce.losses.rows import RowLoss, known_rows
from lightning_bce.losses.stable import folded, residual


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    fp_weight: float = 0.3,
    fn_weight: float = 0.7,
    gamma: float = 1.0,
    smooth: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the Tversky loss of each row, at a ``gamma`` other than 1 the focal Tversky loss.

    .. math:: \mathrm{TL} = (1 - \mathrm{TI})^\gamma, \quad
              \mathrm{TI} = \frac{\mathrm{TP} + s}{\mathrm{TP} + a\,\mathrm{FP} + b\,\mathrm{FN} + s}

    with the soft counts :math:`\mathrm{TP} = \sum \min(p, y)`, :math:`\mathrm{FP} = \sum \max(p - y, 0)` and
    :math:`\mathrm{FN} = \sum \max(y - p, 0)`. For hard labels these are the usual products. For soft labels they keep
    the loss 0 exactly at p = y, where products would ask for 0 and 1.

    For dense masks and rare labels, where the negatives would drown a mean over elements, and where a miss costs more
    than a false alarm. Not where probabilities are needed, as overlap is no proper score and pushes them to 0 and 1;
    and not by label in small batches, in which a label has few positives.

    The weights are the paper's alpha and beta and mean what they do in MONAI; in the first code of the focal Tversky
    loss, and by its formula in Keras, alpha is the weight of the false negatives. The focal paper's gamma of 4/3
    divides the exponent: here it is 0.75. ``smooth`` is 1 as in the code: a row without positives is then pulled
    towards 0.

    Args:
        logits: Scores before the sigmoid, (..., E), a row in the last dimension; for a row of each label of (N, C)
            pass ``logits.T``.
        target: Labels in [0, 1], the shape of ``logits``.
        fp_weight: Price of a false positive, at least 0. With ``fn_weight`` 0.5 and 0.5 give Dice, 1 and 1 Jaccard.
        fn_weight: Price of a false negative, above 0: without one, predicting nothing would be free.
        gamma: Exponent, above 0. Below 1 (the focal paper's 0.75) rows that overlap well keep more of the gradient,
            above 1 those that do not.
        smooth: Added to both sides of the ratio, at least 0, in elements. At 0 a row without positives says nothing,
            as its loss would be 1 whatever is predicted; such a row then does not count.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses in [0, 1], (...,), in float32 or better; 0 for a row that does not count.

    Raises:
        ValueError: If the shapes differ, or a number is out of range.

    Example:
        >>> import torch
        >>> tversky_loss(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), torch.tensor([[1, 0], [1, 0]]), smooth=0.0)
        tensor([0.5000, 0.1192])

    References:
        Salehi et al., Tversky Loss Function for Image Segmentation, 2017. https://arxiv.org/abs/1706.05721.
        Abraham and Khan, A Novel Focal Tversky Loss Function, 2018. https://arxiv.org/abs/1810.07842.
        Wang et al., Dice Semimetric Losses, 2023, for soft labels. https://arxiv.org/abs/2303.16296.
    """
    check_overlap(fp_weight, fn_weight, gamma, smooth)
    losses, counts = overlap_rows(logits, target, mask, fp_weight, fn_weight, gamma, smooth)
    return torch.where(counts, losses, 0.0)


class TverskyLoss(RowLoss):
    """Tversky and focal Tversky loss of each label over the batch, or of each sample. See :func:`tversky_loss`.

    Args:
        fp_weight: Price of a false positive, at least 0. With ``fn_weight`` 0.5 and 0.5 give Dice, 1 and 1 Jaccard.
        fn_weight: Price of a false negative, above 0.
        gamma: Exponent, above 0. 1 is the Tversky loss, 0.75 the focal Tversky loss of its paper.
        smooth: Added to both sides of the ratio, at least 0, in elements. At 0 a row without positives does not count.
        batch: Whether a row is a label over all samples and positions of the batch. Else it is a sample over all its
            labels and positions, and takes a weight.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``validate`` and, by label,
            ``class_weight``: see :class:`RowLoss`.

    Raises:
        ValueError: If a number is out of range, or an option would have no effect.

    Example:
        >>> import torch
        >>> TverskyLoss(gamma=0.75)(torch.tensor([[0.0], [2.0]]), torch.tensor([[0], [1]]))
        tensor(0.1915)
    """

    def __init__(
        self,
        *,
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
        gamma: float = 1.0,
        smooth: float = 1.0,
        batch: bool = True,
        **options: Any,
    ) -> None:
        check_flag("batch", batch)
        self.rows = "label" if batch else "sample"  # the base looks at it to refuse options
        super().__init__(**options)
        check_overlap(fp_weight, fn_weight, gamma, smooth)
        self.batch = batch
        self.fp_weight = fp_weight
        self.fn_weight = fn_weight
        self.gamma = gamma
        self.smooth = smooth

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return :func:`tversky_loss`; at ``smooth`` 0 rows count that have a positive."""
        return overlap_rows(logits, target, valid, self.fp_weight, self.fn_weight, self.gamma, self.smooth)


def check_overlap(fp_weight: float, fn_weight: float, gamma: float, smooth: float) -> None:
    """Refuse numbers out of the ranges of :func:`tversky_loss`.

    Raises:
        ValueError: With the number.
        TypeError: If it is no number.
    """
    check_number("fp_weight", fp_weight, at_least=0)
    check_number("fn_weight", fn_weight, above=0)
    check_number("gamma", gamma, above=0)
    check_number("smooth", smooth, at_least=0)


def soft_counts(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return soft true positives, false positives and false negatives of each row.

    All three are right to the last digits also where p is within 1e-7 of 1.
    """
    error = residual(logits, target)
    true_positive = torch.where(error < 0, folded(logits).p, target)
    parts = (true_positive, F.relu(error), F.relu(-error))
    tp, fp, fn = (torch.where(valid, part, 0.0).sum(-1) for part in parts)
    return tp, fp, fn


def overlap_rows(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    fp_weight: float,
    fn_weight: float,
    gamma: float,
    smooth: float,
) -> tuple[Tensor, Tensor]:
    """Return the Tversky loss of each row and which rows count."""
    scores, labels, valid = known_rows(logits, target, mask)
    tp, fp, fn = soft_counts(scores, labels, valid)
    counts = valid.any(-1)
    if smooth == 0:
        counts = counts & (labels > 0).any(-1)
    # 1 - TI without the subtraction: the small loss of a good overlap keeps its digits.
    missed = fp_weight * fp + fn_weight * fn
    losses = missed / torch.where(counts, tp + missed + smooth, 1.0)
    if gamma == 1:
        return losses, counts
    # A power below 2 has an infinite derivative at 0, of the first or the second order. Far below any rounding of the
    # sums it is taken as 0.
    floor = torch.finfo(losses.dtype).tiny ** 0.5
    there = losses > floor
    return torch.where(there, torch.where(there, losses, 1.0) ** gamma, 0.0), counts
