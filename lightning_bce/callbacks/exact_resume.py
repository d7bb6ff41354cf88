"""ExactResume: two epochs and two more are the four of an uninterrupted run."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_bce.callbacks.random_state import random_state, set_random_state
from lightning_bce.callbacks.steps import callbacks_of


class ExactResume(pl.Callback):
    """Makes a run that goes on from a checkpoint the run that it would have been, bit for bit on the CPU.

    Lightning's checkpoints hold weights, optimizer and schedulers, but not the random state: after a resume dropout and
    a shuffling loader start again from the seed. This callback adds the state of Python's, NumPy's and torch's
    generators, of each rank, and the value that a ReduceLROnPlateau scheduler was about to be given. They are put back
    when the first resumed epoch starts, after the loaders are made: a split drawn there is that of the first run.

    A training that EarlyStopping had stopped when the checkpoint was written stays stopped: Lightning would train it
    for one epoch more, so that a run that is killed after its last checkpoint would end elsewhere.

    It holds for checkpoints of the end of an epoch, on the same number of ranks, and with the same data, arguments and
    ``max_epochs`` where a schedule depends on it. In the middle of an epoch Lightning starts with its first batches
    again, and says so. Random numbers drawn in the worker processes of a loader are repeated where the loader has no
    generator of its own and no persistent workers.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[ExactResume()])
    """

    def __init__(self) -> None:
        super().__init__()
        self._saved: dict[str, Any] | None = None
        self._trainer: pl.Trainer | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget what an evaluation of a checkpoint has read."""
        self._saved, self._trainer = None, trainer

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the trainer."""
        self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Return the random state of every rank, and what the schedulers are waiting for."""
        state = random_state()
        ranks: list[Any] = [state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every rank is here: Lightning saves on all of them, and waits for all.
            ranks = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, state)
        found: dict[str, Any] = {"plateau": {}, "stopped": []}
        if self._trainer is not None:
            found = {"plateau": _awaited(self._trainer), "stopped": _stopped(self._trainer)}
        return {"ranks": ranks, **found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the epoch starts."""
        self._saved = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a training that had stopped."""
        stopped = (self._saved or {}).get("stopped", [])  # that of an earlier release does not say
        ended = [callback for callback in _early_stoppings(trainer) if callback.state_key in stopped]
        if ended:
            trainer.should_stop = True
            rank_zero_warn(
                f"EarlyStopping on {ended[0].monitor!r} had stopped this training when the checkpoint was written: no "
                "further epoch is trained. To go on all the same, give an EarlyStopping with another `monitor`."
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the random state back."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        for index, value in saved["plateau"].items():
            pl_module.lr_scheduler_step(trainer.lr_scheduler_configs[int(index)].scheduler, value)
        ranks = saved["ranks"]
        if len(ranks) != trainer.world_size:
            warnings.warn(
                f"The checkpoint was written by {len(ranks)} rank(s) and is read by {trainer.world_size}: the random "
                "state is not restored, and the run will not be the uninterrupted one.",
                stacklevel=2,
            )
            return
        set_random_state(ranks[trainer.global_rank])
        _iterate_anew(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Forget the state of a checkpoint from the middle of an epoch: the next one is not where it belongs."""
        self._saved = None


def _early_stoppings(trainer: pl.Trainer) -> list[EarlyStopping]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, EarlyStopping)]


def _stopped(trainer: pl.Trainer) -> list[str]:
    """Return the keys of what has stopped the training in this epoch; not of a Timer, whose next run has its own time.

    Epoch 0 is also what an EarlyStopping says that has stopped nothing.
    """
    return [
        callback.state_key
        for callback in _early_stoppings(trainer)
        if trainer.should_stop and 0 < callback.stopped_epoch == trainer.current_epoch
    ]


def _awaited(trainer: pl.Trainer) -> dict[str, float]:
    """Return the values that Lightning gives to schedulers at the end of an epoch, after the checkpoint is written."""
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if epochs.ready != epochs.completed + 1 or not loop.epoch_loop.batch_progress.is_last_batch:
        return {}
    return {
        str(index): float(trainer.callback_metrics[config.monitor])
        for index, config in enumerate(trainer.lr_scheduler_configs)
        if isinstance(config.scheduler, ReduceLROnPlateau)
        and config.interval == "epoch"
        and epochs.ready % config.frequency == 0
        and config.monitor in trainer.callback_metrics
    }


def _iterate_anew(trainer: pl.Trainer) -> None:
    """Have a loader that was asked for its first batches before the random state was back shuffle again."""
    # Lightning makes the iterator of the first resumed epoch when it makes the loader, that of a later epoch here.
    loop = trainer.fit_loop
    lightning_does = not getattr(loop, "is_resuming", False) and not loop.epoch_loop.restarting
    if loop._data_fetcher is not None and not lightning_does:
        iter(loop._data_fetcher)
