"""AUC margin loss: all pairs of a positive and a negative through three numbers that are learnt beside the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_bce.losses.checks import check_number
from lightning_bce.losses.rows import RowLoss, Rows, known_rows, mean_where
from lightning_bce.losses.stable import folded, residual


def auc_margin_loss(
    logits: Tensor,
    target: Tensor,
    *,
    a: Tensor | None = None,
    b: Tensor | None = None,
    alpha: Tensor | None = None,
    margin: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the AUC margin loss of each row, the value of a saddle.

    .. math::
        \min_{a, b} \max_{\alpha \ge 0}\; E_+[(p - a)^2] + E_-[(p - b)^2]
        + 2 \alpha \big(m + E_-[p] - E_+[p]\big) - \alpha^2

    with p = :math:`\sigma(x)` and means over the positives and the negatives of the row. Where the three variables are
    left out they stand at their optimum for the row: a and b are the means, :math:`\alpha = \max(0, m + b - a)`, and
    for a margin of at least 1 the loss is the mean of :math:`(m - p_i + p_j)^2` over all pairs of a positive i and a
    negative j, at the cost of E elements and not of E * E. Given, they are variables with gradients of their own, and
    the loss may be negative: it is above that mean as far as a and b are off, below as far as alpha is.

    For ranking by one label over the data, judged by the AUC, when positives are rare. At a margin of at most 1 the
    minimum is 0, where all positives have one probability and all negatives another, at least the margin below. Not
    where probabilities or a fixed threshold are needed, and not for a model that is far from any order: p is flat where
    the sigmoid is. The authors first train with cross-entropy.

    The means are those of the second paper. The first weighs by the frequencies of the sides, which scales the loss.
    ``alpha`` is the paper's too and weighs no side here.

    Args:
        logits: Scores before the sigmoid, (..., E), a row in the last dimension; for a row of each label of (N, C)
            pass ``logits.T``.
        target: Labels, the shape of ``logits``; positive above one half.
        a: The positives' mean probability, one number or one for each row. None is its optimum.
        b: The negatives' mean probability, likewise.
        alpha: By how much the margin is missed, at least 0, likewise. Values are not checked.
        margin: By how much the positives' mean has to be above the negatives', above 0; beyond 1 it is out of reach.
        mask: True where the label is known, the shape of ``logits``. None means everywhere.

    Returns:
        Losses, (...,), in float32 or better; 0 for a row that does not count, as it has one side only.

    Raises:
        ValueError: If the shapes differ or ``margin`` is not above 0.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[1, 0, 0]])
        >>> auc_margin_loss(logits, target)
        tensor([0.2670])
        >>> zero = torch.zeros(1)
        >>> auc_margin_loss(logits, target, a=zero, b=zero, alpha=zero)
        tensor([0.9370])

    References:
        Ying et al., Stochastic Online AUC Maximization, NeurIPS 2016.
        https://papers.nips.cc/paper/6065-stochastic-online-auc-maximization. Yuan et al., Large-scale Robust Deep AUC
        Maximization, ICCV 2021. https://arxiv.org/abs/2012.03173
    """
    losses, _, counts = _rows(logits, target, mask, a, b, alpha, margin)
    return torch.where(counts, losses, 0.0)


