"""How a contender is checked, timed and its memory measured."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contenders import Mean, exact_losses
from torch import Tensor

BLOCK = 2**18  # elements of the reference at a time
VISIBLE = 2**20  # elements from which a gradient stands out of what a process allocates besides
AGREE = 1e-5


def batch(elements: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Return normal logits and one positive in ten."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(elements, generator=generator).to(device, dtype)
    target = (torch.rand(elements, generator=generator) < 0.1).to(device, dtype)
    return logits, target


# -- whether all compute the same -------------------------------------------------------------------------------------


def reference(family: str, logits: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """Return the mean loss in float64 and its gradient times the number of elements in float32."""
    total, gradients = 0.0, []
    for some, labels in zip(logits.split(BLOCK), target.split(BLOCK), strict=True):
        leaf = some.double().requires_grad_()
        losses = exact_losses(family, leaf, labels.double()).sum()
        losses.backward()
        assert leaf.grad is not None
        total += losses.item()
        gradients.append(leaf.grad.float())
    return total / logits.numel(), torch.cat(gradients)


def errors(loss: Tensor, gradient: Tensor, exact: tuple[float, Tensor]) -> tuple[float, float]:
    """Return how far a mean and its gradient are off, relative to the mean and to the largest gradient.

    A contender that left some elements out, because they fill no whole row, is compared by the gradient alone.
    """
    value, slope = exact
    found = gradient.flatten().float() * gradient.numel()
    off = (found - slope[: len(found)]).abs().max() / slope.abs().max()
    return (abs(loss.item() - value) / value if len(found) == len(slope) else 0.0), off.item()


def check(name: str, off: tuple[float, float], dtype: torch.dtype) -> None:
    """Refuse a contender that computes something else.

    Raises:
        ValueError: With the errors.
    """
    # A gradient in half precision is rounded to half a unit in its last place, whoever computes it.
    allowed = AGREE + torch.finfo(dtype).eps / 2
    if not (off[0] <= AGREE and off[1] <= allowed):
        raise ValueError(
            f"{name} does not compute what its family does: its mean is off by {off[0]:.1e} and its gradient by "
            f"{off[1]:.1e}; at most {AGREE:g} and {allowed:.1e} were expected."
        )


# -- time -------------------------------------------------------------------------------------------------------------


def one_call(function: Mean, leaf: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and gradient, which is made anew, as after `zero_grad()`."""
    loss = function(leaf, target)
    loss.backward()
    gradient, leaf.grad = leaf.grad, None
    assert gradient is not None
    return loss, gradient


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Return how long a call takes, on a GPU by its own clock; freeing what the call returns is not counted."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        kept = call()
        end.record()
        torch.cuda.synchronize()
        del kept
        return float(begin.elapsed_time(end)) / 1e3
    started = time.perf_counter()
    kept = call()
    taken = time.perf_counter() - started
    del kept
    return taken


def in_turns(calls: dict[str, Callable[[], object]], device: str, least: int, seconds: float) -> dict[str, list[float]]:
    """Return the times of each call. Each gets its turn in every round, so that a busy spell hits all alike.

    The order is drawn anew in each round: a call finds memory and caches as the one before has left them, and what
    comes after a loss of twenty temporaries would pay for it in every round.

    Args:
        calls: What to time.
        device: Where.
        least: Rounds at least.
        seconds: There are as many rounds as fit into this time, and 1,000 at most.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, dice = list(calls), random.Random(0)
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for done in range(1000):
            if done >= least and time.perf_counter() - started > seconds:
                break
            dice.shuffle(order)
            for name in order:
                times[name].append(seconds_of(calls[name], device))
    finally:
        gc.enable()
    return times


# -- memory -----------------------------------------------------------------------------------------------------------


def peak_extra(call: Callable[[], object], device: str, elements: int) -> int | None:
    """Return by how many bytes a call raises the memory in use at its peak, the gradient included.

    On a GPU torch counts what it allocates. On a CPU the kernel counts what a process has in memory (the resident set)
    and keeps the highest it was; that mark is reset before the call. To about a megabyte, so small sizes have no
    figure. None too where the system has no such mark: only Linux does.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        return int(torch.cuda.max_memory_allocated() - before)
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if elements < VISIBLE or not reset.exists():
        return None
    # Freed memory that the process holds on to would hide as much of the peak: in our pool, and in the C library.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        reset.write_text("5")
    except OSError:
        return None
    before = _kilobytes(status, "VmRSS")
    kept = call()
    peak = _kilobytes(status, "VmHWM")
    del kept
    return 1024 * (peak - before)


def free_gigabytes(device: str) -> float:
    """Return how much memory there is to take."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 1e9
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def _kilobytes(status: Path, name: str) -> int:
    lines = (line.split() for line in status.read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == f"{name}:")
