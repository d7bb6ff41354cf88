"""ThresholdTuner: the threshold of each label that is best on the validation set."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lightning_bce.callbacks.loss_table import empty_table, print_table
from lightning_bce.callbacks.probability_calibrator import ProbabilityCalibrator
from lightning_bce.callbacks.validation_rows import FitsOnValidation, calibration_on_cpu, decision_of
from lightning_bce.decision import Calibration, Objective, TunedThresholds, tune_thresholds
from lightning_bce.decision.objective import ObjectiveName
from lightning_bce.decision.rows import Rows
from lightning_bce.decision.thresholds import check_intervals

_DRAWS = 200


class ThresholdTuner(FitsOnValidation):
    """Finds the threshold of each label that is best for what its decisions cost, on the validation set.

    At the end of each validation of ``fit``, before checkpoints are saved, it looks at all rows of all ranks, and puts
    the thresholds into ``pl_module.decision``: each checkpoint of a :class:`BinaryClassifier` holds those that belong
    to its weights, and prediction, test, the command line and ``exportable()`` use them. On another module they are
    found in :attr:`threshold` alone. A :class:`ProbabilityCalibrator` beside it is always first: thresholds are of
    calibrated probabilities. What the objectives are, and what a label gets that has no answer, says
    :func:`tune_thresholds`; the threshold that it keeps then is the one that the constructor of the module was given.

    It reads ``logits`` and ``target`` of what ``validation_step`` returns, and ``weight`` and ``mask`` where there are.
    Validation data that are seen to be training data are refused. The sanity check counts nothing, nor does a test.
    ``trainer.validate(module, ckpt_path=...)`` with the callback fits a trained model anew: for another objective, or
    on other rows; ``output`` writes it. An epoch without a validation keeps the thresholds of the last one.

    Once an epoch it logs ``val_threshold/<label>`` and the objective at it, ``val_<objective>_tuned/<label>``, both
    with the ends of their intervals, ``val_threshold_low/<label>``, ``..._high/...``; and ``val_<objective>_tuned``,
    the mean over the labels that have an answer, which can be monitored. One threshold for all labels has no
    ``/<label>``. They are values of the rows that the threshold was found on, so better than those of a test; the
    interval says little of this. The table of the last epoch is printed after ``fit`` and ``validate``.

    Args:
        objective: One of "fbeta", "balanced_accuracy", "mcc", "youden", "recall_at_precision", "precision_at_recall",
            "cost" and "top_k"; see :class:`Objective`.
        beta: Of "fbeta"; None is 1.
        at_least: The precision, or recall, to be reached.
        false_positive_cost: Of "cost"; None is 1.
        false_negative_cost: Of "cost"; None is 1.
        k: Of "top_k": a share of the rows below 1, or a number of rows.
        per_label: Whether each label has its own threshold, or one counts for the elements of all labels together.
        bins: None keeps all rows and finds the best threshold there is. A number, such as 4096, keeps a histogram of
            the logits from -20 to 20 of so many bins instead, for sets that do not fit into memory: the threshold is
            then right to the width of a bin, a soft label counts by its share, and there are no intervals.
        bootstrap: Draws for the intervals. None is 200, and none with ``bins``.
        confidence: Of the intervals, in (0, 1).
        dataloader_idx: Which validation dataloader.
        class_names: One name for each label. None takes the module's ``class_names``, or label_0, label_1, ...
        max_rows: Labels in the table.
        print_table: Whether to print the table on the first rank.
        output: Where ``trainer.validate`` writes the checkpoint with what was fitted. None writes nothing.

    Attributes:
        threshold: (C,), or None before the first validation.
        result: All that was found, a :class:`TunedThresholds`.

    Raises:
        ValueError: If an option is out of range or has no effect, or the validation data are training data.
        TypeError: If a step does not return what is needed.

    Example:
        >>> import lightning.pytorch as pl
        >>> tuner = ThresholdTuner("recall_at_precision", at_least=0.9)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[tuner])
    """

    _what = "thresholds"
    fits = "threshold"

    def __init__(
        self,
        objective: ObjectiveName = "fbeta",
        beta: float | None = None,
        at_least: float | None = None,
        false_positive_cost: float | None = None,
        false_negative_cost: float | None = None,
        k: float | None = None,
        per_label: bool = True,
        bins: int | None = None,
        bootstrap: int | None = None,
        confidence: float = 0.95,
        dataloader_idx: int = 0,
        class_names: list[str] | None = None,
        max_rows: int = 20,
        print_table: bool = True,
        output: str | None = None,
    ) -> None:
        super().__init__(bins, dataloader_idx, class_names, max_rows, print_table, output)
        self.objective = Objective(objective, beta, at_least, false_positive_cost, false_negative_cost, k)
        if bins is not None and bootstrap:
            raise ValueError("`bootstrap` has no effect with `bins`: rows cannot be drawn from a histogram.")
        self.bootstrap = (_DRAWS if bins is None else 0) if bootstrap is None else bootstrap
        self.per_label = per_label
        self.confidence = confidence
        check_intervals(self.bootstrap, confidence)
        self._calibrator: ProbabilityCalibrator | None = None
        self.threshold: Tensor | None = None
        self.result: TunedThresholds | None = None

    def fit_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit the thresholds, after the calibration where there is one."""
        self._calibrator = None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ProbabilityCalibrator):
                callback.fit_now(trainer, pl_module)
                self._calibrator = callback
        super().fit_now(trainer, pl_module)

    def _fit(self, rows: Rows, names: list[str], pl_module: pl.LightningModule) -> TunedThresholds:
        decision = decision_of(pl_module)
        calibration = None if self._calibrator is None else self._calibrator.calibration
        calibration = calibration if decision is None else decision.calibration
        apply = Calibration(rows.score.shape[1]) if calibration is None else calibration_on_cpu(calibration)
        return tune_thresholds(
            apply(rows.score),
            rows.target,
            self.objective,
            weight=rows.weight,
            per_label=self.per_label,
            fallback=0.5 if decision is None else decision.given.cpu(),
            bootstrap=self.bootstrap,
            confidence=self.confidence,
            names=names,
        )

    def _take(self, fitted: TunedThresholds, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.result, self.threshold = fitted, fitted.threshold
        decision = decision_of(pl_module)
        if decision is not None:
            decision.set_threshold(fitted.threshold)
        objective = f"val_{self.objective.name}_tuned"
        parts = {
            "val_threshold": fitted.threshold,
            "val_threshold_low": fitted.threshold_low,
            "val_threshold_high": fitted.threshold_high,
            objective: fitted.value,
            f"{objective}_low": fitted.value_low,
            f"{objective}_high": fitted.value_high,
        }
        values = {objective: float(fitted.value.nanmean())}
        for part, numbers in parts.items():
            names = [f"/{name}" for name in self.labels] if self.per_label else [""]
            values |= {f"{part}{name}": float(number) for name, number in zip(names, numbers, strict=False)}
        self._log(values, trainer, pl_module)

    def table(self, plain: bool = False, narrow: bool = False) -> Table:
        """Return the thresholds of the last validation, what they reach, and the intervals of both.

        Args:
            plain: Whether to use ASCII only.
            narrow: Whether to leave the intervals out.

        Raises:
            LookupError: If there was no validation yet.
        """
        found = self.result
        if found is None:
            raise LookupError("There are no thresholds yet. Run `trainer.fit` or `trainer.validate` with the callback.")
        table = empty_table(self._title(), plain)
        intervals = not narrow and bool(self.bootstrap)
        percent = f"{self.confidence * 100:g} %"
        for header in ("threshold", self.objective.name.replace("_at_", "\nat ").replace("_", "\n")):
            table.add_column(header, justify="right", no_wrap=True)
            if intervals:
                table.add_column(percent, justify="right", no_wrap=True)
        noted = not bool(found.met.all())
        if noted:
            table.add_column("", no_wrap=True)
        names = self.labels if self.per_label or len(self.labels) == 1 else ["all labels"]
        for index, name in enumerate(names[: self.max_rows]):
            (threshold, value, met, *ends) = (float(part[index]) for part in found)
            cells = [[f"{threshold:.4g}", _interval(*ends[:2])], [_number(value), _interval(*ends[2:])]]
            note = "" if met else "as given" if value != value else "not reached"
            table.add_row(
                Text(name), *(c for pair in cells for c in (pair if intervals else pair[:1])), *[note] * noted
            )
        if len(names) > self.max_rows:
            table.add_row(Text(f"{len(names) - self.max_rows:,} more", style="dim"))
        return table

    def _title(self) -> str:
        options = {"beta": "beta", "at_least": "at least", "k": "k"}
        costs = {"false_positive_cost": "false positive costs", "false_negative_cost": "false negative costs"}
        said = [
            f"{text} {value:g}"
            for name, text in (options | costs).items()
            if (value := getattr(self.objective, name)) is not None
        ]
        return f"val thresholds: best {self.objective.name}" + (f" ({', '.join(said)})" if said else "")

    def _print(self) -> None:
        print_table((self.table, partial(self.table, narrow=True)), self.labels[: self.max_rows], "`tuner.table()`")


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _interval(low: float, high: float) -> str:
    return "" if low != low else f"{low:.3g} to {high:.3g}"
