"""The rows of a split: loaded once, the same for every loss that is trained on them."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_bce.classifier import Batch, BinaryClassifier
from lightning_bce.spec import Spec, SpecError, build, class_path, is_spec, load_class, to_plain

Array = npt.NDArray[Any]
Split = dict[str, int]
"""``{"seed": 3}``, or with ``"fold"`` and ``"folds"``."""


class Labels(NamedTuple):
    """Labels of a part, (N, C), and where they are known."""

    target: Array
    known: Array


class SplitRows:
    """A data module that is cut in one way, with what a run asks of it.

    Args:
        data: The data module's class path and arguments.
        split: How it is cut.

    Raises:
        ValueError: If there are no rows to validate or to test on, or no folds can be cut.
    """

    def __init__(self, data: Spec, split: Split) -> None:
        arguments = dict(data["init_args"])
        cls = load_class(data["class_path"], pl.LightningDataModule)
        if "seed" in inspect.signature(cls).parameters:
            arguments["seed"] = split["seed"]
        self.module: pl.LightningDataModule = build({**data, "init_args": arguments}, pl.LightningDataModule)
        if "fold" in split:
            if not hasattr(self.module, "use_fold"):
                raise ValueError(
                    f"{cls.__name__} has no folds: that takes a data module that derives from "
                    "`lightning_bce.data.BinaryDataModule`. Compare over seeds instead."
                )
            self.module.use_fold(split["fold"], split["folds"])
        with isolate_rng():
            seeded(split["seed"])  # rows that a module of other people's draws are the same in every process
            self.module.prepare_data()
            self.module.setup("fit")
            self.module.setup("test")
            self.val = _batches(self.module.val_dataloader(), "val")
            self.test = _batches(self.module.test_dataloader(), "test")
        self.num_labels: int = getattr(self.module, "num_labels", 1)
        self.class_names: list[str] | None = getattr(self.module, "class_names", None)
        self.num_features: int | None = getattr(self.module, "num_features", None)
        self.train_labels = labels_of(self._train_batches())
        self.val_labels, self.test_labels = labels_of(self.val), labels_of(self.test)

    def _train_batches(self) -> Iterator[Batch]:
        rows = self.module.rows("train") if hasattr(self.module, "rows") else None
        columns = getattr(rows, "columns", None)
        if columns is not None:
            yield _unpacked(columns)  # at once, and without moving the sampler on by an epoch
        else:
            for batch in self.module.train_dataloader():
                yield _unpacked(batch)

    def sizes(self) -> dict[str, int]:
        """Return the rows of each part."""
        parts = {"train": self.train_labels, "val": self.val_labels, "test": self.test_labels}
        return {name: len(part.target) for name, part in parts.items()}

    def fingerprint(self) -> str:
        """Return a hash of all rows, which tells whether the data are still the same."""
        return _hash(batch for part in (self._train_batches(), self.val, self.test) for batch in part)

    def test_fingerprint(self) -> str:
        """Return a hash of which rows are tested on: of their ids and labels, or where there are no ids of the rows."""
        ids = [batch for batch in self.test if batch.id is not None]
        if not ids:
            return _hash(self.test)
        return _hash(Batch(batch.id, batch.target) for batch in ids)


@lru_cache(maxsize=2)
def _cached(data: str, split: str) -> SplitRows:
    return SplitRows(json.loads(data), json.loads(split))


def split_rows(data: Spec, split: Split) -> SplitRows:
    """Return the rows of a split; those of the last two are kept, because runs come in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plan showed them once for each data set
        return _cached(json.dumps(data), json.dumps(split))


