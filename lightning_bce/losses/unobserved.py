"""Cross-entropy where most labels were never looked at, as with one known positive for each image."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import full_precision, softplus

Strategy = Literal["negative", "weak", "entropy"]


def unobserved_bce(
    logits: Tensor,
    target: Tensor,
    *,
    unobserved: float = -1.0,
    strategy: Strategy = "negative",
    strength: float | None = None,
) -> Tensor:
    r"""Return cross-entropy where a label was observed, and the loss of the strategy where it was not.

    .. math:: \ell_{\mathrm{negative}} = -\log(1 - p), \quad \ell_{\mathrm{weak}} = -w \log(1 - p), \quad
              \ell_{\mathrm{entropy}} = -w H(p)

    For data of which only (some) positives are written down. Where negatives are written down too and gaps mean
    nothing, ``ignore_index`` loses less. With a share c of the samples marked positive and none negative, the
    minimisers are p* = c, p* = c / (c + w (1 - c)), and x* with x* p* = c / (w (1 - c)): "negative" puts every
    probability too low, "weak" less so, and "entropy" puts none below one half. They rank, and need a threshold of
    their own.

    Args:
        logits: Scores before the sigmoid, (N,), (N, C) or (N, C, ...), floating point.
        target: Labels in [0, 1], or ``unobserved``, the shape of ``logits``.
        unobserved: What marks an unobserved label: a whole number below 0, or NaN.
        strategy: "negative" takes it for a negative, "weak" for one of less weight. "entropy" prefers not to know: it
            rewards a probability of one half, by a loss below 0, and lets go of the model where it is sure.
        strength: The w above, at least 0. None is 1 / (C - 1) for "weak", so that all unobserved labels of a sample
            weigh as much as its one positive, and 0.1 for "entropy"; the paper takes 0.01 to 0.2 by data set.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, an option is out of range or has no effect, or "weak" has to find its strength
            with a single label.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 3), torch.tensor([[1, -1, -1]])
        >>> unobserved_bce(logits, target, strategy="weak")
        tensor([[0.6931, 0.3466, 0.3466]])

    References:
        Cole et al., Multi-Label Learning from Single Positive Labels, CVPR 2021. https://arxiv.org/abs/2106.09708
        Zhou et al., Acknowledging the Unknown for Multi-label Learning with Single Positive Labels, ECCV 2022.
        https://arxiv.org/abs/2203.16219
    """
    check_shapes(logits, target)
    _check_options(unobserved, strategy, strength)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    hidden = is_unobserved(labels, unobserved)
    losses = bce_with_logits(scores, torch.where(hidden, 0.0, labels))
    if strategy == "negative":
        return losses
    if strategy == "weak":
        factor = _weak_strength(logits) if strength is None else strength
        return torch.where(hidden, factor * losses, losses)
    return torch.where(hidden, -(0.1 if strength is None else strength) * entropy(scores), losses)


def entropy(logits: Tensor) -> Tensor:
    r"""Return :math:`H(p) = -p \log p - (1 - p) \log(1 - p)` in nats, exact for small p and 1 - p, 0 at infinity."""
    at_end = logits.isinf()
    scores = torch.where(at_end, 0.0, logits)
    # Two terms of one sign. As softplus(x) - x p they would cancel for a sure positive.
    inner = torch.sigmoid(scores) * softplus(-scores) + torch.sigmoid(-scores) * softplus(scores)
    return torch.where(at_end, 0.0, inner)


def is_unobserved(target: Tensor, unobserved: float) -> Tensor:
    """Return where a floating-point ``target`` holds the mark."""
    return torch.isnan(target) if math.isnan(unobserved) else target == unobserved


class UnobservedBCELoss(BinaryLoss):
    """Cross-entropy with a loss for unobserved labels. See :func:`unobserved_bce`.

    Unobserved is not ignored: an unobserved label has a loss, counts in every mean, and is a negative in ``sums``. What
    ``ignore_index`` or the mask marks still counts nowhere, for padding and for labels that say nothing. Metrics see
    neither: they count observed labels.

    Args:
        unobserved: What marks an unobserved label in the target: a whole number below 0, or NaN.
        strategy: "negative", "weak" or "entropy".
        strength: Weight of the strategy, at least 0. None is 1 / (C - 1) for "weak" and 0.1 for "entropy".
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If an option is out of range or has no effect, or both marks are the same.

    Example:
        >>> import torch
        >>> UnobservedBCELoss(strategy="weak")(torch.zeros(1, 3), torch.tensor([[1, -1, -1]]))
        tensor(0.4621)
    """

    def __init__(
        self,
        *,
        unobserved: float = -1.0,
        strategy: Strategy = "negative",
        strength: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check_options(unobserved, strategy, strength)
        ignored = self.ignore_index
        if ignored is not None and (ignored == unobserved or (math.isnan(ignored) and math.isnan(unobserved))):
            raise ValueError(
                f"`ignore_index` and `unobserved` are both {ignored}: what is ignored has no loss, so that `strategy` "
                "would have no effect. Leave out `ignore_index`."
            )
        self.unobserved = unobserved
        self.strategy: Strategy = strategy
        self.strength = strength

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`unobserved_bce`."""
        return unobserved_bce(
            logits, target, unobserved=self.unobserved, strategy=self.strategy, strength=self.strength
        )

    def observed(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return where the target holds a label: neither ignored nor unobserved."""
        valid, observed = self.valid(logits, target, mask), ~self._hidden(target)
        return observed if valid is None else valid & observed

    def _alike(self) -> bool:
        return super()._alike() and not (self.strategy == "weak" and self.strength is None)  # which counts the labels

    def _refuse_values(self, logits: Tensor, target: Tensor, weight: Tensor | None, valid: Tensor | None) -> None:
        # The mark is no label, and none of what is refused.
        super()._refuse_values(logits, target.masked_fill(self._hidden(target), 0), weight, valid)

    def _hidden(self, target: Tensor) -> Tensor:
        # In uint8, torch would compare the mark with its remainder.
        return is_unobserved(target if target.is_floating_point() else target.float(), self.unobserved)


def _check_options(unobserved: float, strategy: str, strength: float | None) -> None:
    if isinstance(unobserved, bool) or not isinstance(unobserved, (int, float)):
        raise TypeError(f"`unobserved` is {unobserved!r}; a whole number below 0, or NaN, was expected.")
    whole = math.isfinite(unobserved) and unobserved == int(unobserved) and -1024 <= unobserved < 0
    if not whole and not math.isnan(unobserved):
        raise ValueError(
            f"`unobserved` is {unobserved}; a whole number from -1024 to -1, which every dtype of targets holds "
            "exactly, or NaN, was expected. Use `target.masked_fill(hidden, -1)`."
        )
    if strategy not in get_args(Strategy):
        raise ValueError(f"`strategy` is {strategy!r}; expected one of {', '.join(get_args(Strategy))}.")
    if strength is None:
        return
    if strategy == "negative":
        raise ValueError(
            f"`strength` is {strength}, which has no effect on the strategy 'negative'. Use 'weak' or 'entropy'."
        )
    check_number("strength", strength, at_least=0)


def _weak_strength(logits: Tensor) -> float:
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"The output has shape {tuple(logits.shape)} and a single label, for which 1 / (C - 1) is no weight: give "
            "the `strength` of an unobserved label."
        )
    return 1 / (logits.shape[1] - 1)
