"""One training: the same start, order and stopping for every loss."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_bce.callbacks import FiniteGuard
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.comparison.deciding import calibrate, calibrated
from lightning_bce.comparison.rows import Array, SplitRows, as_rows, seeded
from lightning_bce.comparison.scores import Judged, score_of
from lightning_bce.losses import BinaryLoss
from lightning_bce.quiet import without_chatter
from lightning_bce.spec import Spec, build, load_class

STOP_BY = ("average_precision", "log_loss", "own_loss")


class Trained(NamedTuple):
    """What a training leaves.

    Args:
        value: The best value of what decided when to stop, higher is better.
        val_logits: Scores of the validation rows at the best epoch, (N, C).
        test_logits: Scores of the test rows at the same epoch.
        epochs: How many were trained.
        best_epoch: The one that is judged, from 1.
        seconds: Time of the training by the clock, with its validation.
        cpu_seconds: Time of it that this process was computing, which others that run beside it do not lengthen.
        peak_mib: Largest resident memory of the process meanwhile, on CUDA what was allocated there; NaN where unknown.
    """

    value: float
    val_logits: Array
    test_logits: Array
    epochs: int
    best_epoch: int
    seconds: float
    cpu_seconds: float
    peak_mib: float


def train(rows: SplitRows, loss: Spec, recipe: Mapping[str, Any], optimizer: Spec, seed: int) -> Trained:
    """Train one model with one loss, from weights and in an order that depend on ``seed`` alone.

    Args:
        rows: The data.
        loss: The loss, complete.
        recipe: ``model``, ``max_epochs``, ``patience``, ``stop_by`` and ``accelerator``.
        optimizer: Class path and arguments of the optimizer.
        seed: Of weights, order and dropout.

    Raises:
        NotFiniteError: If the loss or a weight is no number.
    """
    with isolate_rng(), without_chatter():
        built: BinaryLoss = build(loss, BinaryLoss)  # first, so that what it draws moves nothing
        seeded(seed)
        random.seed(seed)
        classifier = BinaryClassifier(
            build_model(recipe["model"], rows),
            built,
            num_labels=rows.num_labels,
            optimizer=optimizer,  # type: ignore[arg-type]
            metrics=[],
            class_names=rows.class_names,
        )
        best = _Best(rows, recipe["stop_by"], recipe["patience"])
        trainer = pl.Trainer(
            accelerator=recipe["accelerator"],
            devices=1,
            max_epochs=recipe["max_epochs"],
            callbacks=[best, FiniteGuard()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,  # `_Best` validates, without the metrics of each epoch
        )
        seeded(seed)  # again: a model of another's may have drawn as many numbers as it liked
        _reset_peak()
        start, cpu_start = time.perf_counter(), time.process_time()
        trainer.fit(classifier, datamodule=rows.module)
        seconds, cpu_seconds = max(0.0, time.perf_counter() - start), time.process_time() - cpu_start
        peak = _peak_mib()
        classifier.load_state_dict(best.state)
        test_logits = logits_of(classifier, rows.test)
    return Trained(best.value[0], best.logits, test_logits, best.epoch, best.best_epoch, seconds, cpu_seconds, peak)


def build_model(spec: Spec, rows: SplitRows) -> nn.Module:
    """Return a model of the data's size: ``in_features`` and ``out_features`` are filled in where it takes them.

    Raises:
        ValueError: If the model cannot be built.
    """
    if "children" in spec:
        model: nn.Module = build(spec, nn.Module)
        return model
    cls = load_class(spec["class_path"], nn.Module)
    parameters = inspect.signature(cls).parameters
    told = {"in_features": rows.num_features, "out_features": rows.num_labels}
    arguments = {name: value for name, value in told.items() if name in parameters and value is not None}
    try:
        model = build({**spec, "init_args": {**arguments, **(spec.get("init_args") or {})}}, nn.Module)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The model {cls.__name__} cannot be built: {error}") from error
    return model


def logits_of(classifier: BinaryClassifier, batches: Any) -> Array:
    """Return the scores of all rows, (N, C)."""
    was_training = classifier.training
    classifier.eval()
    with torch.no_grad():
        parts = [as_rows(classifier(_moved(batch.inputs, classifier.device))) for batch in batches]
    classifier.train(was_training)
    return np.concatenate(parts)


def _moved(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    return pl.LightningDataModule().transfer_batch_to_device(inputs, device, 0)


class _Best(pl.Callback):
    """Keeps the weights of the best epoch and ends the training when there has been none better for a while.

    The yardstick is the same for every loss. Average precision, because no loss here minimises it and no calibration
    changes it; where it is equal, as on few validation rows that are all in order, the log-loss after calibration on
    them decides. By the log-loss first, BCE would be stopped by what it minimises and the others by what they do not.
    """

    def __init__(self, rows: SplitRows, stop_by: str, patience: int) -> None:
        super().__init__()
        self._rows, self._stop_by, self._patience = rows, stop_by, patience
        self.value: tuple[float, ...] = ()
        self.epoch, self.best_epoch = 0, 0
        self.logits: Array = np.empty((0, 0))
        self.state: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, BinaryClassifier)
        self.epoch += 1
        logits = logits_of(pl_module, self._rows.val)
        value = self._measure(pl_module, logits)
        if value > self.value:
            self.value, self.best_epoch, self.logits = value, self.epoch, logits
            self.state = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        elif self.epoch - self.best_epoch >= self._patience:
            trainer.should_stop = True

    def _measure(self, classifier: BinaryClassifier, logits: Array) -> tuple[float, ...]:
        target, known = self._rows.val_labels
        if self._stop_by == "own_loss":
            scores, labels, mask = (torch.from_numpy(part).to(classifier.device) for part in (logits, target, known))
            scores = scores if classifier.loss.input_space == "logits" else scores.sigmoid()
            with torch.no_grad():
                return (-float(classifier.loss.sums(scores, labels, mask=mask).mean()),)
        probability = calibrated(logits, calibrate(logits, self._rows.val_labels))
        judged = Judged(logits, probability, logits, target, known)
        log_loss = -float(score_of("log_loss", judged, 1.0)[0])
        if self._stop_by == "log_loss":
            return (log_loss,)
        precision = float(score_of("average_precision", judged, 1.0)[0])
        return (-math.inf if math.isnan(precision) else precision, log_loss)  # no label with both classes: equal


def _reset_peak() -> None:
    if _on_cuda():
        torch.cuda.reset_peak_memory_stats()
    # The kernel's high-water mark starts anew. A container may forbid it: the mark is then that of the whole process.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> float:
    if _on_cuda():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return math.nan  # only Linux tells


def _on_cuda() -> bool:
    return torch.cuda.is_available() and bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
