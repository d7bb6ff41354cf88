"""PictureLogger: pictures, loss table and hard examples in the logger that a run has."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import lightning.pytorch as pl

from lightning_bce.callbacks.hard_examples import HardExamples
from lightning_bce.callbacks.run_recorder import RunRecorder
from lightning_bce.callbacks.steps import callbacks_of, checked_count, refuse_head
from lightning_bce.loggers import log_figure, log_table
from lightning_bce.plotting import pictures
from lightning_bce.record import Evaluation

_COLUMNS = ["label", "negatives", "positives", "loss", "loss of negatives", "loss of positives", "share of loss"]


class PictureLogger(pl.Callback):
    """Draws each evaluation and sends it to every logger: pictures, the loss by label, and the hard examples.

    Needs a :class:`RunRecorder` among the callbacks, whose evaluations it draws by
    :func:`lightning_bce.plotting.pictures`; from a :class:`HardExamples`, where there is one, it takes the table and
    the pictures. Names are ``val/<picture>``, ``val/loss_by_label``, ``val/hard_examples`` and
    ``val/hard_example_images``, of further dataloaders ``val_1/...``. How each logger takes them:
    :mod:`lightning_bce.loggers`. The first rank draws.

    Args:
        every_n_epochs: Of training, at whose validations it draws; the last one of ``max_epochs`` always. A test, and
            a validation outside of ``fit``, is always drawn.

    Raises:
        ValueError: If ``every_n_epochs`` is out of range.
        RuntimeError: When the trainer starts, if there is no RunRecorder, or no matplotlib.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[RunRecorder(), PictureLogger()])
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        super().__init__()
        self.every_n_epochs = checked_count("every_n_epochs", every_n_epochs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the recorder."""
        if stage == "predict" or trainer.barebones:
            return
        refuse_head(type(self).__name__, pl_module)
        recorders = [callback for callback in callbacks_of(trainer) if isinstance(callback, RunRecorder)]
        if not recorders:
            raise RuntimeError(
                "PictureLogger draws what RunRecorder files, and there is none among the callbacks: "
                "`Trainer(callbacks=[RunRecorder(), PictureLogger()])`."
            )
        if importlib.util.find_spec("matplotlib") is None:
            raise RuntimeError(
                "PictureLogger draws with matplotlib, which is missing: `pip install 'lightning_bce[plot]'`"
            )
        recorders[0].subscribe(self._draw)
        self._recorder = recorders[0]

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, evaluation: Evaluation) -> None:
        """Send an evaluation to the loggers."""
        if not trainer.is_global_zero or not trainer.loggers or not self._is_due(trainer, evaluation):
            return
        step, place = evaluation.step, evaluation.name
        for name, figure in pictures(evaluation, self._recorder.history).items():
            for logger in trainer.loggers:
                log_figure(logger, f"{place}/{name}", figure, step)
            figure.clear()
        for logger in trainer.loggers:
            log_table(logger, f"{place}/loss_by_label", _COLUMNS, _rows(evaluation), step)
        for callback in callbacks_of(trainer):
            if isinstance(callback, HardExamples) and evaluation.dataloader == 0:
                self._send_examples(callback, trainer, evaluation)

    def _is_due(self, trainer: pl.Trainer, evaluation: Evaluation) -> bool:
        # A line of training holds sums alone, unless the recorder looks at it in full.
        if trainer.fast_dev_run or evaluation.hardness is None:  # type: ignore[attr-defined]
            return False
        return trainer.state.fn != "fit" or self._at(trainer, evaluation.epoch)

    def _at(self, trainer: pl.Trainer, epoch: int) -> bool:
        return (epoch + 1) % self.every_n_epochs == 0 or epoch + 1 == trainer.max_epochs

    def _send_examples(self, hard: HardExamples, trainer: pl.Trainer, evaluation: Evaluation) -> None:
        try:
            columns = hard.columns(evaluation.stage)  # type: ignore[arg-type]
        except LookupError:  # it watches other stages
            return
        figure = hard.figure(evaluation.stage)  # type: ignore[arg-type]
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        for logger in trainer.loggers:
            log_table(logger, f"{evaluation.stage}/hard_examples", list(columns), rows, evaluation.step)
            if figure is not None:
                # Not the name of the table: W&B has one chart for a name.
                log_figure(logger, f"{evaluation.stage}/hard_example_images", figure, evaluation.step)


def _rows(evaluation: Evaluation) -> list[list[Any]]:
    """Return the loss by label, the largest share first."""
    names = evaluation.labels if len(evaluation.loss) == len(evaluation.labels) else ["all"]
    total = evaluation.loss.sum().item()
    rows: list[list[Any]] = []
    for name, loss, weight in zip(names, evaluation.loss.tolist(), evaluation.weight.tolist(), strict=True):
        means = [part / count if count else None for part, count in zip(loss, weight, strict=True)]
        mean = sum(loss) / sum(weight) if sum(weight) else None
        rows.append([name, *weight, mean, *means, sum(loss) / total if total else None])
    return sorted(rows, key=lambda row: math.inf if row[-1] is None or math.isnan(row[-1]) else -row[-1])
