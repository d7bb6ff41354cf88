"""Where numbers lie: large buffers, which are used again, and this rank's part of a sharded tensor."""

from __future__ import annotations

import gc
import math
import mmap
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

WORTHWHILE = 2**18  # bytes: what is smaller comes from torch, whose allocator keeps it
HUGE = 2**22  # bytes from which pages of 2 MiB are asked for, where the system has them
KEPT = 16  # requests after which a block that served none of them goes back to the system


class BufferPool:
    """Blocks of memory, each handed out again once no tensor lies in it any more.

    Fresh memory of a process comes page by page, when it is first written, and the system clears each page before: for
    a large gradient that takes about as long as to compute it. What is freed goes back to the system, so that a
    training would pay for it in every step. A step asks for the same sizes as the one before, and finds them here.

    A free block serves what is at least half as large. When a new one is made, free ones that were too small for it
    go back to the system, and so does each that served none of the last 16 requests. A full collection of garbage
    (``gc.collect()``) gives back all that are free.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._requests = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> memoryview:
        """Return a block of at least so many bytes, which is taken for as long as anything refers to the view."""
        with self._lock:
            self._requests += 1
            free = [block for block in self._blocks if block.is_free()]
            fitting = [block for block in free if size <= len(block.memory) <= 2 * size]
            if fitting:
                chosen = min(fitting, key=lambda block: len(block.memory))
            else:
                chosen = _Block(_mapped(size))
                self._blocks.append(chosen)
            view = chosen.lend(self._requests)
            old = self._requests - KEPT
            gone = [b for b in free if b is not chosen and (b.request < old or (not fitting and len(b.memory) < size))]
            self._blocks = [block for block in self._blocks if block not in gone]
            return view

    def release(self) -> int:
        """Give all free blocks back to the system, and return how many bytes they had."""
        if not self._lock.acquire(blocking=False):  # a collection of garbage may come in the middle of a request
            return 0
        try:
            free = [block for block in self._blocks if block.is_free()]
            self._blocks = [block for block in self._blocks if block not in free]
            return sum(len(block.memory) for block in free)
        finally:
            self._lock.release()


class _Block:
    """A mapping, who has it, and the number of the request that it served last."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.request = 0
        self._view: weakref.ref[memoryview] | None = None

    def lend(self, request: int) -> memoryview:
        """Return a view, which each storage of torch that lies in it keeps alive."""
        view = memoryview(self.memory)
        self.request, self._view = request, weakref.ref(view)
        return view

    def is_free(self) -> bool:
        """Return whether nothing refers to the view any more."""
        return self._view is None or self._view() is None


POOL = BufferPool()
"""Of this process, for gradients and logits on the CPU. On a device torch has a pool of its own."""


def large_buffer(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return uninitialised contiguous memory, from the pool if that is worthwhile.

    Args:
        shape: Of the tensor.
        dtype: Of the tensor.
        device: Of the tensor; on another one than a CPU it comes from torch.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if device.type != "cpu" or size < WORTHWHILE or not hasattr(mmap, "MAP_ANONYMOUS"):
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(POOL.take(size), dtype=dtype, count=count).view(shape)


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor: all of it, or its part of a sharded one (a DTensor).

    Args:
        tensor: Any tensor. A part shares its memory; take it under ``torch.no_grad()`` to write to it.

    Example:
        >>> own_part(torch.ones(3))
        tensor([1., 1., 1.])
    """
    part: Any = tensor
    # Not `isinstance`: the import of DTensor takes part of a second, and its place has moved.
    return part.to_local() if hasattr(part, "to_local") else part  # type: ignore[no-any-return]


def _after_collection(phase: str, info: dict[str, int]) -> None:
    if phase == "stop" and info["generation"] == 2:
        POOL.release()


gc.callbacks.append(_after_collection)  # who deletes a model and collects expects its memory back


def _mapped(size: int) -> mmap.mmap:
    # Private: a forked worker that writes to it gets a copy.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # an advice: a system without huge pages goes on with those that it has
            return memory
    return memory
