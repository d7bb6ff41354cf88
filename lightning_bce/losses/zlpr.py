"""ZLPR: the positives of a sample above zero and its negatives below, all of its labels in one ranking."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lightning_bce.losses.rows import RowLoss, Rows, known_rows, logsumexp_where
from lightning_bce.losses.stable import softplus


def zlpr_loss(logits: Tensor, target: Tensor, *, mask: Tensor | None = None) -> Tensor:
    r"""Return the zero-bounded log-sum-exp and pairwise rank-based loss of each row of labels.

    .. math:: \mathrm{ZLPR} = \log\Big(1 + \sum_{i \in N} e^{x_i}\Big) + \log\Big(1 + \sum_{i \in P} e^{-x_i}\Big)

    For many labels of which a sample has few: the worst mistakes of a sample take nearly all of its gradient, so that
    the mass of easy negatives needs no weights. Decide at a logit of 0. Not where probabilities are needed: the logits
    are scores that rank, and their sigmoid is not calibrated. With one label this is binary cross-entropy.

    It has no parameters, as in the paper. The sums are taken in log space and are exact also where both are far below
    1.

    Args:
        logits: Scores, (..., C), the labels of a sample in the last dimension, floating point.
        target: Labels, the shape of ``logits``; positive above one half.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses in nats, (...,), in float32 or better; 0 for a row of which nothing is known.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> zlpr_loss(torch.tensor([[2.0, -1.0, 0.0], [2.0, -1.0, 0.0]]), torch.tensor([[1, 0, 0], [0, 1, 0]]))
        tensor([0.9889, 3.5528])

    References:
        Su et al., ZLPR: A Novel Loss for Multi-label Classification, 2022. https://arxiv.org/abs/2208.02955
    """
    return _sides(logits, target, mask).sum(-1)


class ZLPRLoss(RowLoss):
    """Zero-bounded log-sum-exp and pairwise rank-based loss of each sample. See :func:`zlpr_loss`.

    For outputs (N, C, ...) each position is a row of C labels. Of :class:`LossSums` column 0 holds the term of the
    negatives, column 1 that of the positives. Soft targets are refused.

    Args:
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``validate``: see :class:`RowLoss`.

    Raises:
        ValueError: If an option is out of range or would have no effect.

    Example:
        >>> import torch
        >>> ZLPRLoss()(torch.tensor([[2.0, -1.0, 0.0], [2.0, -1.0, 0.0]]), torch.tensor([[1, 0, 0], [0, 1, 0]]))
        tensor(2.2709)
    """

    rows: Rows = "position"
    hard_targets: ClassVar[bool] = True

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two terms of :func:`zlpr_loss`; every row counts of which something is known."""
        return _sides(logits, target, valid), valid.any(-1)


def _sides(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    scores, labels, valid = known_rows(logits, target, mask)
    positive = labels > 0.5
    sides = []
    for chosen, values in ((valid & ~positive, scores), (valid & positive, -scores)):
        # log(1 + sum) as softplus(log sum): with the 1 among the summands, float32 would lose sums below 6e-8.
        log_sum, any_chosen = logsumexp_where(chosen, values)
        sides.append(torch.where(any_chosen, softplus(log_sum), 0.0))
    return torch.stack(sides, -1)
