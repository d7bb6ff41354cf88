"""One file for each finished run, whole or not there, named by all that the run depends on."""

from __future__ import annotations

import hashlib
import json
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_bce.files import whole_file

Array = npt.NDArray[Any]
FORMAT = 1
"""Changes when what a run does or keeps changes in a way that the version of the package does not tell."""


class Task(NamedTuple):
    """A run that is to be made.

    Args:
        label: The loss, as tables call it.
        data_name: The data set, as tables call it.
        specification: All that decides the result, in plain values.
        place: How the run's own process finds the data: class path and arguments, which may differ between machines.
    """

    label: str
    data_name: str
    specification: dict[str, Any]
    place: dict[str, Any]

    @property
    def key(self) -> str:
        """The name of the run's file: a hash of the specification."""
        text = json.dumps({"format": FORMAT, **self.specification}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


class Run(NamedTuple):
    """A run that was made.

    Args:
        result: What it came to, in plain values; ``error`` is None or says why there are no scores.
        arrays: ``logits``, ``probability``, ``decision``, ``target`` and ``known`` of the test rows; empty for a
            failed run.
    """

    result: dict[str, Any]
    arrays: dict[str, Array]


def write(folder: Path, task: Task, run: Run) -> None:
    """Write a run at once: a process that is killed meanwhile leaves no file of that name."""
    told = json.dumps({"key": task.key, "specification": task.specification, "result": run.result})
    with whole_file(folder / f"{task.key}.npz") as file:
        np.savez_compressed(file, told=np.array(told), **run.arrays)  # type: ignore[arg-type]


def read(folder: Path, task: Task) -> Run | None:
    """Return a run that was made before, or None if there is none, or its file is damaged.

    Warns:
        UserWarning: If the file is damaged; the run is then made again.
    """
    path = folder / f"{task.key}.npz"
    try:
        # Opened here, because numpy leaves a file open in which it finds no archive. Every part has a checksum.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(str(arrays.pop("told")))
        if told["key"] != task.key:
            raise ValueError("it is the file of another run")
        return Run(told["result"], arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        warnings.warn(f"{path} is damaged ({error}); the run is made again.", stacklevel=2)
        return None
