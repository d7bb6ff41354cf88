"""What the oldest supported releases of Lightning lack, so that all of them do the same here."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any
from unittest import mock

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

_PART = "/dataloader_idx_"
_KNOWS_WEIGHTS_ONLY = "weights_only" in inspect.signature(TorchCheckpointIO.load_checkpoint).parameters


@contextlib.contextmanager
def weights_only_option(value: bool | None) -> Iterator[dict[str, Any]]:
    """Yield ``weights_only`` as an option for Lightning's loaders; before 2.6, which has none, torch is told instead.

    Args:
        value: True reads plain values and tensors only, and runs nothing that a file holds. None is Lightning's choice.
    """
    if _KNOWS_WEIGHTS_ONLY:
        yield {"weights_only": value}
    elif value:
        with mock.patch.dict("os.environ", TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):
            yield {}
    else:
        yield {}


def loggable(name: str) -> str:
    """Return a name for ``self.log`` with ``add_dataloader_idx=False`` that may say which dataloader it is of."""
    return _OfDataloader(name) if _PART in name else name


class _OfDataloader(str):
    """Lightning before 2.5 takes no name with this part, and looks for it with ``in``."""

    def __contains__(self, part: object) -> bool:
        return part != _PART and super().__contains__(part)  # type: ignore[operator]
