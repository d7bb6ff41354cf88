"""FiniteGuard: a loss that is no number stops the training, and says where and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_bce.engine.memory import own_part


class NotFiniteError(ArithmeticError):
    """The training loss or a weight is NaN or infinite."""


class FiniteGuard(pl.Callback):
    """Stops the training at the first loss that is NaN or infinite, with step, batch and cause.

    Lightning goes on and finishes normally, with weights that are NaN. The last and the best checkpoint stay: before
    each one is written the weights are looked at, so that none is ever written with NaN in it.

    With ``every_n_steps=1`` the loss is looked at before its gradient reaches the weights, and the error names the
    cause: the inputs, a weight, the model (logits from finite inputs and weights) or the loss (from finite logits).
    Looking is waiting for the device. Otherwise the first bad step is kept on the device and read every so many steps,
    at the end of the epoch and before a checkpoint: step and batch are exact, and of the cause it is known whether it
    was in the inputs or the logits.

    Args:
        every_n_steps: Batches between two looks, at least 1. None is 1 on the CPU, where nothing waits, and elsewhere
            the trainer's ``log_every_n_steps``, at which the loss is read anyway.

    Raises:
        ValueError: If ``every_n_steps`` is below 1.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[FiniteGuard()])
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"`every_n_steps` is {every_n_steps}; at least 1 was expected, or None.")
        self.every_n_steps = every_n_steps
        self._every = 1
        self._batch: Any = None
        self._where = (0, 0)
        self._first: Tensor | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide how often to look."""
        on_cpu = pl_module.device.type == "cpu"
        self._every = self.every_n_steps or (1 if on_cpu else max(1, trainer.log_every_n_steps))  # type: ignore[attr-defined]
        self._first = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the case that it is the one."""
        self._batch, self._where = batch, (trainer.global_step, batch_idx)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Stop at a loss that is no number, while the weights are what they were."""
        if self._every == 1 and not torch.isfinite(loss.detach()).all():
            value = loss.detach().sum().item()
            raise NotFiniteError(f"{_place(trainer, *self._where, value)} {_cause(trainer, pl_module, self._batch)}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note on the device whether this was the first bad step; read the note from time to time."""
        self._batch = None
        if self._every == 1:
            return
        loss, logits = _parts(outputs)
        if loss is None:
            return
        bad = ~torch.isfinite(loss.detach()).all()
        inputs = [~torch.isfinite(value).all() for _, value in _inputs(pl_module, batch)]
        flags = [
            torch.stack(inputs).any() if inputs else torch.zeros_like(bad),
            torch.zeros_like(bad) if logits is None else ~torch.isfinite(logits).all(),
        ]
        step, index = self._where
        number = torch.stack([bad, *(flag.to(bad.device) for flag in flags)]).to(torch.int64)
        place = torch.tensor([step, index, trainer.current_epoch], dtype=torch.int64)
        note = torch.cat([number, place.to(bad.device, non_blocking=True)])
        # `where`, not `if`, which would wait for the device.
        self._first = note if self._first is None else torch.where(self._first[0] > 0, self._first, note)
        if (batch_idx + 1) % self._every == 0:
            self._read(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what was noted."""
        self._read(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what was noted, before a validation of NaN."""
        self._read(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to write weights that are no numbers over some that are."""
        self._look(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to end normally with weights that the last step has spoilt."""
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read(trainer)
        name = _bad_parameter(pl_module, together=trainer.world_size > 1)
        if name is not None:
            epoch, batch = trainer.current_epoch, self._where[1]
            raise NotFiniteError(
                f"The weight {name!r} is no number after step {trainer.global_step}, epoch {epoch}, batch {batch}, "
                f"before any loss was none: the gradient overflowed. No checkpoint is written. {_SMALLER}"
            )

    def _read(self, trainer: pl.Trainer) -> None:
        if self._first is None:
            return
        bad, inputs, logits, step, index, epoch = self._first.tolist()
        self._first = None
        if bad:
            cause = (
                "The batch's inputs hold NaN or infinity. Clean the data."
                if inputs
                else f"The logits are not finite and the inputs are: a weight was no number, or the model overflowed. "
                f"{_SMALLER}"
                if logits
                else "The logits are finite: the loss itself overflowed, or a target or weight is no number."
            )
            exact = "To be told more, go on from the last checkpoint with FiniteGuard(every_n_steps=1)."
            raise NotFiniteError(f"{_place(trainer, step, index, epoch=epoch)} {cause} {exact}")


_SMALLER = "Lower the learning rate, or clip the gradients (`gradient_clip_val` of the trainer)."


def _place(trainer: pl.Trainer, step: int, index: int, value: float | None = None, epoch: int | None = None) -> str:
    what = "not finite" if value is None else str(value)
    epoch = trainer.current_epoch if epoch is None else epoch
    return f"The training loss is {what} at step {step}: epoch {epoch}, batch {index}; the training stops."


def _cause(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> str:
    """Return why the loss of a batch is no number, from the weights it was made with.

    The other ranks may have a loss that is one: nothing here may wait for them.
    """
    for name, value in _inputs(pl_module, batch):
        wrong = ~torch.isfinite(value)
        if wrong.any():
            rows = wrong.reshape(len(value), -1).any(1).nonzero().flatten().tolist() if value.ndim else []
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            return f"{name} of the batch holds NaN or infinity in row(s) {shown}. Clean the data."
    parameter = _bad_parameter(pl_module, together=False)
    if parameter is not None:
        return f"The weight {parameter!r} is no number: the gradient of the step before was none. {_SMALLER}"
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):  # the model would gather its weights
        return f"The inputs, and the weights that rank {trainer.global_rank} holds, are finite. {_SMALLER}"
    try:
        # Once more, because the trainer hands a loss along and no logits; the run ends here.
        with torch.no_grad():
            logits = pl_module(_inputs_of(pl_module, batch))
    except Exception:
        return f"The inputs and weights are finite. {_SMALLER}"
    if isinstance(logits, Tensor) and not torch.isfinite(logits).all():
        return f"The logits are not finite, from finite inputs and weights: the model overflowed. {_SMALLER}"
    return "The logits are finite: the loss itself overflowed, or a target or weight of the batch is no number."


def _bad_parameter(pl_module: pl.LightningModule, together: bool) -> str | None:
    """Return the name of a weight that is no number: of what this rank holds, or ``together`` of what all do."""
    named = [(name, value) for name, value in pl_module.named_parameters() if value.is_floating_point()]
    if not named:
        return None
    # One wait for all of them; which one it is only matters once.
    flags = [torch.isfinite(own_part(value.detach())).all() for _, value in named]
    finite = torch.stack([flag.to(flags[0].device) for flag in flags]).int()
    if together and torch.distributed.is_initialized():
        # A part that no other rank holds: all stop, or those that go on wait for one that does not.
        torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
    if finite.all():
        return None
    return named[int((finite == 0).nonzero()[0])][0]


def _inputs_of(pl_module: pl.LightningModule, batch: Any) -> Any:
    """Return what the model is called with."""
    unpack = getattr(pl_module, "unpack_batch", None)
    if unpack is not None:
        return unpack(batch).inputs
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _inputs(pl_module: pl.LightningModule, batch: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors of the inputs by name; a target may hold NaN on purpose."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                yield name, value
        elif isinstance(value, Mapping):
            for key, item in value.items():
                yield from walk(item, f"{name}[{key!r}]")
        elif isinstance(value, (tuple, list)):
            for index, item in enumerate(value):
                yield from walk(item, f"{name}[{index}]")

    yield from walk(_inputs_of(pl_module, batch), "`inputs`")


def _parts(outputs: Any) -> tuple[Tensor | None, Tensor | None]:
    if isinstance(outputs, Tensor):
        return outputs, None
    if isinstance(outputs, Mapping):
        return outputs.get("loss"), outputs.get("logits")
    return None, None
