"""The three losses of the article this project began with, on probabilities.

They differ from every other loss here, on purpose and in three ways: they take **probabilities**, add ``eps`` inside
their logarithms, and their ``alpha`` weighs the **negatives** while the positives get 1 - ``alpha``. For new work the
losses on logits are more exact: an ``eps`` silences the gradient of a confident mistake, and a probability that has
been rounded to 1 has forgotten how sure it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import Factor, check_number, check_shapes, check_unit
from lightning_bce.losses.stable import by_target, full_precision

_LOG_FLOOR = -100.0


def bce(probabilities: Tensor, target: Tensor) -> Tensor:
    r"""Return the binary cross-entropy of each probability, as :class:`torch.nn.BCELoss` does.

    .. math:: \mathrm{BCE} = -t \ln p - (1 - t) \ln(1 - p)

    Args:
        probabilities: Values in [0, 1], any shape, floating point.
        target: Labels in [0, 1], the shape of ``probabilities``.

    Returns:
        Losses in nats, the shape of ``probabilities``, in float32 or better. A logarithm is at least -100, so that a
        loss is at most 100; where it is held there the gradient is 0.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> bce(torch.tensor([0.5, 0.9]), torch.tensor([1.0, 1.0]))
        tensor([0.6931, 0.1054])

    References:
        Good, Rational Decisions, Journal of the Royal Statistical Society B, 1952.
    """
    check_shapes(probabilities, target)
    p = full_precision(probabilities)
    return by_target(target.to(p.dtype), -_floored_log(p), -_floored_log1p(-p))


def _floored_log(p: Tensor) -> Tensor:
    # Twice `where`: behind a single one the infinite slope at 0 would come back as 0 * inf.
    return torch.where(p == 0, _LOG_FLOOR, torch.where(p == 0, 1.0, p).log()).clamp(min=_LOG_FLOOR)


def _floored_log1p(z: Tensor) -> Tensor:
    return torch.where(z == -1, _LOG_FLOOR, torch.where(z == -1, 0.0, z).log1p()).clamp(min=_LOG_FLOOR)


def weighted_bce(probabilities: Tensor, target: Tensor, *, alpha: float = 0.25, eps: float = 1e-5) -> Tensor:
    r"""Return the article's weighted binary cross-entropy of each probability.

    .. math:: -(1 - \alpha) t \ln(p + \epsilon) - \alpha (1 - t) \ln(1 - p + \epsilon)

    Args:
        probabilities: Values in [0, 1], any shape, floating point.
        target: Labels in [0, 1], the shape of ``probabilities``.
        alpha: Weight of the **negatives** in [0, 1]; the positives get 1 - ``alpha``.
        eps: Added inside the logarithms, at least 0. A perfect prediction scores about -``eps`` times its weight, and
            no loss exceeds -ln(``eps``) = 11.5 times its weight.

    Returns:
        Losses in nats, the shape of ``probabilities``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, ``alpha`` lies outside [0, 1] or ``eps`` is negative.

    Example:
        >>> import torch
        >>> weighted_bce(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        tensor([0.5198, 0.1733])
    """
    check_unit("alpha", alpha)
    check_number("eps", eps, at_least=0)
    check_shapes(probabilities, target)
    p = full_precision(probabilities)
    return by_target(target.to(p.dtype), -(1 - alpha) * (p + eps).log(), -alpha * (1 - p + eps).log())


def bce_focal(
    probabilities: Tensor, target: Tensor, *, gamma: float = 2.0, alpha: float = 0.25, eps: float = 1e-5
) -> Tensor:
    r"""Return the article's focal loss of each probability.

    .. math:: -(1 - \alpha)(1 - p + \epsilon)^\gamma t \ln(p + \epsilon)
              - \alpha (p + \epsilon)^\gamma (1 - t) \ln(1 - p + \epsilon)

    Args:
        probabilities: Values in [0, 1], any shape, floating point.
        target: Labels in [0, 1], the shape of ``probabilities``.
        gamma: Focus, at least 0. At 0 this is :func:`weighted_bce`.
        alpha: Weight of the **negatives** in [0, 1]; the positives get 1 - ``alpha``.
        eps: Added inside logarithms and powers, at least 0.

    Returns:
        Losses in nats, the shape of ``probabilities``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, ``gamma`` or ``eps`` is negative or ``alpha`` lies outside [0, 1].

    Example:
        >>> import torch
        >>> bce_focal(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        tensor([0.1300, 0.0433])

    References:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017. https://arxiv.org/abs/1708.02002
    """
    check_unit("alpha", alpha)
    check_number("gamma", gamma, at_least=0)
    check_number("eps", eps, at_least=0)
    check_shapes(probabilities, target)
    p = full_precision(probabilities)
    positive = -(1 - alpha) * (1 - p + eps) ** gamma * (p + eps).log()
    negative = -alpha * (p + eps) ** gamma * (1 - p + eps).log()
    return by_target(target.to(p.dtype), positive, negative)


class BCELoss(BinaryLoss):
    """Binary cross-entropy on probabilities, a drop-in for :class:`torch.nn.BCELoss`. See :func:`bce`.

    Args:
        weight: Factor of each element, broadcast to the output from the last dimension.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If a weight is negative or not finite.

    Example:
        >>> import torch
        >>> BCELoss()(torch.tensor([0.5, 0.9]), torch.tensor([1, 1]))
        tensor(0.3993)
    """

    input_space = "probabilities"
    weight: Tensor | None

    def __init__(self, weight: Factor | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._constant("weight", weight)

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bce`; ``logits`` are probabilities here."""
        return bce(logits, target)


class WeightedBCELoss(BinaryLoss):
    """The article's weighted binary cross-entropy on probabilities. See :func:`weighted_bce`.

    Args:
        alpha: Weight of the **negatives** in [0, 1]; the positives get 1 - ``alpha``.
        eps: Added inside the logarithms, at least 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``alpha`` lies outside [0, 1] or ``eps`` is negative.

    Example:
        >>> import torch
        >>> WeightedBCELoss()(torch.tensor([0.5, 0.5]), torch.tensor([1, 0]))
        tensor(0.3466)
    """

    input_space = "probabilities"

    def __init__(self, *, alpha: float = 0.25, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(**options)
        check_unit("alpha", alpha)
        check_number("eps", eps, at_least=0)
        self.alpha = alpha
        self.eps = eps

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`weighted_bce`; ``logits`` are probabilities here."""
        return weighted_bce(logits, target, alpha=self.alpha, eps=self.eps)


class BCEFocalLoss(BinaryLoss):
    """The article's focal loss on probabilities. See :func:`bce_focal`.

    Args:
        gamma: Focus, at least 0. At 0 this is :class:`WeightedBCELoss`.
        alpha: Weight of the **negatives** in [0, 1]; the positives get 1 - ``alpha``.
        eps: Added inside logarithms and powers, at least 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If ``gamma`` or ``eps`` is negative or ``alpha`` lies outside [0, 1].

    Example:
        >>> import torch
        >>> BCEFocalLoss()(torch.tensor([0.5, 0.5]), torch.tensor([1, 0]))
        tensor(0.0866)
    """

    input_space = "probabilities"

    def __init__(self, *, gamma: float = 2.0, alpha: float = 0.25, eps: float = 1e-5, **options: Any) -> None:
        super().__init__(**options)
        check_number("gamma", gamma, at_least=0)
        check_unit("alpha", alpha)
        check_number("eps", eps, at_least=0)
        self.gamma = gamma
        self.alpha = alpha
        self.eps = eps

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bce_focal`; ``logits`` are probabilities here."""
        return bce_focal(logits, target, gamma=self.gamma, alpha=self.alpha, eps=self.eps)
