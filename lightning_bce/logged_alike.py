"""Values of an epoch that every rank holds alike, on their way to the loggers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_bce.releases import loggable


def log_alike(
    values: Mapping[str, Any], trainer: pl.Trainer, pl_module: pl.LightningModule, *, prog_bar: bool = False
) -> None:
    """Log values of an epoch that every rank holds alike, by names that say which dataloader they are of."""
    # The largest of equal values keeps them to the last digit, which a mean of three does not, and tells Lightning that
    # nothing is missing.
    pl_module.log_dict(
        {loggable(name): value for name, value in values.items()},
        on_step=False,
        on_epoch=True,
        prog_bar=prog_bar,
        reduce_fx="max",
        sync_dist=trainer.world_size > 1,
        batch_size=1,
        add_dataloader_idx=False,
    )
