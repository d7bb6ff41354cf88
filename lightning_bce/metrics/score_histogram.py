"""ScoreHistogram: elements in fine bins of the logit, from which curves over all thresholds are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import known_labels, sum_dtype
from lightning_bce.losses.checks import check_number, check_shapes, check_whole
from lightning_bce.losses.shapes import fit_weight, per_label
from lightning_bce.losses.stable import full_precision
from lightning_bce.metrics.summed import SummedMetric, chunks


class ScoreBins(NamedTuple):
    """Elements in fine bins of the logit.

    Args:
        edges: Of the bins, (S + 1,), from minus to plus infinity. A bin holds its lower edge.
        count: Elements of each label, (C, 2, S): negatives, positives.
    """

    edges: Tensor
    count: Tensor  # type: ignore[assignment]  # of a tuple it hides a method that nobody needs


class CountedScores(NamedTuple):
    """What :class:`ScoreHistogram` computes.

    Args:
        scores: Elements by logit.
        confusion: Elements by truth and decision, (C, 2, 2): ``confusion[c, truth, decision]``, counted exactly.
    """

    scores: ScoreBins
    confusion: Tensor


class ScoreHistogram(SummedMetric):
    r"""Counts of elements by label, side and logit, and exact confusion counts at a threshold.

    A logit x belongs to the bin :math:`\lfloor x / w \rfloor` of width w, exactly; the first and the last bin are open.
    By default there are 1,024 bins of width 1/32 between -16 and 16, which are 16 KiB a label whatever the number of
    samples. From them :func:`~lightning_bce.metrics.score_roc`, :func:`~lightning_bce.metrics.score_precision_recall`,
    :func:`~lightning_bce.metrics.score_auroc` and :func:`~lightning_bce.metrics.score_average_precision` follow, the
    latter two with a bound of what the bins can hide.

    A target above one half is a positive. A decision is positive where the probability, in float32 or better, is above
    the threshold, as in torchmetrics. NaN logits are counted in the first bin, with a negative decision.

    ``forward`` and ``update`` take logits and target, (N,), (N, C) or (N, C, ...), and optionally ``mask``, True where
    the label is known: (N,), or the shape of the logits with ones where it repeats. They never wait for the device.

    Args:
        num_labels: Number of labels C.
        threshold: Probability above which a decision is positive, in [0, 1], one or one for each label.
        bins: How many there are between -``limit`` and ``limit``, even.
        limit: Where the open bins begin, in logits. Exact for powers of two.
        ignore_index: Target that marks an unknown label, NaN included.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range, or a batch has other shapes.

    Example:
        >>> import torch
        >>> histogram = ScoreHistogram(bins=4, limit=2.0)
        >>> histogram.update(torch.tensor([-5.0, -0.5, 0.5, 1.5]), torch.tensor([0, 1, 0, 1]))
        >>> histogram.compute().scores.count
        tensor([[[1, 0, 0, 1, 0, 0],
                 [0, 0, 1, 0, 1, 0]]])
        >>> histogram.compute().confusion
        tensor([[[1, 1],
                 [1, 1]]])
    """

    higher_is_better = None

    count: Tensor
    decided: Tensor
    threshold: Tensor

    def __init__(
        self,
        num_labels: int = 1,
        *,
        threshold: float | Sequence[float] | Tensor = 0.5,
        bins: int = 1024,
        limit: float = 16.0,
        ignore_index: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole("num_labels", num_labels, at_least=1)
        check_whole("bins", bins, at_least=2)
        if bins % 2:
            raise ValueError(f"`bins` is {bins}; an even number was expected, so that a logit of 0 is an edge.")
        check_number("limit", limit, above=0)
        if ignore_index is not None and 0 <= ignore_index <= 1:
            raise ValueError(f"`ignore_index` is {ignore_index}, which is also a label. Use -1 or float('nan').")
        thresholds = torch.as_tensor(threshold, dtype=torch.float64).detach().clone().reshape(-1)
        if len(thresholds) not in (1, num_labels) or not bool(((thresholds >= 0) & (thresholds <= 1)).all()):
            raise ValueError(
                f"`threshold` is {threshold}; one probability in [0, 1] was expected, or one for each of the "
                f"{num_labels} label(s)."
            )
        self.num_labels = num_labels
        self.bins = bins
        self.limit = float(limit)
        self.ignore_index = ignore_index
        # No buffer, which a cast of the module would round to bfloat16.
        self.threshold = thresholds.expand(num_labels)
        self._identify(self.threshold.tolist(), bins, self.limit, ignore_index)
        self._add_sums(num_labels, 2, bins + 2, count=torch.int64)
        self._add_sums(num_labels, 2, decided=torch.int64)

    def update(self, logits: Tensor, target: Tensor, *, mask: Tensor | None = None) -> None:
        """Add a batch."""
        check_shapes(logits, target)
        if logits.ndim == 0:
            logits, target = logits[None], target[None]
            mask = mask[None] if mask is not None and mask.ndim == 0 else mask
        labels = 1 if logits.ndim < 2 else logits.shape[1]
        if labels != self.num_labels:
            raise ValueError(
                f"`logits` has shape {tuple(logits.shape)}, which is {labels} label(s), and `num_labels` is "
                f"{self.num_labels}. Set it to the number of outputs."
            )
        known = None
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"`mask` has dtype {mask.dtype}; torch.bool was expected, True where it is known.")
            known = fit_weight("mask", mask, logits)
        # In place, because with many labels the state is larger than a batch; but not what was reset in inference mode.
        stale = self.count.is_inference() and not torch.is_inference_mode_enabled()
        self.count = self.count.clone() if stale else self.count
        self.threshold = self.threshold.to(logits.device)
        for part in chunks(logits.numel(), len(logits), logits.detach(), target, known):
            x, y, k = part
            assert x is not None and y is not None
            self._file(full_precision(x), y, k)

    def _file(self, logits: Tensor, target: Tensor, known: Tensor | None) -> None:
        positive = target > 0.5
        if self.ignore_index is not None:
            labelled = known_labels(target, self.ignore_index)
            known = labelled if known is None else labelled & known
        # Scaled first: a tiny logit plus the limit would be rounded to it.
        place = (logits * (self.bins / (2 * self.limit))).floor_().add_(self.bins // 2 + 1)
        place = place.nan_to_num_(0.0).clamp_(0, self.bins + 1).long()
        label = per_label("labels", torch.arange(self.num_labels, device=logits.device), logits)
        place += (2 * label + positive) * (self.bins + 2)
        ones = torch.ones_like(place) if known is None else known.expand(place.shape).long()
        self.count.view(-1).index_add_(0, place.flatten(), ones.flatten())
        above = torch.sigmoid(logits) > per_label("threshold", self.threshold.to(logits.dtype), logits)
        above = above if known is None else above & known
        shape = (len(above), self.num_labels, -1)
        sides = [(above & side).reshape(shape).sum((0, 2)) for side in (~positive, positive)]
        self._increase(decided=torch.stack(sides, -1))

    def compute(self) -> CountedScores:
        """Return the counts; see :class:`CountedScores`."""
        inner = torch.linspace(
            -self.limit, self.limit, self.bins + 1, dtype=sum_dtype(self.count), device=self.count.device
        )
        end = inner.new_full((1,), torch.inf)
        decided = self.decided.reshape(self.num_labels, 2)
        confusion = torch.stack([self.count.sum(-1) - decided, decided], -1)
        return CountedScores(ScoreBins(torch.cat([-end, inner, end]), self.count), confusion)

    def plot(self, val: CountedScores | None = None, ax: Any = None, *, label: int | None = None) -> Any:
        """Plot how the logits of negatives and of positives are distributed, each side as a density.

        Args:
            val: A result of ``forward`` or ``compute``. None computes one.
            ax: A matplotlib axis to draw on. None makes a new figure.
            label: Which one. None takes all together.

        Returns:
            Figure and axis.
        """
        from lightning_bce.metrics.drawing import axes

        edges, count = (self.compute() if val is None else val).scores
        figure, ax = axes(ax)
        count = count.sum(0) if label is None else count[label]
        # What is in an open bin is drawn in the last closed one; fine bins are joined, or few elements look like rain.
        inner = count[:, 1:-1].clone()
        inner[:, 0] += count[:, 0]
        inner[:, -1] += count[:, -1]
        joined = max(step for step in range(1, 17) if inner.shape[1] % step == 0)
        inner = inner.reshape(2, -1, joined).sum(2).double()
        edges = edges[1:-1][::joined]
        occupied = inner.sum(0).nonzero().flatten().tolist() or [0, inner.shape[1] - 1]
        for side, name in enumerate(("negatives", "positives")):
            total = inner[side].sum()
            if total > 0:
                density = inner[side] / total / (edges[1:] - edges[:-1])
                ax.stairs(density.tolist(), edges.tolist(), label=f"{name} ({int(total):,})", fill=True, alpha=0.5)
        ax.set(
            xlim=(edges[occupied[0]].item(), edges[occupied[-1] + 1].item()),
            ylim=(0, None),
            xlabel="logit",
            ylabel="density (per logit)",
            title="Scores" if label is None else f"Scores of label {label}",
        )
        if ax.get_legend_handles_labels()[0]:  # else nothing was seen
            ax.legend()
        return figure, ax
