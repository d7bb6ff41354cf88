"""What the command gives the trainer beside what the user configured."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import lightning.pytorch.loggers as _loggers
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO

import lightning_bce.data as _data
from lightning_bce.callbacks import LiveLossTable
from lightning_bce.checkpoints import AtomicCheckpointIO
from lightning_bce.files import whole_file
from lightning_bce.provenance import write_provenance
from lightning_bce.spec import load_class


class SaveRun(SaveConfigCallback):
    """Lightning's, which leaves the configuration in the run folder, and beside it what was typed.

    Args:
        command: By argument.
        options: Lightning's.
    """

    def __init__(self, *args: Any, command: Sequence[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._command = command

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write both, on a disk of this machine whole or not at all."""
        folder = trainer.log_dir  # all ranks have to ask
        self.save_to_log_dir = folder is None or "://" in folder  # Lightning writes in place, and to other machines
        super().setup(trainer, pl_module, stage)
        if folder is None or stage != "fit" or not trainer.is_global_zero:
            return
        if not self.save_to_log_dir:
            with whole_file(Path(folder) / self.config_filename) as file:
                file.write(self.parser.dump(self.config, skip_none=False).encode())
        write_provenance(folder, self._command)


def shows_a_table(trainer: Any, callbacks: Sequence[Any]) -> bool:
    """Return whether there is a terminal, with Lightning's own bar or a rich one of the user's, and no table yet.

    Args:
        trainer: What was said of the trainer.
        callbacks: Those of the user.
    """
    if trainer.get("enable_progress_bar") is False or not sys.stdout.isatty():
        return False
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    return all(isinstance(bar, RichProgressBar) for bar in bars) and not any(
        isinstance(callback, LiveLossTable) for callback in callbacks
    )


def with_whole_checkpoints(trainer: Any) -> Any:
    """Return the trainer's plugins, and the one for checkpoints unless there is one or the strategy has its own."""
    given = trainer.get("plugins") or []
    plugins = list(given) if isinstance(given, (list, tuple)) else [given]
    strategy = trainer.get("strategy") or "auto"
    simple = isinstance(strategy, str) and (strategy == "auto" or strategy.startswith("ddp"))
    if simple and not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        plugins.append(AtomicCheckpointIO())
    return plugins or None


def loggers_in(folder: Path) -> list[Any]:
    """Return a CSV and, where it is installed, a TensorBoard logger that share one numbered folder."""
    made: list[Any] = [_loggers.CSVLogger(folder, name="")]
    if importlib.util.find_spec("tensorboard"):
        made.append(_loggers.TensorBoardLogger(folder, name="", default_hp_metric=False))
    for logger in made:
        _ = logger.version  # counts the folders now, before the first logger makes one
    return made


def validates(config: Any) -> bool:
    """Return whether a configuration has something to validate on."""
    data = load_class(config["data"]["class_path"], pl.LightningDataModule)
    arguments = config["data"].get("init_args") or {}
    own = issubclass(data, _data.BinaryDataModule)
    there = own or data.val_dataloader is not pl.LightningDataModule.val_dataloader
    empty = arguments.get("val_fraction") == 0 and arguments.get("val_path") is None
    return there and not empty and config["trainer"].get("limit_val_batches") != 0


def as_list(callbacks: Any) -> list[Any]:
    """Return the callbacks as a list: None, one or several were given."""
    callbacks = callbacks or []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
