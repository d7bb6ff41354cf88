"""The house: imports point down. This file and the picture in the README say the same as the code."""

import ast
import os
from pathlib import Path

import pytest
import torch

import lightning_bce

HOUSE = Path(lightning_bce.__file__).parent

# A room is a folder or a file at the top. `__init__.py` is the guest list, which may name everyone.
FLOORS = {
    "_version": 0,
    "spec": 0,
    "visible": 0,
    "engine": 0,
    "files": 0,
    "losses": 1,
    "record": 1,
    "provenance": 1,
    "metrics": 1,
    "heads": 1,
    "checkpoints": 2,
    "decision": 2,
    "exportable": 2,
    "models": 2,
    "data": 2,
    "plotting": 2,
    "recipe": 2,
    "releases": 0,
    "priors": 2,
    "outputs": 0,
    "quiet": 0,
    "safe_yaml": 0,
    "suggest": 2,
    "loggers": 2,
    "logged_alike": 2,
    "window": 2,
    "callbacks": 3,
    "classifier": 3,
    "plot_command": 3,
    "report": 3,
    "comparison": 4,
    "sklearn": 4,
    "cli": 4,
    "__main__": 5,
}
# A metric and a head are of a loss, which knows nothing of them, and metrics at k take a head's targets; the command
# hands `compare` over.
NEXT_DOOR = {("metrics", "losses"), ("heads", "losses"), ("metrics", "heads"), ("cli", "comparison")}
WITHOUT_LIGHTNING = {"decision", "engine", "losses", "metrics", "heads", "exportable"}
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}


def imported(source, package):
    """Yield the dotted name of everything that a source imports, also within functions; ``package`` holds the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(room, source, package="lightning_bce"):
    """Return what a file of a room imports and may not."""
    found = []
    for name in imported(source, package):
        top, _, rest = name.partition(".")
        if top in LIGHTNING and room in WITHOUT_LIGHTNING:
            found.append(f"{room} knows no Lightning, but imports {name}")
        if top != "lightning_bce":
            continue
        other = rest.split(".")[0]
        if other not in FLOORS:
            found.append(f"{room} imports {name} from the guest list; import it from its room")
        elif other != room and FLOORS[other] >= FLOORS[room] and (room, other) not in NEXT_DOOR:
            found.append(f"{room} (floor {FLOORS[room]}) imports {name} (floor {FLOORS[other]})")
    return found


def files():
    return sorted(path for path in HOUSE.rglob("*.py") if path != HOUSE / "__init__.py")


def room_of(path):
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(HOUSE)))
def test_imports_point_down(path):
    assert room_of(path) in FLOORS, f"{room_of(path)} has no floor yet: give it one in FLOORS and in the README"
    package = ".".join(["lightning_bce", *path.relative_to(HOUSE).parts[:-1]])
    assert faults(room_of(path), path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("losses", "from lightning_bce.metrics import LossTracker"),
        ("losses", "from lightning_bce.metrics.loss_tracker import LossTracker"),
        ("losses", "import lightning_bce.classifier"),
        ("losses", "import lightning"),
        ("losses", "from lightning.pytorch import Trainer"),
        ("losses", "from ..metrics import LossTracker"),
        ("losses", "from .. import metrics"),
        ("losses", "from lightning_bce import LossTracker"),
        ("losses", "def late():\n    from lightning_bce.data import TableDataModule"),
        ("losses", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lightning_bce.models"),
        ("metrics", "import pytorch_lightning as pl"),
        ("metrics", "from lightning_bce.data import base"),
        ("models", "from lightning_bce.data import base"),
        ("data", "from lightning_bce.classifier import BinaryClassifier"),
        ("spec", "from lightning_bce.losses import BinaryLoss"),
        ("callbacks", "from lightning_bce.classifier import BinaryClassifier"),
        ("classifier", "from lightning_bce.callbacks import PerClassLossMonitor"),
        ("classifier", "from lightning_bce.cli import main"),
        ("cli", "from lightning_bce.__main__ import main"),
    ],
)
def test_a_wrong_import_is_found(room, source):
    package = f"lightning_bce.{room}" if (HOUSE / room).is_dir() else "lightning_bce"
    assert len(faults(room, source, package)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("losses", "import torch\nfrom lightning_bce.spec import Recorded"),
        ("losses", "from lightning_bce.losses.base import BinaryLoss\nfrom .checks import check_shapes"),
        ("losses", "from .. import spec\nfrom ..spec import build"),
        ("metrics", "from lightning_bce.losses import BinaryLoss\nfrom torchmetrics import Metric"),
        ("data", "from lightning import LightningDataModule"),
        ("callbacks", "from lightning_bce.metrics import LossTracker\nimport lightning"),
        ("cli", "from lightning_bce.classifier import BinaryClassifier\nfrom lightning_bce.callbacks import A"),
        ("__main__", "from lightning_bce.cli import main"),
    ],
)
def test_a_right_import_is_let_through(room, source):
    package = f"lightning_bce.{room}" if (HOUSE / room).is_dir() else "lightning_bce"
    assert faults(room, source, package) == []


# -- the guard of the tests themselves --------------------------------------------------------------------------------


def open_a_process_group():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


@pytest.mark.parametrize(
    ("leak", "named"),
    [
        (lambda: torch.set_grad_enabled(False), "grad mode"),
        (lambda: torch.set_default_dtype(torch.float64), "default dtype"),
        (lambda: torch.use_deterministic_algorithms(True), "deterministic algorithms"),
        (lambda: os.environ.update(LEFT_BEHIND="1"), "$LEFT_BEHIND"),
        (lambda: os.environ.pop("PATH"), "$PATH"),
        (open_a_process_group, "process group"),
    ],
    ids=["grad mode", "dtype", "deterministic", "new variable", "lost variable", "process group"],
)
def test_a_leak_is_found_and_mended(leaks_of, leak, named):
    assert leaks_of(leak) == [named]
    assert leaks_of(lambda: None) == []


def test_a_random_number_does_not_depend_on_the_tests_before():
    assert torch.initial_seed() == 0
    assert torch.equal(torch.rand(7), torch.rand(7, generator=torch.Generator().manual_seed(0)))
