"""LiveLossTable: the loss of the last epochs, beside the progress bar."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor

from lightning_bce.callbacks.epoch_table import FORMS, Epoch, epoch_line, epoch_table
from lightning_bce.callbacks.loss_table import write_plain
from lightning_bce.callbacks.run_recorder import RunRecorder
from lightning_bce.callbacks.steps import (
    Stage,
    StageCallback,
    callbacks_of,
    checked_count,
    checked_loss,
    name_of,
    sums_of_step,
)
from lightning_bce.losses import BinaryLoss
from lightning_bce.metrics import ScoreBins, score_average_precision
from lightning_bce.record import Evaluation

_AROUND = 9  # lines of a terminal that are not rows: head and title of the table, bars, and one to breathe


class LiveLossTable(StageCallback):
    """Shows the loss of the last epochs while training goes on: in training, in validation, and its parts by side.

    Beside Lightning's RichProgressBar it is a table above the bar, which stays when the training ends; a terminal too
    narrow gets fewer columns, one without UTF-8 ASCII. Beside any other bar, with none, and without a terminal it is a
    line for each epoch. Arrows and signs compare with the epoch before.

    The parts of the negatives and of the positives add up to the validation loss, which is over all its dataloaders.
    Average precision and calibration error are those that were logged as ``val_AveragePrecision`` and
    ``val_CalibrationError``, or else, means over labels, of a :class:`RunRecorder` among the callbacks.

    Args:
        max_rows: Epochs in the table, the last ones, as far as the terminal is high enough.
        loss: A loss to look at in place of the module's. None takes ``sums`` of the step, or the module's ``loss``.

    Attributes:
        epochs: What was shown, one for each epoch.

    Raises:
        TypeError: If an argument, or what a step returns, has the wrong type, with what was expected.
        ValueError: If ``max_rows`` is out of range.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[LiveLossTable()])
    """

    stages = ("train", "val")

    def __init__(self, max_rows: int = 8, loss: BinaryLoss | None = None) -> None:
        super().__init__()
        self.max_rows = checked_count("max_rows", max_rows)
        self.loss = checked_loss(loss)
        self.epochs: list[Epoch] = []
        self._loss_name = "loss"
        self._sums: dict[str, Tensor] = {}
        self._val: dict[str, float] = {}
        self._of_recorder: dict[str, float] = {}
        self._attached: Any = None
        self._led: list[tuple[Any, Any]] = []

    # -- hooks of Lightning -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find a recorder."""
        if stage == "fit":
            self._attached, self._val = None, {}
            self.epochs = []
            for callback in callbacks_of(trainer):
                if isinstance(callback, RunRecorder):
                    callback.subscribe(self._note)

    def begin(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._sums[stage] = torch.zeros(2, 2, dtype=torch.float32, device=pl_module.device)
        if pl_module.device.type != "mps":
            self._sums[stage] = self._sums[stage].double()
        if self.loss is not None:
            self.loss.to(pl_module.device).recheck()

    def add(
        self,
        stage: Stage,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add the sums of a batch."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if stage == "train" and not {"sums", "logits"} & set(outputs if isinstance(outputs, Mapping) else ()):
            return  # a module of other people, which returns the loss alone there
        at = (batch, batch_idx, dataloader_idx)
        sums, loss = sums_of_step(type(self).__name__, self.loss, stage, trainer, pl_module, outputs, *at)
        self._loss_name = name_of(loss)
        total = self._sums[stage]
        self._sums[stage] = total + torch.stack([sums.loss.sum(0), sums.weight.sum(0)]).to(total)

    def end(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, num_dataloaders: int) -> None:
        """Add up the ranks and, after training, show the epoch: its validation is over by then."""
        if trainer.state.fn != "fit":
            return
        total: Any = self._sums.pop(stage)
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        (negative, positive), counts = total.tolist()
        count = sum(counts) or math.nan
        mean, negative, positive = (part / count for part in (negative + positive, negative, positive))
        if stage == "val":
            self._val = {"val": mean, "negative": negative, "positive": positive}
            return
        values = self._val
        if values:
            values |= self._of_recorder
            for name, logged in (("precision", "val_AveragePrecision"), ("calibration", "val_CalibrationError")):
                if logged in trainer.callback_metrics:
                    values[name] = float(trainer.callback_metrics[logged])
        self._val, self._of_recorder = {}, {}
        self.epochs = [*self.epochs, Epoch(trainer.current_epoch, train=mean, **values)]
        self._show(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Join the progress bar, which is there now."""
        if batch_idx == 0 and not trainer.barebones:
            self._attach(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave Lightning's messages to where they went before."""
        self._release_logs()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave Lightning's messages to where they went before."""
        self._release_logs()

    # -- what is shown ------------------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table in the form that fits."""
        if self.epochs:
            yield self.table(console, options)

    def table(self, console: Console | None = None, options: ConsoleOptions | None = None) -> Table:
        """Return the last epochs as a table for ``rich.print``.

        Args:
            console: Where it will stand. None is rich's.
            options: Of this console.
        """
        console = Console() if console is None else console
        options = console.options if options is None else options
        rows = max(1, min(self.max_rows, console.height - _AROUND))
        last = self.epochs[-rows:]
        unbounded = options.update(width=10_000)  # else the answer is cut to what there is
        for form in FORMS:
            made = epoch_table(last, f"{self._loss_name} by epoch", plain=options.ascii_only, **form)
            if Measurement.get(console, unbounded, made).maximum <= options.max_width:
                break
        return made

    def _note(self, trainer: pl.Trainer, pl_module: pl.LightningModule, evaluation: Evaluation) -> None:
        """Take two numbers of a recorded evaluation."""
        if evaluation.stage != "val" or evaluation.dataloader or trainer.state.fn != "fit":
            return
        scores, reliability = evaluation.scores, evaluation.reliability
        if scores is not None and reliability is not None:
            precision = score_average_precision(ScoreBins(scores.edges, scores.count)).value
            gap = (reliability.probability - reliability.positive).abs().sum(1) / reliability.count.sum(1)
            self._of_recorder = {"precision": precision.nanmean().item(), "calibration": gap.nanmean().item()}

    def _attach(self, trainer: pl.Trainer) -> None:
        """Have the progress bar show the table above its bars."""
        bar: Any = trainer.progress_bar_callback
        progress = getattr(bar, "progress", None)
        # A bar that leaves one behind for each epoch would leave as many tables.
        if not isinstance(bar, RichProgressBar) or progress is None or bar._leave or progress is self._attached:
            return
        if not trainer.is_global_zero or not progress.console.is_terminal or progress.disable:
            return
        bars = progress.get_renderables

        def with_table() -> Iterable[Any]:
            yield self
            yield from bars()

        progress.get_renderables = with_table
        self._attached = progress
        self._lead_logs(sys.stderr)

    def _lead_logs(self, stream: Any) -> None:
        """Have Lightning's messages written above the table, by what stands in for the terminal while it is shown.

        Its handler keeps the stream of before, and a line that the progress bar does not know of leaves torn ones.
        """
        for handler in logging.getLogger("lightning.pytorch").handlers:
            if type(handler) is logging.StreamHandler and handler.stream is not stream:
                self._led.append((handler, handler.stream))
                handler.setStream(stream)

    def _release_logs(self) -> None:
        for handler, stream in self._led:
            handler.setStream(stream)
        self._led = []

    def _show(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        if self._attached is not None:
            self._attached.refresh()
            return
        line = epoch_line(self.epochs[-1], self.epochs[-2] if len(self.epochs) > 1 else None)
        bar: ProgressBar | None = trainer.progress_bar_callback
        try:
            if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
                bar.print(line)  # between its bars, which end in no line feed
            else:
                write_plain(line)
        except (OSError, ValueError) as error:  # a closed pipe, a full disk, a closed file
            warnings.warn(f"The loss of the epoch could not be printed ({error}).", stacklevel=2)
