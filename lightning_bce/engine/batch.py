"""What a pass over a batch reads, and what it computes of each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """The tensors of a batch, all in one shape or broadcastable to it; whole, cut into blocks, or a chunk.

    Args:
        logits: What the model returned; it takes the gradient.
        target: Labels.
        learnt: Labels that the formula takes in place of ``target``. None takes these.
        mask: Where labels are known. None means everywhere.
        factors: Each scales the losses.
        counts: What an element counts in the denominator is their product, and 1 without any.
    """

    logits: Tensor
    target: Tensor
    learnt: Tensor | None = None
    mask: Tensor | None = None
    factors: tuple[Tensor, ...] = ()
    counts: tuple[Tensor, ...] = ()

    def each(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor."""
        return Inputs(
            function(self.logits),
            function(self.target),
            None if self.learnt is None else function(self.learnt),
            None if self.mask is None else function(self.mask),
            tuple([function(factor) for factor in self.factors]),
            tuple([function(count) for count in self.counts]),
        )


class Formula(NamedTuple):
    """The loss of an element.

    Args:
        losses: Losses of logits and target, both in float32 or better, in their shape.
        neutral: What takes the place of logits where the label is unknown.
        ignored: The target that marks an unknown label, NaN included.
    """

    losses: Callable[[Tensor, Tensor], Tensor]
    neutral: float = 0.0
    ignored: float | None = None

    def valid(self, inputs: Inputs) -> Tensor | None:
        """Return where labels are known; None means everywhere."""
        valid = inputs.mask
        if self.ignored is not None:
            known = known_labels(inputs.target, self.ignored)
            valid = known if valid is None else valid & known
        return valid

    def weighted(self, inputs: Inputs, scores: Tensor) -> Tensor:
        """Return the weighted losses, 0 where unknown, as a function of the logits in float32 or better."""
        valid = self.valid(inputs)
        labels = (inputs.target if inputs.learnt is None else inputs.learnt).to(scores.dtype)
        if valid is not None:  # before the formula and after it: 0 * nan would be nan
            scores = torch.where(valid, scores, self.neutral)
            labels = torch.where(valid, labels, 0.0)
        losses = self.losses(scores, labels)
        for factor in inputs.factors:
            losses = losses * factor.to(losses.dtype)
        return losses if valid is None else torch.where(valid, losses, 0.0)

    def counts(self, inputs: Inputs, losses: Tensor) -> Tensor | None:
        """Return what each element counts in the denominator, in the shape of the losses; None means 1 everywhere."""
        valid = self.valid(inputs)
        if valid is None and not inputs.counts:
            return None
        counts = torch.ones_like(losses)
        for count in inputs.counts:
            counts = counts * count.to(losses.dtype)
        return counts if valid is None else torch.where(valid, counts, 0.0)

    def parts(self, inputs: Inputs, losses: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what each element adds: loss of negatives, loss of positives, count of negatives, of positives."""
        positive = inputs.target.to(losses.dtype) > 0.5
        counts = self.counts(inputs, losses)
        counts = torch.ones_like(losses) if counts is None else counts
        zero = losses.new_zeros(())
        return (
            torch.where(positive, zero, losses),
            torch.where(positive, losses, zero),
            torch.where(positive, zero, counts),
            torch.where(positive, counts, zero),
        )


def known_labels(target: Tensor, ignored: float) -> Tensor:
    """Return where a target is not the value that marks an unknown label."""
    # NaN differs from itself; `math.isnan` would stop a compiler. In uint8, torch would compare with -1 as with 255.
    impossible = target.dtype in (torch.uint8, torch.bool) and not 0 <= ignored <= 255
    return ~torch.isnan(target) if ignored != ignored or impossible else target != ignored


def in_full(logits: Tensor) -> Tensor:
    """Return half precision in float32."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """Return the widest dtype that the device adds up in."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
