"""Brier score: the squared error of probabilities, and its parts: reliability, resolution, uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import sum_dtype
from lightning_bce.losses.checks import check_whole
from lightning_bce.losses.stable import residual
from lightning_bce.metrics.by_label import Average, Elements, LabelMetric, Reading, averaged, check_average, totals

_STATES = ("error_sum", "weight_sum", "target_sum", "target_square", "probability_sum", "probability_square", "product")


class BrierParts(NamedTuple):
    r"""The Brier score and what it is made of: score = reliability - resolution + uncertainty + variance - covariance.

    Args:
        score: The Brier score.
        reliability: How far the probabilities of a bin are from what happened; lower is better.
        resolution: How far what happened in a bin is from what happens on average; higher is better.
        uncertainty: The variance of the labels: the score of always predicting their mean.
        within_variance: Of the probabilities within the bins; 0 if all of a bin are equal.
        within_covariance: Twice the covariance of probabilities and labels within the bins; 0 likewise. The resolution
            that bins hide is about this minus the variance.
    """

    score: Tensor
    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor
    within_variance: Tensor
    within_covariance: Tensor


def binary_brier_score(
    preds: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> Tensor:
    r"""Return the Brier score of one label, :math:`\sum_i w_i (p_i - y_i)^2 / \sum_i w_i`, in [0, 1].

    Args:
        preds: Probabilities or logits, any shape, floating point. From logits the score is exact also where it is tiny.
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
        >>> binary_brier_score(torch.tensor([0.9, 0.5]), torch.tensor([1, 0]))
        tensor(0.1300, dtype=torch.float64)

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 78, 1950.
    """
    return _score(
        _checked_sums(Reading(None, ignore_index, from_logits, validate_args), preds, target, weight), "micro"
    )


def multilabel_brier_score(
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
    """Return the Brier score of several labels. See :func:`binary_brier_score`.

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
        >>> multilabel_brier_score(preds, target, num_labels=2, average="none")
        tensor([0.1300, 0.2500], dtype=torch.float64)
    """
    average = check_average(average)
    reading = Reading(num_labels, ignore_index, from_logits, validate_args)
    return _score(_checked_sums(reading, preds, target, weight), average)


def binary_brier_decomposition(
    preds: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    n_bins: int = 15,
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> BrierParts:
    r"""Return the Brier score of one label and its parts.

    With :math:`\bar p_k` and :math:`\bar y_k` the means and :math:`w_k` the weight of bin k, W of all, it is

    .. math::
        \mathrm{BS} =
        \underbrace{\tfrac1W \sum_k w_k (\bar p_k - \bar y_k)^2}_\text{reliability}
        - \underbrace{\tfrac1W \sum_k w_k (\bar y_k - \bar y)^2}_\text{resolution}
        + \underbrace{\overline{y^2} - \bar y^2}_\text{uncertainty}
        + \underbrace{\tfrac1W \sum_{ki} w_{ki} (p_{ki} - \bar p_k)^2}_\text{variance}
        - \underbrace{\tfrac2W \sum_{ki} w_{ki} (y_{ki} - \bar y_k)(p_{ki} - \bar p_k)}_\text{covariance}

    The first three are Murphy's, who has one bin for each probability. With wider bins they do not add up to the score;
    the last two, which Stephenson and others added, are what is missing. The uncertainty of hard labels is
    :math:`\bar y (1 - \bar y)`.

    Args:
        preds: As :func:`binary_brier_score` takes them.
        target: Labels in [0, 1], the shape of ``preds``.
        weight: Factors of at least 0, (N,) or the shape of ``preds`` with ones where it repeats.
        n_bins: Uniform bins of the probability, which hold their lower edge, the last one both.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        Scalars in float64.

    Raises:
        ValueError: If shapes differ, an option is out of range, or values are checked and wrong.

    Example:
        >>> import torch
        >>> parts = binary_brier_decomposition(torch.tensor([0.9, 0.9, 0.1, 0.1]), torch.tensor([1, 1, 1, 0]))
        >>> {name: round(part.item(), 4) for name, part in parts._asdict().items() if not name.startswith("within")}
        {'score': 0.21, 'reliability': 0.085, 'resolution': 0.0625, 'uncertainty': 0.1875}

    References:
        Murphy, A New Vector Partition of the Probability Score, Journal of Applied Meteorology 12, 1973.
        Stephenson, Coelho, Jolliffe, Two Extra Components in the Brier Score Decomposition, Weather and Forecasting 23,
        2008.
    """
    check_whole("n_bins", n_bins, at_least=1)
    reading = Reading(None, ignore_index, from_logits, validate_args)
    return _parts(_checked_sums(reading, preds, target, weight, n_bins), "micro")


def multilabel_brier_decomposition(
    preds: Tensor,
    target: Tensor,
    num_labels: int,
    weight: Tensor | None = None,
    *,
    average: Average | None = "macro",
    n_bins: int = 15,
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> BrierParts:
    """Return the Brier score of several labels and its parts. See :func:`binary_brier_decomposition`.

    Args:
        preds: As :func:`multilabel_brier_score` takes them.
        target: Labels in [0, 1], the shape of ``preds``.
        num_labels: C.
        weight: Factors of at least 0, (N,) or the shape of ``preds`` with ones where it repeats.
        average: As :func:`multilabel_brier_score` takes it. Under "micro" the bins and the mean are of all labels
            together, so that labels of different rates count as resolution.
        n_bins: Uniform bins of the probability, which hold their lower edge, the last one both.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        Scalars, or (C,), in float64.

    Raises:
        ValueError: If shapes differ, an option is out of range, or values are checked and wrong.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[0.9, 0.5], [0.1, 0.5]]), torch.tensor([[1, 0], [0, 1]])
        >>> multilabel_brier_decomposition(preds, target, num_labels=2, average="none").resolution
        tensor([0.2500, 0.0000], dtype=torch.float64)
    """
    check_whole("n_bins", n_bins, at_least=1)
    average = check_average(average)
    reading = Reading(num_labels, ignore_index, from_logits, validate_args)
    return _parts(_checked_sums(reading, preds, target, weight, n_bins), average)


class _BrierScore(LabelMetric):
    plot_upper_bound = 1.0

    error_sum: Tensor
    weight_sum: Tensor
    target_sum: Tensor
    target_square: Tensor
    probability_sum: Tensor
    probability_square: Tensor
    product: Tensor

    def __init__(self, reading: Reading, average: Average | None, n_bins: int, **kwargs: Any) -> None:
        super().__init__(reading, average, **kwargs)
        check_whole("n_bins", n_bins, at_least=1)
        self.n_bins = n_bins
        self._identify("Brier", reading.ignore_index, reading.from_logits)
        self._add_sums(self.num_labels, n_bins, **dict.fromkeys(_STATES, torch.float64))

    def update(self, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Add a batch."""
        self._increase(**_sums(self.reading, preds, target, weight, self.n_bins))

    def compute(self) -> Tensor:
        """Return the Brier score."""
        return _score(self.sums, self.average)

    def decomposition(self) -> BrierParts:
        """Return the score and its parts over all ranks. See :func:`binary_brier_decomposition`."""
        with self._over_ranks():
            return _parts(self.sums, self.average)


