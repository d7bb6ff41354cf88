"""Where numbers lie: a large gradient in huge pages, and this rank's part of a sharded tensor."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

HUGE = 2**21  # bytes of a huge page
WORTHWHILE = 2 * HUGE


def large_buffer(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return uninitialised contiguous memory.

    Fresh memory of a process comes page by page, when it is first written: for 64 MiB that is 16,384 interruptions of
    4 KiB each, and takes longer than to compute a loss into it. Linux gives pages of 2 MiB to who asks for them.
    """
    buffer = torch.empty(shape, dtype=dtype, device=device)
    size = buffer.numel() * buffer.element_size()
    advise = _advise() if device.type == "cpu" and size >= WORTHWHILE else None
    if advise is not None:
        begin = -(-buffer.data_ptr() // HUGE) * HUGE
        end = (buffer.data_ptr() + size) // HUGE * HUGE
        advise(begin, end - begin, mmap.MADV_HUGEPAGE)  # an advice: if it fails, all is as without it
    return buffer


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


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Return the system's madvise(), or None where it cannot be asked for huge pages."""
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    result: Callable[[int, int, int], int] = advise
    return result
