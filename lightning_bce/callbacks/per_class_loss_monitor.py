"""PerClassLossMonitor: which labels, and which side of them, the loss comes from."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from rich.table import Table
from torch import Tensor

from lightning_bce.callbacks.label_names import checked_names, label_names
from lightning_bce.callbacks.loss_table import count, loss_table, print_loss_table, rest_of, table_rows
from lightning_bce.callbacks.steps import (
    Stage,
    StageCallback,
    agreed,
    callbacks_of,
    checked_count,
    checked_loss,
    checked_stages,
    name_of,
    sums_of_step,
)
from lightning_bce.logged_alike import log_alike
from lightning_bce.losses import BinaryLoss, LossSums
from lightning_bce.metrics import LossTracker

_OF_RUN = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}

# Logged name, value of the tracker, and the sides whose weight has to be above 0 for it to mean something.
_LOGGED = (
    ("loss_class", "class_loss", ("negative_weight", "positive_weight")),
    ("loss_class_negative", "negative_loss", ("negative_weight",)),
    ("loss_class_positive", "positive_loss", ("positive_weight",)),
    ("loss_share", "share", ("negative_weight", "positive_weight")),
    ("loss_share_negative", "negative_share", ("negative_weight",)),
    ("loss_share_positive", "positive_share", ("positive_weight",)),
)


class PerClassLossMonitor(StageCallback):
    r"""Logs and prints the loss of each label, split into negatives and positives.

    It reads what the steps of the module return: ``sums`` (a :class:`LossSums`, which ``BinaryClassifier`` returns), or
    else ``logits`` and ``target`` (and ``weight`` and ``mask`` where there are), on which it computes the loss without
    a gradient, in evaluation mode and without drawing a random number. Training goes on bit for bit as without it.

    Once an epoch it logs, for each label that was seen, and never in single steps:

    - ``val_loss_class/<label>``, ``val_loss_class_negative/<label>``, ``val_loss_class_positive/<label>``: mean loss of
      the label, of its negatives, of its positives,
    - ``val_loss_share/<label>``, ``val_loss_share_negative/<label>``, ``val_loss_share_positive/<label>``: parts of the
      total; those of all labels add up to 1,
    - ``val_count_negative/<label>``, ``val_count_positive/<label>``: what they count in the mean: the number of
      elements, or the sum of their weights under "weighted_mean".

    Means times counts add up to the loss times all counts. With several dataloaders names end in
    ``/dataloader_idx_<k>``. The values are exact over uneven batches and ranks; rows that a sampler repeated, so that
    every rank has as many, are left out (see :func:`own_rows`; from ``sums`` only the module can leave them out, as
    ``BinaryClassifier`` does). A rank may have no batch as long as it runs the epoch; Lightning skips it altogether on
    a rank whose dataloader has length 0, and then the others wait.

    The table is printed after ``validate`` and ``test``, and after ``fit`` for its last epoch. Nothing is kept in
    checkpoints, so after resuming within an epoch "train" covers the rest of it. ``Trainer(barebones=True)``
    turns the callback off.

    Args:
        class_names: One name for each label. None takes the module's ``class_names``, or label_0, label_1, ...
        loss: A loss to look at in place of the one that the module computed. None takes ``sums`` of the step, or else
            the module's attribute ``loss``.
        stages: Which of "train", "val" and "test" to watch.
        max_rows: Labels in the table, those with the largest share; the others are summed up in one row.
        print_table: Whether to print the table on the first rank.
        prefix: Goes before logged names, so that a second monitor with another loss can run beside the first.
        max_logged: Of more labels than this nothing is logged by label, because loggers take a millisecond for each of
            the eight values; ``results``, :meth:`summary` and the table have them all the same. With a
            :class:`MultiLabelHead` there are sums by label where it has ``per_label=True``, else one row for all.

    Attributes:
        results: For each stage a list with one dictionary for each dataloader: the last output of
            :meth:`LossTracker.compute`, on the CPU; empty for a dataloader without a batch.

    Raises:
        TypeError: If an argument, or what a step returns, has the wrong type, with what was expected.
        ValueError: If names do not fit the labels, or two monitors would log the same names.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_bce import FocalLoss
        >>> own, focal = PerClassLossMonitor(), PerClassLossMonitor(loss=FocalLoss(), prefix="focal_")
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[own, focal])
    """

    def __init__(
        self,
        class_names: list[str] | None = None,
        loss: BinaryLoss | None = None,
        stages: list[Stage] | tuple[Stage, ...] = ("val", "test"),
        max_rows: int = 20,
        print_table: bool = True,
        prefix: str = "",
        max_logged: int = 1000,
    ) -> None:
        super().__init__()
        self.class_names = None if class_names is None else checked_names(class_names, "class_names")
        self.loss = checked_loss(loss)
        self.stages = checked_stages(stages)
        self.max_rows = checked_count("max_rows", max_rows)
        self.max_logged = checked_count("max_logged", max_logged)
        self.print_table = print_table
        self.prefix = prefix
        self.results: dict[str, list[dict[str, Tensor]]] = {}
        self._names: dict[str, list[list[str]]] = {}
        self._loss_name = "loss"
        self._trackers: dict[str, dict[int, LossTracker]] = {}
        self._to_print: set[str] = set()

    # -- what a user reads --------------------------------------------------------------------------------------------

    def summary(self, stage: Stage = "val", dataloader_idx: int = 0, most: int | None = None) -> list[dict[str, Any]]:
        """Return the last results of a stage as plain Python, the label with the largest share first.

        Args:
            stage: One of the watched stages.
            dataloader_idx: Which dataloader, where there are several.
            most: How many labels at most. None is all.

        Returns:
            One dictionary for each label: ``label``, ``negatives``, ``positives``, ``loss``, ``negative_loss``,
            ``positive_loss``, ``share``, ``negative_share``, ``positive_share``. NaN stands for what was never seen.

        Raises:
            LookupError: If there are no results.
        """
        result = self._result(stage, dataloader_idx)
        return table_rows(self._names[stage][dataloader_idx], result, most)

    def table(self, stage: Stage = "val", dataloader_idx: int = 0, plain: bool = False) -> Table:
        """Return the last results of a stage as a table for ``rich.print``.

        Args:
            stage: One of the watched stages.
            dataloader_idx: Which dataloader, where there are several.
            plain: Whether to use ASCII only.

        Raises:
            LookupError: If there are no results.
        """
        rows = self.summary(stage, dataloader_idx, self.max_rows)
        rest = rest_of(self._result(stage, dataloader_idx), self.max_rows)
        return loss_table(rows, self._title(stage, dataloader_idx), rest, plain=plain)

    def _title(self, stage: str, dataloader_idx: int) -> str:
        result = self.results[stage][dataloader_idx]
        several = f", dataloader {dataloader_idx}" if len(self.results[stage]) > 1 else ""
        weight = (result["negative_weight"] + result["positive_weight"]).sum().item()
        return (
            f"{self.prefix}{stage} loss by label{several}: {self._loss_name}, mean {result['loss'].item():.4g} over "
            f"{count(weight)} elements"
        )

    def _result(self, stage: str, dataloader_idx: int) -> dict[str, Tensor]:
        found = self.results.get(stage, [])
        if not 0 <= dataloader_idx < len(found) or not found[dataloader_idx]:
            have = [f"{name} (dataloader {i})" for name in self.results for i, r in enumerate(self.results[name]) if r]
            raise LookupError(
                f"There are no results of stage {stage!r}, dataloader {dataloader_idx}; there are: "
                f"{', '.join(have) or 'none yet'}. Run the trainer with this stage in `stages`."
            )
        return found[dataloader_idx]

    # -- hooks of Lightning -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a second monitor that would log the same names, and names that do not fit the module."""
        for other in callbacks_of(trainer):
            if not isinstance(other, PerClassLossMonitor) or other is self:
                continue
            if other.prefix == self.prefix and set(other.stages) & set(self.stages):
                raise ValueError(
                    f"Two PerClassLossMonitor have the prefix {self.prefix!r} and would overwrite each other's values. "
                    'Give one of them another: PerClassLossMonitor(loss=..., prefix="focal_").'
                )
        labels = getattr(pl_module, "num_labels", None)
        if self.class_names is not None and isinstance(labels, int) and len(self.class_names) > 1:
            label_names(self.class_names, pl_module, labels)
        self._to_print.clear()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the tables, when progress bars are closed and checkpoints are written."""
        for name in _OF_RUN.get(stage, ()):
            if self.print_table and name in self._to_print and trainer.is_global_zero:
                for index, result in enumerate(self.results[name]):
                    if result:
                        rows = table_rows(self._names[name][index], result, self.max_rows)
                        print_loss_table(rows, self._title(name, index), rest_of(result, self.max_rows))
        self._to_print.clear()

    # -- an epoch -----------------------------------------------------------------------------------------------------

    def begin(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._trackers[stage] = {}
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
        at = (batch, batch_idx, dataloader_idx)
        sums, loss = sums_of_step(type(self).__name__, self.loss, stage, trainer, pl_module, outputs, *at)
        self._loss_name = name_of(loss)
        labels = sums.loss.shape[0]
        trackers = self._trackers.setdefault(stage, {})
        if dataloader_idx not in trackers:
            label_names(self.class_names, pl_module, labels)  # refuses those that do not fit
            # On the module's device, which is the one that ranks can gather from.
            trackers[dataloader_idx] = LossTracker(num_labels=labels).to(pl_module.device)
        elif trackers[dataloader_idx].num_labels != labels:
            raise ValueError(
                f"A batch has {labels} label(s) and those before it had {trackers[dataloader_idx].num_labels}. "
                "Every batch of a dataloader needs the same labels; mark unknown ones by `ignore_index` or a mask."
            )
        trackers[dataloader_idx].update(sums)

    def end(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, num_dataloaders: int) -> None:
        """Log the epoch."""
        trackers = self._trackers.get(stage, {})
        seen = [trackers[i].num_labels if i in trackers else 0 for i in range(num_dataloaders)]
        self.results[stage], self._names[stage] = [], []
        for index, labels in enumerate(agreed(seen, pl_module.device)):
            names = label_names(self.class_names, pl_module, labels) if labels else []
            result: dict[str, Tensor] = {}
            if labels:
                tracker = trackers[index] if index in trackers else _without_batches(labels, pl_module.device)
                # torchmetrics makes scalars of what has one entry.
                result = {
                    name: value.detach().cpu().reshape(() if name == "loss" else (labels,))
                    for name, value in tracker.compute().items()
                }
            self.results[stage].append(result)
            self._names[stage].append(names)
            suffix = f"/dataloader_idx_{index}" if num_dataloaders > 1 else ""
            if labels <= self.max_logged:
                log_alike(_logged(f"{self.prefix}{stage}_", names, result, suffix), trainer, pl_module)
        self._trackers[stage] = {}
        self._to_print.add(stage)


def _logged(prefix: str, names: list[str], result: dict[str, Tensor], suffix: str) -> dict[str, float]:
    """Return what is logged: counts always, a mean where something was seen, a share of a total that is not 0."""
    if not result:
        return {}
    values: dict[str, Any] = {key: value.tolist() for key, value in result.items()}
    sides = ("negative", "positive")
    logged = {
        f"{prefix}count_{side}/{name}{suffix}": values[f"{side}_weight"][i]
        for side in sides
        for i, name in enumerate(names)
    }
    for kind, key, weights in _LOGGED:
        # 0 / 0: nobody has a share of nothing. A NaN of a loss that is NaN is logged, to be seen.
        if "share" in kind and values["loss"] == 0:
            continue
        for i, name in enumerate(names):
            if sum(values[weight][i] for weight in weights) > 0:
                logged[f"{prefix}{kind}/{name}{suffix}"] = values[key][i]
    return logged


def _without_batches(labels: int, device: torch.device) -> LossTracker:
    tracker = LossTracker(num_labels=labels).to(device)
    nothing = torch.zeros(labels, 2, device=device)
    tracker.update(LossSums(nothing, nothing))  # an update, so that torchmetrics does not warn of its absence
    return tracker
