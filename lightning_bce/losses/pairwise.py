"""Pairwise ranking: every positive above every negative, of the labels of a sample or of the samples of a label."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_bce.losses.checks import check_flag, check_number
from lightning_bce.losses.rows import RowLoss, known_rows, logsumexp_where
from lightning_bce.losses.stable import softplus

Surrogate = Literal["log_sum_exp", "logistic", "squared_hinge"]


def pairwise_loss(
    logits: Tensor,
    target: Tensor,
    *,
    surrogate: Surrogate = "log_sum_exp",
    margin: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the pairwise ranking loss of each row, over all pairs of a positive i and a negative j.

    .. math::
        \text{log\_sum\_exp} &= \log\Big(1 + \sum_{i \in P} \sum_{j \in N} e^{x_j - x_i}\Big) \\
        \text{logistic} &= \frac{1}{|P||N|} \sum_{i \in P} \sum_{j \in N} \log\big(1 + e^{x_j - x_i}\big) \\
        \text{squared\_hinge} &= \frac{1}{|P||N|} \sum_{i \in P} \sum_{j \in N} \max(0, m - x_i + x_j)^2

    For ranking that is judged by the order alone: the labels of a sample, or, by label over the batch, its AUC. The
    pairs that are out of order dominate log_sum_exp; the other two are means over pairs. Not where probabilities or a
    fixed threshold are needed: only differences of logits count, so that they have no zero.

    A row with one side only has no pairs and does not count. log_sum_exp needs memory for E elements of a row, the
    other two for E * E pairs.

    Args:
        logits: Scores, (..., E), a row in the last dimension, floating point.
        target: Labels, the shape of ``logits``; positive above one half.
        surrogate: One of "log_sum_exp", "logistic", "squared_hinge".
        margin: By how much a positive has to be above a negative, above 0. Of squared_hinge only, where None is the
            papers' 1.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses, (...,), in float32 or better; 0 for a row that does not count.

    Raises:
        ValueError: If the shapes differ, an option is out of range, or ``margin`` would have no effect.

    Example:
        >>> import torch
        >>> pairwise_loss(torch.tensor([[2.0, -1.0, 0.0], [2.0, -1.0, 0.0]]), torch.tensor([[1, 0, 0], [0, 1, 0]]))
        tensor([0.1698, 3.1698])

    References:
        Li et al., Improving Pairwise Ranking for Multi-label Image Classification (LSEP), CVPR 2017.
        https://arxiv.org/abs/1704.03135. Burges et al., Learning to Rank using Gradient Descent, ICML 2005 (logistic).
        Gao and Zhou, On the Consistency of AUC Pairwise Optimization, IJCAI 2015 (squared hinge).
        https://arxiv.org/abs/1208.0645
    """
    losses, counts = _rows(logits, target, mask, surrogate, margin)
    return torch.where(counts, losses, 0.0)


class PairwiseLoss(RowLoss):
    """Pairwise ranking loss of each sample's labels, or of each label's samples. See :func:`pairwise_loss`.

    Rows with one side only do not count. Soft targets are refused.

    Args:
        surrogate: One of "log_sum_exp", "logistic", "squared_hinge".
        margin: By how much a positive has to be above a negative, above 0. Of squared_hinge only; None is 1.
        batch: Whether a row is a label over all samples and positions of the batch, a surrogate of its AUC. Else it is
            a sample with its labels, at each position of outputs (N, C, ...), and takes a weight.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``validate`` and, by label,
            ``class_weight``: see :class:`RowLoss`.

    Raises:
        ValueError: If an option is out of range or would have no effect, or if the output has one label and ``batch``
            is False.

    Example:
        >>> import torch
        >>> PairwiseLoss(batch=True)(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1, 0, 0]))
        tensor(0.1698)
    """

    hard_targets: ClassVar[bool] = True

    def __init__(
        self,
        *,
        surrogate: Surrogate = "log_sum_exp",
        margin: float | None = None,
        batch: bool = False,
        **options: Any,
    ) -> None:
        check_flag("batch", batch)
        self.rows = "label" if batch else "position"  # the base looks at it to refuse options
        super().__init__(**options)
        _check(surrogate, margin)
        self.surrogate: Surrogate = surrogate
        self.margin = margin
        self.batch = batch

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return :func:`pairwise_loss`; rows count that have both sides."""
        if not self.batch and logits.shape[-1] == 1:
            raise ValueError(
                "The output has one label, which has no other to be ranked against. For a ranking of the samples of "
                "the batch use `batch=True`."
            )
        return _rows(logits, target, valid, self.surrogate, self.margin)


def _check(surrogate: Surrogate, margin: float | None) -> None:
    if surrogate not in get_args(Surrogate):
        raise ValueError(f"`surrogate` is {surrogate!r}; expected one of {', '.join(get_args(Surrogate))}.")
    if margin is None:
        return
    check_number("margin", margin, above=0)
    if surrogate != "squared_hinge":
        raise ValueError(f"`margin` has no effect with the surrogate {surrogate!r}; it belongs to 'squared_hinge'.")


def _rows(
    logits: Tensor, target: Tensor, mask: Tensor | None, surrogate: Surrogate, margin: float | None
) -> tuple[Tensor, Tensor]:
    _check(surrogate, margin)
    scores, labels, valid = known_rows(logits, target, mask)
    positive, negative = valid & (labels > 0.5), valid & (labels <= 0.5)
    counts = positive.any(-1) & negative.any(-1)
    if surrogate == "log_sum_exp":  # the double sum is a product of two
        low, high = logsumexp_where(positive, -scores)[0], logsumexp_where(negative, scores)[0]
        return softplus(high + low), counts
    pairs = positive[..., :, None] & negative[..., None, :]
    behind = torch.where(pairs, scores[..., None, :] - scores[..., :, None], 0.0)
    losses = softplus(behind) if surrogate == "logistic" else F.relu(behind + (1.0 if margin is None else margin)) ** 2
    number = pairs.sum((-2, -1)).clamp(min=1)
    return torch.where(pairs, losses, 0.0).sum((-2, -1)) / number, counts
