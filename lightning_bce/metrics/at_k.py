"""Metrics of the first k of a ranking, for label counts where no (N, C) may exist: what was predicted is (N, k)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_bce.heads.targets import SparseTarget
from lightning_bce.spec import Recorded, build, is_spec

EmptyTarget = Literal["neg", "skip"]


def propensities(counts: Sequence[float] | Tensor, num_samples: int, *, a: float = 0.55, b: float = 1.5) -> Tensor:
    r"""Return the probability that a relevant label was marked, from how often each was.

    .. math:: p_l = \frac{1}{1 + (\log N - 1)(b + 1)^a \, (N_l + b)^{-a}}

    Args:
        counts: Positives N_l of each label in the training data, at least 0.
        num_samples: Samples N of the training data, at least 3, so that log N - 1 is above 0.
        a: The paper's 0.55; 0.5 for Wikipedia, 0.6 for Amazon.
        b: The paper's 1.5; 0.4 for Wikipedia, 2.6 for Amazon.

    Returns:
        (C,) in float64.

    Raises:
        ValueError: If a count is negative or there are too few samples.

    Example:
        >>> propensities([0, 1000], 10_000)
        tensor([0.0842, 0.7669], dtype=torch.float64)

    References:
        Jain et al., Extreme Multi-label Loss Functions for Recommendation, Tagging, Ranking & Other Missing Label
        Applications, KDD 2016. https://doi.org/10.1145/2939672.2939756
    """
    number = torch.as_tensor(counts, dtype=torch.float64)
    if num_samples < 3:
        raise ValueError(f"`num_samples` is {num_samples}; at least 3 samples were expected.")
    if bool((~torch.isfinite(number) | (number < 0)).any()):
        raise ValueError("`counts` holds negative numbers or NaN; how often each label is positive was expected.")
    propensity: Tensor = 1 / (1 + (math.log(num_samples) - 1) * (b + 1) ** a * (number + b) ** -a)
    return propensity


class AtK(Recorded, Metric):
    """Base of the metrics of the first k labels.

    Args:
        k: How many labels of a ranking count, at least 1.
        empty_target_action: What a sample without a positive label counts: 0 ("neg", as the extreme classification
            repository has it) or nothing ("skip").
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If an option is out of range.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    gained: Tensor
    possible: Tensor

    def __init__(self, k: int = 1, *, empty_target_action: EmptyTarget = "neg", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"`k` is {k!r}; a whole number of at least 1 was expected.")
        if empty_target_action not in get_args(EmptyTarget):
            raise ValueError(
                f"`empty_target_action` is {empty_target_action!r}; expected one of {', '.join(get_args(EmptyTarget))}."
            )
        self.k = k
        self.empty_target_action = empty_target_action
        for name in ("gained", "possible"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, labels: Tensor, target: Any) -> None:
        """Add a batch.

        Args:
            labels: The labels that were ranked first, (N, K) with K of at least ``k``, the best one first, as
                ``MultiLabelHead.topk`` returns them.
            target: A :class:`SparseTarget`; above one half is positive, unknown is not. The device need not be the
                labels' own.
        """
        if not isinstance(target, SparseTarget):
            raise TypeError(
                f"`target` is {type(target).__name__}; a SparseTarget was expected. Use `SparseTarget.of(target, "
                "num_labels)`."
            )
        if labels.ndim != 2 or labels.shape[1] < self.k or len(labels) != len(target):
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)}; ({len(target)}, K) with K of at least {self.k} was "
                "expected: the first labels of each sample's ranking."
            )
        target = target.to(labels.device).positives()
        rows = torch.arange(len(labels), device=labels.device)[:, None]
        keys = target.labels * len(target) + target.rows  # ascending
        wanted = labels[:, : self.k] * len(target) + rows
        place = torch.searchsorted(keys, wanted).clamp(max=max(len(keys) - 1, 0))
        hits = keys[place] == wanted if len(keys) else torch.zeros_like(wanted, dtype=torch.bool)
        gained, possible = self._count(labels[:, : self.k], hits, target)
        if self.empty_target_action == "skip":
            some = torch.zeros(len(target), dtype=torch.bool, device=labels.device)
            some[target.rows] = True
            gained, possible = torch.where(some, gained, 0.0), torch.where(some, possible, 0.0)
        self.gained = self.gained + gained.sum(dtype=torch.float64)
        self.possible = self.possible + possible.sum(dtype=torch.float64)

    def _count(self, labels: Tensor, hits: Tensor, target: SparseTarget) -> tuple[Tensor, Tensor]:
        """Return what each sample gained, and what it could have, (N,) both."""
        raise NotImplementedError

    def compute(self) -> Tensor:
        """Return what was gained of what was possible; NaN before the first sample."""
        return (self.gained / self.possible).float()