class AUCMarginLoss(RowLoss):
    r"""AUC margin loss of each label over the batch, with its variables. See :func:`auc_margin_loss`.

    ``a``, ``b`` and ``alpha``, (C,), are parameters that any optimizer of torch trains with the model: a step that
    descends takes ``alpha`` uphill, as its gradient is reversed. They are in checkpoints, and stay in float32 when the
    module is cast to half precision.

    They start at 0.5, 0.5 and ``margin``, their optimum at logits of 0, where the loss is ``margin`` squared. From 0
    all scores fall first, and under a common learning rate the ranking is worse than chance for hundreds of steps. A
    weight decay draws them to 0: give them a group of their own where it is strong.

    The loss is of the variables as they are, and not of the batch alone: it may rise, or be negative, while the ranking
    gets better. Choose epochs by ``val_AUROC``. Below 0, where momentum may take it, ``alpha`` counts as 0; its own
    gradient is that of its parabola everywhere, so that it stays near and comes back.

    A label counts that has both sides in the batch; another's variables get gradients of 0. Soft targets are refused.

    Args:
        num_labels: The number of labels C, each with variables of its own.
        margin: By how much the positives' mean probability has to be above the negatives', above 0.
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``class_weight``, ``validate``: see
            :class:`RowLoss`.

    Raises:
        ValueError: If an option is out of range or would have no effect, or if the output has not ``num_labels``.
        TypeError: If ``num_labels`` is no integer.

    Example:
        >>> import torch
        >>> loss = AUCMarginLoss()
        >>> optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
        >>> loss(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1, 0, 0])).backward()
        >>> optimizer.step()
        >>> loss.a.item() > 0.5, loss.b.item() < 0.5, loss.alpha.item() < 1
        (True, True, True)
    """

    rows: Rows = "label"
    hard_targets: ClassVar[bool] = True

    def __init__(self, *, num_labels: int = 1, margin: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        if isinstance(num_labels, bool) or not isinstance(num_labels, int):
            raise TypeError(f"`num_labels` is {num_labels!r}; an integer of at least 1 was expected.")
        if num_labels < 1:
            raise ValueError(f"`num_labels` is {num_labels}; at least 1 was expected.")
        check_number("margin", margin, above=0)
        self.num_labels = num_labels
        self.margin = margin
        # Of float32 whatever the default is: a trainer in bfloat16 changes it while modules are made.
        self.a = nn.Parameter(torch.full((num_labels,), 0.5, dtype=torch.float32))
        self.b = nn.Parameter(torch.full((num_labels,), 0.5, dtype=torch.float32))
        self.alpha = nn.Parameter(torch.full((num_labels,), float(margin), dtype=torch.float32))

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return :func:`auc_margin_loss` at the variables; rows count that have both sides."""
        if len(logits) != self.num_labels:
            raise ValueError(
                f"The output has {len(logits)} label(s) and this AUCMarginLoss variables for {self.num_labels}. Make "
                f"it with `num_labels={len(logits)}`."
            )
        held = self.alpha.detach().clamp(min=0)
        losses, missed, counts = _rows(logits, target, valid, self.a, self.b, held, self.margin)
        # The value has `held`, and gives alpha no gradient. Its own, reversed, is that of the parabola that `held`
        # is on: through the clamp it would be 0 below 0, and alpha would never come back.
        alpha = self.alpha.to(losses.dtype)
        climb = -alpha * (2 * missed.detach() - alpha)
        return losses + (climb - climb.detach()), counts

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A step of 1e-3 would round to nothing on a bfloat16 of 0.5. Of their gradients too, which go with them.
        def keeping(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.is_floating_point() and moved.dtype.itemsize < 4 <= tensor.dtype.itemsize
            return tensor.to(moved.device) if narrowed else moved

        return super()._apply(keeping, recurse)


def _rows(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    alpha: Tensor | None,
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of each row, by how much it misses the margin, and which rows count."""
    check_number("margin", margin, above=0)
    scores, labels, valid = known_rows(logits, target, mask)
    for name, variable in (("a", a), ("b", b), ("alpha", alpha)):
        if variable is not None and variable.ndim and variable.shape != scores.shape[:-1]:
            raise ValueError(
                f"`{name}` has shape {tuple(variable.shape)} and there are rows of shape {tuple(scores.shape[:-1])}; "
                "one number, or one for each row, was expected."
            )
    positive, negative = valid & (labels > 0.5), valid & (labels <= 0.5)
    # By what is missing on either side and not by p: where all is well these are small and keep their digits.
    pieces = folded(scores)
    misses, alarms = pieces.q, pieces.p
    missing, alarming = mean_where(positive, misses), mean_where(negative, alarms)
    missed = (margin - 1) + missing + alarming
    from_a = misses - missing[..., None] if a is None else residual(scores, a.to(scores.dtype)[..., None])
    from_b = alarms - alarming[..., None] if b is None else residual(scores, b.to(scores.dtype)[..., None])
    alpha = F.relu(missed) if alpha is None else alpha.to(scores.dtype)
    spread = mean_where(positive, from_a.square()) + mean_where(negative, from_b.square())
    return spread + alpha * (2 * missed - alpha), missed, positive.any(-1) & negative.any(-1)
