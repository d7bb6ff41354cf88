"""What callbacks read of the steps of any LightningModule: logits, target, weights, and which epoch of which stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_bce.data.own_rows import first_rows, own_rows
from lightning_bce.heads import MultiLabelHead
from lightning_bce.losses import BinaryLoss, LossSums
from lightning_bce.metrics.untouched import untouched

Stage = Literal["train", "val", "test"]
T = TypeVar("T")

_STEPS = {"train": "training_step", "val": "validation_step", "test": "test_step"}


class Step(NamedTuple):
    """One batch as a step of the module saw it, without the rows that a sampler repeated.

    Args:
        logits: As the step returned them, detached.
        target: Of the same shape.
        weight: Of the step's outputs or else of the batch, where there is one.
        mask: The same.
    """

    logits: Tensor
    target: Tensor
    weight: Tensor | None
    mask: Tensor | None


class StageCallback(pl.Callback):
    """Hooks of training, validation and test as one set: :meth:`begin`, :meth:`add` and :meth:`end`.

    They are called for the stages in :attr:`stages`, and not under ``Trainer(barebones=True)``, which allows no
    callback to log. In the sanity check a batch is added, so that what does not fit is refused early, but no epoch
    ends; the next :meth:`begin` forgets it.
    """

    stages: tuple[Stage, ...] = ("val", "test")

    def begin(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""

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
        """Add a batch."""

    def end(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, num_dataloaders: int) -> None:
        """End an epoch, in which values can be logged."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._begin("train", trainer, pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._begin("val", trainer, pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the last epoch."""
        self._begin("test", trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a batch."""
        # A step that returns None asks Lightning to skip the batch, which leaves an empty dictionary.
        skipped = outputs is None or (isinstance(outputs, Mapping) and not outputs and pl_module.automatic_optimization)
        if not skipped and self._watches("train", trainer):
            self.add("train", trainer, pl_module, outputs, batch, batch_idx, 0)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch; those of the sanity check are forgotten when the first epoch begins."""
        if self._watches("val", trainer):
            self.add("val", trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch."""
        if self._watches("test", trainer):
            self.add("test", trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the epoch."""
        self._end("train", trainer, pl_module, 1)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the epoch."""
        self._end("val", trainer, pl_module, _how_many(trainer, trainer.num_val_batches))

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the epoch."""
        self._end("test", trainer, pl_module, _how_many(trainer, trainer.num_test_batches))

    def _watches(self, stage: Stage, trainer: pl.Trainer) -> bool:
        return stage in self.stages and not trainer.barebones

    def _begin(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._watches(stage, trainer):
            self.begin(stage, trainer, pl_module)

    def _end(self, stage: Stage, trainer: pl.Trainer, pl_module: pl.LightningModule, num_dataloaders: int) -> None:
        if self._watches(stage, trainer) and not trainer.sanity_checking:
            self.end(stage, trainer, pl_module, num_dataloaders)


# -- what a step returns ----------------------------------------------------------------------------------------------


def read_step(
    owner: str,
    stage: Stage,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    outputs: Any,
    batch: Any,
    batch_idx: int,
    dataloader_idx: int,
) -> Step:
    """Return the parts of a batch that count.

    Args:
        owner: The callback that asks, for the error.
        stage: Which step returned.
        trainer: The one that runs it.
        pl_module: Whose step it is.
        outputs: What it returned.
        batch: What it was given.
        batch_idx: The number of the batch.
        dataloader_idx: The number of its dataloader.

    Raises:
        TypeError: If there are no logits or no target, with what to return.
    """
    found: Mapping[str, Any] = outputs if isinstance(outputs, Mapping) else {}
    logits, target = found.get("logits"), found.get("target")
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        refuse_head(owner, pl_module)
        raise TypeError(_what_to_return(owner, stage, pl_module, outputs))
    return step_of(found, stage, trainer, pl_module, batch, batch_idx, dataloader_idx)


def step_of(
    outputs: Mapping[str, Any],
    stage: Stage,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    batch: Any,
    batch_idx: int,
    dataloader_idx: int,
) -> Step:
    """Return the parts of a batch that count, of outputs that are known to hold logits and target."""
    logits, target = outputs["logits"], outputs["target"]
    weight, mask = (_part(name, outputs, pl_module, batch) for name in ("weight", "mask"))
    rows = own_rows(trainer, stage, batch_idx, dataloader_idx, len(target) if target.ndim else 0)
    return Step(*(first_rows(part, rows) for part in (logits.detach(), target, weight, mask)))


def refuse_head(owner: str, pl_module: pl.LightningModule) -> None:
    """Refuse a module with a head, for a callback that looks at logits.

    Raises:
        TypeError: If the module has one.
    """
    if isinstance(getattr(pl_module, "head", None), MultiLabelHead):
        raise TypeError(
            f"{owner} looks at the logits of all labels, and {type(pl_module).__name__} has a MultiLabelHead, with "
            "which they never exist. Leave it out. PerClassLossMonitor without a loss of its own works; `per_label` of "
            "the head gives it the sums of each label."
        )


def sums_of(outputs: Any) -> LossSums | None:
    """Return the sums that a step computed itself, detached, or None."""
    sums = outputs.get("sums") if isinstance(outputs, Mapping) else None
    return sums.detach() if isinstance(sums, LossSums) else None


def loss_to_look_at(owner: str, given: BinaryLoss | None, stage: Stage, pl_module: pl.LightningModule) -> BinaryLoss:
    """Return the loss that a callback computes on logits and target: its own, or else the module's.

    Raises:
        TypeError: If the module has none of this package, with what to do.
    """
    loss = getattr(pl_module, "loss", None) if given is None else given
    if isinstance(loss, BinaryLoss):
        return loss
    what = "has no attribute `loss`" if loss is None else f"has {name_of(loss)} as its `loss`"
    raise TypeError(
        f"{type(pl_module).__name__}.{_STEPS[stage]} returned logits and target without sums, and the module "
        f"{what}, which cannot be split by label. Say which loss to compute: "
        f"{owner}(loss=lightning_bce.BCEWithLogitsLoss())."
    )


def sums_of_step(
    owner: str,
    given: BinaryLoss | None,
    stage: Stage,
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    outputs: Any,
    *at: Any,
) -> tuple[LossSums, Any]:
    """Return the sums of a step, its own or those of a loss on its logits and target, and whose they are.

    Args:
        owner: The callback that asks, for errors.
        given: Its own loss, or None.
        stage: Which step returned.
        trainer: The one that runs it.
        pl_module: Whose step it is.
        outputs: What it returned.
        *at: The batch, its number and that of its dataloader.

    Raises:
        TypeError: If there is nothing to compute them of, or by.
    """
    sums = sums_of(outputs) if given is None else None
    if sums is not None:
        return sums, getattr(pl_module, "loss", None)
    logits, target, weight, mask = read_step(owner, stage, trainer, pl_module, outputs, *at)
    loss = loss_to_look_at(owner, given, stage, pl_module)
    with traceless(loss, logits) as scores:
        return loss.sums(scores, target, weight, mask=mask), loss


def judged_logits(trainer: pl.Trainer, pl_module: pl.LightningModule, logits: Tensor) -> Tensor:
    """Return what probabilities are made of: outside of ``fit`` calibrated logits, where the module calibrates."""
    calibrate = getattr(getattr(getattr(pl_module, "decision", None), "calibration", None), "logits", None)
    if trainer.state.fn == "fit" or not callable(calibrate):
        return logits
    calibrated: Tensor = calibrate(logits)
    return calibrated


@contextmanager
def traceless(loss: BinaryLoss, logits: Tensor) -> Iterator[Tensor]:
    """Give the scores that a loss takes and, inside, leave no trace: no graph, no mode, no random number drawn."""
    with torch.no_grad(), untouched(loss, logits.device):
        yield logits.detach() if loss.input_space == "logits" else torch.sigmoid(logits.detach().float())


def _part(name: str, outputs: Mapping[str, Any], pl_module: pl.LightningModule, batch: Any) -> Any:
    """Return weight or mask: the step's, or that of the batch, where the module can take batches apart."""
    if name in outputs:
        return outputs[name]
    unpack = getattr(pl_module, "unpack_batch", None)  # of BinaryClassifier
    found = getattr(unpack(batch), name, None) if callable(unpack) else None
    logits = outputs.get("logits")
    if isinstance(found, Tensor) and isinstance(logits, Tensor) and 3 <= found.ndim == logits.ndim - 1:
        return found.unsqueeze(1)  # (N, H, W) of masks of one label, whose target the classifier has shaped alike
    return found


def _what_to_return(owner: str, stage: Stage, pl_module: pl.LightningModule, outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        came = f"a tensor of shape {tuple(outputs.shape)}"
    elif isinstance(outputs, Mapping):
        came = "the loss alone" if list(outputs) == ["loss"] else f"a dictionary with {list(map(str, outputs))}"
    else:
        came = "None" if outputs is None else type(outputs).__name__
    return (
        f"{owner} reads what {type(pl_module).__name__}.{_STEPS[stage]} returns, which was {came}. A "
        "dictionary with the tensors 'logits' and 'target' was expected; write at its end `return "
        '{"loss": loss, "logits": logits.detach(), "target": target}`, or leave the stage out of `stages`.'
    )


# -- options ----------------------------------------------------------------------------------------------------------


def checked_stages(stages: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages.

    Raises:
        ValueError: If they are none, or something else.
    """
    if isinstance(stages, str) or not stages or not set(stages) <= set(get_args(Stage)):
        raise ValueError(f"`stages` is {stages!r}; a list of some of {list(get_args(Stage))} was expected.")
    return tuple(stages)  # type: ignore[arg-type]


def checked_loss(loss: BinaryLoss | None) -> BinaryLoss | None:
    """Return a callback's own loss.

    Raises:
        TypeError: If it is none of this package.
    """
    if loss is not None and not isinstance(loss, BinaryLoss):
        raise TypeError(
            f"`loss` is {type(loss).__module__}.{type(loss).__name__}; a BinaryLoss was expected, which can be "
            "split by label. For one of torch use its equal here, such as `lightning_bce.BCEWithLogitsLoss`."
        )
    return loss


def checked_count(name: str, value: object, least: int = 1) -> int:
    """Return a whole number of at least ``least``.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` is {value!r}; a whole number of at least {least} was expected.")
    return value


# -- ranks and the trainer --------------------------------------------------------------------------------------------


def agreed(labels: list[int], device: torch.device) -> list[int]:
    """Return the number of labels of each dataloader, known also to ranks that had no batch of it; 0 if all had none.

    Every rank takes part with one small tensor, whatever it has seen, so that nobody waits for another.

    Raises:
        ValueError: If ranks saw different numbers.
    """
    if not _several_ranks():
        return labels
    most = torch.tensor([labels, [-(n or 2**31) for n in labels]], device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    largest, smallest = most[0].tolist(), (-most[1]).tolist()
    for index, (high, low) in enumerate(zip(largest, smallest, strict=True)):
        if high and high != low:
            raise ValueError(
                f"Ranks have different numbers of labels in dataloader {index}: from {low} to {high}. Every rank "
                "needs the same labels in the same order."
            )
    return [int(n) for n in largest]


def gathered(parts: list[T]) -> list[T]:
    """Return the parts of all ranks on the first rank; nothing on the others. What they hold lies on the CPU."""
    if not _several_ranks():
        return parts
    first = torch.distributed.get_rank() == 0
    everyone: list[list[T]] | None = [[] for _ in range(torch.distributed.get_world_size())] if first else None
    torch.distributed.gather_object(parts, everyone)
    return [part for rank in everyone or [] for part in rank]


def on_first_rank(trainer: pl.Trainer, what: str, write: Callable[[], None]) -> None:
    """Call a function on the first rank, and have every rank raise if it fails, so that none waits for another.

    Args:
        trainer: The one that runs.
        what: For the other ranks' error: "The first rank could not {what}".
        write: The function.

    Raises:
        Exception: What the function raised, on the first rank.
        RuntimeError: With its text, on the others.
    """
    problem: Exception | None = None
    if trainer.is_global_zero:
        try:
            write()
        except Exception as error:
            problem = error
    told = trainer.strategy.broadcast(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    if told is not None:
        raise RuntimeError(f"The first rank could not {what}: {told}")


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """Return the callbacks of a trainer."""
    return list(trainer.callbacks)  # type: ignore[attr-defined]


def name_of(loss: Any) -> str:
    """Return the name of a loss for titles."""
    return type(loss).__name__ if isinstance(loss, nn.Module) else "loss"


def _several_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _how_many(trainer: pl.Trainer, num_batches: list[int | float]) -> int:
    """Return how many dataloaders run one after another; those that a CombinedLoader runs together count as one."""
    # Nothing public tells: `trainer.val_dataloaders` holds what is in the CombinedLoader.
    return len(num_batches) if getattr(trainer._evaluation_loop, "_is_sequential", True) else 1
