"""Log loss: the cross-entropy of probabilities in nats, exact from logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_bce.engine import sum_dtype
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.metrics.by_label import Average, Elements, LabelMetric, Reading, averaged, check_average, totals


def binary_log_loss(
    preds: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> Tensor:
    r"""Return the log loss of one label, in nats.

    .. math:: -\frac{1}{\sum_i w_i} \sum_i w_i \left( y_i \log p_i + (1 - y_i) \log(1 - p_i) \right)

    From logits it is exact. Probabilities are kept away from 0 and 1 by the precision of their dtype, as in
    scikit-learn, because an infinite loss says nothing: in float32 no element costs more than 15.9 nats.

    Args:
        preds: Probabilities or logits, any shape, floating point.
        target: Labels in [0, 1], the shape of ``preds``.
        weight: Factors of at least 0, (N,) or the shape of ``preds`` with ones where it repeats.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1], as torchmetrics
            does, which a batch of logits between 0 and 1 deceives.
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        A scalar in float64; NaN if nothing was counted.

    Raises:
        ValueError: If shapes differ, or values are checked and wrong.

    Example:
        >>> import torch
        >>> binary_log_loss(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
        tensor(0.3993, dtype=torch.float64)
        >>> binary_log_loss(torch.tensor([-20.0, 40.0]), torch.tensor([0, 1]), from_logits=True)
        tensor(1.0306e-09, dtype=torch.float64)
    """
    reading = Reading(None, ignore_index, from_logits, validate_args)
    reading.check()
    return _value(_sums(reading, preds, target, weight), "micro")


def multilabel_log_loss(
    preds: Tensor,
    target: Tensor,
    num_labels: int,
    weight: Tensor | None = None,
    *,
    average: Average | None = "macro",
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> Tensor:
    """Return the log loss of several labels, in nats. See :func:`binary_log_loss`.

    Args:
        preds: Probabilities or logits, (N, C, ...), floating point.
        target: Labels in [0, 1], the shape of ``preds``.
        num_labels: C.
        weight: Factors of at least 0, (N,) or the shape of ``preds`` with ones where it repeats.
        average: "macro", the mean over labels that were seen; "micro", over all elements; "weighted", by the number of
            positives of each label; "none" or None, one value for each, NaN where nothing was seen.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        A scalar, or (C,), in float64.

    Raises:
        ValueError: If shapes differ, an option is out of range, or values are checked and wrong.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[0.9, 0.5], [0.5, 0.5]]), torch.tensor([[1, 0], [1, 0]])
        >>> multilabel_log_loss(preds, target, num_labels=2, average="none")
        tensor([0.3993, 0.6931], dtype=torch.float64)
    """
    reading = Reading(num_labels, ignore_index, from_logits, validate_args)
    reading.check()
    average = check_average(average)
    return _value(_sums(reading, preds, target, weight), average)


class _LogLoss(LabelMetric):
    loss_sum: Tensor
    weight_sum: Tensor
    positive_sum: Tensor

    def __init__(self, reading: Reading, average: Average | None, **kwargs: Any) -> None:
        super().__init__(reading, average, **kwargs)
        self._identify("log loss", reading.ignore_index, reading.from_logits)
        wide = torch.float64
        self._add_sums(self.num_labels, loss_sum=wide, weight_sum=wide, positive_sum=wide)

    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch."""
        self._increase(**_sums(self.reading, preds, target, weight))

    def compute(self) -> Tensor:
        """Return the log loss in nats."""
        return _value(self.sums, self.average)


class BinaryLogLoss(_LogLoss):
    """Log loss of one label, in nats. See :func:`binary_log_loss`.

    ``forward`` and ``update`` take predictions, targets and optionally weights; ``compute`` returns a scalar.

    Args:
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = BinaryLogLoss()
        >>> metric.update(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
        >>> metric.compute()
        tensor(0.3993, dtype=torch.float64)
    """

    def __init__(
        self,
        *,
        from_logits: bool | None = None,
        ignore_index: float | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(Reading(None, ignore_index, from_logits, validate_args), "micro", **kwargs)


class MultilabelLogLoss(_LogLoss):
    """Log loss of several labels, in nats. See :func:`multilabel_log_loss`.

    ``forward`` and ``update`` take predictions, targets and optionally weights; ``compute`` returns a scalar, or (C,)
    without an average.

    Args:
        num_labels: C.
        average: "macro", "micro", "weighted" or "none".
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = MultilabelLogLoss(num_labels=2, average="none")
        >>> metric.update(torch.tensor([[0.9, 0.5], [0.5, 0.5]]), torch.tensor([[1, 0], [1, 0]]))
        >>> metric.compute()
        tensor([0.3993, 0.6931], dtype=torch.float64)
    """

    def __init__(
        self,
        num_labels: int,
        average: Average | None = "macro",
        *,
        from_logits: bool | None = None,
        ignore_index: float | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(Reading(num_labels, ignore_index, from_logits, validate_args), average, **kwargs)


def _sums(reading: Reading, preds: Tensor, target: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
    """Return the weighted sums of losses, of weights and of positives, (C,) each."""

    def of_piece(piece: Elements) -> dict[str, Tensor]:
        losses = piece.choose(lambda x: bce_with_logits(x, piece.target), lambda p: _log_losses(p, piece))
        parts = {"loss_sum": losses * piece.weight, "weight_sum": piece.weight}
        parts["positive_sum"] = piece.weight * piece.target
        return {name: part.sum(0, dtype=wide) for name, part in parts.items()}

    wide = sum_dtype(preds)
    nothing = torch.zeros(reading.num_labels or 1, dtype=wide, device=preds.device)
    empty = dict.fromkeys(("loss_sum", "weight_sum", "positive_sum"), nothing)
    return totals((of_piece(piece) for piece in reading.elements(preds, target, weight)), empty)


def _log_losses(probability: Tensor, piece: Elements) -> Tensor:
    p = probability.clamp(piece.smallest, 1 - piece.smallest)
    return -(piece.target * p.log() + (1 - piece.target) * torch.log1p(-p))


def _value(sums: Mapping[str, Tensor], average: Average) -> Tensor:
    loss, weight = sums["loss_sum"], sums["weight_sum"]
    if average == "micro":
        return loss.sum() / weight.sum()
    return averaged(loss / weight, weight, sums["positive_sum"], average)
