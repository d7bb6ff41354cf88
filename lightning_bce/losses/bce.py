"""Binary cross-entropy on logits: the proper score that every other loss is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import Factor, check_shapes
from lightning_bce.losses.count_rules import Rule, pos_weight_rule
from lightning_bce.losses.shapes import check_constant, per_label
from lightning_bce.losses.stable import first_order, folded, full_precision

if TYPE_CHECKING:
    from lightning_bce.losses.label_counts import LabelCounts


def bce_with_logits(logits: Tensor, target: Tensor, *, pos_weight: Tensor | None = None) -> Tensor:
    r"""Return the binary cross-entropy of each element.

    .. math:: \mathrm{BCE} = -w_+ y \log \sigma(x) - (1 - y) \log(1 - \sigma(x))

    Exact on both sides. torch's float32 kernel subtracts on the negative side, so that it returns 0 at logit -20 and
    target 0, where the value is 2.06e-9.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        pos_weight: Factor of the positive term, at least 0, broadcast to ``logits`` from the last dimension.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, or ``pos_weight`` would enlarge the result.

    Example:
        >>> import torch
        >>> bce_with_logits(torch.tensor([0.0, -20.0]), torch.tensor([1.0, 0.0]))
        tensor([6.9315e-01, 2.0612e-09])

    References:
        Good, Rational Decisions, Journal of the Royal Statistical Society B, 1952.
    """
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    if pos_weight is None:
        return folded(scores).cross_entropy_of(labels)
    check_constant("pos_weight", pos_weight, logits)
    return folded(scores).cross_entropy(pos_weight.to(scores.dtype) * labels, 1 - labels)


class BCEWithLogitsLoss(BinaryLoss):
    r"""Binary cross-entropy, a drop-in for :class:`torch.nn.BCEWithLogitsLoss`. See :func:`bce_with_logits`.

    Departs from torch in three places: it is exact for sure and right negatives, takes targets of any real dtype, and
    the mean of an empty batch is 0 and not NaN. Its factors are not in the ``state_dict``.

    Args:
        weight: Factor of each element, broadcast to the output from the last dimension. As in torch it scales the loss
            and leaves the denominator of "mean" alone; "weighted_mean" divides by its sum.
        pos_weight: Factor of the positive term, at least 0, one number or one for each label of (N, C). "auto" or a
            rule of :func:`pos_weight_rule` computes it from the training data: "ratio", "sqrt", "effective_number", or
            ``{"rule": "ratio", "power": 0.5, "cap": 20}``. The probabilities are then no longer calibrated.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If a factor is negative or not finite.

    Example:
        >>> import torch
        >>> BCEWithLogitsLoss(pos_weight=3.0)(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
        tensor(1.3863)
    """

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Factor | None = None,
        *,
        pos_weight: Factor | Rule | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._constant("weight", weight)
        self._constant("pos_weight", pos_weight, pos_weight_rule)

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bce_with_logits`."""
        return bce_with_logits(logits, target, pos_weight=self.pos_weight)

    def negatives(self, logits: Tensor) -> Tensor:
        """Return the cross-entropy of a negative, on which ``pos_weight`` has no say."""
        return first_order(full_precision(logits)).softplus

    @property
    def log_odds_shift(self) -> Tensor | None:
        """The logarithm of ``pos_weight``, by label; 0 without."""
        if self.pos_weight is None:
            return torch.zeros(())
        weight = self.pos_weight
        return (weight.reshape(()) if weight.numel() == 1 else weight.flatten()).clamp(min=1e-6).log()

    def _take(self, name: str, value: Any, counts: LabelCounts) -> None:
        super()._take(name, value, counts)
        if name == "pos_weight" and isinstance(value, list):  # (C, 1, 1) for (N, C, H, W), as in torch
            weight = self._buffers[name]
            assert weight is not None
            self._buffers[name] = weight.reshape(-1, *[1] * counts.positions)

    def _blockwise(self, logits: Tensor, target: Tensor) -> Tensor:
        # One for each label, in whatever shape it broadcasts to the batch: `_reason_against_blocks` has seen to that.
        weight = self.pos_weight
        if weight is not None:
            weight = per_label("pos_weight", weight.reshape(-1) if weight.numel() > 1 else weight.reshape(()), logits)
        return bce_with_logits(logits, target, pos_weight=weight)

    def _reason_against_blocks(self, logits: Tensor) -> str | None:
        weight = self.pos_weight
        if weight is not None and weight.numel() > 1:
            check_constant("pos_weight", weight, logits)
            if logits.ndim < 2 or weight.shape != logits.shape[1:2] + (1,) * (logits.ndim - 2):
                return f"`pos_weight` has shape {tuple(weight.shape)}, and a kernel takes one for each label"
        return super()._reason_against_blocks(logits)

    @property
    def is_log_loss(self) -> bool:
        """Whether this is the plain, unweighted cross-entropy, which is the log-loss in nats."""
        return (
            self.weight is None and self.pos_weight is None and self.class_weight is None and self.reduction == "mean"
        )
