"""Reliability curve: how often what was predicted came true, by probability."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import sum_dtype
from lightning_bce.losses.checks import check_number, check_whole
from lightning_bce.metrics.by_label import Elements, LabelMetric, Reading, totals

_STATES = ("count", "probability_sum", "positive_sum")


class ReliabilityBins(NamedTuple):
    """Probabilities in bins, and how often they came true.

    Args:
        edges: Of the bins, (R + 1,), from 0 to 1. A bin holds its lower edge, the last one both.
        count: Elements, (C, R), as whole numbers.
        probability: Sum of their probabilities, (C, R).
        positive: How many are positives, (C, R); a soft label counts as its part.
    """

    edges: Tensor
    count: Tensor  # type: ignore[assignment]  # of a tuple it hides a method that nobody needs
    probability: Tensor
    positive: Tensor


def binary_reliability_curve(
    preds: Tensor,
    target: Tensor,
    *,
    n_bins: int = 15,
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> ReliabilityBins:
    """Return the reliability curve of one label, whose points are ``probability / count`` and ``positive / count``.

    Args:
        preds: Probabilities or logits, any shape, floating point.
        target: Labels in [0, 1], the shape of ``preds``.
        n_bins: Uniform bins of the probability.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1], as torchmetrics
            does, which a batch of logits between 0 and 1 deceives.
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        Bins of one label, (1, R).

    Raises:
        ValueError: If shapes differ, an option is out of range, or values are checked and wrong.

    Example:
        >>> import torch
        >>> curve = binary_reliability_curve(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0, 1, 1]), n_bins=2)
        >>> curve.positive / curve.count
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
    """
    return _bins(Reading(None, ignore_index, from_logits, validate_args), preds, target, n_bins)


def multilabel_reliability_curve(
    preds: Tensor,
    target: Tensor,
    num_labels: int,
    *,
    n_bins: int = 15,
    from_logits: bool | None = None,
    ignore_index: float | None = None,
    validate_args: bool = True,
) -> ReliabilityBins:
    """Return the reliability curve of each of several labels. See :func:`binary_reliability_curve`.

    Args:
        preds: Probabilities or logits, (N, C, ...), floating point.
        target: Labels in [0, 1], the shape of ``preds``.
        num_labels: C.
        n_bins: Uniform bins of the probability.
        from_logits: Whether ``preds`` are logits. None takes them for logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.

    Returns:
        Bins of each label, (C, R).

    Raises:
        ValueError: If shapes differ, an option is out of range, or values are checked and wrong.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[0.1, 0.9], [0.2, 0.4]]), torch.tensor([[0, 1], [1, 0]])
        >>> multilabel_reliability_curve(preds, target, num_labels=2, n_bins=2).count
        tensor([[2, 0],
                [1, 1]])
    """
    return _bins(Reading(num_labels, ignore_index, from_logits, validate_args), preds, target, n_bins)


class ReliabilityMetric(LabelMetric):
    """Base of metrics of probabilities in bins. One does for all those of a collection that read alike."""

    count: Tensor
    probability_sum: Tensor
    positive_sum: Tensor

    def __init__(self, reading: Reading, average: Any, n_bins: int, **kwargs: Any) -> None:
        super().__init__(reading, average, **kwargs)
        check_whole("n_bins", n_bins, at_least=1)
        self.n_bins = n_bins
        self._identify("reliability", reading.ignore_index, reading.from_logits)
        self._add_sums(
            self.num_labels, n_bins, count=torch.int64, probability_sum=torch.float64, positive_sum=torch.float64
        )

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch."""
        edges = torch.linspace(0, 1, self.n_bins + 1, dtype=self.probability_sum.dtype, device=preds.device)
        self._increase(**reliability_sums(self.reading, preds, target, edges))

    def bins(self) -> ReliabilityBins:
        """Return the states as bins."""
        sums = self.probability_sum
        edges = torch.linspace(0, 1, self.n_bins + 1, dtype=sums.dtype, device=sums.device)
        return ReliabilityBins(edges, self.count, sums, self.positive_sum)