class PrecisionAtK(AtK):
    r"""Precision at k: which part of the first k labels is positive, averaged over the samples.

    .. math:: \mathrm{P@}k = \frac{1}{N} \sum_n \frac{1}{k} \sum_{j \le k} y_{n, r_n(j)}

    The arguments are those of :class:`AtK`.

    Example:
        >>> metric = PrecisionAtK(k=2)
        >>> metric.update(torch.tensor([[4, 0]]), SparseTarget.of([[0, 1]], num_labels=5))
        >>> metric.compute()
        tensor(0.5000)
    """

    def _count(self, labels: Tensor, hits: Tensor, target: SparseTarget) -> tuple[Tensor, Tensor]:
        return hits.sum(1) / self.k, torch.ones(len(hits), device=hits.device)


class NDCGAtK(AtK):
    r"""Normalised discounted cumulative gain at k, averaged over the samples.

    .. math:: \mathrm{nDCG@}k = \frac{1}{N} \sum_n
              \frac{\sum_{j \le k} y_{n, r_n(j)} / \log(1 + j)}{\sum_{j \le \min(k, |y_n|)} 1 / \log(1 + j)}

    The arguments are those of :class:`AtK`.

    Example:
        >>> metric = NDCGAtK(k=2)
        >>> metric.update(torch.tensor([[4, 0]]), SparseTarget.of([[0, 1]], num_labels=5))
        >>> metric.compute()
        tensor(0.3869)
    """

    def _count(self, labels: Tensor, hits: Tensor, target: SparseTarget) -> tuple[Tensor, Tensor]:
        discount = 1 / torch.log2(torch.arange(2, self.k + 2, device=hits.device, dtype=torch.float64))
        best = torch.cat([discount[:1], discount.cumsum(0)])  # none is as one: 0 of it is 0
        positives = torch.zeros(len(hits), dtype=torch.int64, device=hits.device)
        positives.index_add_(0, target.rows, torch.ones_like(target.rows))
        return (hits * discount).sum(1) / best[positives.clamp(max=self.k)], torch.ones(len(hits), device=hits.device)


