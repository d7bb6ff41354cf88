"""Buffers that stay in float32 when the module around them is cast to half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A module whose buffers follow ``.to(device)`` and not ``.to(dtype)``: in bfloat16 0.499 and 0.5 are the same."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def move(buffer: Tensor) -> Tensor:
            moved = fn(buffer)
            return moved if moved.dtype == buffer.dtype else buffer.to(moved.device)

        return super()._apply(move, recurse)  # type: ignore[no-untyped-call]
