"""HardExamples: the samples with the largest loss, among which the mislabelled ones are."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_bce.callbacks.label_names import checked_names, label_names
from lightning_bce.callbacks.largest import Largest
from lightning_bce.callbacks.run_folder import run_folder
from lightning_bce.callbacks.steps import (
    Stage,
    StageCallback,
    Step,
    checked_count,
    checked_loss,
    checked_stages,
    gathered,
    judged_logits,
    loss_to_look_at,
    on_first_rank,
    read_step,
    refuse_head,
    traceless,
)
from lightning_bce.data.own_rows import row_numbers
from lightning_bce.files import Columns, whole_file, write_table
from lightning_bce.losses import BinaryLoss, CombinedLoss
from lightning_bce.losses.rows import RowLoss
from lightning_bce.plotting.examples import plot_examples

_SIDES = ("negative", "positive")
_BATCHES_BETWEEN_SYNCS = 64  # at which names that are text are looked through
_SHIFT = 32  # a code holds the number of the batch above these bits, and that of the sample below


class HardExamples(StageCallback):
    r"""Keeps the ``k`` samples with the largest loss of an evaluation: the hard ones, and those whose label is wrong.

    The loss of a sample is the mean over its known labels (and positions), with the factors that the loss gives them.
    It is computed on the ``logits`` and the ``target`` that the step returned, without a second forward of the model.
    A sample is named by ``id`` of its batch (a mapping, or what ``unpack_batch`` returns), else by the number of its
    row in the dataset, else by its batch and its place there.

    After each epoch the first rank writes ``hard_examples_val.csv`` into the run folder, the largest loss first, with
    ``loss``, ``id``, ``target`` and ``probability`` (under several labels those of each, and in ``label`` the one with
    the largest loss; of dense outputs the means over positions). Where the inputs are images, (N, 1, H, W) or
    (N, 3, H, W), they are drawn in ``hard_examples_val.png``. Text is escaped for spreadsheets as
    :class:`PredictionWriter` does. Nothing is written under ``fast_dev_run``, in the sanity check and in ``barebones``.

    Memory is that of k samples on the device, inputs only if they are images. No step waits for the device, but for
    one in 64 where ids are text.

    Args:
        k: How many samples, on each side if ``by_side``.
        loss: A loss to look at in place of the module's, in which a sample has one. None takes the module's ``loss``.
        stages: Which of "train", "val" and "test" to watch. In training the model changes between samples.
        reduction: Whether the loss of a sample is the "mean" or the "max" over its known labels.
        by_side: Whether to keep the k samples with the largest loss over their negative labels and k over their
            positive ones, so that rare positives are not crowded out.
        class_names: One name for each label. None takes the module's ``class_names``, or label_0, label_1, ...
        pictures: Whether to draw inputs that are images. Needs matplotlib.
        folder: Where to write. None is the run folder: the logger's, or the trainer's ``default_root_dir``.

    Raises:
        ValueError: If an option is out of range, or the loss has none of a single sample.
        TypeError: If an argument, or what a step returns, has the wrong type, with what was expected.

    Example:
        >>> import lightning.pytorch as pl
        >>> hard = HardExamples(k=50, by_side=True)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[hard])
    """

    def __init__(
        self,
        k: int = 20,
        loss: BinaryLoss | None = None,
        stages: list[Stage] | tuple[Stage, ...] = ("val", "test"),
        reduction: Literal["mean", "max"] = "mean",
        by_side: bool = False,
        class_names: list[str] | None = None,
        pictures: bool = True,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "max"):
            raise ValueError(f"`reduction` is {reduction!r}; 'mean' or 'max' was expected.")
        self.k = checked_count("k", k)
        self.loss = checked_loss(loss)
        self.stages = checked_stages(stages)
        self.reduction = reduction
        self.by_side = by_side
        self.class_names = None if class_names is None else checked_names(class_names, "class_names")
        self.pictures = pictures
        self.folder = None if folder is None else os.fspath(folder)
        self._keepers: dict[int, _Keeper] = {}
        self._found: dict[str, dict[int, list[Example]]] = {}
        self._names: list[str] = []
        self._folder: str | None = None
        if loss is not None:
            self._check(loss)

    # -- what a user reads --------------------------------------------------------------------------------------------

    def summary(self, stage: Stage = "val", dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Return the last examples of a stage as plain Python, the largest loss first. The first rank has them.

        Args:
            stage: One of the watched stages.
            dataloader_idx: Which dataloader, where there are several.

        Returns:
            One dictionary for each sample: ``loss``, ``id``, ``target`` and ``probability`` (under several labels one
            number for each, NaN where it is unknown), ``label`` under several labels and ``side`` under ``by_side``.

        Raises:
            LookupError: If there are none.
        """
        return [example.plain(self._names) for example in self._examples(stage, dataloader_idx)]

    def columns(self, stage: Stage = "val") -> Columns:
        """Return the table of a stage as columns, as it is written.

        Args:
            stage: One of the watched stages.

        Raises:
            LookupError: If there are none.
        """
        self._examples(stage, None)
        columns: Columns = {}
        several = len(self._found[stage]) > 1
        for index, examples in self._found[stage].items():
            for example in examples:
                row = {"dataloader": index} if several else {}
                for name, value in (row | example.plain(self._names)).items():
                    parts = value if isinstance(value, dict) else {None: value}
                    for label, part in parts.items():
                        column = name if label is None else f"{name}_{label}"
                        columns.setdefault(column, []).append(_cell(name, part))
        return columns

    def figure(self, stage: Stage = "val") -> Any:
        """Return the inputs of the examples as a matplotlib figure, or None where they are no images.

        Args:
            stage: One of the watched stages.

        Raises:
            LookupError: If there are no examples.
            ImportError: If matplotlib is missing.
        """
        self._examples(stage, None)
        shown = [example for examples in self._found[stage].values() for example in examples]
        images = [example.image for example in shown if example.image is not None]
        if len(images) < len(shown):
            return None
        return plot_examples(images, [example.title(self._names) for example in shown])

    def _examples(self, stage: str, dataloader_idx: int | None) -> list[Example]:
        found = self._found.get(stage, {})
        if not found or (dataloader_idx is not None and dataloader_idx not in found):
            have = [f"{name} (dataloader {index})" for name, parts in self._found.items() for index in parts]
            raise LookupError(
                f"There are no examples of stage {stage!r}, dataloader {dataloader_idx or 0}; there are: "
                f"{', '.join(have) or 'none yet'}. Run the trainer with this stage in `stages`; the first rank has all."
            )
        return [] if dataloader_idx is None else found[dataloader_idx]

    # -- hooks of Lightning -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find out where the run is kept, on all ranks."""
        if stage != "predict":
            refuse_head(type(self).__name__, pl_module)
        self._folder = run_folder(trainer, self.folder)

    def begin(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._keepers = {}
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
        """Offer the samples of a batch."""
        owner = type(self).__name__
        step = read_step(owner, stage, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        loss = loss_to_look_at(owner, self.loss, stage, pl_module)
        self._check(loss)
        if step.logits.ndim == 0:
            weight, mask = (part if part is None else part.reshape(1) for part in (step.weight, step.mask))
            step = Step(step.logits.reshape(1), step.target.reshape(1), weight, mask)
        elements, known = _losses(loss, step)
        keeper = self._keepers.setdefault(dataloader_idx, _Keeper(self.k, 2 if self.by_side else 1))
        labels = step.logits.shape[1] if step.logits.ndim > 1 else 1
        self._names = label_names(self.class_names, pl_module, labels)
        parts = {
            "code": torch.arange(len(step.logits), device=elements.device) + (batch_idx << _SHIFT),
            **_shown(step, loss, judged_logits(trainer, pl_module, step.logits)),
        }
        image = _images(pl_module, batch, len(step.logits)) if self.pictures else None
        if image is not None:
            parts["image"] = image
        identity = _ids(pl_module, outputs, batch, len(step.logits))
        if isinstance(identity, Tensor):
            parts["id"] = identity.to(elements.device)
        for side, largest in enumerate(keeper.sides):
            where = known
            if self.by_side:
                here = (step.target > 0.5) == bool(side)
                where = here if known is None else here & known
            values, worst = _by_sample(elements, where, self.reduction)
            largest.offer(values, parts if isinstance(loss, RowLoss) else parts | {"label": worst})
        if isinstance(identity, list):
            keeper.remember(batch_idx, identity)

    def end(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, num_dataloaders: int) -> None:
        """Gather the examples of all ranks and write them."""
        own = [
            (index, example)
            for index, keeper in self._keepers.items()
            for example in keeper.examples(row_numbers(trainer, stage, index), trainer, self.by_side)
        ]
        self._keepers = {}
        everyone = gathered(own)

        def write() -> None:
            self._found[stage] = {
                index: _largest([example for i, example in everyone if i == index], self.k)
                for index in sorted({i for i, _ in everyone})
            }
            if self._found[stage] and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                self._write(stage, pl_module)

        on_first_rank(trainer, "write the hard examples", write)

    def _write(self, stage: Stage, pl_module: pl.LightningModule) -> None:
        folder = Path(self._folder or ".")
        labels = len(next(example for examples in self._found[stage].values() for example in examples).target)
        self._names = label_names(self.class_names, pl_module, labels)
        write_table(self.columns(stage), folder / f"hard_examples_{stage}.csv", overwrite=True, escape_formulas=True)
        if not self.pictures or not any(e.image is not None for part in self._found[stage].values() for e in part):
            return
        if importlib.util.find_spec("matplotlib") is None:
            rank_zero_warn(
                "HardExamples draws inputs that are images with matplotlib, which is missing: "
                "`pip install 'lightning_bce[plot]'`, or pass `pictures=False`."
            )
            self.pictures = False
            return
        figure = self.figure(stage)
        if figure is not None:
            with whole_file(folder / f"hard_examples_{stage}.png") as file:
                figure.savefig(file, format="png", dpi=100)

    def _check(self, loss: BinaryLoss) -> None:
        name = type(loss).__name__
        rows = isinstance(loss, RowLoss)
        if (isinstance(loss, RowLoss) and loss.rows == "label") or not (rows or _by_element(loss)):
            raise ValueError(
                f"HardExamples needs the loss of a single sample, and {name} has none: it is of a label over the whole "
                "batch. Say by which loss to look for hard examples: HardExamples(loss=BCEWithLogitsLoss())."
            )
        if rows and self.by_side:
            raise ValueError(
                f"`by_side` is True, and {name} is of all labels of a sample together, not of its sides. Leave it out, "
                "or pass a loss by element: HardExamples(loss=BCEWithLogitsLoss(), by_side=True)."
            )


class Example(NamedTuple):
    """A sample that was kept, on the CPU.

    Args:
        loss: Its loss.
        id: Its name or number.
        target: Of each label.
        probability: Of each label.
        label: The number of the label with the largest loss, or None for a loss without one by label.
        side: "negative" or "positive", or None where sides are not told apart.
        image: Its input, (1 or 3, H, W), or None.
    """

    loss: float
    id: Any
    target: list[float]
    probability: list[float]
    label: int | None
    side: str | None
    image: Tensor | None

    def plain(self, names: Sequence[str]) -> dict[str, Any]:
        """Return it for tables."""
        several = len(self.target) > 1
        found: dict[str, Any] = {} if self.side is None else {"side": self.side}
        found |= {"loss": self.loss, "id": self.id}
        if several and self.label is not None:
            found["label"] = names[self.label]
        for name, values in (("target", self.target), ("probability", self.probability)):
            found[name] = dict(zip(names, values, strict=True)) if several else values[0]
        return found

    def title(self, names: Sequence[str]) -> str:
        """Return what stands above its picture."""
        several = len(self.target) > 1
        if several and self.label is None:
            return f"{self.id}\nloss {self.loss:.3g}"
        label = self.label or 0
        what = f"{names[label]} " if several else ""
        return f"{self.id}\n{what}is {self.target[label]:g}, predicted {self.probability[label]:.2f}"


class _Keeper:
    """The largest losses of a dataloader, and the names of those samples where they are text."""

    def __init__(self, k: int, sides: int) -> None:
        self.sides = [Largest(k) for _ in range(sides)]
        self.names: dict[int, list[Any]] = {}

    def remember(self, batch_idx: int, names: list[Any]) -> None:
        """Keep the names of a batch, and from time to time only those that are still needed."""
        self.names[batch_idx] = names
        if len(self.names) % _BATCHES_BETWEEN_SYNCS:
            return
        codes = [code for side in self.sides if (kept := side.part("code")) is not None for code in kept.tolist()]
        needed = {code >> _SHIFT for code in codes}
        self.names = {batch: found for batch, found in self.names.items() if batch in needed}

    def examples(self, rows: Any, trainer: pl.Trainer, by_side: bool) -> list[Example]:
        """Return what was kept, on the CPU."""
        found = []
        for side, largest in zip(_SIDES, self.sides, strict=False):
            losses, parts = largest.kept()
            for i, loss in enumerate(losses.tolist()):
                batch, place = divmod(int(parts["code"][i]), 1 << _SHIFT)
                identity: Any
                if "id" in parts:
                    identity = parts["id"][i].item()
                elif batch in self.names:
                    identity = self.names[batch][place]
                elif rows is not None:
                    identity = rows(batch, place)
                else:
                    rank = f"rank {trainer.global_rank}, " if trainer.world_size > 1 else ""
                    identity = f"{rank}batch {batch}, sample {place}"
                found.append(
                    Example(
                        loss,
                        identity,
                        parts["target"][i].tolist(),
                        parts["probability"][i].tolist(),
                        int(parts["label"][i]) if "label" in parts else None,
                        side if by_side else None,
                        parts["image"][i] if "image" in parts else None,
                    )
                )
        return found


def _largest(examples: list[Example], k: int) -> list[Example]:
    """Return the k largest of each side, in an order that does not depend on the ranks."""

    def order(example: Example) -> tuple[float, str]:
        return (-math.inf if math.isnan(example.loss) else -example.loss, str(example.id))

    sides = (None, *reversed(_SIDES))
    return [example for side in sides for example in sorted((e for e in examples if e.side == side), key=order)[:k]]


def _cell(name: str, value: Any) -> Any:
    """Return a value for a table: with the digits that float32 has, and nothing for a label that is unknown."""
    if not isinstance(value, float):
        return value
    return "" if name == "target" and math.isnan(value) else float(f"{value:.7g}")


# -- losses of samples ------------------------------------------------------------------------------------------------


def _by_element(loss: BinaryLoss) -> bool:
    if isinstance(loss, CombinedLoss):
        return all(term.per_element for term in loss.terms.values())
    return loss.per_element


def _losses(loss: BinaryLoss, step: Step) -> tuple[Tensor, Tensor | None]:
    """Return the losses of elements, or of rows that belong to one sample, and where they count; None is everywhere."""
    logits, target, weight, mask = step
    with traceless(loss, logits) as scores:
        losses = loss.losses(scores, target, weight, mask=mask)
        known = loss.valid(logits, target, mask)
    if known is not None:
        known = known.expand(logits.shape)
        if isinstance(loss, RowLoss):
            known = known.flatten(1).any(1) if loss.rows == "sample" else known.any(1)
    return losses, known


def _by_sample(losses: Tensor, known: Tensor | None, reduction: str) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample, minus infinity where nothing counts, and its label with the largest loss."""
    where = torch.ones_like(losses, dtype=torch.bool) if known is None else known
    shape = (len(losses), losses.shape[1] if losses.ndim > 1 else 1, -1 if losses.numel() else 1)
    losses, where = losses.reshape(shape), where.reshape(shape)
    kept = torch.where(where, losses, -torch.inf)
    by_label = kept.amax(2)
    if reduction == "max":
        values = by_label.amax(1)
    else:
        count = where.sum((1, 2))
        values = torch.where(where, losses, 0.0).sum((1, 2)) / count.clamp(min=1)
        values = torch.where(count > 0, values, -torch.inf)
    return values, by_label.argmax(1)


def _shown(step: Step, loss: BinaryLoss, judged: Tensor) -> dict[str, Tensor]:
    """Return target and probability of each sample and label, (N, C), means over known positions; NaN if unknown."""
    known = loss.observed(step.logits, step.target, step.mask)
    shape = (len(step.logits), step.logits.shape[1] if step.logits.ndim > 1 else 1, -1 if step.logits.numel() else 1)

    def means(values: Tensor, where: Tensor | None) -> Tensor:
        values = values.float() if where is None else torch.where(where, values.float(), torch.nan)
        return values.reshape(shape).nanmean(2)

    return {
        "target": means(step.target, None if known is None else known.expand(step.logits.shape)),
        "probability": means(torch.sigmoid(judged.float()), None),
    }


# -- what else a batch holds ------------------------------------------------------------------------------------------


def _ids(pl_module: pl.LightningModule, outputs: Any, batch: Any, size: int) -> Tensor | list[Any] | None:
    """Return the names of the samples: of the step's outputs, of what takes batches apart, or of a mapping."""
    found = outputs.get("id") if isinstance(outputs, Mapping) else None
    unpack = getattr(pl_module, "unpack_batch", None)
    if found is None and callable(unpack):
        found = getattr(unpack(batch), "id", None)
    elif found is None and isinstance(batch, Mapping):
        found = batch.get("id")
    if found is None:
        return None
    names = found.detach().flatten() if isinstance(found, Tensor) else list(found)
    if len(names) < size:
        raise ValueError(f"'id' of a batch has {len(names)} entries and its target {size}; one for each was expected.")
    return names[:size]


def _images(pl_module: pl.LightningModule, batch: Any, size: int) -> Tensor | None:
    """Return the inputs of the samples if they are images."""
    unpack = getattr(pl_module, "unpack_batch", None)
    if callable(unpack):
        found = getattr(unpack(batch), "inputs", None)
    elif isinstance(batch, Mapping):
        found = batch.get("inputs")
    else:
        found = batch[0] if isinstance(batch, (tuple, list)) and batch else None
    images = isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] in (1, 3) and len(found) >= size
    return found.detach()[:size] if images and isinstance(found, Tensor) else None
