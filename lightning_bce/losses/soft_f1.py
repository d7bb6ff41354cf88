"""Soft F1 loss: one minus the F1 score of each label, with probabilities in the place of decisions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.checks import check_number
from lightning_bce.losses.rows import RowLoss, Rows, known_rows
from lightning_bce.losses.tversky import overlap_rows


def soft_f1_loss(
    logits: Tensor,
    target: Tensor,
    *,
    beta: float = 1.0,
    eta: float = 0.0,
    smooth: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the soft F1 loss of each row, the paper's sigmoidF1.

    .. math:: 1 - \frac{2\,\mathrm{TP}}{2\,\mathrm{TP} + \mathrm{FP} + \mathrm{FN} + s}, \quad
              S(x) = \frac{1}{1 + e^{-\beta (x + \eta)}}

    with a soft decision S in the place of p in the counts TP, FP and FN, and :math:`s` also above the fraction line.
    At ``beta`` 1 and ``eta`` 0 it is :func:`dice_loss` with another ``smooth``, at a large ``beta`` the F1 error
    itself at the threshold :math:`-\eta`.

    For multi-label classification that is judged by macro F1. Not for small batches, in which a label has few
    positives, and not where probabilities are needed; a large ``beta`` leaves no gradient away from the threshold.

    The defaults are the plain soft F1 and those of the authors' code, which writes :math:`\beta` as S = -1; their best
    results have S between -9 and -30 and :math:`\eta` near 1. For soft labels the counts are those of
    :func:`dice_loss`, so that the loss is 0 exactly at S = y.

    Args:
        logits: Scores before the sigmoid, (..., E), a row in the last dimension; for a row of each label of (N, C)
            pass ``logits.T``.
        target: Labels in [0, 1], the shape of ``logits``.
        beta: Steepness of the decision, above 0.
        eta: Added to the logits, any finite number.
        smooth: Added to both sides of the ratio, at least 0, in elements. At 0, as in the paper, a row without
            positives has an undefined F1 and does not count.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses in [0, 1], (...,), in float32 or better; 0 for a row that does not count.

    Raises:
        ValueError: If the shapes differ, or a number is out of range.

    Example:
        >>> import torch
        >>> soft_f1_loss(torch.tensor([[0.0, 0.0], [2.0, -2.0]]), torch.tensor([[1, 0], [1, 0]]))
        tensor([0.5000, 0.1192])

    References:
        Bénédict et al., sigmoidF1: A Smooth F1 Score Surrogate Loss for Multilabel Classification, 2021.
        https://arxiv.org/abs/2108.10566
    """
    losses, counts = _rows(logits, target, mask, beta, eta, smooth)
    return torch.where(counts, losses, 0.0)


class SoftF1Loss(RowLoss):
    """Soft F1 loss of each label over the batch, whose mean is a soft macro F1. See :func:`soft_f1_loss`.

    Args:
        beta: Steepness of the decision, above 0.
        eta: Added to the logits, any finite number.
        smooth: Added to both sides of the ratio, at least 0, in elements. At 0 a label without positives does not
            count.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``class_weight``, ``validate``: see
            :class:`RowLoss`.

    Raises:
        ValueError: If a number is out of range, or an option would have no effect.

    Example:
        >>> import torch
        >>> SoftF1Loss()(torch.tensor([[0.0], [2.0]]), torch.tensor([[0], [1]]))
        tensor(0.2601)
    """

    rows: Rows = "label"

    def __init__(self, *, beta: float = 1.0, eta: float = 0.0, smooth: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        _check(beta, eta, smooth)
        self.beta = beta
        self.eta = eta
        self.smooth = smooth

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return :func:`soft_f1_loss`; at ``smooth`` 0 rows count that have a positive."""
        return _rows(logits, target, valid, self.beta, self.eta, self.smooth)


def _check(beta: float, eta: float, smooth: float) -> None:
    check_number("beta", beta, above=0)
    check_number("smooth", smooth, at_least=0)
    if isinstance(eta, bool) or not isinstance(eta, (int, float)):
        raise TypeError(f"`eta` is {eta!r}; a finite number was expected.")
    if not math.isfinite(eta):
        raise ValueError(f"`eta` is {eta}; it must be finite.")


def _rows(
    logits: Tensor, target: Tensor, mask: Tensor | None, beta: float, eta: float, smooth: float
) -> tuple[Tensor, Tensor]:
    _check(beta, eta, smooth)
    scores, labels, valid = known_rows(logits, target, mask)
    return overlap_rows(beta * (scores + eta), labels, valid, 0.5, 0.5, 1.0, smooth / 2)
