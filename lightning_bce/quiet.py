"""Silence of Lightning, for trainings that are a step of something else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep Lightning from saying which devices there are, and warnings from advising how to set up its Trainer.

    Errors of its loggers are still heard, and what was set before is set again at the end.

    Example:
        >>> import lightning.pytorch as pl
        >>> with without_chatter():
        ...     trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
