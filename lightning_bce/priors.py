"""What the training labels say before training: their counts, and the bias that a model starts with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler
from torch.utils.data import SequentialSampler as InOrder

from lightning_bce.losses import LabelCounts

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_GIVE_THEM = (
    "Give them instead: a method `label_counts()` of the data module that returns a LabelCounts, or "
    "`classifier.label_counts = LabelCounts(positives, negatives)` before training."
)


# -- counts of a training set ---------------------------------------------------------------------------------------


def known_counts(trainer: pl.Trainer) -> LabelCounts | None:
    """Return the counts that the trainer's data module knows by itself, by its method ``label_counts``, or None."""
    method = getattr(getattr(trainer, "datamodule", None), "label_counts", None)
    counts = method() if callable(method) else None
    if counts is None or isinstance(counts, LabelCounts):
        return counts
    raise TypeError(f"`label_counts()` of the data module returned {type(counts).__name__}; expected a LabelCounts.")


def counted(trainer: pl.Trainer, of_batch: Callable[[Any], LabelCounts], num_labels: int) -> LabelCounts:
    """Return the counts over the training loader of a trainer, in one pass over all of its rows on all ranks.

    Each row of the dataset counts once, shared out among the ranks, whatever a sampler repeats to make them even. With
    a sampler that does not deal out each row once (a WeightedRandomSampler, a subset), one epoch of it is counted,
    because it is that what the model will see. Random states are left as they were.

    Args:
        trainer: One that is about to fit.
        of_batch: Returns the counts of a batch.
        num_labels: Number of labels C.

    Raises:
        TypeError: If one pass is not possible or has no end: an IterableDataset, several loaders.
    """
    trainer.fit_loop.setup_data()
    loader: Any = trainer.train_dataloader
    what = type(loader).__name__
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"The labels of an IterableDataset ({type(loader.dataset).__name__}) are not counted: reading it once more "
            f"may never end, or use it up. {_GIVE_THEM}"
        )
    if isinstance(loader, (dict, list, tuple)) or not hasattr(loader, "__len__"):
        raise TypeError(
            f"The labels of a {what} of training loaders, or of one without a length, are not counted. {_GIVE_THEM}"
        )
    rows: Iterable[Any] = _each_row_once(loader, trainer.global_rank, trainer.world_size) or loader
    rank_zero_info(f"Counting the labels of {len(loader)} training batches once.")
    none = torch.zeros(num_labels)
    counts = LabelCounts(none, none)
    with isolate_rng():
        for batch in rows:
            counts = counts + of_batch(batch)
    if trainer.world_size == 1:
        return counts
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, counts.plain())
    first, *others = (LabelCounts.from_plain(plain) for plain in gathered)
    return sum(others, first)


def _each_row_once(loader: Any, rank: int, ranks: int) -> DataLoader[Any] | None:
    """Return a loader of a rank's share of the dataset; None where a sampler draws otherwise."""
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler = loader.sampler
    everything = type(sampler) in (DistributedSampler, InOrder) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    )
    if not everything:
        return None
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=range(rank, len(loader.dataset), ranks),  # type: ignore[arg-type]
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator().manual_seed(0),
    )


# -- the bias of the last layer -------------------------------------------------------------------------------------


class Bias(NamedTuple):
    """A layer whose bias was set."""

    name: str
    layer: Any
    before: Tensor


def output_layer(model: nn.Module, num_labels: int, name: str | None = None) -> tuple[str, Any]:
    """Return the layer whose bias is added to the logits: the last linear or convolutional one with C outputs.

    Args:
        model: Returns logits.
        num_labels: Number of labels C.
        name: The layer's name in the model, as in ``model.named_modules()``. None looks for it.

    Raises:
        ValueError: If there is none, or it has no bias, with what there is.

    Example:
        >>> model = nn.Sequential(nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 1))
        >>> output_layer(model, num_labels=1)[0]
        '2'
    """
    layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, _LAYERS)}
    there = ", ".join(f"{key or 'the model itself'} ({_width(layer)})" for key, layer in layers.items()) or "none"
    if name is None:
        fitting = [key for key, layer in layers.items() if _width(layer) == num_labels]
        if not fitting:
            raise ValueError(
                f"`prior_bias` looks for the last linear or convolutional layer with {num_labels} output(s), and the "
                f"model has no such layer; it has: {there}. Name the layer, `prior_bias='head.fc'`, or turn it off."
            )
        name = fitting[-1]
    layer = layers.get(name)
    if layer is None or _width(layer) != num_labels:
        raise ValueError(
            f"`prior_bias` is {name!r}, which is no linear or convolutional layer with {num_labels} output(s). The "
            f"model has: {there}."
        )
    if layer.bias is None or isinstance(layer.bias, nn.parameter.UninitializedParameter):
        raise ValueError(
            f"`prior_bias` would set the bias of {name or 'the model'!r}, which has none (yet). Make it with bias=True "
            "and a known size, or turn `prior_bias` off."
        )
    return name, layer


def set_bias(name: str, layer: Any, log_odds: Tensor) -> Bias:
    """Give a layer the log-odds, (C,), as its bias, and return what there was."""
    if layer.bias.shape != log_odds.shape:
        raise ValueError(
            f"The bias of {name!r} has shape {tuple(layer.bias.shape)} and there are {len(log_odds)} label(s): the "
            "strategy has split it up. Turn `prior_bias` off, or use strategy='ddp'."
        )
    before = layer.bias.detach().clone()
    with torch.no_grad():
        layer.bias.copy_(log_odds)
    return Bias(name, layer, before)


def moves_logits(bias: Bias, logits_of: Callable[[], Tensor]) -> bool:
    """Return whether the bias is added to the logits: whether one more in the one is one more in the other."""
    with torch.no_grad():
        here = logits_of().float()
        kept = bias.layer.bias.detach().clone()
        bias.layer.bias.add_(1)
        there = logits_of().float()
        bias.layer.bias.copy_(kept)
    return bool(((there - here - 1).abs() < 0.25).all())  # a quarter: bfloat16 has three digits


def _width(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)