class _ReliabilityCurve(ReliabilityMetric):
    higher_is_better = None  # type: ignore[assignment]  # it is no number

    def compute(self) -> ReliabilityBins:
        """Return the bins, (C, R)."""
        return self.bins()

    def plot(
        self, val: ReliabilityBins | None = None, ax: Any = None, *, label: int | None = None, confidence: float = 0.95
    ) -> Any:
        """Plot how often a positive came, against its probability, with Wilson's intervals and counts below.

        Args:
            val: A result of ``forward`` or ``compute``. None computes one.
            ax: A matplotlib axis to draw on; the counts take the lower part of its place. None makes a new figure.
            label: Which one. None takes all together.
            confidence: Of the intervals, in (0, 1).

        Returns:
            Figure and axis of the curve.
        """
        from lightning_bce.metrics.drawing import axes

        edges, *parts = self.compute() if val is None else val
        count, probability, positive = (p.reshape(-1, len(edges) - 1) for p in parts)
        count, probability, positive = (
            p.sum(0).double() if label is None else p[label].double() for p in (count, probability, positive)
        )
        seen = count > 0
        low, high = wilson_interval(positive[seen], count[seen], confidence)
        predicted, observed = probability[seen] / count[seen], positive[seen] / count[seen]
        figure, ax = axes(ax)
        below = ax.inset_axes([0, 0, 1, 0.2])
        upper = ax.inset_axes([0, 0.25, 1, 0.75])
        ax.set_axis_off()
        upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfect")
        upper.errorbar(
            predicted.tolist(),
            observed.tolist(),
            # At 0 and 1 the interval touches the point, up to rounding.
            yerr=torch.stack([observed - low, high - observed]).clamp(min=0).tolist(),
            marker="o",
            capsize=3,
            label=f"observed, {100 * confidence:g} % interval",
        )
        title = "Reliability" if label is None else f"Reliability of label {label}"
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of positives", title=title, xticklabels=[])
        upper.legend(loc="upper left")
        below.stairs(count.tolist(), edges.tolist(), fill=True, alpha=0.6)
        below.set(xlim=(0, 1), xlabel="predicted probability", ylabel="elements")
        if seen.any():
            below.set(yscale="log", ylim=(0.5, None))
        return figure, upper


class BinaryReliabilityCurve(_ReliabilityCurve):
    """Reliability curve of one label. See :func:`binary_reliability_curve`.

    ``forward`` and ``update`` take predictions and targets; ``compute`` returns bins of one label, (1, R).

    Args:
        n_bins: Uniform bins of the probability.
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = BinaryReliabilityCurve(n_bins=2)
        >>> metric.update(torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0, 1, 1]))
        >>> metric.compute().count
        tensor([[2, 1]])
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
        super().__init__(Reading(None, ignore_index, from_logits, validate_args), "none", n_bins, **kwargs)


class MultilabelReliabilityCurve(_ReliabilityCurve):
    """Reliability curve of each of several labels. See :func:`multilabel_reliability_curve`.

    ``forward`` and ``update`` take predictions and targets; ``compute`` returns bins of each label, (C, R).

    Args:
        num_labels: C.
        n_bins: Uniform bins of the probability.
        from_logits: Whether predictions are logits. None decides for each batch, as torchmetrics does: it is taken for
            logits if any is outside [0, 1].
        ignore_index: Target that marks an unknown label, NaN included.
        validate_args: Whether values are checked, which waits for the device.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> metric = MultilabelReliabilityCurve(num_labels=2, n_bins=2)
        >>> metric.update(torch.tensor([[0.1, 0.9], [0.2, 0.4]]), torch.tensor([[0, 1], [1, 0]]))
        >>> metric.compute().positive
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        num_labels: int,
        n_bins: int = 15,
        *,
        from_logits: bool | None = None,
        ignore_index: float | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(Reading(num_labels, ignore_index, from_logits, validate_args), "none", n_bins, **kwargs)


def wilson_interval(positive: Tensor, count: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Return Wilson's interval of a share, which is never empty and never beyond 0 and 1.

    Args:
        positive: How many came true.
        count: Of how many, above 0.
        confidence: In (0, 1).

    Returns:
        The lower and the upper end, in float64.

    Raises:
        ValueError: If the confidence is out of range.

    Example:
        >>> import torch
        >>> low, high = wilson_interval(torch.tensor([0, 5]), torch.tensor([10, 10]))
        >>> low, high
        (tensor([0.0000, 0.2366], dtype=torch.float64), tensor([0.2775, 0.7634], dtype=torch.float64))

    References:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, JASA 22, 1927.
    """
    check_number("confidence", confidence, above=0, below=1)
    n, p = count.double(), positive.double() / count.double()
    z = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64, device=n.device))
    middle = p + z**2 / (2 * n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return low.clamp(min=0), high.clamp(max=1)  # at a share of 0 or 1 they round to beyond it


def reliability_sums(reading: Reading, preds: Tensor, target: Tensor, edges: Tensor) -> dict[str, Tensor]:
    """Return how many elements each bin has, the sums of their probabilities and of their targets, (C, R) each."""
    labels, bins = reading.num_labels or 1, len(edges) - 1

    def of_piece(piece: Elements) -> dict[str, Tensor]:
        known = piece.weight
        parts = (known, known * piece.probability(), known * piece.target)
        return piece.by_bin(edges, dict(zip(_STATES, parts, strict=True)))

    empty = dict.fromkeys(_STATES, torch.zeros(labels, bins, dtype=edges.dtype, device=edges.device))
    sums = totals((of_piece(piece) for piece in reading.elements(preds, target)), empty)
    return {**sums, "count": sums["count"].long()}


def _bins(reading: Reading, preds: Tensor, target: Tensor, n_bins: int) -> ReliabilityBins:
    reading.check()
    check_whole("n_bins", n_bins, at_least=1)
    edges = torch.linspace(0, 1, n_bins + 1, dtype=sum_dtype(preds), device=preds.device)
    sums = reliability_sums(reading, preds, target, edges)
    return ReliabilityBins(edges, *(sums[name] for name in _STATES))
