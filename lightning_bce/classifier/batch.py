"""What a batch holds, whatever form it came in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
from torch import Tensor


class Batch(NamedTuple):
    """The parts of a batch.

    Args:
        inputs: What the model takes.
        target: Labels in [0, 1], (N,), (N, 1), (N, C) or (N, C, ...); with one label also masks (N, H, W). None only in
            prediction.
        weight: Factors of the loss, (N,) or the shape of the target.
        mask: True where the label is known.
        id: The samples' names or numbers, handed through to the predictions.
    """

    inputs: Any
    target: Tensor | None = None
    weight: Tensor | None = None
    mask: Tensor | None = None
    id: Any = None


def with_label_dimension(batch: Batch, num_labels: int) -> Batch:
    """Return a batch whose masks (N, H, W) of a single label have a dimension for it, as its logits (N, 1, H, W) do.

    Args:
        batch: Target, weight and mask of it are looked at.
        num_labels: With more than one label, or where the dimension is there, nothing is changed.

    Example:
        >>> import torch
        >>> with_label_dimension(Batch(None, torch.zeros(7, 5, 3)), num_labels=1).target.shape
        torch.Size([7, 1, 5, 3])
    """
    target = batch.target
    if num_labels != 1 or not isinstance(target, Tensor) or target.ndim < 3 or target.shape[1] == 1:
        return batch
    dense = {name: getattr(batch, name) for name in ("target", "weight", "mask")}
    found = {n: v.unsqueeze(1) for n, v in dense.items() if isinstance(v, Tensor) and v.ndim == target.ndim}
    return batch._replace(**found)


class TakesBatches(pl.LightningModule):
    """The part of the classifier that knows the form of a batch."""

    def unpack_batch(self, batch: Any) -> Batch:
        """Return the parts of a batch. Override it for batches of another form.

        Accepted are a mapping with "inputs" and, as far as there are, "target", "weight", "mask" and "id"; tokens as
        collators of transformers put them together, a mapping with "input_ids", what belongs to it, and "labels" as the
        target; a tuple (inputs, target) or (inputs, target, weight); and in prediction the inputs alone.

        Raises:
            TypeError: If the batch has none of these forms.
        """
        if isinstance(batch, Batch):
            return batch
        if isinstance(batch, Mapping) and "inputs" in batch:
            return Batch(batch["inputs"], *(batch.get(name) for name in Batch._fields[1:]))
        if isinstance(batch, Mapping) and "input_ids" in batch:
            others = [batch.get(name) for name in ("labels", *Batch._fields[2:])]
            return Batch({k: v for k, v in batch.items() if k not in ("labels", *Batch._fields[2:])}, *others)
        if isinstance(batch, Tensor):
            return Batch(batch)
        if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 3:
            return Batch(*batch)
        came = (
            f"a mapping with {sorted(map(str, batch))}"
            if isinstance(batch, Mapping)
            else f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        )
        raise TypeError(
            f"The batch is {came}; expected (inputs, target), (inputs, target, weight) or a mapping with 'inputs', "
            "'target' and optionally 'weight', 'mask', 'id'. For another form override `unpack_batch`."
        )
