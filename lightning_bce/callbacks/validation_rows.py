"""What two callbacks share that fit something on the validation set: its logits and labels, of all ranks, once each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from lightning_bce.callbacks.label_names import checked_names, label_names
from lightning_bce.callbacks.steps import callbacks_of, checked_count, gathered, refuse_head, step_of
from lightning_bce.checkpoints import AtomicCheckpointIO
from lightning_bce.decision import Calibration, Decision
from lightning_bce.decision.rows import Rows, rows_of
from lightning_bce.files import check_place
from lightning_bce.logged_alike import log_alike
from lightning_bce.losses import BinaryLoss

_RANGE = 20.0


class Collected:
    """Logits, labels and weights of an epoch: all of them, or how much lies in each bin of the logit.

    Args:
        bins: How many between logits of -20 and 20, or None for all rows as they are.
    """

    def __init__(self, bins: int | None = None) -> None:
        self.bins = bins
        self._rows: list[Rows] = []
        self._histogram: Tensor | None = None  # (C, 2, bins), of negatives and positives
        self._whole: Rows | None = None
        self._is_gathered = False

    def add(self, rows: Rows) -> None:
        """Add a batch.

        Raises:
            ValueError: If it has another number of labels than those before.
        """
        labels = rows.score.shape[1]
        before = self._labels()
        if before not in (None, labels):
            raise ValueError(f"A batch has {labels} label(s) and those before it had {before}.")
        if self.bins is None:
            self._rows.append(Rows(*(part.float() for part in rows)))
            return
        if self._histogram is None:
            self._histogram = torch.zeros(labels, 2, self.bins, dtype=torch.float64)
        place = ((rows.score.double() + _RANGE) * (self.bins / (2 * _RANGE))).long().clamp(0, self.bins - 1)
        place = place + torch.arange(labels) * 2 * self.bins
        positive = (rows.weight * rows.target).double()
        for side, weight in enumerate((rows.weight.double() - positive, positive)):
            self._histogram.reshape(-1).index_add_(0, (place + side * self.bins).flatten(), weight.flatten())

    def _labels(self) -> int | None:
        if self._rows:
            return self._rows[0].score.shape[1]
        return None if self._histogram is None else len(self._histogram)

    def gathered(self) -> Rows | None:
        """Return the rows of all ranks on the first rank, in the order of the data, and None on the others.

        Without a row on any rank it is a table of no row. Bins are rows too, of their middle.

        Raises:
            ValueError: If ranks have different numbers of labels.
        """
        if not self._is_gathered:  # two callbacks may ask, and all ranks have to answer alike
            self._is_gathered = True
            everyone: list[Any] = gathered([self._histogram if self.bins else _joined(self._rows)])
            if not everyone:  # not the first rank, which has at least its own
                return None
            found = [part for part in everyone if part is not None]
            counts = {(part if isinstance(part, Tensor) else part.score.T).shape[0] for part in found}
            if len(counts) > 1:
                raise ValueError(f"Ranks have different numbers of labels: {sorted(counts)}.")
            self._whole = self._unbinned(sum(found)) if self.bins and found else _interleaved(found)
        return self._whole

    def _unbinned(self, histogram: Any) -> Rows:
        bins = histogram.shape[2]
        middle = (torch.arange(bins, dtype=torch.float64) + 0.5) * (2 * _RANGE / bins) - _RANGE
        score = middle.float().repeat(2)[:, None].expand(-1, len(histogram))
        target = torch.tensor([0.0, 1.0]).repeat_interleave(bins)[:, None].expand_as(score)
        return Rows(score, target, histogram.reshape(len(histogram), -1).T)


def _joined(parts: Sequence[Rows]) -> Rows | None:
    return Rows(*(torch.cat(columns) for columns in zip(*parts, strict=True))) if parts else None


def _interleaved(parts: Sequence[Rows]) -> Rows:
    """Return the rows of the ranks in the order of the data, of which samplers deal one to each rank in turn."""
    whole = _joined(parts)
    if whole is None:
        return Rows(*(torch.zeros(0, 1) for _ in Rows._fields))
    if len(parts) == 1:
        return whole
    turn = torch.cat([torch.arange(len(part.score)) * len(parts) + rank for rank, part in enumerate(parts)])
    order = turn.argsort()
    return Rows(*(part[order] for part in whole))


class FitsOnValidation(pl.Callback):
    """Collects the validation set and fits something on it at the end of each validation, before checkpoints are saved.

    Args:
        bins: See the subclasses.
        dataloader_idx: Which validation dataloader.
        class_names: One name for each label. None takes the module's.
        max_rows: Labels in the table.
        print_table: Whether to print it.
        output: Where ``trainer.validate`` writes the checkpoint with what was fitted. None writes nothing.
    """

    _what: ClassVar[str]

    def __init__(
        self,
        bins: int | None,
        dataloader_idx: int,
        class_names: list[str] | None,
        max_rows: int,
        print_table: bool,
        output: str | None,
    ) -> None:
        super().__init__()
        for name, value, least in (("bins", bins, 2), ("max_rows", max_rows, 1), ("dataloader_idx", dataloader_idx, 0)):
            if value is not None:
                checked_count(name, value, least)
        self.bins = bins
        self.dataloader_idx = dataloader_idx
        self.class_names = None if class_names is None else checked_names(class_names, "class_names")
        self.max_rows = max_rows
        self.print_table = print_table
        self.output = output
        self.labels: list[str] = []
        self._collected = Collected(bins)
        self._source: FitsOnValidation = self
        self._fitted = False
        self._to_print = False

    # -- hooks of Lightning -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a second callback of the kind, and share what is collected with the other kind."""
        refuse_head(type(self).__name__, pl_module)
        fitting = [callback for callback in callbacks_of(trainer) if isinstance(callback, FitsOnValidation)]
        if sum(type(other) is type(self) for other in fitting) > 1:
            raise ValueError(
                f"There are two {type(self).__name__}, and the second would undo the first. Leave one out."
            )
        alike = [c for c in fitting if (c.bins, c.dataloader_idx) == (self.bins, self.dataloader_idx)]
        self._source = alike[0]
        self._to_print = False
        if self.output is None:
            return
        if stage == "fit":
            raise ValueError("`output` has no effect in `fit`, whose checkpoints hold what is fitted. Leave it out.")
        if stage == "validate":
            if decision_of(pl_module) is None:
                raise ValueError(f"{type(pl_module).__name__} has no `decision` of ours that `output` could hold.")
            check_place(Path(self.output), overwrite=False)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch, and refuse rows that the model is trained on."""
        self._collected, self._fitted = Collected(self.bins), False
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.barebones:
            self._refuse_training_rows(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep logits, labels and weights of a batch."""
        if trainer.sanity_checking or trainer.barebones or dataloader_idx != self.dataloader_idx:
            return
        if self._source is self:
            self._collected.add(self._batch_rows(trainer, pl_module, outputs, batch, batch_idx))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit."""
        if not trainer.sanity_checking and not trainer.barebones:
            self.fit_now(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the rows, and write the checkpoint that was asked for."""
        self._collected = Collected(self.bins)
        if self._fitted and self.output is not None and trainer.state.fn == "validate":
            _write(trainer, pl_module, self.output)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the table, when progress bars are closed and checkpoints are written."""
        if self._to_print and self.print_table and trainer.is_global_zero:
            self._print()
        self._to_print = False

    # -- what a subclass does -----------------------------------------------------------------------------------------

    def _fit(self, rows: Rows, names: list[str], pl_module: pl.LightningModule) -> Any:
        """Return what is fitted, as plain values and tensors on the CPU; on the first rank only."""
        raise NotImplementedError

    def _take(self, fitted: Any, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put what was fitted in its place, and log it; on every rank."""
        raise NotImplementedError

    def _print(self) -> None:
        raise NotImplementedError

    # -- an epoch -----------------------------------------------------------------------------------------------------

    def fit_now(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fit on what was collected, once an epoch, on all ranks together."""
        if self._fitted:
            return
        self._fitted = True
        problem: Exception | None = None
        fitted: Any = None
        # Tensors that are made in inference mode could not be written outside of it.
        with torch.inference_mode(False), torch.no_grad():
            try:
                rows = self._source._collected.gathered()
                if rows is not None and len(rows.score):
                    rows = Rows(*(part.clone() for part in rows))
                    names = label_names(self.class_names, pl_module, rows.score.shape[1])
                    fitted = (names, self._fit(rows, names, pl_module))
            except Exception as error:
                problem = error
            told = trainer.strategy.broadcast(None if problem is None else f"{type(problem).__name__}: {problem}")
            if problem is not None:
                raise problem
            if told is not None:
                raise RuntimeError(f"The first rank could not fit the {self._what}: {told}")
            fitted = trainer.strategy.broadcast(fitted)
            if fitted is None:
                raise ValueError(
                    f"{type(self).__name__} found no row in validation dataloader {self.dataloader_idx}: there is "
                    f"nothing to fit the {self._what} on. Give `trainer.fit` validation data."
                )
            self.labels, result = fitted
            self._take(result, trainer, pl_module)
        self._to_print = True

    def _log(self, values: dict[str, float], trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log values that every rank holds alike, but those that are NaN."""
        log_alike({name: value for name, value in values.items() if value == value}, trainer, pl_module)

    def _batch_rows(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> Rows:
        found: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {}
        if not isinstance(found.get("logits"), Tensor) or not isinstance(found.get("target"), Tensor):
            came = f"a dictionary with {list(map(str, found))}" if found else type(outputs).__name__
            raise TypeError(
                f"{type(self).__name__} reads what {type(pl_module).__name__}.validation_step returns, which was "
                f"{came}. A dictionary with the tensors 'logits' and 'target' was expected; write at its end `return "
                '{"loss": loss, "logits": logits.detach(), "target": target}`.'
            )
        step = step_of(found, "val", trainer, pl_module, batch, batch_idx, self.dataloader_idx)
        logits, target, weight, mask = step
        loss = getattr(pl_module, "loss", None)
        if isinstance(loss, BinaryLoss):
            observed = loss.observed(logits, target, mask)
            mask = None if observed is None else observed.expand(logits.shape)
        return rows_of(logits.float(), target, weight, mask)

    def _refuse_training_rows(self, trainer: pl.Trainer) -> None:
        loaders = (trainer.train_dataloader, trainer.val_dataloaders)
        flat = [CombinedLoader(loader, "sequential").flattened if loader is not None else [] for loader in loaders]
        if self.dataloader_idx >= len(flat[1]):
            raise ValueError(
                f"`dataloader_idx` is {self.dataloader_idx} and there are {len(flat[1])} validation dataloader(s)."
            )
        held = getattr(flat[1][self.dataloader_idx], "dataset", None)
        if any(_share_rows(getattr(loader, "dataset", None), held) for loader in flat[0]):
            raise ValueError(
                f"The validation data of {type(self).__name__} are rows that the model is trained on, "
                f"which it remembers: {self._what} fitted on them would not hold for others. Keep rows apart for "
                "validation, or leave the callback out."
            )


def _write(trainer: pl.Trainer, pl_module: pl.LightningModule, output: str) -> None:
    """Write the checkpoint that is validated, with what was fitted in place of what it held."""
    if trainer.ckpt_path is None:
        trainer.save_checkpoint(output)
        return
    held = decision_of(pl_module)
    if held is None or not trainer.is_global_zero:
        return
    checkpoint = torch.load(trainer.ckpt_path, weights_only=True, map_location="cpu")
    decision = {f"decision.{name}": value.cpu() for name, value in held.state_dict().items()}
    checkpoint["state_dict"] |= decision
    AtomicCheckpointIO().save_checkpoint(checkpoint, output)


def decision_of(pl_module: pl.LightningModule) -> Decision | None:
    """Return the module's ``decision``, if it has one that is ours."""
    found = getattr(pl_module, "decision", None)
    return found if isinstance(found, Decision) else None


def calibration_on_cpu(calibration: Calibration) -> Calibration:
    """Return a copy on the CPU."""
    copy = Calibration(calibration.num_labels)
    copy.set(calibration)
    return copy


def _share_rows(one: Any, other: Any) -> bool:
    """Return whether two datasets are seen to hold the same rows of one dataset."""
    if one is None or other is None:
        return False
    (first, some), (second, others) = _unwrapped(one), _unwrapped(other)
    if first is not second and not (
        isinstance(first, TensorDataset)
        and isinstance(second, TensorDataset)
        and [(t.data_ptr(), t.shape) for t in first.tensors] == [(t.data_ptr(), t.shape) for t in second.tensors]
    ):
        return False
    return some is None or others is None or not set(some).isdisjoint(others)


def _unwrapped(dataset: Any) -> tuple[Any, list[int] | None]:
    """Return what subsets are of, and which rows, None for all."""
    chosen: list[int] | None = None
    while isinstance(dataset, Subset):
        indices = [int(i) for i in dataset.indices]
        chosen = indices if chosen is None else [indices[i] for i in chosen]
        dataset = dataset.dataset
    return dataset, chosen
