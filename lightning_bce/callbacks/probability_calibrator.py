"""ProbabilityCalibrator: probabilities that come true as often as they say, by a map fitted on the validation set."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
from rich.table import Table
from rich.text import Text

from lightning_bce.callbacks.loss_table import empty_table, print_table
from lightning_bce.callbacks.validation_rows import FitsOnValidation, decision_of
from lightning_bce.decision import Calibration, fit_calibration
from lightning_bce.decision.calibration import Method, check_method
from lightning_bce.decision.quality import Quality, cross_calibrated, quality
from lightning_bce.decision.rows import Rows

_FOLDS = 5


class ProbabilityCalibrator(FitsOnValidation):
    r"""Fits a calibration of the probabilities on the validation set; focal, weighted and ranking losses distort them.

    At the end of each validation of ``fit``, before checkpoints are saved, it looks at all rows of all ranks, and puts
    the map into ``pl_module.decision``: each checkpoint of a :class:`BinaryClassifier` holds the one that belongs to
    its weights, and the probabilities of prediction, the command line and ``exportable()`` are calibrated by it; a test
    and ``trainer.validate`` log ``test_log_loss_calibrated`` beside the loss of the logits. On another module it is
    found in :attr:`calibration` alone. What the methods are, and what a label of one class gets, says
    :func:`fit_calibration`.

    It reads ``logits`` and ``target`` of what ``validation_step`` returns, and ``weight`` and ``mask`` where there are.
    Validation data that are seen to be training data are refused. The sanity check counts nothing, nor does a test.
    ``trainer.validate(module, ckpt_path=...)`` with the callback fits a trained model anew; ``output`` writes it. An
    epoch without a validation keeps the map of the last one.

    Once an epoch it logs ``val_brier`` and ``val_calibration_error`` (expected, 15 equal bins, mean over labels), and
    after calibration ``val_log_loss_calibrated``, ``val_brier_calibrated`` and ``val_calibration_error_calibrated``.
    Those are measured on rows apart: each fold of the rows by the map that was fitted on the other folds. The table of
    the last epoch, with both for each label, is printed after ``fit`` and ``validate``. Weights of samples count.

    Args:
        method: "temperature", "platt", "vector" or "isotonic"; see :func:`fit_calibration`.
        per_label: Whether each label has its own map. None is one for all under "temperature" and "platt", and one for
            each under "vector" and "isotonic".
        folds: For what is logged after calibration. None is 5; 0 measures on the rows of the fit, which flatters.
        bins: None keeps all rows. A number, such as 4096, keeps a histogram of the logits from -20 to 20 of so many
            bins instead, for sets that do not fit into memory; then there are no folds.
        dataloader_idx: Which validation dataloader.
        class_names: One name for each label. None takes the module's ``class_names``, or label_0, label_1, ...
        max_rows: Labels in the table.
        print_table: Whether to print the table on the first rank.
        output: Where ``trainer.validate`` writes the checkpoint with what was fitted. None writes nothing.

    Attributes:
        calibration: A :class:`Calibration`, or None before the first validation.
        before: The :class:`Quality` of the probabilities of the model.
        after: That of the calibrated ones.

    Raises:
        ValueError: If an option is out of range or has no effect, or the validation data are training data.
        TypeError: If a step does not return what is needed.

    Example:
        >>> import lightning.pytorch as pl
        >>> calibrator = ProbabilityCalibrator("isotonic")
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[calibrator])
    """

    _what = "calibration"
    fits = "calibration"

    def __init__(
        self,
        method: Method = "platt",
        per_label: bool | None = None,
        folds: int | None = None,
        bins: int | None = None,
        dataloader_idx: int = 0,
        class_names: list[str] | None = None,
        max_rows: int = 20,
        print_table: bool = True,
        output: str | None = None,
    ) -> None:
        super().__init__(bins, dataloader_idx, class_names, max_rows, print_table, output)
        if folds is not None and (isinstance(folds, bool) or not isinstance(folds, int) or folds < 0 or folds == 1):
            raise ValueError(f"`folds` is {folds!r}; at least 2 were expected, or 0 for none.")
        if bins is not None and folds:
            raise ValueError("`folds` has no effect with `bins`: a histogram cannot be parted into rows.")
        check_method(method, per_label)
        self.method: Method = method
        self.per_label = per_label
        self.folds = (_FOLDS if bins is None else 0) if folds is None else folds
        self.calibration: Calibration | None = None
        self.before: Quality | None = None
        self.after: Quality | None = None

    def _fit(self, rows: Rows, names: list[str], pl_module: pl.LightningModule) -> Any:
        fitted = fit_calibration(
            rows.score, rows.target, self.method, weight=rows.weight, per_label=self.per_label, names=names
        )
        if self.folds:
            after = cross_calibrated(rows, self.method, self.per_label, self.folds)
        else:
            after = rows._replace(score=fitted.logits(rows.score))
        return fitted, quality(rows), quality(after)

    def _take(self, fitted: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.calibration, self.before, self.after = fitted
        before, after = fitted[1:]
        decision = decision_of(pl_module)
        if decision is not None:
            decision.calibration.set(fitted[0])
        values = {
            "val_brier": before.mean("brier"),
            "val_calibration_error": before.mean("error"),
            "val_log_loss_calibrated": after.mean("log_loss"),
            "val_brier_calibrated": after.mean("brier"),
            "val_calibration_error_calibrated": after.mean("error"),
        }
        self._log(values, trainer, pl_module)

    def table(self, plain: bool = False, narrow: bool = False) -> Table:
        """Return log-loss, Brier score and calibration error of the last validation, before and after.

        Args:
            plain: Whether to use ASCII only.
            narrow: Whether to show the log-loss alone.

        Raises:
            LookupError: If there was no validation yet.
        """
        if self.before is None or self.after is None:
            raise LookupError("Nothing is calibrated yet. Run `trainer.fit` or `trainer.validate` with the callback.")
        apart = f"after: on {self.folds} folds apart" if self.folds else "after: on the rows of the fit"
        table = empty_table(f"val probabilities: {self.method} calibration ({apart})", plain)
        columns = {"log_loss": "log-loss", "brier": "Brier", "error": "calibration\nerror"}
        shown = ["log_loss"] if narrow else list(columns)
        for name in shown:
            table.add_column(columns[name], justify="right", no_wrap=True)
            table.add_column("after", justify="right", no_wrap=True)
        for index, label in enumerate(self.labels[: self.max_rows]):
            values = [getattr(part, name)[index] for name in shown for part in (self.before, self.after)]
            table.add_row(Text(label), *(_number(float(value)) for value in values))
        if len(self.labels) > self.max_rows:
            table.add_row(Text(f"{len(self.labels) - self.max_rows:,} more", style="dim"))
        if len(self.labels) > 1:
            means = [part.mean(name) for name in shown for part in (self.before, self.after)]
            table.add_row(Text("all", style="bold"), *map(_number, means))
        return table

    def _print(self) -> None:
        print_table(
            (self.table, partial(self.table, narrow=True)), self.labels[: self.max_rows], "`calibrator.table()`"
        )


def _number(value: float) -> str:
    return "" if value != value else f"{value:.4f}"
