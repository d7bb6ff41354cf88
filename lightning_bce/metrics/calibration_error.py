"""Calibration error of several labels, which torchmetrics has for one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_bce.losses.checks import check_whole
from lightning_bce.metrics.by_label import Average, Reading, averaged, check_average
from lightning_bce.metrics.reliability_curve import ReliabilityBins, ReliabilityMetric, multilabel_reliability_curve
from lightning_bce.metrics.summed import add_at

Norm = Literal["l1", "l2", "max"]
Binning = Literal["uniform", "quantile"]


def multilabel_calibration_error(
    preds: Tensor,
    target: Tensor,
    num_labels: int,
    *,
    average: Average | None = "macro",
    norm: Norm = "l1",
    n_bins: int = 15,
    binning: Binning = "uniform",
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> Tensor:
    r"""Return the binned calibration error of several labels.

    With :math:`n_k` of n elements in bin k, of mean probability :math:`\bar p_k` and with a share :math:`\bar y_k` of
    positives, it is

    .. math::
        \text{l1} = \sum_k \tfrac{n_k}{n} |\bar y_k - \bar p_k|, \quad
        \text{l2} = \sqrt{\sum_k \tfrac{n_k}{n} (\bar y_k - \bar p_k)^2}, \quad
        \text{max} = \max_k |\bar y_k - \bar p_k|.

    Of one label it is torchmetrics' ``binary_calibration_error``, but for probabilities of exactly 1: they belong to
    the last bin here, and to one of their own there.

    It is biased upwards where elements are few: a bin of n elements that are perfectly calibrated at p still misses its
    share by :math:`\sqrt{2 p (1 - p) / (\pi n)}` on average, so that with R evenly filled bins l1 is about
    :math:`0.8 \sqrt{R \, \overline{p (1 - p)} / n}` and not 0: 0.03 for 15 bins, 2,000 elements and
    :math:`p (1 - p) = 0.2`. What bins hide biases it downwards. So compare models on the same number of elements and
    bins, and labels of very different counts not at all; the reliability part of
    :func:`~lightning_bce.metrics.binary_brier_decomposition` is l2 squared.

    Args:
        preds: Probabilities or logits, (N, C, ...), floating point.
        target: Labels in [0, 1], the shape of ``preds``.
        num_labels: C.
        average: "macro", the mean over labels that were seen; "micro", of one set of bins for all elements, in which
            labels that are too sure and others that are not sure enough can cancel; "weighted", by the number of
            positives of each label; "none" or None, one value for each, NaN where nothing was seen.
        norm: "l1", "l2" or "max".
        n_bins: How many bins.
        binning: "uniform" bins of the probability hold their lower edge, the last one both. "quantile" has equally many
            elements in each bin of a label, as far as equal probabilities, which share a bin, allow: its edges are
            quantiles, as in scikit-learn's ``calibration_curve``. It takes all elements at once, so that the class has
            no such option, and waits for the device.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1], as torchmetrics
            does, which a batch of logits between 0 and 1 deceives.
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        A scalar, or (C,), in float64.

    Raises:
        ValueError: If shapes differ, an option is out of range, or values are checked and wrong.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[0.9, 0.5], [0.8, 0.5]]), torch.tensor([[1, 0], [1, 1]])
        >>> multilabel_calibration_error(preds, target, num_labels=2, average="none")
        tensor([0.1500, 0.0000], dtype=torch.float64)

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015.
        Kumar et al., Verified Uncertainty Calibration, NeurIPS 2019, on the bias. https://arxiv.org/abs/1909.10155
    """
    average = check_average(average)
    _check_norm(norm)
    if binning == "quantile":
        check_whole("n_bins", n_bins, at_least=1)
        reading = Reading(num_labels, ignore_index, from_logits, validate_args)
        reading.check()
        return _value(_equal_mass(reading, preds, target, n_bins, together=average == "micro"), norm, average)
    if binning != "uniform":
        raise ValueError(f"`binning` is {binning!r}; expected 'uniform' or 'quantile'.")
    bins = multilabel_reliability_curve(
        preds,
        target,
        num_labels,
        n_bins=n_bins,
        from_logits=from_logits,
        ignore_index=ignore_index,
        validate_args=validate_args,
    )
    return _value(bins, norm, average)


class MultilabelCalibrationError(ReliabilityMetric):
    """Binned calibration error of several labels. See :func:`multilabel_calibration_error`, also for its bias.

    ``forward`` and ``update`` take predictions and targets; ``compute`` returns a scalar, or (C,) without an average.
    The states are sums by bin, where torchmetrics keeps every element.

    Args:
        num_labels: C.
        average: "macro", "micro", "weighted" or "none".
        n_bins: Uniform bins of the probability.
        norm: "l1", "l2" or "max".
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = MultilabelCalibrationError(num_labels=2, average="none")
        >>> metric.update(torch.tensor([[0.9, 0.5], [0.8, 0.5]]), torch.tensor([[1, 0], [1, 1]]))
        >>> metric.compute()
        tensor([0.1500, 0.0000], dtype=torch.float64)
    """

    plot_upper_bound = 1.0

    def __init__(
        self,
        num_labels: int,
        average: Average | None = "macro",
        n_bins: int = 15,
        norm: Norm = "l1",
        *,
        from_logits: bool | None = None,
        ignore_index: float | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(Reading(num_labels, ignore_index, from_logits, validate_args), average, n_bins, **kwargs)
        _check_norm(norm)
        self.norm: Norm = norm

    def compute(self) -> Tensor:
        """Return the calibration error."""
        return _value(self.bins(), self.norm, self.average)


def _equal_mass(reading: Reading, preds: Tensor, target: Tensor, n_bins: int, together: bool) -> ReliabilityBins:
    """Return bins of equally many elements, for each label or for all together; edges are of no use to others."""
    pieces = list(reading.elements(preds, target))
    columns = [[p.probability(), p.target, p.weight] for p in pieces]
    probability, label, known = (
        torch.cat([column[i] for column in columns]).double()
        if columns
        else preds.new_zeros(0, preds.shape[1]).double()
        for i in range(3)
    )
    if together:
        probability, label, known = (t.reshape(-1, 1) for t in (probability, label, known))
    sums = []
    for p, y, k in zip(probability.T, label.T, known.T, strict=True):
        p, y = p[k > 0], y[k > 0]
        ordered = p.sort().values
        # Quantiles with linear interpolation; `torch.quantile` refuses more than 16 million elements.
        at = torch.arange(1, n_bins, dtype=p.dtype, device=p.device) * (len(p) - 1) / n_bins
        below = at.long()
        above = (below + 1).clamp(max=len(p) - 1)
        edges = torch.lerp(ordered[below], ordered[above], at - below) if len(p) else ordered
        place = torch.searchsorted(edges, p)
        sums.append([add_at(place, part, n_bins) for part in (torch.ones_like(p), p, y)])
    count, probable, positive = (torch.stack(parts) for parts in zip(*sums, strict=True))
    return ReliabilityBins(count.new_zeros(0), count, probable, positive)


def _check_norm(norm: Norm) -> None:
    if norm not in ("l1", "l2", "max"):
        raise ValueError(f"`norm` is {norm!r}; expected 'l1', 'l2' or 'max'.")


def _value(bins: ReliabilityBins, norm: Norm, average: Average) -> Tensor:
    count, probability, positive = (p.to(bins.edges.dtype) for p in bins[1:])
    if average == "micro":
        count, probability, positive = (p.sum(0, keepdim=True) for p in (count, probability, positive))
    some = torch.where(count > 0, count, 1.0)
    miss, total = (positive - probability).abs() / some, count.sum(1)
    if norm == "max":
        # 0 / 0 is NaN: of a label that was never seen nothing is known.
        values = miss.amax(1) + 0 * (total / total)
    else:
        power = 1 if norm == "l1" else 2
        values = (count * miss**power).sum(1) / total
        values = values.sqrt() if norm == "l2" else values
    return values[0] if average == "micro" else averaged(values, total, positive.sum(1), average)
