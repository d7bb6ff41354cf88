"""What a checkpoint brings to a command, and in what a command differs from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningArgumentParser

from lightning_bce.checkpoints import DamagedCheckpointError, check_whole
from lightning_bce.spec import SpecError, load_class


def read_checkpoint(path: str, parser: LightningArgumentParser) -> dict[str, Any]:
    """Return what a checkpoint holds, or have the parser refuse it with the reason."""
    if not Path(path).is_file():
        parser.error(f"There is no checkpoint {path!r}. Give the path of a .ckpt file.")
    try:
        check_whole(path)
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except DamagedCheckpointError as error:
        parser.error(str(error))
    except Exception as error:
        parser.error(f"The checkpoint {path!r} is damaged or holds more than plain values ({type(error).__name__}).")
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        parser.error(f"{path!r} is no checkpoint of Lightning: it has no 'state_dict'.")
    return checkpoint


def changed(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the values of ``now`` that ``before`` has otherwise; arguments of another class are not compared."""
    if not isinstance(before, Mapping) or not isinstance(now, Mapping):
        if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
            before, now = list(before), list(now)
        if before != now:
            yield name, before, now
    elif "class_path" in now and not _same_class(before.get("class_path"), now["class_path"]):
        yield name, before.get("class_path"), now["class_path"]
    else:
        for key, value in now.items():
            if key != "class_path" and key in before:
                yield from changed(name if key == "init_args" else f"{name}.{key}", before[key], value)


def _same_class(before: Any, now: Any) -> bool:
    with contextlib.suppress(SpecError, ImportError):  # one class has several paths
        return load_class(before, object) is load_class(now, object)
    return bool(before == now)


def short(value: Any) -> str:
    """Return a value as a text of at most 60 characters."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


class OptimizerChanges(pl.Callback):
    """Gives a resumed optimizer, which has its arguments from the checkpoint, those that flags change."""

    def __init__(self, changes: Mapping[str, Any]) -> None:
        super().__init__()
        self._changes = changes

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Change the groups of parameters, which have been restored by now."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update(self._changes)