class PropensityScoredPrecisionAtK(AtK):
    r"""Precision at k in which a hit weighs more the more likely its label is to be missing in the data.

    .. math:: \mathrm{PSP@}k = \frac{\sum_n \sum_{j \le k} y_{n, r_n(j)} / p_{r_n(j)}}
                                    {\sum_n \max_{r} \sum_{j \le k} y_{n, r(j)} / p_{r(j)}}

    Args:
        propensity: The probability in (0, 1] that a relevant label was marked, for each of the C labels; see
            :func:`propensities`. None waits for :meth:`resolve`, which ``BinaryClassifier`` calls with what
            ``ManyLabelDataModule`` has counted.
        k: How many labels of a ranking count, at least 1.
        a: Of :func:`propensities`, for :meth:`resolve`.
        b: The same.
        **kwargs: Options of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If a propensity lies outside (0, 1] or ``k`` is no whole number.

    Example:
        >>> metric = PropensityScoredPrecisionAtK([1.0, 0.25, 0.5], k=1)
        >>> metric.update(torch.tensor([[2], [0]]), SparseTarget.of([[1, 2], [0]], num_labels=3))
        >>> metric.compute()  # 2 of 4 and 1 of 1
        tensor(0.6000)
    """

    gain: Tensor | None

    def __init__(
        self,
        propensity: Sequence[float] | Tensor | None = None,
        k: int = 1,
        *,
        a: float = 0.55,
        b: float = 1.5,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("empty_target_action", "neg") != "neg":  # the command gives every default
            raise ValueError("`empty_target_action` has no effect here: without a positive nothing is to be gained.")
        if propensity is not None and (a, b) != (0.55, 1.5):
            raise ValueError("`a` and `b` would have no effect beside `propensity`: give them to `propensities`.")
        super().__init__(k, **kwargs)
        self.a, self.b = a, b
        self.register_buffer("gain", None if propensity is None else self._gain(propensity), persistent=False)

    @property
    def unresolved(self) -> bool:
        """Whether it waits for propensities."""
        return self.gain is None

    def resolve(self, counts: Sequence[float] | Tensor, num_samples: int) -> None:
        """Take the propensities of training data; the arguments are those of :func:`propensities`."""
        self.gain = self._gain(propensities(counts, num_samples, a=self.a, b=self.b)).to(self.gained.device)

    @staticmethod
    def _gain(propensity: Sequence[float] | Tensor) -> Tensor:
        values = torch.as_tensor(propensity, dtype=torch.float64)
        if values.ndim != 1 or bool((~(values > 0) | (values > 1)).any()):
            raise ValueError(
                f"`propensity` has shape {tuple(values.shape)} or values outside (0, 1]; one probability for each "
                "label was expected, as `propensities(counts, num_samples)` returns."
            )
        return 1 / values

    def _count(self, labels: Tensor, hits: Tensor, target: SparseTarget) -> tuple[Tensor, Tensor]:
        if self.gain is None:
            raise ValueError(
                "PropensityScoredPrecisionAtK has no propensities. Give it `propensities(counts, num_samples)`, or "
                "call `resolve`; BinaryClassifier does where its data module has `occurrences()`, as "
                "ManyLabelDataModule has."
            )
        if target.shape[1] != len(self.gain):
            raise ValueError(f"The target has {target.shape[1]} labels and there are {len(self.gain)} propensities.")
        gain = self.gain.to(labels.device)
        gained = torch.where(hits, gain[labels], 0.0).sum(1)
        # The k largest gains of each sample: sorted by gain within the sample, then counted from its first.
        of_entries, order = gain[target.labels].sort(descending=True)
        rows, by_row = target.rows[order].sort(stable=True)
        of_entries = of_entries[by_row]
        number = torch.arange(len(rows), device=rows.device)
        rank = number - torch.searchsorted(rows, rows)
        possible = torch.zeros(len(hits), dtype=torch.float64, device=hits.device)
        return gained, possible.index_add_(0, rows, torch.where(rank < self.k, of_entries, 0.0))


def metrics_at_k(metrics: Sequence[Any] | None = None, num_labels: int | None = None) -> MetricCollection:
    """Return a collection of metrics of the first k labels, named as "PrecisionAt5" is.

    Args:
        metrics: Objects of this module, or specs of them. None takes precision at 1, 3 and 5 and nDCG at 5.
        num_labels: Number of labels C, beyond which no default goes.

    Raises:
        TypeError: If a metric is of another kind.
        ValueError: If one is given twice, or by its name.

    Example:
        >>> list(metrics_at_k())
        ['NDCGAt5', 'PrecisionAt1', 'PrecisionAt3', 'PrecisionAt5']
    """
    if metrics is None:
        defaults: list[AtK] = [PrecisionAtK(1), PrecisionAtK(3), PrecisionAtK(5), NDCGAtK(5)]
        metrics = [metric for metric in defaults if num_labels is None or metric.k <= num_labels]
    made: dict[str, Metric | MetricCollection] = {}
    for given in metrics:
        metric = build(cast(Any, given), Metric) if is_spec(given) else given
        if not isinstance(metric, AtK):
            kind = ValueError if isinstance(given, str) else TypeError  # a name is of the right type
            raise kind(
                f"`metrics` holds {given!r}; with a head metrics of the first k labels were expected, such as "
                "`PrecisionAtK(k=5)`: others need the scores of all labels."
            )
        name = f"{type(metric).__name__.removesuffix('K')}{metric.k}"
        if name in made:
            raise ValueError(f"`metrics` holds {name} twice.")
        made[name] = metric.clone()
    return MetricCollection(made, compute_groups=False)  # they share states of equal values, which say nothing here
