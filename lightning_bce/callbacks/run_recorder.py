"""RunRecorder: what pictures and reports of a run are made from."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_bce.callbacks.label_names import checked_names, label_names, of_single_label
from lightning_bce.callbacks.run_folder import run_folder
from lightning_bce.callbacks.steps import (
    Stage,
    StageCallback,
    Step,
    agreed,
    checked_loss,
    checked_stages,
    judged_logits,
    loss_to_look_at,
    name_of,
    on_first_rank,
    read_step,
    refuse_head,
    sums_of,
    traceless,
)
from lightning_bce.logged_alike import log_alike
from lightning_bce.loggers import log_hyperparameters
from lightning_bce.losses import BinaryLoss
from lightning_bce.metrics import (
    HardnessBins,
    LossProfile,
    LossTracker,
    MultilabelReliabilityCurve,
    ScoreHistogram,
    hard_shares,
)
from lightning_bce.record import (
    Evaluation,
    Hardness,
    LossDistribution,
    Reliability,
    Scores,
    begin_record,
    write_evaluation,
)

Listener = Callable[[pl.Trainer, pl.LightningModule, Evaluation], None]

_SHARES = {"hard_share": "examples", "hard_share_loss": "loss", "hard_share_gradient": "gradient"}
_SUFFIX = "/dataloader_idx_"


class RunRecorder(StageCallback):
    r"""Keeps what pictures and reports of a run are made from, in its folder: where the loss comes from, over time.

    From the ``logits`` and ``target`` of each evaluated batch it files loss and gradient by hardness, the distribution
    of the loss, scores by label, probabilities by how often they come true and the decisions at the threshold: all in
    bins, exact over uneven batches and ranks, without the rows that a sampler repeats, and without a second forward of
    the model or a wait for the device. See :class:`LossProfile`, :class:`ScoreHistogram` and
    :class:`MultilabelReliabilityCurve`. Of training it adds up the ``sums`` of the steps.

    Files, written by the first rank (see :mod:`lightning_bce.record`):

    - ``record/history.jsonl``: a line for each epoch of training and each validation within ``fit``,
    - ``record/val.json``, ``record/test.json``: the last evaluation in full; of further dataloaders
      ``record/val_1.json`` and so on.

    A training from its start begins a new history; one that goes on in the same folder keeps the lines up to its step.
    It logs ``val_hard_share/examples``, ``val_hard_share/loss`` and ``val_hard_share/gradient``: how many elements are
    hard (the probability of their true side is below one half), and how much of the loss and of the gradient is theirs.

    It sends what the loss resolved (weights by label), the names of the labels and, after ``fit``, the thresholds to
    every logger, as hyper-parameters under ``resolved``.

    With ``BinaryClassifier`` an evaluation outside of ``fit`` looks at calibrated logits and decides by the thresholds
    that are set, as its metrics do; within ``fit`` it looks at the logits, and the constructor's thresholds. In the
    sanity check, ``barebones`` and ``fast_dev_run`` nothing is written. Without a logger the folder is the trainer's
    ``default_root_dir``.

    Cost: memory of 17 KiB a label on the device, and at each evaluated batch about as much time as the loss and its
    gradient take; nothing in training but the addition of sums. ``tests/benchmarks/training_overhead.py`` measures it.

    Args:
        stages: Which of "train", "val" and "test" to look at in full. In "train" the model changes meanwhile.
        loss: A loss to look at in place of the module's. None takes the module's ``loss``.
        class_names: One name for each label. None takes the module's ``class_names``, or label_0, label_1, ...
        threshold: A probability above it is a positive decision. None takes those of the module's ``decision``,
            its ``threshold``, or one half.
        folder: The run folder. None takes the logger's, or the trainer's ``default_root_dir``.

    Attributes:
        evaluations: For each stage the last evaluation of each dataloader, by its number.
        history: All evaluations in the order of time, without the curves.

    Raises:
        TypeError: If an argument, or what a step returns, has the wrong type, with what was expected.
        ValueError: If an option is out of range, or names do not fit the labels.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[RunRecorder()])
    """

    def __init__(
        self,
        stages: list[Stage] | tuple[Stage, ...] = ("val", "test"),
        loss: BinaryLoss | None = None,
        class_names: list[str] | None = None,
        threshold: float | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        if threshold is not None and (isinstance(threshold, bool) or not 0 <= threshold <= 1):
            raise ValueError(f"`threshold` is {threshold!r}; a probability in [0, 1] was expected.")
        self.stages = checked_stages(stages)
        self.loss = checked_loss(loss)
        self.class_names = None if class_names is None else checked_names(class_names, "class_names")
        self.threshold = threshold
        self.folder = None if folder is None else os.fspath(folder)
        self.evaluations: dict[str, dict[int, Evaluation]] = {}
        self.history: list[Evaluation] = []
        self._listeners: list[Listener] = []
        self._run_folder = "."
        self._parts: dict[str, dict[int, _Parts]] = {}
        self._of_train: Evaluation | None = None

    def subscribe(self, listener: Listener) -> None:
        """Have a function called on every rank after each evaluation, when its metrics are there and it is written.

        Args:
            listener: Takes the trainer, the module and the evaluation. A second time the same one is left as it is.
        """
        if listener not in self._listeners:
            self._listeners.append(listener)

    # -- hooks of Lightning -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out where the run is kept, on all ranks."""
        if stage != "predict":
            refuse_head(type(self).__name__, pl_module)
        self._run_folder = run_folder(trainer, self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a history, or go on with one, and log what is known of the loss only now."""
        if trainer.barebones:
            return
        step = trainer.global_step
        self.history = [line for line in self.history if 0 < line.step <= step] if step else []
        if _writes(trainer):
            on_first_rank(trainer, "write the record of the run", lambda: begin_record(self._run_folder, step))
        for logger in trainer.loggers:
            log_hyperparameters(logger, _resolved(pl_module))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch before, whose metrics are there now, and forget it."""
        self._write_training(trainer, pl_module)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last epoch."""
        self._write_training(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep what is whole when the training is stopped."""
        if self._of_train is not None and _writes(trainer) and trainer.is_global_zero:
            try:
                write_evaluation(self._run_folder, self._of_train)
            except OSError as error:  # in the place of `exception` it would hide it, and Lightning would not clean up
                warnings.warn(f"The last epoch is not in the record of the run: {error}", stacklevel=2)
        self._of_train = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the evaluation, with the metrics that were logged."""
        self._write("val", trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the evaluation, with the metrics that were logged."""
        self._write("test", trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Log the thresholds, which may have been found in the last epoch."""
        found = _threshold_of(pl_module)
        if stage == "fit" and found is not None and not trainer.barebones and pl_module.device.type != "meta":
            values = torch.as_tensor(found).flatten().tolist()
            for logger in trainer.loggers:
                log_hyperparameters(logger, {"threshold": values if len(values) > 1 else values[0]})

    # -- an epoch -----------------------------------------------------------------------------------------------------

    def _watches(self, stage: Stage, trainer: pl.Trainer) -> bool:
        # Training too, for its sums, whatever is looked at in full.
        return not trainer.barebones and (stage == "train" or stage in self.stages)

    def begin(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._parts[stage] = {}
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
        """File the elements of a batch."""
        sums = sums_of(outputs) if self.loss is None else None
        if stage not in self.stages and sums is None:
            return  # a module of other people, whose training is not asked for
        owner = type(self).__name__
        step = read_step(owner, stage, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        loss = loss_to_look_at(owner, self.loss, stage, pl_module)
        labels = step.logits.shape[1] if step.logits.ndim > 1 else 1
        parts = self._parts.setdefault(stage, {})
        if dataloader_idx not in parts:
            parts[dataloader_idx] = self._new(stage, pl_module, loss, labels)
        elif parts[dataloader_idx].labels != labels:
            raise ValueError(
                f"A batch has {labels} label(s) and those before it had {parts[dataloader_idx].labels}. Every batch of "
                "a dataloader needs the same labels; mark unknown ones by `ignore_index` or a mask."
            )
        if sums is None:
            with traceless(loss, step.logits) as scores:
                sums = loss.sums(scores, *step[1:3], mask=step.mask)
        parts[dataloader_idx].tracker.update(sums)
        if stage in self.stages:
            parts[dataloader_idx].file(step, loss, judged_logits(trainer, pl_module, step.logits))

    def end(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, num_dataloaders: int) -> None:
        """Add up the ranks, and log the shares of what is hard."""
        parts = self._parts.pop(stage, {})
        seen = [parts[i].labels if i in parts else 0 for i in range(num_dataloaders)]
        self.evaluations[stage] = {}
        for index, labels in enumerate(agreed(seen, pl_module.device)):
            if not labels:
                continue
            loss = loss_to_look_at(type(self).__name__, self.loss, stage, pl_module)
            part = parts[index] if index in parts else self._new(stage, pl_module, loss, labels).without_batches(loss)
            names = label_names(self.class_names, pl_module, labels)
            made = part.evaluation(stage, trainer, names, name_of(loss), index)
            self.evaluations[stage][index] = made
            if made.hardness is not None:
                suffix = f"{_SUFFIX}{index}" if num_dataloaders > 1 else ""
                shares = hard_shares(HardnessBins(*_fields(made.hardness)))
                logged = {
                    f"{stage}_hard_share/{_SHARES[name]}{suffix}": value.float()
                    for name, value in shares.items()
                    if not value.isnan()
                }
                log_alike(logged, trainer, pl_module)
        if stage == "train":
            self._of_train = self.evaluations["train"].get(0)

    def _new(self, stage: Stage, pl_module: pl.LightningModule, loss: BinaryLoss, labels: int) -> _Parts:
        label_names(self.class_names, pl_module, labels)  # refuses those that do not fit
        threshold: Any = _threshold_of(pl_module) if self.threshold is None else self.threshold
        if self.threshold is None and pl_module.trainer.state.fn == "fit":
            # Those that are set were fitted for calibrated probabilities of an epoch before; these are neither.
            threshold = getattr(getattr(pl_module, "decision", None), "given", threshold)
        # On the module's device, which is the one that ranks can gather from.
        return _Parts(loss, labels, 0.5 if threshold is None else threshold, stage in self.stages, pl_module.device)

    # -- files --------------------------------------------------------------------------------------------------------

    def _write_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._of_train is None:
            return
        self.evaluations["train"] = {0: self._of_train}
        self._of_train = None
        self._write("train", trainer, pl_module)

    def _write(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not self._watches(stage, trainer):
            return
        found = self.evaluations.get(stage, {})
        in_fit = trainer.state.fn == "fit"
        for index, evaluation in found.items():
            metrics = _metrics_of(stage, index, len(found) > 1, trainer.callback_metrics)
            found[index] = dataclasses.replace(evaluation, metrics=metrics)
            if in_fit:
                self.history.append(found[index].without_curves())

        def write() -> None:
            for evaluation in found.values():
                write_evaluation(self._run_folder, evaluation, history=in_fit)

        if _writes(trainer):
            on_first_rank(trainer, "write the record of the run", write)
        for evaluation in found.values():
            for listener in self._listeners:
                listener(trainer, pl_module, evaluation)


class _Parts:
    """What is filed of one dataloader."""

    def __init__(self, loss: BinaryLoss, labels: int, threshold: Any, full: bool, device: torch.device) -> None:
        self.labels = labels
        self.device = device
        self.tracker = LossTracker(num_labels=loss.num_rows(labels)).to(device)
        self.profile: LossProfile | None = None
        if full:
            self.profile = LossProfile(loss, labels).to(device)
            self.scores = ScoreHistogram(labels, threshold=threshold).to(device)
            self.curve = MultilabelReliabilityCurve(
                labels, from_logits=True, ignore_index=math.nan, validate_args=False
            ).to(device)

    def file(self, step: Step, loss: BinaryLoss, judged: Tensor) -> None:
        """File a batch."""
        if self.profile is None:
            return
        logits, target, weight, mask = step
        self.profile.update(logits, target, weight, mask=mask)
        known = loss.observed(logits, target, mask)
        self.scores.update(judged, target, mask=known)
        labels = target.to(torch.promote_types(target.dtype, torch.float32))
        if known is not None:
            labels = torch.where(known, labels, torch.nan)
        shape = (len(judged), self.labels, -1 if judged.numel() else 1) if judged.ndim else (1, 1, 1)
        self.curve.update(judged.reshape(shape), labels.reshape(shape))

    def without_batches(self, loss: BinaryLoss) -> _Parts:
        """Add an empty batch, so that torchmetrics does not warn that there was none."""
        logits = torch.zeros(0, self.labels, device=self.device)
        with traceless(loss, logits) as scores:
            self.tracker.update(loss.sums(scores, logits))
        self.file(Step(logits, logits, None, None), loss, logits)
        return self

    def evaluation(
        self, stage: Stage, trainer: pl.Trainer, names: list[str], loss_name: str, dataloader: int
    ) -> Evaluation:
        """Return what all ranks have filed, on the CPU."""
        sums = self.tracker.sums_over_ranks()
        about: dict[str, Any] = {
            "stage": stage,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "loss_name": loss_name,
            "labels": names,
            "loss": _plain(sums.loss),
            "weight": _plain(sums.weight),
            "dataloader": dataloader,
        }
        if self.profile is None:
            return Evaluation(**about, gradient=torch.full((self.labels, 2), torch.nan, dtype=torch.float64))
        profile, counted, curve = self.profile.compute(), self.scores.compute(), self.curve.compute()
        return Evaluation(
            **about,
            gradient=_plain(profile.gradient),
            hardness=Hardness(*map(_plain, profile.hardness)),
            distribution=None if profile.distribution is None else LossDistribution(*map(_plain, profile.distribution)),
            scores=Scores(*map(_plain, counted.scores)),
            reliability=Reliability(*map(_plain, curve)),
            threshold=_plain(self.scores.threshold).reshape(-1),
            confusion=_plain(counted.confusion),
        )


def _plain(values: Tensor) -> Tensor:
    return values.detach().double().cpu()


def _fields(part: Any) -> list[Tensor]:
    return [getattr(part, f.name) for f in dataclasses.fields(part)]


def _writes(trainer: pl.Trainer) -> bool:
    return not trainer.barebones and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _threshold_of(pl_module: pl.LightningModule) -> Any:
    """Return the module's thresholds, or None."""
    found = getattr(getattr(pl_module, "decision", None), "threshold", None)
    return getattr(pl_module, "threshold", None) if found is None else found


def _metrics_of(stage: Stage, index: int, several: bool, logged: Mapping[str, Tensor]) -> dict[str, float]:
    """Return what was logged of a stage and a dataloader, without the values of single labels."""
    others = tuple({"train", "val", "test"} - {stage})
    found = {}
    for name, value in logged.items():
        plain, _, number = name.partition(_SUFFIX)
        of_another = several and number != str(index) and number
        if value.numel() == 1 and not name.startswith(others) and not of_another and not of_single_label(name):
            found[plain if several else name] = float(value)
    return found


def _resolved(pl_module: pl.LightningModule) -> dict[str, Any]:
    """Return what a module and its loss know when training starts, as plain values."""
    found: dict[str, Any] = {}
    for name in ("num_labels", "class_names"):
        value = getattr(pl_module, name, None)
        if isinstance(value, int):
            found[name] = value
        elif isinstance(value, (list, tuple)):
            found[name] = [str(part) for part in value]
    loss = getattr(pl_module, "loss", None)
    if isinstance(loss, BinaryLoss):
        # What a loss remembers is saved; what it was given, or worked out, is not.
        remembered = loss.state_dict().keys()
        found |= {f"loss/{name}": value.tolist() for name, value in loss.named_buffers() if name not in remembered}
    return found
