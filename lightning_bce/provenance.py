"""Where a run comes from: what was typed, and which versions ran. The report of a run ends with it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_bce.files import whole_file

_NAME = os.path.join("record", "run.json")
_FORMAT = 1
_PACKAGES = ("lightning_bce", "torch", "lightning", "torchmetrics", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Where a run comes from.

    Args:
        command: What was typed, by argument.
        versions: Of Python and the packages that computed it, by name.
        seed: Of all random numbers, if one was set.
        started: When, in UTC, such as 2025-01-31T12:00:00+00:00.
    """

    command: list[str]
    versions: dict[str, str]
    seed: int | None
    started: str


def write_provenance(folder: str | os.PathLike[str], command: Sequence[str]) -> None:
    """Write where a run comes from into its folder, whole or not at all.

    Args:
        folder: The run folder.
        command: What was typed, by argument.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    provenance = Provenance(list(command), versions, int(seed) if seed else None, started)
    with whole_file(Path(folder) / _NAME) as file:
        file.write(f"{json.dumps({'format': _FORMAT, **dataclasses.asdict(provenance)})}\n".encode())


def read_provenance(folder: str | os.PathLike[str]) -> Provenance | None:
    """Return where a run comes from, or None where nobody wrote it, as in a run from Python.

    Args:
        folder: The run folder.

    Raises:
        ValueError: If the file is damaged.
    """
    path = Path(folder) / _NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        return Provenance(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}.") from error
