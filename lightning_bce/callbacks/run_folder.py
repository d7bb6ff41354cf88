"""Where a run is kept."""

from __future__ import annotations

import os

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger


def run_folder(trainer: pl.Trainer, given: str | None = None) -> str:
    """Return the folder of a run: the one that was given, a logger's, or the trainer's ``default_root_dir``.

    It is the ``log_dir`` of a CSVLogger or TensorBoardLogger, whichever comes first, and of other loggers
    ``save_dir/name/version``, beside the checkpoints. To be called on all ranks: it is the first rank's.

    Args:
        trainer: The one that runs.
        given: What a user chose.
    """
    if given is not None:
        return given
    folder: str | None = None
    for logger in trainer.loggers:
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):
            folder = logger.log_dir
            break
    if folder is None and trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    folder = trainer.strategy.broadcast(folder or trainer.default_root_dir)
    return os.fspath(folder)
