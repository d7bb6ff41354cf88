"""Sums and gradient of a batch in one pass, as a differentiable function that keeps the gradient and nothing else."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine.batch import Formula, Inputs, in_full, sum_dtype
from lightning_bce.engine.kernel import Kernels
from lightning_bce.engine.layout import layout_of
from lightning_bce.engine.memory import large_buffer

# Without a compiler, elements at a time: the temporaries of a formula then take next to no memory, and stay in a cache.
CHUNK = 2**15


class Pass(NamedTuple):
    """One pass over one batch.

    Args:
        name: Of the loss, for messages.
        formula: The loss of an element.
        inputs: The batch, whole.
        scale: What the gradient of the sum is expected to be multiplied by, 1 / elements for a mean. Where it is, no
            second walk over the gradient is needed.
        alike: Whether the formula is the same for every label.
        kernels: Those of the loss. None goes without a compiler, in chunks.
    """

    name: str
    formula: Formula
    inputs: Inputs
    scale: float
    alike: bool
    kernels: Kernels | None

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the sums of losses, differentiable, and of counts, (C, 2) both, negatives and positives."""
        if self._differentiable():
            loss, weight = _Sums.apply(self.inputs.logits, self)  # type: ignore[no-untyped-call]
            return loss, weight
        return self.run_sums(None)

    def losses(self) -> Tensor:
        """Return the weighted loss of each element, differentiable."""
        if self._differentiable():
            losses: Tensor = _Losses.apply(self.inputs.logits, self)  # type: ignore[no-untyped-call]
            return losses
        return self.run_losses(None)

    def _differentiable(self) -> bool:
        return torch.is_grad_enabled() and self.inputs.logits.requires_grad

    def buffer(self) -> Tensor:
        """Return memory for the gradient, contiguous, so that every cut of it is a view."""
        logits = self.inputs.logits
        # Half of float16's range is needed for the scale that comes later; bfloat16 has the range of float32.
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        return large_buffer(logits.shape, dtype, logits.device)

    def run_sums(self, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
        """Walk over the batch once, writing the scaled gradient into the buffer."""
        shape = self.inputs.logits.shape
        whole = self.inputs.each(lambda t: t.detach().expand(shape))
        layout = None
        if self.kernels is not None:
            same = all(t.shape == shape for t in (self.inputs.target, *self.inputs.factors, *self.inputs.counts))
            mask = self.inputs.mask
            layout = layout_of(shape, self.alike and same and (mask is None or mask.shape == shape))
        samples, labels = (*shape, 1, 1)[:2]
        flat = layout.shape if layout is not None else (samples, labels, -1 if whole.logits.numel() else 1)
        whole = whole.each(lambda t: t.reshape(flat))
        slots = None if gradient is None else gradient.view(flat)
        full = in_full(whole.logits[:0]).dtype
        total = torch.zeros(labels, 4, dtype=sum_dtype(whole.logits), device=whole.logits.device)
        begin = 0
        if layout is not None and self.kernels is not None:
            scale = torch.full((), self.scale, dtype=full, device=whole.logits.device)
            blocks = whole.each(layout.blocks)
            into = None if slots is None else layout.blocks(slots)
            total = layout.of_labels(self.kernels.sums(self.formula, self.name, blocks, scale, into))
            begin = layout.covered
        size = max(1, CHUNK // max(1, whole.logits.shape[1] * whole.logits.shape[2]))
        for start in range(begin, whole.logits.shape[0], size):
            chunk = whole.each(lambda t, at=start: t[at : at + size])  # type: ignore[misc]
            into = None if slots is None else slots[start : start + size]
            total = total + self._eager_sums(chunk, into)
        total = total.to(full)
        return total[:, :2].contiguous(), total[:, 2:].contiguous()

    def run_losses(self, gradient: Tensor | None) -> Tensor:
        """Return the weighted losses, writing the gradient of each into the buffer."""
        shape = self.inputs.logits.shape
        whole = self.inputs.each(lambda t: t.detach().expand(shape))
        if self.kernels is not None:
            return self.kernels.losses(self.formula, self.name, whole, gradient)
        return self._eager(whole, 1.0, gradient)

    def _eager_sums(self, chunk: Inputs, gradient: Tensor | None) -> Tensor:
        if chunk.logits.shape[2] == 1:  # one position is none
            chunk = chunk.each(lambda t: t.squeeze(2))
            gradient = None if gradient is None else gradient.squeeze(2)
        losses = self._eager(chunk, self.scale, gradient)
        others = [d for d in range(losses.ndim) if d != 1]
        wide = sum_dtype(losses)
        return torch.stack([part.sum(others, dtype=wide) for part in self.formula.parts(chunk, losses)], -1)

    def _eager(self, inputs: Inputs, scale: float, gradient: Tensor | None) -> Tensor:
        """Return the losses by the formula, writing the gradient of their scaled sum into the buffer."""
        scores = in_full(inputs.logits.detach())
        if gradient is None:
            return self.formula.weighted(inputs, scores)
        with torch.enable_grad():
            leaf = scores.detach().requires_grad_()
            losses = self.formula.weighted(inputs, leaf)
            (slope,) = torch.autograd.grad(losses, leaf, torch.full_like(losses, scale))
        gradient.copy_(slope)
        return losses.detach()

    def by_side(self, upstream: Tensor) -> Tensor:
        """Return the gradient of the sums, (C, 2), as that of each element."""
        labels = upstream.shape[0]
        target = self.inputs.target
        column = [labels if d == 1 else 1 for d in range(max(target.ndim, 2))][: target.ndim]
        negative, positive = upstream.unbind(1)
        positive, negative = (u.reshape(column if target.ndim > 1 else ()) for u in (positive, negative))
        return torch.where(target.to(upstream.dtype) > 0.5, positive, negative)


class _Sums(torch.autograd.Function):
    """The sums, of which the gradient is known when they are."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, request: Pass) -> tuple[Tensor, Tensor]:
        gradient = request.buffer()
        loss, weight = request.run_sums(gradient)
        _keep(ctx, logits, request, gradient)
        ctx.mark_non_differentiable(weight)
        return loss, weight

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        of_loss, scale = upstream[0], ctx.request.scale
        total = of_loss.flatten()[0] if _uniform(of_loss) else None
        if gradient is None or torch.is_grad_enabled():
            request = _kept(ctx)
            logits = request.inputs.logits
            each = total.expand(logits.shape) if total is not None else request.by_side(of_loss)
            return _by_formula(request, each), None
        if total is None:
            gradient.mul_(_kept(ctx).by_side(of_loss / scale))
        elif total.device.type != "cpu" or total != torch.tensor(scale, dtype=total.dtype):
            gradient.mul_(total / scale)
        return gradient.to(ctx.dtype), None


class _Losses(torch.autograd.Function):
    """The losses of the elements, of which the gradient is known when they are."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, request: Pass) -> Tensor:
        gradient = request.buffer()
        losses = request.run_losses(gradient)
        _keep(ctx, logits, request, gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or torch.is_grad_enabled():
            return _by_formula(_kept(ctx), upstream[0]), None
        return gradient.mul_(upstream[0]).to(ctx.dtype), None


def _keep(ctx: Any, logits: Tensor, request: Pass, gradient: Tensor) -> None:
    """Remember the gradient, and for a second backward the batch, which autograd lets go of in time."""
    inputs = request.inputs
    optional = [t for t in (inputs.learnt, inputs.mask) if t is not None]
    ctx.save_for_backward(logits, inputs.target, *optional, *inputs.factors, *inputs.counts)
    places = iter(range(2 + len(optional) + len(inputs.factors) + len(inputs.counts)))
    ctx.places = inputs.each(lambda _: next(places))  # type: ignore[arg-type,return-value]
    ctx.request = request._replace(inputs=None)  # type: ignore[arg-type]
    ctx.gradient, ctx.dtype = gradient, logits.dtype


def _kept(ctx: Any) -> Pass:
    saved = ctx.saved_tensors
    request: Pass = ctx.request
    return request._replace(inputs=ctx.places.each(lambda place: saved[place]))


def _by_formula(request: Pass, upstream: Tensor) -> Tensor:
    """Return the gradient by differentiating the formula; itself differentiable where that is asked for.

    The buffer was given away by an earlier backward, or this one is to be differentiated.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        logits = request.inputs.logits
        leaf = logits if again else logits.detach().requires_grad_()
        losses = request.formula.weighted(request.inputs, in_full(leaf))
        (gradient,) = torch.autograd.grad(losses, leaf, upstream.to(losses.dtype), create_graph=again)
    return gradient


def _uniform(upstream: Tensor) -> bool:
    """Return whether all sums get the same gradient, as in a total; on a device only where that needs no look."""
    if all(stride == 0 or size == 1 for size, stride in zip(upstream.shape, upstream.stride(), strict=True)):
        return True
    return upstream.device.type == "cpu" and bool((upstream == upstream.flatten()[0]).all())
