"""Which rows a batch holds, and which are a rank's own: samplers repeat rows, so that every rank has as many."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

T = TypeVar("T", bound=Tensor | None)
Stage = Literal["train", "val", "test", "predict"]


def own_rows(trainer: pl.Trainer, stage: Stage, batch_idx: int, dataloader_idx: int, size: int) -> int | None:
    """Return how many rows of a batch count, so that ``part[:own]`` leaves out the row that a sampler has repeated.

    Under several ranks Lightning, and ``torch.utils.data.DistributedSampler``, give the rows rank, rank + ranks, ... to
    each rank. Where that does not come out even, some ranks get one row that another has too: it is their last, and
    their only one if there are fewer rows than ranks. The model sees it, so that every rank runs as many steps and none
    waits for another; from what counts it is cut.

    Args:
        trainer: The one that runs the step.
        stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
        batch_idx: The number of the batch.
        dataloader_idx: The number of its dataloader.
        size: The number of rows in the batch, as the step has them; what is cut already may be cut again.

    Returns:
        None if nothing in this batch is repeated, and always in training. Otherwise one less than the sampler drew; 0
        where the whole batch is repeated, from a dataloader that does no batching itself.

    Warns:
        UserWarning: If a row was repeated and cannot be found, because a batch sampler orders the rows by itself, or
            because the batch has more or fewer rows than were drawn.
    """
    if stage == "train" or trainer.world_size == 1:
        return None
    loader = _loader(trainer, stage, dataloader_idx)
    batches: Any = getattr(loader, "batch_sampler", None)
    # In prediction the dataloader itself forgets its sampler, and its batch sampler is wrapped to note the rows.
    sampler: Any = getattr(loader if batches is None else batches, "sampler", None)
    if not _repeats(sampler):
        return None
    last: int = sampler.num_samples - 1
    if batches is None:
        return 0 if batch_idx == last else None
    if not _in_order(batches):
        if batch_idx == 0:
            _warn(f"{type(batches).__name__} orders the rows by itself")
        return None
    if batch_idx != last // batches.batch_size:
        return None
    own: int = last % batches.batch_size
    if size not in (own, own + 1):
        _warn(f"the last batch was drawn from {own + 1} row(s) and has {size}")
        return None
    return own


def first_rows(part: T, own: int | None) -> T:
    """Return the first rows of a part of a batch, all of them if ``own`` is None.

    Args:
        part: (N, ...), or what holds for all rows: a scalar or None.
        own: What :func:`own_rows` returned.
    """
    return part if own is None or part is None or part.ndim == 0 else cast(T, part[:own])


def row_numbers(trainer: pl.Trainer, stage: Stage, dataloader_idx: int) -> Callable[[int, int], int] | None:
    """Return a function from the number of a batch and a place in it to the number of the row in the dataset.

    Args:
        trainer: The one that runs.
        stage: ``"train"``, ``"val"`` or ``"test"``.
        dataloader_idx: The number of the dataloader.

    Returns:
        None where the rows do not come in the order of the dataset, or the dataset does its own batching.
    """
    loader = _loader(trainer, stage, dataloader_idx)
    batches: Any = getattr(loader, "batch_sampler", None)
    if batches is None or not _in_order(batches):
        return None
    size, sampler = batches.batch_size, batches.sampler
    if type(sampler) is SequentialSampler:
        return lambda batch, place: batch * size + place
    if type(sampler) is DistributedSampler and not sampler.shuffle:
        return lambda batch, place: sampler.rank + sampler.num_replicas * (batch * size + place)
    return None


def _loader(trainer: pl.Trainer, stage: str, index: int) -> Any:
    found = getattr(trainer, "train_dataloader" if stage == "train" else f"{stage}_dataloaders")
    return None if found is None else CombinedLoader(found, "sequential").flattened[index]


def _repeats(sampler: Any) -> bool:
    """Return whether a sampler gives this rank a row that belongs to another; a sampler of one's own is not looked at.

    A subclass of DistributedSampler with an order of its own may repeat others than the last, or none.
    """
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return False
    if type(sampler).__iter__ not in (DistributedSampler.__iter__, DistributedSamplerWrapper.__iter__):
        return False
    rows: Any = sampler.dataset
    return len(range(sampler.rank, len(rows), sampler.num_replicas)) < int(sampler.num_samples)


def _in_order(batches: Any) -> bool:
    # Lightning's wrapper of a batch sampler in prediction holds the one that it wraps.
    return type(getattr(batches, "_batch_sampler", batches)) is BatchSampler


def _warn(reason: str) -> None:
    warnings.warn(
        f"A row was repeated so that every rank has as many, and counts twice: it could not be left out, because "
        f"{reason}. For exact values evaluate with devices=1, or use a sampler that repeats nothing.",
        stacklevel=3,
    )
