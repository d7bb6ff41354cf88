"""Asking a loss without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_bce.losses import BinaryLoss


@contextmanager
def untouched(loss: BinaryLoss, device: torch.device) -> Iterator[None]:
    """Have a loss in evaluation mode within, and its modes and torch's random numbers afterwards as they were.

    Args:
        loss: What is going to be asked.
        device: Where.
    """
    modes = {module: module.training for module in loss.modules()}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            loss.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
