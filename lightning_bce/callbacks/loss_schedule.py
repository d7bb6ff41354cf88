"""LossSchedule: a hyper-parameter of the loss that changes over epochs or steps."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import lightning.pytorch as pl

from lightning_bce.losses import BinaryLoss
from lightning_bce.spec import build

Shape = Literal["linear", "cosine"]
Interval = Literal["epoch", "step"]


class LossSchedule(pl.Callback):
    r"""Moves a hyper-parameter of ``pl_module.loss`` from one value to another while the model trains.

    With progress :math:`r = \min(1, t / T)` through ``over`` = :math:`T` epochs or steps the value is

    .. math::
        \text{linear: } a + (b - a)\, r, \qquad \text{cosine: } a + (b - a)\,\frac{1 - \cos(\pi r)}{2}.

    It is logged as ``loss_<parameter>`` at the start of each epoch. Validation uses the value that training has
    reached, and so does a model that is loaded from a checkpoint, which is given it. Since the loss itself changes,
    compare epochs by ``val_log_loss`` and not by ``val_loss``. A resumed run goes on where it was.

    Args:
        parameter: Name of the hyper-parameter, a number, such as "gamma" or "alpha".
        start: Its value in the first epoch or step.
        end: Its value from ``over`` on.
        over: Epochs or steps from ``start`` to ``end``, at least 1. None is the whole training.
        interval: Whether it changes each "epoch" or each "step" of the optimizer.
        shape: How it moves, "linear" or "cosine".

    Raises:
        ValueError: If an option is out of range, ``start`` and ``end`` are equal, the loss has no such number, or
            refuses one of the values.
        TypeError: If the module has no BinaryLoss as ``loss``.

    Example:
        >>> import lightning.pytorch as pl
        >>> schedule = LossSchedule("gamma", start=0.0, end=2.0)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[schedule])
    """

    def __init__(
        self,
        parameter: str,
        start: float,
        end: float,
        over: int | None = None,
        interval: Interval = "epoch",
        shape: Shape = "linear",
    ) -> None:
        super().__init__()
        if not math.isfinite(start) or not math.isfinite(end) or start == end:
            raise ValueError(f"`start` is {start} and `end` {end}; two different finite numbers were expected.")
        if over is not None and over < 1:
            raise ValueError(f"`over` is {over}; at least 1 was expected, or None for the whole training.")
        for name, value, choices in (("interval", interval, get_args(Interval)), ("shape", shape, get_args(Shape))):
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(choices)}.")
        self.parameter = parameter
        self.start = float(start)
        self.end = float(end)
        self.over = over
        self.interval: Interval = interval
        self.shape: Shape = shape

    def value_at(self, time: int, total: int) -> float:
        """Return the value after ``time`` of ``total`` epochs or steps."""
        progress = min(1.0, time / max(1, total))
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return self.start + (self.end - self.start) * progress

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a loss without this number, and values that the loss refuses."""
        if stage != "fit":
            return
        loss = _loss_of(pl_module)
        spec = loss.spec()
        now = getattr(loss, self.parameter, None)
        number = isinstance(now, (int, float)) and not isinstance(now, bool)
        if self.parameter not in spec["init_args"] or not (number or now is None):
            known = [k for k, v in spec["init_args"].items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
            raise ValueError(
                f"{type(loss).__name__} has no number {self.parameter!r} to schedule; it has: "
                f"{', '.join(known) or 'none'}."
            )
        for value in (self.start, self.end):
            build(
                {**spec, "init_args": {**spec["init_args"], self.parameter: value}}, BinaryLoss
            )  # raises what it says

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set and log the value of the epoch."""
        self._set(trainer, pl_module)
        pl_module.log(
            f"loss_{self.parameter}",
            getattr(pl_module.loss, self.parameter),
            on_step=False,
            on_epoch=True,
            batch_size=1,
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the value of the step."""
        if self.interval == "step":
            self._set(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give the checkpoint the value that training has reached."""
        spec = checkpoint.get("hyper_parameters", {}).get("loss")
        if isinstance(spec, dict) and "init_args" in spec:
            reached = {**spec["init_args"], self.parameter: getattr(_loss_of(pl_module), self.parameter)}
            hyper_parameters = {**checkpoint["hyper_parameters"], "loss": {**spec, "init_args": reached}}
            checkpoint["hyper_parameters"] = type(checkpoint["hyper_parameters"])(hyper_parameters)

    def _set(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.interval == "epoch":
            time, total = trainer.current_epoch, self.over or (trainer.max_epochs or 1) - 1
        else:
            time, total = trainer.global_step, self.over or int(trainer.estimated_stepping_batches) - 1
        setattr(_loss_of(pl_module), self.parameter, self.value_at(time, total))


def _loss_of(pl_module: pl.LightningModule) -> BinaryLoss:
    loss = getattr(pl_module, "loss", None)
    if not isinstance(loss, BinaryLoss):
        raise TypeError(
            f"{type(pl_module).__name__}.loss is {type(loss).__name__}; a BinaryLoss was expected, which has "
            "hyper-parameters to schedule."
        )
    return loss
