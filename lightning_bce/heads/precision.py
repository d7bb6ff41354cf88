"""In how many digits a head keeps what must not lose them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def full_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def not_narrowed(move: Callable[[Tensor], Tensor], tensor: Tensor, *, copy: bool = False) -> Tensor:
    """Return a tensor as a module's move or cast leaves it, or only on its device where it would lose digits.

    Args:
        move: What ``nn.Module._apply`` hands down.
        tensor: A parameter or a buffer.
        copy: Whether a tensor that stays as it is is copied.

    Example:
        >>> [not_narrowed(cast, torch.ones(1)).dtype for cast in (torch.Tensor.bfloat16, torch.Tensor.double)]
        [torch.float32, torch.float64]
    """
    moved = move(tensor)
    narrowed = torch.promote_types(moved.dtype, tensor.dtype) != moved.dtype
    return tensor.to(moved.device, copy=copy) if narrowed else moved
