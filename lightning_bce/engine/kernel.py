"""Generated kernels: losses by label and side and the gradient in one, derived from the formula of an element."""

from __future__ import annotations

import logging
import time
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.fx.experimental._config as shapes
from torch import Tensor

from lightning_bce.engine.batch import Formula, Inputs, in_full, sum_dtype

log = logging.getLogger("lightning_bce")
if not log.hasHandlers():  # as Lightning does: a wait of seconds has to be said where nobody set logging up
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False

# The loops keep the order in which the blocks are written down, rows last. See [one pass] in layout.py.
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {"pick_loop_orders": False}


class Kernels:
    """The kernels of one loss, each generated when it is first asked for. A copy of a loss begins without any."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Callable[..., Tensor]] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def __deepcopy__(self, memo: Any) -> Kernels:
        """Return none: what was compiled belongs to the loss that it was compiled for."""
        return Kernels()

    def __reduce__(self) -> tuple[type[Kernels], tuple[()]]:
        """Pickle none."""
        return Kernels, ()

    def sums(self, formula: Formula, name: str, inputs: Inputs, scale: Tensor, gradient: Tensor | None) -> Tensor:
        """Return the sums of :meth:`Formula.parts` by lane, (L, 4), and write the scaled gradient into the buffer."""
        return self._run("sums", _sums, formula, name, gradient, (inputs, scale, gradient))

    def losses(self, formula: Formula, name: str, inputs: Inputs, gradient: Tensor | None) -> Tensor:
        """Return the weighted losses, and write the gradient of each into the buffer."""
        return self._run("losses", _losses, formula, name, gradient, (inputs, gradient))

    def _run(self, kind: str, make: Any, formula: Formula, name: str, gradient: Tensor | None, given: Any) -> Tensor:
        key = kind, gradient is not None, repr((formula.neutral, formula.ignored))
        if key not in self._made:
            self._made[key] = _compiled(make(formula, gradient is not None))
        inputs: Inputs = given[0]
        # What makes the compiler begin anew; sizes do not, but for a single label.
        first = (*key, *inputs.each(_nature))  # type: ignore[arg-type]
        new, begin = first not in self._seen, time.perf_counter()
        with torch.no_grad(), torch.autocast(inputs.logits.device.type, enabled=False), sizes_apart(new):
            result = self._made[key](*given)
        seconds = time.perf_counter() - begin
        self._seen.add(first)
        if new and seconds > 1:
            log.info("%s: generated a kernel in %.1f s, which the compiler keeps for the next run.", name, seconds)
        return result


def sizes_apart(new: bool) -> AbstractContextManager[Any]:
    """Keep the compiler from taking two sizes that are equal in its first batch for one, and beginning anew later."""
    return shapes.patch(use_duck_shape=False) if new and hasattr(shapes, "use_duck_shape") else nullcontext()  # type: ignore[attr-defined]


def _nature(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.ndim, tensor.shape[1:2] == (1,)


def _sums(formula: Formula, with_gradient: bool) -> Callable[..., Tensor]:
    def sums(inputs: Inputs, scale: Tensor, gradient: Tensor | None) -> Tensor:
        # Blocks: labels in dimension 1, rows last.
        losses = _with_gradient(formula, inputs, scale, gradient)
        others = [d for d in range(losses.ndim - 1) if d != 1]
        wide = sum_dtype(losses)
        return torch.stack([part.sum(-1).sum(others, dtype=wide) for part in formula.parts(inputs, losses)], -1)

    return sums


def _losses(formula: Formula, with_gradient: bool) -> Callable[..., Tensor]:
    def losses(inputs: Inputs, gradient: Tensor | None) -> Tensor:
        return _with_gradient(formula, inputs, None, gradient)

    return losses


def _with_gradient(formula: Formula, inputs: Inputs, scale: Tensor | None, gradient: Tensor | None) -> Tensor:
    """Return the weighted losses, and write the gradient of their scaled sum into the buffer if there is one."""

    def total(scores: Tensor) -> tuple[Tensor, Tensor]:
        losses = formula.weighted(inputs, scores)
        return (losses if scale is None else losses * scale).sum(), losses

    if gradient is None:
        return total(in_full(inputs.logits))[1]
    slope, (_, losses) = torch.func.grad_and_value(total, has_aux=True)(in_full(inputs.logits))
    gradient.copy_(slope)
    weighted: Tensor = losses
    return weighted


def _compiled(function: Any) -> Callable[..., Tensor]:
    """Return a function compiled for all sizes."""
    # The compiler counts its attempts by code object, and closures of one `def` share theirs: without a code of its own
    # each loss would use up the attempts of the others.
    own = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    return torch.compile(own, dynamic=True, fullgraph=True, options=OPTIONS)
