r"""A walk over the labels, a chunk at a time: its logits, losses and gradients, and then the next one.

For the labels of a chunk, with inputs X of (N, D), weights W and biases b:

.. math:: Z = W X^\top + b, \quad G = \partial L / \partial Z, \quad
          \partial L / \partial W = G X, \quad \partial L / \partial X \mathrel{+}= G^\top W.

A sigmoid loss separates over labels. So the weight gradient of a chunk is written once and is done, and a chunk of the
logits lies label-major, (labels, N), as one block of memory. All elements are taken for negatives, in one generated
kernel; the few that are not are taken out before, their place filled with a logit at which a negative costs nothing,
and their own gradients are put in after it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import KernelError, reason_against, sum_dtype
from lightning_bce.engine.kernel import calls
from lightning_bce.engine.memory import large_buffer
from lightning_bce.heads.formula import HeadFormula
from lightning_bce.heads.precision import full_dtype
from lightning_bce.heads.targets import SparseTarget

BYTES = {"cpu": 2**22, "cuda": 2**25}
"""Of the logits of a chunk: on a CPU they stay in the caches, a GPU wants large matrices."""

EAGER = 2**15  # elements at a time without a compiler: the temporaries of a formula then stay in a cache
GATHERED = 2**20  # bytes of the rows of weights that are gathered for the entries at a time
SPARSE_BELOW = 0.5  # part of a chunk's labels with any gradient, up to which it pays to gather them


class Counts(NamedTuple):
    """What the elements count in the denominator, as factors: an element counts ``row[n] * label[c]``.

    Args:
        row: (N,), or None for 1 everywhere.
        label: (C,), or None for 1 everywhere.
    """

    row: Tensor | None
    label: Tensor | None

    def of_entries(self, target: SparseTarget, dtype: torch.dtype) -> Tensor:
        """Return what each entry would count, unknown or not."""
        counts = torch.ones(len(target.labels), dtype=dtype, device=target.device)
        if self.row is not None:
            counts = counts * self.row[target.rows].to(dtype)
        if self.label is not None:
            counts = counts * self.label[target.labels].to(dtype)
        return counts

    def by_label(self, target: SparseTarget, dtype: torch.dtype) -> Tensor:
        """Return what all samples of each label count, unknown or not, (C,)."""
        rows = float(target.shape[0]) if self.row is None else self.row.sum(dtype=dtype)
        ones = torch.ones(target.shape[1], dtype=dtype, device=target.device)
        return (ones if self.label is None else self.label.to(dtype)) * rows

    def total(self, target: SparseTarget, dtype: torch.dtype) -> Tensor:
        """Return what all elements count, unknown or not."""
        total = torch.ones((), dtype=dtype, device=target.device)
        for factor, size in zip((self.row, self.label), target.shape, strict=True):
            total = total * (size if factor is None else factor.sum(dtype=dtype))
        return total


class Entries(NamedTuple):
    """What is known of the elements that are not 0 before the walk begins; all (P,).

    Args:
        flat: Place in a label-major (C, N).
        fill: Logit, without the bias, that takes its place among the negatives.
        losses: Weighted losses.
        slopes: Scaled gradients. None where none is wanted.
        filled_losses: Weighted loss of the filled place as a negative, which is taken away again.
        filled_slopes: Its scaled gradient.
    """

    flat: Tensor
    fill: Tensor
    losses: Tensor
    slopes: Tensor | None
    filled_losses: Tensor
    filled_slopes: Tensor | None


class Gradients(NamedTuple):
    """Scaled gradients; None where none is wanted.

    Args:
        inputs: (N, D), in float32 or better.
        weight: (C, D), in the dtype of the weights.
        bias: (C,).
    """

    inputs: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Walk(NamedTuple):
    """One batch on its way through a head.

    Args:
        formula: The loss.
        inputs: (N, D).
        weight: (C, D).
        bias: (C,), or None.
        target: Sorted by label.
        factors: Weights of the loss, of rows (N,) and of labels (C,); None for 1.
        scale: What the gradient of the sum of losses is multiplied by.
        chunk: Labels in a chunk.
        compiled: Whether a kernel may be generated.
        per_label: Whether the sums are by label.
        first: Of the formula's labels the one that is the walk's first, where a rank holds a slice of them.
        step: Called with (begin, end, weight gradient, bias gradient) of each chunk, in place of writing them down.
    """

    formula: HeadFormula
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    target: SparseTarget
    factors: Counts
    scale: Tensor
    chunk: int
    compiled: bool
    per_label: bool = False
    first: int = 0
    step: Callable[[int, int, Tensor, Tensor | None], None] | None = None

    def run(self, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Gradients, float]:
        """Walk once, whatever autocast says: the precision is the head's own matter.

        Args:
            wanted: Whether gradients of inputs, weight and bias are.

        Returns:
            The losses, (rows, 2), negatives and positives, in the widest dtype; the gradients; and the part of the
            labels that took the whole product backward, 1 unless the loss has gradients of exactly 0.
        """
        with calls(self.inputs.device):
            return self._run(wanted)

    def _run(self, wanted: tuple[bool, bool, bool]) -> tuple[Tensor, Gradients, float]:
        full = full_dtype(self.weight.dtype)
        inputs = self.inputs.detach().to(full)
        rows, width = inputs.shape
        labels = self.weight.shape[0]
        device, wide = inputs.device, sum_dtype(inputs)
        any_wanted = any(wanted)
        of_inputs = torch.zeros(rows, width, dtype=full, device=device) if wanted[0] else None
        stepping = self.step is not None
        of_weight = large_buffer(self.weight.shape, self.weight.dtype, device) if wanted[1] and not stepping else None
        of_bias = torch.empty(labels, dtype=full, device=device) if wanted[2] and not stepping else None
        gradients = Gradients(of_inputs, of_weight, of_bias)
        negatives = torch.zeros(labels if self.per_label else 1, dtype=wide, device=device)
        scale = self.scale.to(full)
        live_labels = 0
        if self.target.numel() == 0:
            for gradient in (of_weight, of_bias):
                if gradient is not None:
                    gradient.zero_()
            return self._sums(negatives, self.entries(inputs, any_wanted)), gradients, 1.0
        # A kernel that wrote over its logits would write beside them first, and then copy.
        buffers = 2 if any_wanted and self.compiled else 1
        memory = [large_buffer(torch.Size([self.chunk * rows]), full, device) for _ in range(buffers)]
        slot = large_buffer(torch.Size([self.chunk, width]), full, device) if stepping else None
        entries = self.entries(inputs, any_wanted) if labels > self.chunk else None
        for begin, end in chunks(labels, self.chunk):
            weight, bias = self.weight[begin:end].detach(), None if self.bias is None else self.bias[begin:end].detach()
            weight = weight.to(full)
            z, *beside = (m[: (end - begin) * rows].view(end - begin, rows) for m in memory)
            slopes = beside[0] if beside else z
            torch.mm(weight, inputs.t(), out=z)
            if entries is None:  # a chunk of all labels has their logits
                entries = self.entries(inputs, any_wanted, z)
            here = slice(self.target.place(begin), self.target.place(end))
            flat = entries.flat[here] - begin * rows
            z.view(-1).index_put_((flat,), entries.fill[here])
            sums = self._negatives(z, bias, begin, end, scale, slopes if any_wanted else None)
            if self.per_label:
                negatives[begin:end] = sums[:, 0]
            else:
                negatives += sums[:, 0].sum(dtype=wide)
            if entries.slopes is None or entries.filled_slopes is None:
                continue
            slopes.view(-1).index_put_((flat,), entries.slopes[here])
            bias_gradient = None
            if wanted[2]:
                correction = entries.slopes[here] - entries.filled_slopes[here]
                into = torch.empty(end - begin, dtype=full, device=device) if of_bias is None else of_bias[begin:end]
                bias_gradient = into.copy_(sums[:, 1])
                bias_gradient.index_add_(0, self.target.labels[here] - begin, correction)
            weight_gradient = None
            if wanted[1]:
                weight_gradient = slot[: end - begin] if of_weight is None and slot is not None else None
                if of_weight is not None:
                    weight_gradient = of_weight[begin:end]
            live = self._live(sums, here, begin)
            live_labels += end - begin if live is None else len(live)
            _multiply_back(slopes, inputs, weight, of_inputs, weight_gradient, live)
            if self.step is not None and weight_gradient is not None:
                self.step(begin, end, weight_gradient, bias_gradient)
        assert entries is not None  # there is a chunk
        return self._sums(negatives, entries), gradients, live_labels / labels

    def entries(self, inputs: Tensor, with_slopes: bool, logits: Tensor | None = None) -> Entries:
        """Return losses and gradients of the elements that are not 0.

        Args:
            inputs: (N, D).
            with_slopes: Whether gradients are wanted.
            logits: (C, N), without the bias, if they are there.
        """
        target, rows = self.target, inputs.shape[0]
        count, full = len(target.labels), inputs.dtype
        flat = target.labels * rows + target.rows
        scores = self._scores(inputs) if logits is None else logits.view(-1)[flat]
        bias = torch.zeros((), dtype=full, device=inputs.device)
        if self.bias is not None:
            bias = self.bias.detach()[target.labels].to(full)
        scores = scores + bias
        fill = (self.formula.far - bias).expand(count)
        values, unknown = torch.ones_like(scores), None
        if target.values is not None:
            unknown = target.values.isnan()
            values = torch.where(unknown, 0.0, target.values.to(full))
            scores = torch.where(unknown, 0.0, scores)
        leaf = torch.cat([scores, fill + bias]).requires_grad_(with_slopes)
        twice = torch.cat([target.labels, target.labels])
        with torch.set_grad_enabled(with_slopes):
            losses = self.formula.losses(
                leaf[None],
                torch.cat([values, torch.zeros_like(values)])[None],
                self.formula.of_entries(twice + self.first),
            )[0]
            if unknown is not None or any(factor is not None for factor in self.factors):
                factor = self.factors.of_entries(target, full)
                known = factor if unknown is None else torch.where(unknown, 0.0, factor)
                losses = losses * torch.cat([known, factor])
            slopes = None
            if with_slopes:
                (slopes,) = torch.autograd.grad(losses.sum(), leaf)
                slopes = slopes * self.scale.to(full)
        losses = losses.detach()
        return Entries(
            flat,
            fill,
            losses[:count],
            None if slopes is None else slopes[:count],
            losses[count:],
            None if slopes is None else slopes[count:],
        )

    def _scores(self, inputs: Tensor) -> Tensor:
        """Return the logits of the elements that are not 0, without the bias, from their rows of the weights."""
        target = self.target
        scores = inputs.new_empty(len(target.labels))
        size = max(1, GATHERED // max(1, inputs.shape[1] * inputs.element_size()))
        for begin in range(0, len(scores), size):
            some = slice(begin, begin + size)
            weight = self.weight.detach().index_select(0, target.labels[some]).to(inputs.dtype)
            scores[some] = torch.linalg.vecdot(weight, inputs.index_select(0, target.rows[some]))
        return scores

    def _sums(self, negatives: Tensor, entries: Entries) -> Tensor:
        """Return the sums by side, the entries put where they belong."""
        wide = negatives.dtype
        values = self.target.values
        positive = torch.ones_like(entries.losses, dtype=torch.bool) if values is None else values > 0.5
        on_positives = torch.where(positive, entries.losses, 0.0).to(wide)
        on_negatives = (torch.where(positive, 0.0, entries.losses) - entries.filled_losses).to(wide)
        if not self.per_label:
            return torch.stack([negatives[0] + on_negatives.sum(), on_positives.sum()])[None]
        labels = self.target.labels
        positives = torch.zeros_like(negatives).index_add_(0, labels, on_positives)
        return torch.stack([negatives.index_add_(0, labels, on_negatives), positives], 1)

    def _negatives(
        self, z: Tensor, bias: Tensor | None, begin: int, end: int, scale: Tensor, slopes: Tensor | None
    ) -> Tensor:
        """Return the sums of a chunk, all of which counts as negative, and write its gradient into the buffer.

        Without a generated kernel, that may be the logits' own.
        """
        formula = self.formula
        bias = None if bias is None else bias[:, None].to(z.dtype)
        factors = [] if self.factors.row is None else [self.factors.row[None].to(z.dtype)]
        if self.factors.label is not None:
            factors.append(self.factors.label[begin:end, None].to(z.dtype))
        constants = formula.cut(self.first + begin, self.first + end)
        kernels = formula.loss._kernels
        if self.compiled and kernels.failure is None:
            given = formula.negatives, formula.name, z, bias, tuple(factors), constants, scale, slopes
            try:
                return kernels.negatives(*given, with_largest=formula.has_dead_zone)
            except KernelError as error:
                if formula.loss.fused:
                    raise
                warnings.warn(f"{formula.name} goes on without a generated kernel: {error}.", stacklevel=3)
        parts = []
        size = max(1, EAGER // max(1, z.shape[1]))
        for at in range(0, len(z), size):
            some = slice(at, at + size)
            scores = z[some] if bias is None else z[some] + bias[some]
            with torch.set_grad_enabled(slopes is not None):
                leaf = scores.detach().requires_grad_(slopes is not None)
                cut = {name: value[some] for name, value in constants.items()}
                losses = formula.negatives(leaf, cut)
                for factor in factors:
                    losses = losses * (factor[some] if len(factor) == len(z) > 1 else factor)
                sums = [losses.detach().sum(1)]
                if slopes is not None:
                    (slope,) = torch.autograd.grad(losses.sum(), leaf)
                    slopes[some] = slope * scale
                    sums += [slopes[some].sum(1), slopes[some].abs().amax(1)]
                parts.append(torch.stack(sums, 1))
        return torch.cat(parts)

    def _live(self, sums: Tensor, here: slice, begin: int) -> Tensor | None:
        """Return the labels of a chunk that have a gradient, if they are so few that it pays to gather them."""
        # On a CPU only: elsewhere the host would wait for the device.
        if not self.formula.has_dead_zone or sums.device.type != "cpu":
            return None
        live = sums[:, 2] != 0
        live[self.target.labels[here] - begin] = True
        found = live.nonzero().flatten()
        return found if len(found) <= SPARSE_BELOW * len(sums) else None


def _multiply_back(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    of_inputs: Tensor | None,
    of_weight: Tensor | None,
    live: Tensor | None,
) -> None:
    """Add to the gradient of the inputs and write that of the weights, of a chunk."""
    if live is not None:
        gradient = gradient[live]
    if of_inputs is not None:
        of_inputs.addmm_(gradient.t(), weight if live is None else weight[live])
    if of_weight is None:
        return
    if live is not None:
        of_weight.zero_()
        of_weight[live] = torch.mm(gradient, inputs).to(of_weight.dtype)
    elif of_weight.dtype == inputs.dtype:
        torch.mm(gradient, inputs, out=of_weight)
    else:
        of_weight.copy_(torch.mm(gradient, inputs))


def chunks(labels: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the chunks of labels: all of one size, and at most one rest."""
    for begin in range(0, labels, size):
        yield begin, min(begin + size, labels)


def chunk_size(numbers: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many labels a chunk has, with so many numbers for each."""
    size = BYTES.get(device.type, BYTES["cuda"]) // (max(numbers, 1) * full_dtype(dtype).itemsize)
    return max(64, size // 64 * 64)


def can_compile(formula: HeadFormula, device: torch.device, elements: int) -> bool:
    """Return whether a kernel is to be generated.

    Raises:
        RuntimeError: If the loss asks for a kernel and none can be had, with the reason.
    """
    fused = formula.loss.fused
    if fused is False:
        return False
    reason = reason_against(device.type) or formula.loss._kernels.failure
    if fused and reason:
        raise RuntimeError(
            f"`fused` is True, and {formula.name} cannot have a generated kernel here: {reason}. Leave `fused` out to "
            "take the fastest way that there is."
        )
    return reason is None and (bool(fused) or elements >= 2**17)
