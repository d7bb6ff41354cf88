"""What a loss supports, found out by running it: the letters of the table."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from peers.function import Function
from peers.functions import FUNCTIONS
from peers.libraries import load
from torch import Tensor

import lightning_bce
from lightning_bce import BinaryLoss

LETTERS = {
    "m": "labels may be unknown, by a mask or a value of the target",
    "w": "weights of labels or samples",
    "s": "soft targets are taken, and not rounded",
    "h": "the loss is accurate and the gradient finite in float16 and in bfloat16, logits from -60 to 60",
    "2": "second derivatives are right, and finite at logits from -200 to 200",
    "e": "value and gradient are exact to 0.1 % in float32, logits from -80 to 80",
}

Loss = Callable[[Tensor, Tensor], Tensor]
Probe = Callable[[Loss, Loss, Function], bool]


def letters_of(library: str, loss: str) -> str:
    """Return what a library's form of a loss supports, in the order of :data:`LETTERS`."""
    entries = [f for f in FUNCTIONS if (f.library, f.loss) == (library, loss)]
    module = load(library)

    def theirs(logits: Tensor, target: Tensor) -> Tensor:
        return entries[0].theirs(module, logits, target)

    # The entries that show them are run as tests: they give our numbers.
    found = {letter for letter, what in (("m", "mask"), ("w", "weights")) if any(e.shows == what for e in entries)}
    letters = "".join(letter for letter in LETTERS if letter in found or _shown(letter, theirs, entries[0]))
    one_label = any(e.shows == "mask" and e.labels == 1 for e in entries)
    return letters.replace("m", "m*") if one_label else letters


def letters_of_ours(loss: str) -> str:
    """Return what our form of a loss supports."""
    entry = next(f for f in FUNCTIONS if f.loss == loss)
    made = entry.ours if isinstance(entry.ours, BinaryLoss) else getattr(lightning_bce, loss)(reduction="none")
    found = {letter for letter, probe in (("m", takes_mask), ("w", takes_weights)) if probe(made, entry)}
    return "".join(letter for letter in LETTERS if letter in found or _shown(letter, entry.ours, entry))


def _shown(letter: str, loss: Loss, entry: Function) -> bool:
    probe = {"s": takes_soft_targets, "h": holds_in_half, "2": has_second_derivatives, "e": is_exact}.get(letter)
    return probe is not None and probe(loss, entry.ours, entry)


# -- batches ----------------------------------------------------------------------------------------------------------


def batches(entry: Function, reach: float) -> list[tuple[Tensor, Tensor]]:
    """Return logits up to ``reach`` with hard labels, in float64; every label and sample has both sides."""
    if not entry.rows:
        logits = torch.linspace(-reach, reach, 33, dtype=torch.float64)
        return [(logits[:, None], torch.full((33, 1), float(label), dtype=torch.float64)) for label in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    target = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1], [1, 0, 1]]).double()
    found = []
    for scale, surer in product((0.5, 2.0, reach / 4), (0.0, 1.0)):
        logits = torch.randn(7, 3, generator=generator, dtype=torch.float64) + surer * (2 * target - 1)
        logits = (scale * logits).clamp(-reach, reach)
        found.append((logits[:, : entry.labels], target[:, : entry.labels]))
    return found


def derivatives(loss: Loss, logits: Tensor, target: Tensor, dtype: torch.dtype, order: int) -> list[Tensor]:
    """Return the loss and its derivatives along each logit, in float64."""
    leaf = logits.to(dtype).requires_grad_()
    result = [loss(leaf, target.to(dtype))]
    for _ in range(order):
        result.append(torch.autograd.grad(result[-1].sum(), leaf, create_graph=True)[0])
    return [t.detach().reshape(-1).double() for t in result]


# -- probes -----------------------------------------------------------------------------------------------------------


def close(got: Tensor, right: Tensor, relative: float, absolute: float) -> bool:
    return bool(((got - right).abs() <= relative * right.abs() + absolute).all())


def is_exact(loss: Loss, reference: Loss, entry: Function) -> bool:
    tiny = 2 * torch.finfo(torch.float32).tiny
    for logits, target in batches(entry, 80.0):
        logits = logits.float().double()
        got = derivatives(loss, logits, target, torch.float32, 1)
        right = derivatives(reference, logits, target, torch.float64, 1)
        if not all(close(g, r, 1e-3, tiny) for g, r in zip(got, right, strict=True)):
            return False
    return True


def holds_in_half(loss: Loss, reference: Loss, entry: Function) -> bool:
    for dtype, (logits, target) in product((torch.float16, torch.bfloat16), batches(entry, 60.0)):
        info, logits = torch.finfo(dtype), logits.to(dtype).double()
        try:
            value, slope = derivatives(loss, logits, target, dtype, 1)
        except RuntimeError:  # a kernel that torch does not have
            return False
        right = reference(logits, target).reshape(-1)
        # What dtype can hold: the half of its smallest number is rounded to 0. One minus a ratio has only its digits.
        least = 4 * info.eps if entry.rows else info.smallest_normal * info.eps
        if not (close(value, right, 4 * info.eps, least) and slope.isfinite().all()):
            return False
    return True


def has_second_derivatives(loss: Loss, reference: Loss, entry: Function) -> bool:
    for logits, target in batches(entry, 4.0):
        try:
            got = derivatives(loss, logits, target, torch.float64, 2)[2]
        except RuntimeError:
            return False
        if not close(got, derivatives(reference, logits, target, torch.float64, 2)[2], 1e-3, 1e-5):
            return False
    far = [t for logits, target in batches(entry, 200.0) for t in derivatives(loss, logits, target, torch.float32, 2)]
    return all(bool(t.isfinite().all()) for t in far)


def takes_soft_targets(loss: Loss, reference: Loss, entry: Function) -> bool:
    (logits, target), *_ = batches(entry, 2.0)
    values = []
    for label in (0.0, 0.3, 0.4, 1.0):
        given = target.clone()
        given[0, 0] = label
        try:
            values.append(loss(logits, given).sum().item())
        except (ValueError, RuntimeError, TypeError):
            return False
    return len(set(values)) == len(values)


def outputs_of(made: BinaryLoss, entry: Function) -> tuple[Tensor, Tensor]:
    (logits, target), *_ = batches(entry, 2.0)
    return logits.clone() if made.input_space == "logits" else logits.sigmoid(), target


def takes_mask(made: BinaryLoss, entry: Function) -> bool:
    """Return whether the mask leaves a value out, whatever it is."""
    outputs, target = outputs_of(made, entry)
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[0, 0] = False
    without = made(outputs, target, mask=mask)
    outputs[0, 0] = torch.nan
    return torch.equal(made(outputs, target, mask=mask), without)


def takes_weights(made: BinaryLoss, entry: Function) -> bool:
    """Return whether a factor of a sample or of a label changes the loss."""
    outputs, target = outputs_of(made, entry)
    plain = made(outputs, target).sum()
    weight = torch.linspace(0.5, 2.0, len(target))
    arguments = made._arguments()[0]
    for call in (
        lambda: made(outputs, target, weight),
        lambda: type(made)(**(arguments | {"class_weight": [2.0] * target.shape[1]}))(outputs, target),
    ):
        try:
            return bool(call().sum() != plain)
        except (ValueError, TypeError):  # this one has no meaning there
            continue
    return False
