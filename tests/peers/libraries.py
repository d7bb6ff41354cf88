"""The libraries that the losses are compared with, or the reason why one cannot be asked."""

from __future__ import annotations

import functools
import importlib
import os
import tempfile
from types import ModuleType

PEERS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "kornia": "kornia",
    "MONAI": "monai",
    "segmentation-models": "segmentation_models_pytorch",
    "timm": "timm",
    "keras": "keras",
}
"""The name a reader knows and the one to import, in the order of the table."""

SUBMODULES = {"torchvision": "ops", "kornia": "losses", "MONAI": "losses", "timm": "loss"}


class Missing(Exception):
    """A library that cannot be asked, and why."""


def load(library: str) -> ModuleType:
    """Return a library, imported.

    Raises:
        Missing: If it is not installed, or does not import beside this torch.
    """
    loaded = _load(library)
    if isinstance(loaded, Missing):
        raise loaded
    return loaded


def version(library: str) -> str:
    """Return the version that is installed, without the build of torch that it belongs to."""
    return str(load(library).__version__).partition("+")[0]


def installed() -> list[str]:
    """Return the libraries that can be asked."""
    return [library for library in PEERS if not isinstance(_load(library), Missing)]


@functools.cache
def _load(library: str) -> ModuleType | Missing:
    name = PEERS[library]
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as home:
        # Keras reads its backend while it is imported, and writes it to the home folder, where it would outlive the
        # tests. Some libraries set variables of their own; none of them is left.
        os.environ.update(KERAS_BACKEND="torch", KERAS_HOME=home)
        try:
            module = importlib.import_module(name)
            if library in SUBMODULES:
                importlib.import_module(f"{name}.{SUBMODULES[library]}")
            return module
        except ModuleNotFoundError as error:
            missing = error.name or name
            return Missing(f"{missing} is not installed" + (f", which {name} imports" if missing != name else ""))
        except (ImportError, RuntimeError) as error:  # compiled for another torch
            return Missing(f"{name} does not import beside this torch: {str(error).splitlines()[0]}")
        finally:
            os.environ.clear()
            os.environ.update(environment)
