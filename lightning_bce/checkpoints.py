"""Checkpoint files that are whole: written at once or not at all, and looked at before they are believed."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lightning_bce.files import whole_file
from lightning_bce.releases import weights_only_option


class DamagedCheckpointError(ValueError):
    """A file that is no whole checkpoint: cut off, empty, overwritten in places, or something else."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints so that a crash at any moment leaves the old file or the new one, and reads only whole ones.

    For ``Trainer(plugins=[AtomicCheckpointIO()])``; the command line uses it. Lightning writes to the folder for
    temporary files and moves the result, which is a copy where that is another file system, and a crash leaves half a
    checkpoint under its final name. Here the new file lies next to the old one until the disk has it, as
    ``.NAME.<random>.partial``: what a crash leaves of it is read by nobody and may be deleted.

    For paths with a protocol (``s3://``) it is Lightning's own.

    Example:
        >>> import lightning.pytorch as pl
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint."""
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with whole_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # torch says that a position was unexpected; what the disk said is behind it.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, f"{cause.strerror}; the checkpoints before are whole", str(path)) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            DamagedCheckpointError: If the file is not whole.
        """
        check_whole(path)
        with weights_only_option(trusted(path, weights_only)) as option:
            return super().load_checkpoint(path, map_location, **option)


def check_whole(path: str | Path) -> None:
    """Refuse a file that is no whole checkpoint.

    torch does not look at the checksums that it writes, so a weight that was overwritten on the disk is loaded without
    a word. This reads the file once, at some GB/s. Paths with a protocol and files that do not exist are left to
    Lightning.

    Args:
        path: The file.

    Raises:
        DamagedCheckpointError: If it is not whole, with what was found and a whole checkpoint beside it.
    """
    if not _is_local(path) or not Path(path).is_file():
        return
    fault = _fault(Path(path))
    if fault:
        raise DamagedCheckpointError(f"Damaged checkpoint {os.fspath(path)!r}: {fault}. {_advice(Path(path))}")


def trusted(path: Any, weights_only: bool | None) -> bool | None:
    """Return Lightning's ``weights_only`` for a path: True where nothing was said and the file is of another machine.

    Lightning would then read it with all that a pickle can do.
    """
    return True if weights_only is None and not _is_local(path) else weights_only


def _fault(path: Path) -> str | None:
    """Return what is wrong with a file, or None."""
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"\x80\x02":
        return None  # torch's format before 1.6, which has no checksums
    if start != b"PK\x03\x04":
        return f"it does not begin like a checkpoint, but with {start!r}"
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
            names = [name.partition("/")[2] for name in archive.namelist()]
            # The bit that makes it a folder, of which torch reads nothing, is under no checksum.
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & 0x10]
    except zipfile.BadZipFile:
        return f"its end is missing or overwritten (it has {size} bytes)"
    except Exception as error:  # whatever zipfile meets in random bytes: struct, Unicode, encryption, overflow
        return f"its table of contents is overwritten ({type(error).__name__})"
    if wrong:
        return f"the part {wrong.partition('/')[2]!r} does not have its checksum"
    if folders:
        return f"its table of contents is overwritten (at {folders[0].partition('/')[2]!r})"
    if "data.pkl" not in names:
        return "it is another kind of archive, without 'data.pkl'"
    try:
        # Only the structure, which is small: tensors stay on the disk.
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError:
        return None  # whole, but with more than plain values: a question of trust, which torch answers
    except Exception as error:
        return f"its parts do not fit together ({type(error).__name__})"
    return None


def _advice(path: Path) -> str:
    """Return what to do without this file."""
    others = [other for other in path.parent.glob("*.ckpt") if other.name != path.name and other.is_file()]
    for other in sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)[:3]:
        if _fault(other) is None:
            return f"Go on from {str(other)!r}, which is whole, or copy this one again from where it came."
    return "Copy it again from where it came, or train again; beside it there is no other whole checkpoint."


def check_finite(state_dict: Mapping[str, Any], parameters: Collection[str]) -> None:
    """Refuse weights that are not numbers.

    Args:
        state_dict: Tensors by name.
        parameters: The names to look at. A buffer may hold an infinity on purpose.

    Raises:
        ValueError: If one is NaN or infinite, with its name.
    """
    for name, value in state_dict.items():
        if name in parameters and isinstance(value, torch.Tensor) and value.is_floating_point():
            count: Any = (~torch.isfinite(value)).sum()
            if hasattr(count, "full_tensor"):  # of a sharded weight: all ranks add up, and refuse it together
                count = count.full_tensor()
            wrong = int(count)
            if wrong:
                raise ValueError(
                    f"The parameter {name!r} of the checkpoint has {wrong} of {value.numel()} elements that are NaN or "
                    "infinite: every prediction would be. Take a checkpoint from before the training went wrong."
                )


def _is_local(path: Any) -> bool:
    """Return whether a path is of this file system and not of a protocol, and not an open file."""
    return isinstance(path, os.PathLike) or (isinstance(path, str) and "://" not in path)
