"""Every loss of the library, found by itself: what the contract looks at, and what the table of the peers lists."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import lightning_bce
from lightning_bce.losses import BinaryLoss

PROGRAMS = ("lightning_bce.cli", "lightning_bce.__main__")  # they introduce parts to each other and hold no loss


def concrete_losses() -> list[type[BinaryLoss]]:
    """Return every class of the library that derives from BinaryLoss and can be made."""
    for module in pkgutil.walk_packages(lightning_bce.__path__, "lightning_bce."):
        if module.name.startswith(PROGRAMS):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed; a hole in the library itself is an error
            if (error.name or "lightning_bce").startswith("lightning_bce"):
                raise
    return sorted(set(_below(BinaryLoss)), key=lambda cls: cls.__name__)


def _below(base: type[BinaryLoss]) -> Iterator[type[BinaryLoss]]:
    for cls in base.__subclasses__():
        if cls.__module__.startswith("lightning_bce.") and not inspect.isabstract(cls):
            yield cls
        yield from _below(cls)