class BinaryBrierScore(_BrierScore):
    """Brier score of one label. See :func:`binary_brier_score`, and :func:`binary_brier_decomposition` for its parts.

    ``forward`` and ``update`` take predictions, targets and optionally weights; ``compute`` returns a scalar, and
    ``decomposition`` what it is made of.

    Args:
        n_bins: Uniform bins of the probability for the decomposition.
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = BinaryBrierScore()
        >>> metric.update(torch.tensor([0.9, 0.9, 0.1, 0.1]), torch.tensor([1, 1, 1, 0]))
        >>> metric.compute()
        tensor(0.2100, dtype=torch.float64)
        >>> metric.decomposition().uncertainty
        tensor(0.1875, dtype=torch.float64)
    """

    def __init__(
        self,
        n_bins: int = 15,
        *,
        from_logits: bool | None = None,
        ignore_index: float | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(Reading(None, ignore_index, from_logits, validate_args), "micro", n_bins, **kwargs)


class MultilabelBrierScore(_BrierScore):
    """Brier score of several labels. See :func:`multilabel_brier_score`, and :func:`multilabel_brier_decomposition`.

    ``forward`` and ``update`` take predictions, targets and optionally weights; ``compute`` returns a scalar, or (C,)
    without an average, and ``decomposition`` what it is made of.

    Args:
        num_labels: C.
        average: "macro", "micro", "weighted" or "none".
        n_bins: Uniform bins of the probability for the decomposition.
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = MultilabelBrierScore(num_labels=2, average="none")
        >>> metric.update(torch.tensor([[0.9, 0.5], [0.5, 0.5]]), torch.tensor([[1, 0], [1, 0]]))
        >>> metric.compute()
        tensor([0.1300, 0.2500], dtype=torch.float64)
    """

    def __init__(
        self,
        num_labels: int,
        average: Average | None = "macro",
        n_bins: int = 15,
        *,
        from_logits: bool | None = None,
        ignore_index: float | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(Reading(num_labels, ignore_index, from_logits, validate_args), average, n_bins, **kwargs)


def _checked_sums(
    reading: Reading, preds: Tensor, target: Tensor, weight: Tensor | None, n_bins: int = 1
) -> dict[str, Tensor]:
    reading.check()
    return _sums(reading, preds, target, weight, n_bins)


def _sums(reading: Reading, preds: Tensor, target: Tensor, weight: Tensor | None, n_bins: int) -> dict[str, Tensor]:
    """Return weighted sums by label and bin, (C, R) each."""
    wide = sum_dtype(preds)
    edges = torch.linspace(0, 1, n_bins + 1, dtype=wide, device=preds.device)
    labels = reading.num_labels or 1

    def of_piece(piece: Elements) -> dict[str, Tensor]:
        p, y, w = piece.probability(), piece.target, piece.weight
        # From logits, because p - 1 has lost its digits where p rounds to 1.
        error = piece.choose(lambda x: residual(x, y), lambda p: p - y).square()
        parts = (w * error, w, w * y, w * y * y, w * p, w * p * p, w * p * y)
        return piece.by_bin(edges, dict(zip(_STATES, parts, strict=True)))

    empty = dict.fromkeys(_STATES, torch.zeros(labels, n_bins, dtype=wide, device=preds.device))
    return totals((of_piece(piece) for piece in reading.elements(preds, target, weight)), empty)


def _score(sums: Mapping[str, Tensor], average: Average) -> Tensor:
    error, weight, positives = (sums[name].sum(1) for name in ("error_sum", "weight_sum", "target_sum"))
    if average == "micro":
        return error.sum() / weight.sum()
    return averaged(error / weight, weight, positives, average)


def _parts(sums: Mapping[str, Tensor], average: Average) -> BrierParts:
    if average == "micro":
        sums = {name: sums[name].sum(0, keepdim=True) for name in _STATES}
    error, w, y, yy, p, pp, py = (sums[name] for name in _STATES)
    weight, some = w.sum(1), torch.where(w > 0, w, 1.0)
    mean_p, mean_y = p / some, y / some
    mean = (y.sum(1) / weight)[:, None]
    by_label = BrierParts(
        *(
            part.sum(1) / weight
            for part in (
                error,
                w * (mean_p - mean_y).square(),
                w * (mean_y - mean).square(),
                yy - y * mean,
                pp - p * mean_p,
                2 * (py - p * mean_y),
            )
        )
    )
    if average == "micro":
        return BrierParts(*(part[0] for part in by_label))
    return BrierParts(*(averaged(part, weight, y.sum(1), average) for part in by_label))
