"""torchmetrics' classification metrics by name, over what is known: the metrics beside the loss."""

from __future__ import annotations

import copy
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torchmetrics.classification
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_bce.metrics.brier_score import BinaryBrierScore, MultilabelBrierScore
from lightning_bce.metrics.calibration_error import MultilabelCalibrationError
from lightning_bce.metrics.log_loss import BinaryLogLoss, MultilabelLogLoss
from lightning_bce.spec import build, is_spec

DEFAULT_METRICS = ("Accuracy", "AveragePrecision", "AUROC", "F1Score", "MatthewsCorrCoef", "CalibrationError")
"""torchmetrics' names without their prefix. The calibration error exists for one label only."""

_RANKING = ("AveragePrecision", "AUROC")
_NO_NUMBER = ("ConfusionMatrix", "PrecisionRecallCurve", "ROC", "StatScores")
_UNKNOWN = -1
# What torchmetrics lacks and is one number; the rest has a plot to look at.
_OURS = {
    cls.__name__: cls
    for cls in (BinaryLogLoss, MultilabelLogLoss, BinaryBrierScore, MultilabelBrierScore, MultilabelCalibrationError)
}


class EvaluationMetrics(nn.Module):
    """Metrics on float32 probabilities or on decisions, which leave unknown labels out.

    Made by :func:`evaluation_metrics`.

    Args:
        scored: Metrics that get probabilities, by name.
        decided: Metrics that get decisions, so that each label can have its own threshold.
    """

    def __init__(
        self, scored: dict[str, Metric | MetricCollection], decided: dict[str, Metric | MetricCollection]
    ) -> None:
        super().__init__()
        # Two collections: within one, torchmetrics gives all the same input.
        self.scored, self.decided = MetricCollection(scored), MetricCollection(decided)

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        yield from map(str, (*self.scored, *self.decided))

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of a name."""
        return (self.scored if name in self.scored else self.decided)[name]

    def clone(self) -> EvaluationMetrics:
        """Return a copy."""
        return copy.deepcopy(self)

    def reset(self) -> None:
        """Forget all batches."""
        for collection in self._collections():
            collection.reset()

    def add(self, probability: Tensor, decision: Tensor, target: Tensor, valid: Tensor | None) -> None:
        """Add a batch.

        Args:
            probability: (N,) or (N, C, ...), in float32.
            decision: Which are positive, in the same shape.
            target: Labels in the same shape; above one half is positive.
            valid: Where they are known, broadcastable. None is everywhere.
        """
        if target.numel():  # some metrics cannot reshape an empty batch
            labels = (target > 0.5).int()
            if valid is not None:
                labels = torch.where(valid, labels, _UNKNOWN)
            for collection, predicted in zip(self._collections(), (probability, decision.int()), strict=True):
                if len(collection):
                    collection.update(predicted, labels)

    def _collections(self) -> tuple[MetricCollection, MetricCollection]:
        return self.scored, self.decided

    def means(self, negatives: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """Return one number for each metric.

        A value by label becomes the mean over the labels that are known, for AUROC and AveragePrecision over those that
        have both classes; NaN if there are none.

        Args:
            negatives: Whether any negative of each label was seen, (C,).
            positives: Whether any positive of each label was seen, (C,).

        Raises:
            ValueError: If a metric's value is neither one number nor one for each label.
        """
        known, ranked = negatives | positives, negatives & positives
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._take_part(known)
        self._fill_curves(known)
        with warnings.catch_warnings():
            # That a class is missing shows as NaN in the value, not as a 0 with a warning.
            warnings.filterwarnings("ignore", ".*(positive|negative) samples.*", UserWarning)
            values = {k: v for collection in self._collections() for k, v in collection.compute().items()}
        means = {}
        for name, value in values.items():
            if not isinstance(value, Tensor) or value.numel() not in (1, known.numel()):
                raise ValueError(_no_number(name))
            if value.numel() == known.numel():  # else it is one that has a mean of its own
                value = value.float().reshape(known.shape)[ranked if name in _RANKING else known].mean()
            means[name] = value
        return means

    def _take_part(self, known: Tensor) -> None:
        """Give a rank that had no row of its own empty states of the kind that the others hold.

        Before its first update torchmetrics does not know what kind that is, and the ranks would not understand each
        other. So a made-up sample is added, of which nothing is kept.
        """
        labels = torch.zeros(1, known.numel(), dtype=torch.int32, device=known.device)
        samples = (torch.full(labels.shape, 0.5, device=known.device), labels)
        pairs = zip(self._collections(), samples, strict=True)
        for metric, sample in ((m, sample) for c, sample in pairs for m in c.values(copy_state=False)):
            if metric.update_called:
                continue
            metric.update(sample, labels)
            for part in metric.modules():
                for name, default in getattr(part, "_defaults", {}).items():
                    state = getattr(part, name)
                    empty = [value[:0] for value in state] if isinstance(state, list) else default.to(known.device)
                    setattr(part, name, empty)

    def _fill_curves(self, known: Tensor) -> None:
        """Add a made-up sample of the labels of which nothing is known: torchmetrics fails on an empty curve.

        Their values are left out of the mean.
        """
        names = [name for name in _RANKING if name in self.scored]
        if not names or bool(known.all()):
            return
        labels = torch.where(known.reshape(1, -1), _UNKNOWN, 0)
        for name in names:
            self.scored[name].update(torch.full(labels.shape, 0.5, device=labels.device), labels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # States keep their precision: added up in bfloat16, the 257th sample would count nothing.
        def move(state: Tensor) -> Tensor:
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]


def evaluation_metrics(metrics: Sequence[str | Metric] | None, num_labels: int) -> EvaluationMetrics:
    """Return a collection of metrics for one label or several.

    Args:
        metrics: Names of torchmetrics' classification metrics without the prefix Binary or Multilabel, metric objects
            or specs of them. None takes ``DEFAULT_METRICS``.
        num_labels: Number of labels C.

    Raises:
        ValueError: If there is no such metric, it needs arguments, or is not one number.

    Example:
        >>> list(evaluation_metrics(["AUROC", "F1Score"], num_labels=1))
        ['AUROC', 'F1Score']
    """
    prefix = "Binary" if num_labels == 1 else "Multilabel"
    if metrics is None:
        metrics = [name for name in DEFAULT_METRICS if hasattr(torchmetrics.classification, prefix + name)]
    collected: dict[str, Metric | MetricCollection] = {}
    for metric in metrics:
        made = metric if isinstance(metric, Metric) else None
        if is_spec(metric):
            made = build(cast(Any, metric), Metric)
        if made is None:
            collected[str(metric)] = _metric_by_name(str(metric), prefix, num_labels)
        else:
            own = collected[type(made).__name__.removeprefix(prefix)] = made.clone()
            own.persistent(False)  # a state in the checkpoint would not be known to the module that loads it
    if len(collected) != len(metrics):
        raise ValueError(f"`metrics` names a metric twice: {[str(m) for m in metrics]}.")
    # An object has a threshold of its own, for which it needs probabilities.
    named = {str(metric) for metric in metrics if isinstance(metric, str)}
    decided = {name: made for name, made in collected.items() if name in named and hasattr(made, "threshold")}
    return EvaluationMetrics({k: v for k, v in collected.items() if k not in decided}, decided)


def _metric_by_name(name: str, prefix: str, num_labels: int) -> Metric:
    options = {
        "num_labels": num_labels,
        "average": "none",  # the mean is over the labels that are known
        "ignore_index": _UNKNOWN,
        "validate_args": False,
    }
    classes = {**vars(torchmetrics.classification), **_OURS}
    names = [n.removeprefix(prefix) for n in classes if n.startswith(prefix)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        raise ValueError(
            f"`metrics` names {name!r}, and neither torchmetrics nor lightning_bce has {prefix}{name}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + f"There are: {', '.join(sorted(names))}."
        )
    if name in _NO_NUMBER:
        raise ValueError(_no_number(name))
    made = classes[prefix + name]
    accepted = inspect.signature(made.__init__).parameters
    try:
        metric: Metric = made(**{key: value for key, value in options.items() if key in accepted})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{prefix}{name} needs arguments ({error}). Pass a metric object instead of its name."
        ) from error
    return metric


def _no_number(name: str) -> str:
    return (
        f"`metrics` holds {name}, whose value is not one number, and only one number can be logged. Use it in a "
        "callback, which finds the logits and targets in the outputs of each step."
    )
