"""The grid: every loss on every split of every data set, each written down with all that decides it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_bce._version import __version__
from lightning_bce.comparison.candidates import Candidate, candidates, check, code_of
from lightning_bce.comparison.rows import Split, SplitRows, data_name, data_spec
from lightning_bce.comparison.scores import SCORES
from lightning_bce.comparison.searching import require_optuna
from lightning_bce.comparison.spaces import LEARNING_RATE, Space, space_of
from lightning_bce.comparison.store import Task
from lightning_bce.comparison.training import STOP_BY, build_model
from lightning_bce.data.cells import require
from lightning_bce.losses import BinaryLoss
from lightning_bce.spec import Spec, class_path, describe, factory_spec, is_spec, load_class, to_plain


@dataclass(frozen=True)
class Settings:
    """What holds for all runs; see :func:`lightning_bce.comparison.compare`."""

    model: Spec
    optimizer: Spec
    seeds: int
    folds: int | None
    repeats: int | None
    metric: str
    worth: float
    alpha: float
    max_epochs: int
    patience: int
    stop_by: str
    trials: int
    precision: float
    accelerator: str

    def __post_init__(self) -> None:
        """Refuse what is out of range or has no effect."""
        for name, least in (("max_epochs", 1), ("patience", 1), ("trials", 0), ("seeds", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` is {value!r}; a whole number of at least {least} was expected.")
        if self.repeats is not None and self.folds is None:
            raise ValueError("`repeats` has no effect without `folds`. For random splits give `seeds`.")
        if self.folds is not None and (self.folds < 2 or (self.repeats or 1) < 1):
            raise ValueError(f"`folds` is {self.folds} and `repeats` {self.repeats}; at least 2 and 1 were expected.")
        if self.metric not in SCORES:
            raise ValueError(f"`metric` is {self.metric!r}; expected one of {', '.join(SCORES)}.")
        if self.stop_by not in STOP_BY:
            raise ValueError(f"`stop_by` is {self.stop_by!r}; expected one of {', '.join(STOP_BY)}.")
        if self.trials and self.stop_by == "own_loss":
            raise ValueError(
                "`stop_by` 'own_loss' cannot choose among the trials of a search, whose losses differ. Use another."
            )
        if not self.worth >= 0:
            raise ValueError(f"`worth` is {self.worth}; a difference of at least 0 was expected, such as 0.01.")
        for name in ("alpha", "precision"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must lie in (0, 1).")

    def splits(self) -> list[Split]:
        """Return how each data set is cut: by seeds, or by folds and their repeats.

        Example:
            >>> from lightning_bce.comparison.compare import settings_of
            >>> settings_of(folds=2, repeats=2).splits()[2]
            {'seed': 1, 'fold': 0, 'folds': 2}
        """
        if self.folds is None:
            return [{"seed": seed} for seed in range(self.seeds)]
        return [
            {"seed": repeat, "fold": fold, "folds": self.folds}
            for repeat in range(self.repeats or 1)
            for fold in range(self.folds)
        ]


@dataclass(frozen=True)
class DataSet:
    """A data set and what the plan found in its first split.

    Args:
        name: What tables call it.
        spec: Class path and arguments.
        fingerprint: Of the rows of the first split.
        sizes: Rows of each part of it.
        num_labels: Labels.
        positives: Share of positives among the known labels of all parts.
        remarks: What reading it warned of.
    """

    name: str
    spec: Spec
    fingerprint: str
    sizes: dict[str, int]
    num_labels: int
    positives: float
    remarks: list[str]


@dataclass(frozen=True)
class Plan:
    """Everything that is to be run, in the order in which it is."""

    settings: Settings
    losses: list[Candidate]
    data: list[DataSet]
    tasks: list[Task]


def plan(losses: Sequence[Any], data: Any, settings: Settings) -> Plan:
    """Read each data set once, and write the grid down.

    Args:
        losses: What is compared with plain BCE.
        data: A data module or a spec of one, a sequence of them, or a mapping from names to them.
        settings: What holds for all runs.

    Raises:
        ValueError: If there is nothing to compare, or a data set is given twice.
        SpecError: If a loss, a model or a data module cannot be written down or built.
        ImportError: If something is not installed.
    """
    require("scipy")
    chosen = candidates(losses)
    if len(chosen) < 2:
        raise ValueError(
            f"There is no loss to compare with {chosen[0].label}, which is always there. Give at least one, such as "
            "'FocalLoss(gamma=2)'."
        )
    if settings.trials:
        require_optuna()
    sets = [_look(name, spec, chosen, settings) for name, spec in _named(data).items()]
    tasks = [
        _task(candidate, one, split, settings)
        # The largest data first, so that the last worker does not begin with the longest run.
        for one in sorted(sets, key=lambda one: -one.sizes["train"])
        for split in settings.splits()
        for candidate in chosen
    ]
    twins = {task.key: task for task in tasks}
    if len(twins) < len(tasks):
        raise ValueError("Two data sets hold the same rows and are read in the same way: give each once.")
    return Plan(settings, chosen, sets, tasks)


def _named(data: Any) -> dict[str, Spec]:
    if isinstance(data, Mapping) and not is_spec(data):
        return {str(name): data_spec(one) for name, one in data.items()}
    specs = [data_spec(one) for one in (data if isinstance(data, (list, tuple)) else [data])]
    if not specs:
        raise ValueError("There are no data to compare on. Give at least one data module.")
    named: dict[str, Spec] = {}
    for spec in specs:
        name = plain = data_name(spec)
        while name in named:
            name = f"{plain} {int(name.removeprefix(plain) or 1) + 1}"
        named[name] = spec
    return named


def _look(name: str, spec: Spec, chosen: Sequence[Candidate], settings: Settings) -> DataSet:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        split = settings.splits()[0]
        try:
            rows = SplitRows(spec, split)
        except (TypeError, ValueError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error
    remarks = sorted({str(one.message) for one in caught if issubclass(one.category, UserWarning)})
    for candidate in chosen:
        check(candidate, *rows.train_labels)
    with torch.random.fork_rng(devices=[]):
        build_model(settings.model, rows)
    parts = (rows.train_labels, rows.val_labels, rows.test_labels)
    known = sum(int(part.known.sum()) for part in parts)
    positives = sum(int((part.target > 0.5)[part.known].sum()) for part in parts)
    return DataSet(name, spec, rows.fingerprint(), rows.sizes(), rows.num_labels, positives / max(known, 1), remarks)


def _task(candidate: Candidate, data: DataSet, split: Split, settings: Settings) -> Task:
    # Not the path: the same file lies elsewhere on another machine, and the fingerprint knows its rows.
    described = {name: value for name, value in data.spec["init_args"].items() if "path" not in name and name != "seed"}
    search = None
    if settings.trials:
        space = space_of(candidate.spec, settings.optimizer)
        search = {
            "trials": settings.trials,
            "space": {name: list(span) for name, span in space.items()},
            "start": _start(candidate.spec, settings.optimizer, space),
        }
    specification = {
        "version": __version__,
        "loss": candidate.spec,
        "data": {"class_path": data.spec["class_path"], "init_args": described, "rows": data.fingerprint},
        "split": split,
        "optimizer": settings.optimizer,
        "recipe": {
            "model": settings.model,
            "max_epochs": settings.max_epochs,
            "patience": settings.patience,
            "stop_by": settings.stop_by,
            "accelerator": settings.accelerator,
        },
        "precision": settings.precision,
        "search": search,
        "code": code_of(candidate.spec, settings.model, settings.optimizer, data.spec),
    }
    return Task(candidate.label, data.name, specification, data.spec)


def _start(loss: Spec, optimizer: Spec, space: Space) -> dict[str, float]:
    """Return where a search begins: at the values without one, or in the middle where there is no number."""
    parameters = inspect.signature(load_class(loss["class_path"], BinaryLoss)).parameters
    found = {}
    for name, span in space.items():
        own = parameters[name].default if name in parameters else None
        value = optimizer["init_args"][name] if name == LEARNING_RATE else own
        middle = (span.low * span.high) ** 0.5 if span.log else (span.low + span.high) / 2
        found[name] = min(max(float(value), span.low), span.high) if isinstance(value, (int, float)) else middle
    return found


def model_spec(model: Any) -> Spec:
    """Return a model's class path and arguments: of a model, a class, or such a mapping."""
    if isinstance(model, type):
        return {"class_path": class_path(model), "init_args": {}}
    if is_spec(model):
        path = model["class_path"] if "." in model["class_path"] else f"lightning_bce.{model['class_path']}"
        cls = load_class(path, torch.nn.Module)
        if "children" in model:
            return dict(model)
        return {"class_path": class_path(cls), "init_args": to_plain(model.get("init_args") or {})}
    if isinstance(model, torch.nn.Module):
        return describe(model)
    raise TypeError(f"`model` is {model!r}; an nn.Module, a class of one or class_path and init_args were expected.")


def optimizer_spec(optimizer: Any) -> Spec:
    """Return an optimizer's class path and arguments: of a class, functools.partial of one, or such a mapping."""
    if is_spec(optimizer) and "." not in optimizer["class_path"]:
        optimizer = {**optimizer, "class_path": f"torch.optim.{optimizer['class_path']}"}
    spec = factory_spec(optimizer, torch.optim.Optimizer, "optimizer")
    assert spec is not None
    cls = load_class(spec["class_path"], torch.optim.Optimizer)
    return {"class_path": class_path(cls), "init_args": spec["init_args"]}
