"""Margin cross-entropy: rare labels have to be right by more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import Factor, check_number, check_shapes
from lightning_bce.losses.class_counts import check_counts
from lightning_bce.losses.count_rules import Rule, is_rule, positives_rule
from lightning_bce.losses.shapes import per_label
from lightning_bce.losses.stable import full_precision

if TYPE_CHECKING:
    from lightning_bce.losses.label_counts import LabelCounts


def margin_bce(
    logits: Tensor, target: Tensor, *, counts: Factor, max_margin: float = 0.5, scale: float = 1.0
) -> Tensor:
    r"""Return the cross-entropy of logits from which positives had a margin taken off.

    .. math:: \mathrm{BCE}(s (x - y \Delta_c), y), \quad \Delta_c = \Delta_{\max} (n_c / \min_k n_k)^{-1/4}

    The rarest label gets ``max_margin``, one with 16 times its positives half of that. For rare labels whose positives
    are learnt by heart; not where probabilities are wanted. With P(y = 1) = q and scale 1 the minimiser lies above
    logit(q), by half the margin at q = 1/2. For a single soft label it is logit(y) / s + y times the margin.

    Departs from the paper, which is for a softmax over normalised features and takes a scale of 30: here the scale is
    1, because logits have one already.

    Args:
        logits: Scores before the sigmoid, (N,), (N, C) or (N, C, ...), floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        counts: Positives of each label (dimension 1), at least 0; below 1/2 they count as 1/2. One number gives all
            labels the largest margin. The values of a tensor are not checked here, which would wait for the device.
        max_margin: Margin of the rarest label, in units of the logit, at least 0. At 0, with scale 1, this is binary
            cross-entropy.
        scale: Factor of the logit, above 0. It scales the gradient too.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, the number of counts is wrong, one is negative, or an option is out of range.

    Example:
        >>> import torch
        >>> margin_bce(torch.zeros(1, 2), torch.ones(1, 2), counts=[10, 160], max_margin=1.0)
        tensor([[1.3133, 0.9741]])

    References:
        Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019.
        https://arxiv.org/abs/1906.07413
    """
    check_number("max_margin", max_margin, at_least=0)
    _check_scale(scale)
    if not isinstance(counts, Tensor):
        _check_label_counts(counts)
        counts = torch.as_tensor(counts, dtype=torch.float64)
    return _with_margins(logits, target, counts, counts.min(), max_margin, scale)


def _with_margins(
    logits: Tensor, target: Tensor, counts: Tensor, rarest: Tensor, max_margin: float, scale: float
) -> Tensor:
    check_shapes(logits, target)
    seen, least = (full_precision(t if t.is_floating_point() else t.float()).clamp(min=0.5) for t in (counts, rarest))
    # Through the ratio: the same for all labels, however small their counts.
    margin = max_margin * (seen / least) ** -0.25
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    return bce_with_logits(scale * (scores - labels * per_label("counts", margin, logits).to(scores)), labels)


class MarginBCELoss(BinaryLoss):
    """Margin cross-entropy. See :func:`margin_bce`.

    Args:
        counts: Positives of each label, at least 0, or one number for all; "auto" counts the training data.
        max_margin: Margin of the rarest label, at least 0.
        scale: Factor of the logit, above 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If a count or ``max_margin`` is negative, or ``scale`` not above 0.

    Example:
        >>> import torch
        >>> MarginBCELoss(counts=[10, 160], max_margin=1.0)(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor(1.0032)
    """

    counts: Tensor
    rarest: Tensor

    def __init__(self, *, counts: Factor | Rule, max_margin: float = 0.5, scale: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        check_number("max_margin", max_margin, at_least=0)
        _check_scale(scale)
        if not is_rule(counts):
            _check_label_counts(counts)  # type: ignore[arg-type]
        self._constant("counts", counts, positives_rule)
        # A head cuts the counts with its labels, and the rarest of all stays the rarest.
        self.register_buffer("rarest", self.counts.min(), persistent=False)
        self.max_margin = max_margin
        self.scale = scale

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`margin_bce`."""
        return _with_margins(logits, target, self.counts, self.rarest, self.max_margin, self.scale)

    def _take(self, name: str, value: Any, counts: LabelCounts) -> None:
        super()._take(name, value, counts)
        self.rarest = self.counts.min()


def _check_scale(scale: float) -> None:
    check_number("scale", scale, at_least=0)
    if scale == 0:
        raise ValueError("`scale` is 0, at which nothing is learnt; it must be above 0.")


def _check_label_counts(counts: Factor) -> None:
    values = check_counts("counts", counts)
    if values.ndim > 1 or values.numel() == 0:
        raise ValueError(f"`counts` has shape {tuple(values.shape)}; one number, or one for each label, was expected.")
