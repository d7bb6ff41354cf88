"""Label smoothing: cross-entropy with labels that are not quite sure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_number, check_shapes
from lightning_bce.losses.stable import folded, full_precision

_DEFAULT = 0.1


def smoothed_bce(
    logits: Tensor,
    target: Tensor,
    *,
    smoothing: float | None = None,
    positive_smoothing: float | None = None,
    negative_smoothing: float | None = None,
) -> Tensor:
    r"""Return the binary cross-entropy of each element with a smoothed label.

    .. math:: -y' \log p - (1 - y') \log(1 - p), \quad y' = y (1 - \epsilon_+) + (1 - y) \, \epsilon_-

    ``smoothing`` :math:`\epsilon` takes half of it from each side, :math:`y' = y (1 - \epsilon) + \epsilon / 2`, as in
    Keras; where a library writes the whole amount for each side, that is twice its value here. The separate amounts
    are for labels that are wrong more often on one side, such as negatives that nobody looked at.

    For labels with noise and against logits that grow without end. Not where probabilities must be calibrated: the
    minimum lies at p = y', and not at y. A right and very sure prediction costs again, as much as it is sure.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        smoothing: Amount in [0, 1) for both sides: 1 becomes 1 - ``smoothing`` / 2, 0 becomes ``smoothing`` / 2.
            0.1 if no amount is given. Not together with the other two.
        positive_smoothing: Amount in [0, 1): 1 becomes 1 - ``positive_smoothing``. 0 if only the other is given.
        negative_smoothing: Amount in [0, 1): 0 becomes ``negative_smoothing``. 0 if only the other is given.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, an amount lies outside [0, 1), ``smoothing`` comes with a separate amount, or
            both amounts together reach 1, which would exchange positives and negatives.

    Example:
        >>> import torch
        >>> smoothed_bce(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
        tensor([0.6931, 0.2269])

    References:
        Szegedy et al., Rethinking the Inception Architecture, CVPR 2016. https://arxiv.org/abs/1512.00567
    """
    of_positives, of_negatives = _amounts(smoothing, positive_smoothing, negative_smoothing)
    check_shapes(logits, target)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    # Both weights by themselves: 1 - y' would forget an amount below the last digit of 1.
    positive = labels * (1 - of_positives) + (1 - labels) * of_negatives
    negative = labels * of_positives + (1 - labels) * (1 - of_negatives)
    return folded(scores).cross_entropy(positive, negative)


def _amounts(smoothing: float | None, positive: float | None, negative: float | None) -> tuple[float, float]:
    """Return what positives lose and what negatives gain."""
    given = {"smoothing": smoothing, "positive_smoothing": positive, "negative_smoothing": negative}
    for name, value in given.items():
        if value is not None:
            check_number(name, value, at_least=0, below=1)
    if positive is None and negative is None:
        half = (_DEFAULT if smoothing is None else smoothing) / 2
        return half, half
    if smoothing is not None:
        raise ValueError(
            f"`smoothing` is {smoothing} and smooths both sides; it does not go with `positive_smoothing` or "
            "`negative_smoothing`. Give both of these, or `smoothing` alone."
        )
    amounts = positive or 0.0, negative or 0.0
    if sum(amounts) >= 1:
        raise ValueError(
            f"`positive_smoothing` is {amounts[0]} and `negative_smoothing` {amounts[1]}: their sum must be below 1, "
            "or positives would be less positive than negatives."
        )
    return amounts


class SmoothedBCELoss(BinaryLoss):
    """Binary cross-entropy with smoothed labels. See :func:`smoothed_bce`.

    Args:
        smoothing: Amount in [0, 1) for both sides: 1 becomes 1 - ``smoothing`` / 2, 0 becomes ``smoothing`` / 2.
            0.1 if no amount is given. Not together with the other two.
        positive_smoothing: Amount in [0, 1): 1 becomes 1 - ``positive_smoothing``. 0 if only the other is given.
        negative_smoothing: Amount in [0, 1): 0 becomes ``negative_smoothing``. 0 if only the other is given.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If an amount lies outside [0, 1), ``smoothing`` comes with a separate amount, or both amounts
            together reach 1.

    Example:
        >>> import torch
        >>> SmoothedBCELoss(smoothing=0.1)(torch.tensor([0.0, 2.0]), torch.tensor([1, 1]))
        tensor(0.4600)
    """

    def __init__(
        self,
        *,
        smoothing: float | None = None,
        positive_smoothing: float | None = None,
        negative_smoothing: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _amounts(smoothing, positive_smoothing, negative_smoothing)
        self.smoothing = smoothing
        self.positive_smoothing = positive_smoothing
        self.negative_smoothing = negative_smoothing

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`smoothed_bce`."""
        return smoothed_bce(
            logits,
            target,
            smoothing=self.smoothing,
            positive_smoothing=self.positive_smoothing,
            negative_smoothing=self.negative_smoothing,
        )
