"""Two-way loss: the labels of a sample ranked against each other, and the samples of a batch for each label."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_bce.losses.checks import check_number
from lightning_bce.losses.rows import RowLoss, Rows, known_rows, logsumexp_where
from lightning_bce.losses.stable import softplus
from lightning_bce.losses.sums import safe_ratio


def two_way_loss(
    logits: Tensor,
    target: Tensor,
    *,
    pos_temperature: float = 4.0,
    neg_temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the two-way multi-label loss of a batch.

    .. math::
        \ell(x, y) = \log\Big(1 + \Big(\sum_{j \in N} e^{x_j / T_-}\Big)^{T_-}
                                  \Big(\sum_{i \in P} e^{-x_i / T_+}\Big)^{T_+}\Big)

    for the labels of each sample and for the samples of each label, averaged over the samples that have a positive and
    over the labels that have one, and added up.

    For multi-label recognition with many labels of uneven frequency, where ranking within a sample alone leaves the
    labels on different scales. Not for small batches, as the second part compares samples of one batch, and not where
    probabilities are needed: scores are compared and have no zero, so that thresholds have to be chosen.

    The temperatures are those of the authors' code. Without negatives a row's loss is 0.

    Args:
        logits: Scores, (N, C), floating point.
        target: Labels, the shape of ``logits``; positive above one half.
        pos_temperature: Above 0. The higher it is, the more all positives count and the less the lowest alone.
        neg_temperature: Above 0, the same for the negatives and the highest of them.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        The loss in nats, a scalar, in float32 or better; 0 without any positive.

    Raises:
        ValueError: If shapes differ or are not (N, C), or a temperature is out of range.

    Example:
        >>> import torch
        >>> two_way_loss(torch.tensor([[2.0, -1.0], [0.0, 1.0]]), torch.tensor([[1, 0], [0, 1]]))
        tensor(0.3079)

    References:
        Kobayashi, Two-way Multi-Label Loss, CVPR 2023.
    """
    scores, labels, valid = known_rows(logits, target, mask)
    if logits.ndim != 2:
        raise ValueError(f"`logits` has shape {tuple(logits.shape)}; (N, C), samples and their labels, was expected.")
    losses, counts = _both_ways(scores, labels, valid, pos_temperature, neg_temperature)
    return safe_ratio(torch.where(counts, losses, 0.0).sum(), counts.sum().to(losses.dtype))


class TwoWayLoss(RowLoss):
    """Two-way multi-label loss. See :func:`two_way_loss`.

    A row is a sample with its labels, at each position of outputs (N, C, ...). It counts where it has a positive. Each
    has its own part and the mean of the labels' parts, so that the mean over rows is the loss of the batch. As rows
    are coupled by the labels' parts, samples take no weight. Soft targets are refused.

    Args:
        pos_temperature: Above 0. The higher it is, the more all positives count and the less the lowest alone.
        neg_temperature: Above 0, the same for the negatives and the highest of them.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``validate``: see :class:`RowLoss`.

    Raises:
        ValueError: If a temperature is out of range, or an option would have no effect.

    Example:
        >>> import torch
        >>> TwoWayLoss()(torch.tensor([[2.0, -1.0], [0.0, 1.0]]), torch.tensor([[1, 0], [0, 1]]))
        tensor(0.3079)
    """

    rows: Rows = "position"
    couples_rows: ClassVar[bool] = True
    hard_targets: ClassVar[bool] = True

    def __init__(self, *, pos_temperature: float = 4.0, neg_temperature: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_number("pos_temperature", pos_temperature, above=0)
        check_number("neg_temperature", neg_temperature, above=0)
        self.pos_temperature = pos_temperature
        self.neg_temperature = neg_temperature

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the parts of :func:`two_way_loss`; rows count that have a positive."""
        return _both_ways(logits, target, valid, self.pos_temperature, self.neg_temperature)


def _both_ways(
    logits: Tensor, target: Tensor, valid: Tensor, pos_temperature: float, neg_temperature: float
) -> tuple[Tensor, Tensor]:
    check_number("pos_temperature", pos_temperature, above=0)
    check_number("neg_temperature", neg_temperature, above=0)
    parts = []
    for scores, labels, known in ((logits, target, valid), (logits.T, target.T, valid.T)):
        positive = labels > 0.5
        low, any_positive = logsumexp_where(known & positive, -scores / pos_temperature)
        high, any_negative = logsumexp_where(known & ~positive, scores / neg_temperature)
        losses = softplus(neg_temperature * high + pos_temperature * low)
        parts.append((torch.where(any_positive & any_negative, losses, 0.0), any_positive))
    (of_samples, samples), (of_labels, labels_seen) = parts
    return of_samples + safe_ratio(of_labels.sum(), labels_seen.sum().to(of_labels.dtype)), samples