def data_spec(data: Any) -> Spec:
    """Return the class path and arguments of a data module, so that every process can build its own.

    Args:
        data: A data module that called ``self.save_hyperparameters()``, or such a mapping.

    Raises:
        SpecError: If it cannot be built again from what it kept.
        TypeError: If it is no data module.
    """
    if is_spec(data):
        path = data["class_path"] if "." in data["class_path"] else f"lightning_bce.data.{data['class_path']}"
        cls = load_class(path, pl.LightningDataModule)
        return {"class_path": class_path(cls), "init_args": _absolute(to_plain(data.get("init_args") or {}))}
    if not isinstance(data, pl.LightningDataModule):
        raise TypeError(f"{data!r} is no data module. Give a LightningDataModule, or class_path and init_args of one.")
    cls, kept = type(data), dict(data.hparams)
    parameters = inspect.signature(cls).parameters
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind < p.VAR_POSITIONAL and n not in kept]
    keyword_only = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    missing += [name for name in keyword_only if name not in kept]
    if missing or (len(parameters) and not kept):
        raise SpecError(
            f"{cls.__name__} does not remember how it was made ({', '.join(missing) or 'no argument is kept'}). Call "
            "`self.save_hyperparameters()` in its `__init__`, or give {'class_path': ..., 'init_args': {...}}."
        )
    arguments = to_plain({name: kept[name] for name in parameters if name in kept})
    return {"class_path": class_path(cls), "init_args": _absolute(arguments)}


def _absolute(arguments: Any) -> dict[str, Any]:
    """Return arguments with whole paths, for processes that start elsewhere."""

    def whole(name: str, value: Any) -> Any:
        is_path = "path" in name and isinstance(value, str) and Path(value).exists()
        return str(Path(value).resolve()) if is_path else value

    return {name: whole(name, value) for name, value in arguments.items()}


def data_name(spec: Mapping[str, Any]) -> str:
    """Return what to call a data set: its file, or its class and what was given.

    Example:
        >>> data_name({"class_path": "lightning_bce.data.TableDataModule", "init_args": {"path": "a/fraud.csv"}})
        'fraud'
    """
    path = (spec.get("init_args") or {}).get("path")
    if isinstance(path, str):
        return Path(path).stem
    return str(spec["class_path"]).rpartition(".")[2].removesuffix("DataModule").lower()


def labels_of(batches: Iterable[Batch]) -> Labels:
    """Return the labels of batches as rows, (N, C), positions of images and the like as rows of their own."""
    targets, knowns = [], []
    for batch in batches:
        if batch.target is None:
            raise ValueError("A batch has no target: a comparison needs labels everywhere.")
        if not isinstance(batch.target, Tensor):
            raise TypeError(
                f"The target of a batch is {type(batch.target).__name__}; a tensor (N,) or (N, C) was expected. Losses "
                "of a head are not compared."
            )
        target = as_rows(batch.target)
        known = ~np.isnan(target) & (target >= 0)
        if batch.mask is not None:
            known &= np.broadcast_to(as_rows(batch.mask.expand(batch.target.shape)) > 0, target.shape)
        targets.append(np.where(known, target, 0.0))
        knowns.append(known)
    return Labels(np.concatenate(targets), np.concatenate(knowns))


def as_rows(values: Tensor) -> Array:
    """Return (N,), (N, C) or (N, C, ...) as (rows, C) in float64."""
    values = values.detach().cpu().double()
    values = values.unsqueeze(1) if values.ndim == 1 else values
    return values.movedim(1, -1).reshape(-1, values.shape[1]).numpy()


def _batches(loader: Any, part: str) -> list[Batch]:
    found = [_unpacked(batch) for one in (loader if isinstance(loader, list) else [loader]) for batch in one]
    if not found:
        raise ValueError(
            f"There are no rows to {'validate' if part == 'val' else 'test'} on, and a comparison needs them: set "
            f"`{part}_fraction` above 0."
        )
    return found


def _unpacked(batch: Any) -> Batch:
    return BinaryClassifier.unpack_batch(None, batch)  # type: ignore[arg-type]


def _hash(batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for part in batch:
            for value in part.values() if isinstance(part, Mapping) else [part]:
                if isinstance(value, Tensor):
                    digest.update(value.detach().cpu().contiguous().numpy().tobytes())
                elif value is not None:
                    digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def seeded(seed: int) -> None:
    """Seed what a data module or model may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
