"""Large losses among assumed negatives are taken for missing positives, and left out or corrected."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_bce.engine import sum_dtype
from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import full_precision

Strategy = Literal["reject", "correct"]


def large_loss_bce(
    logits: Tensor,
    target: Tensor,
    rate: float | Tensor,
    known: Tensor | None = None,
    *,
    strategy: Strategy = "reject",
) -> Tensor:
    r"""Return cross-entropy, in which the largest losses of negatives are left out or are those of positives.

    .. math:: \ell_i = \begin{cases}
              0 \text{ (reject)}, \; -\log p_i \text{ (correct)} & y_i = 0 \text{ and } x_i > x_{(k + 1)} \\
              \mathrm{BCE}(x_i, y_i) & \text{otherwise} \end{cases} \qquad
              k = \lceil r \, n \rceil

    with :math:`x_{(j)}` the j-th largest logit among the n assumed negatives of the batch: the labels that are exactly
    0 and known. Of negatives, the loss is ordered as the logit is.

    For data of which only (some) positives are written down and the others assumed negative: a model learns what is
    right before it learns what is wrong, so that early on a large loss is more often a missing positive than a hard
    negative. Up to the threshold the minimiser is that of cross-entropy, x* = logit(y). Above it no negative pulls
    down, and nothing but the rank of the others keeps a logit from rising: not where negatives are right, of which the
    hardest are lost, nor for calibrated probabilities.

    k is rounded up: a rate above 0 takes at least one label, in a batch of few that is more than the rate. Of equal
    logits all are taken or none, and never more than k in all: a model that cannot tell samples apart yet learns from
    each. NaN is not counted, and stays.

    Args:
        logits: Scores before the sigmoid, any shape, floating point. One ranking over all elements.
        target: Labels in [0, 1], the shape of ``logits``. 0 is an assumed negative; every other value is taken as
            observed.
        rate: The share r of the assumed negatives, in [0, 1]; a tensor's value is not checked, which would wait for the
            device. At 0 this is binary cross-entropy.
        known: True where the label is known, bool, broadcastable to ``logits``. None means everywhere.
        strategy: "reject" gives what is taken out no loss (the paper's LL-R), "correct" that of a positive (LL-Ct). The
            paper's third, LL-Cp, writes the corrected label into the data set, which a loss does not see.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better, 0 where unknown.

    Raises:
        ValueError: If the shapes differ or an option is out of range.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([3.0, 2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])
        >>> large_loss_bce(logits, target, rate=0.3)
        tensor([0.0486, 0.0000, 0.6931, 0.3133])
        >>> large_loss_bce(logits, target, rate=0.3, strategy="correct")
        tensor([0.0486, 0.1269, 0.6931, 0.3133])

    References:
        Kim et al., Large Loss Matters in Weakly Supervised Multi-Label Classification, CVPR 2022.
        https://arxiv.org/abs/2206.03740
    """
    check_shapes(logits, target)
    _check_strategy(strategy)
    if not isinstance(rate, Tensor):
        check_number("rate", rate, at_least=0, at_most=1)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    if known is not None:
        scores, labels = torch.where(known, scores, 0.0), torch.where(known, labels, 0.0)
    large = _large(scores.detach(), labels, known, rate)
    losses = bce_with_logits(scores, torch.where(large, 1.0, labels))
    left_out = large if strategy == "reject" else torch.zeros_like(large)
    return torch.where(left_out if known is None else left_out | ~known, 0.0, losses)


def _large(logits: Tensor, target: Tensor, known: Tensor | None, rate: float | Tensor) -> Tensor:
    """Return where the loss of an assumed negative is among the ``rate`` largest of them."""
    assumed = (target == 0) & ~logits.isnan()
    if known is not None:
        assumed = assumed & known
    wide = sum_dtype(logits)
    share = rate.to(logits.device, wide) if isinstance(rate, Tensor) else logits.new_full((), rate, dtype=wide)
    # 7 epochs of 0.002 in 500 elements are 7.000000000000001, which is no reason to take an eighth.
    count = (share * assumed.sum() * (1 - 4 * torch.finfo(wide).eps)).ceil().long()
    lowest = logits.new_full((1,), -torch.inf)  # what follows the last one, where all are to be taken out
    ranked = torch.where(assumed, logits, lowest).flatten().sort(descending=True).values
    # By `gather`: an index that is a tensor of one number would be read, which waits for the device.
    threshold = torch.cat([ranked, lowest]).gather(0, count.reshape(1))
    return assumed & (logits > threshold.reshape(()))


class LargeLossBCELoss(BinaryLoss):
    r"""Cross-entropy without, or with corrected, the largest losses of negatives. See :func:`large_loss_bce`.

    The share that is taken out grows with the epochs, counted from 0:
    :math:`r = \min(\text{epoch} \cdot \text{rate\_per\_epoch}, \text{max\_rate})`. The epoch comes by
    :meth:`start_epoch`, which :class:`BinaryClassifier` calls, in a resumed run too. Only in training mode is anything
    taken out: in evaluation this is cross-entropy.

    The share is of the negatives that are assumed and valid; the paper's code takes it of all labels of the batch,
    N C. Each rank, and each batch of an accumulation window, ranks its own. Losses are ranked before weights. What is
    left out is 0 and still counts in every mean, as in the paper, and a corrected label stays in :class:`LossSums` on
    the side of the label that came.

    Args:
        strategy: "reject" leaves large losses out, "correct" takes their labels for positives in this batch.
        rate_per_epoch: By how much the share grows in an epoch, above 0 and at most 1. The paper's
            :math:`\Delta_\mathrm{rel}`, chosen there by data set and strategy; the default is ours.
        max_rate: The largest share, above 0 and at most 1. The paper has no such bound and few epochs; the default is
            ours.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> loss = LargeLossBCELoss(rate_per_epoch=0.1, max_rate=0.5)
        >>> logits, target = torch.tensor([3.0, 2.0, 0.0, -1.0]), torch.tensor([1, 0, 0, 0])
        >>> loss(logits, target)
        tensor(0.7955)
        >>> loss.start_epoch(3)
        >>> loss(logits, target)
        tensor(0.2637)
    """

    rate: Tensor

    def __init__(
        self,
        *,
        strategy: Strategy = "reject",
        rate_per_epoch: float = 0.002,
        max_rate: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check_strategy(strategy)
        check_number("rate_per_epoch", rate_per_epoch, above=0, at_most=1)
        check_number("max_rate", max_rate, above=0, at_most=1)
        self.strategy: Strategy = strategy
        self.rate_per_epoch = rate_per_epoch
        self.max_rate = max_rate
        # A tensor: compiled code would be made anew for each value of a number.
        self._constant("rate", 0.0)

    def start_epoch(self, epoch: int) -> None:
        """Set the share of the epoch."""
        self.rate.fill_(min(epoch * self.rate_per_epoch, self.max_rate))

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bce_with_logits`; :meth:`context` finds the large ones."""
        return bce_with_logits(logits, target)

    def context(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the target, and in training what is to be made of the large losses."""
        if not self.training:
            return target, None
        large = _large(logits, target, valid, self.rate)
        # Also what is rejected is relabelled: the loss of a positive is finite there, and 0 times it is 0.
        return torch.where(large, 1.0, target), (~large).to(logits.dtype) if self.strategy == "reject" else None


def _check_strategy(strategy: str) -> None:
    if strategy not in get_args(Strategy):
        raise ValueError(f"`strategy` is {strategy!r}; expected one of {', '.join(get_args(Strategy))}.")
