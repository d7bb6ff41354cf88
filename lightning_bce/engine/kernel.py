"""Generated kernels: losses by label and side and the gradient in one, derived from the formula of an element."""

from __future__ import annotations

import itertools
import logging
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
import torch.fx.experimental._config as shapes
from torch import Tensor

from lightning_bce.engine.batch import Formula, Inputs, in_full, sum_dtype

log = logging.getLogger("lightning_bce")
if not log.hasHandlers():  # as Lightning does: a wait of seconds has to be said where nobody set logging up
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False

HOW: dict[str, Any] = {
    "options": {
        # The loops keep the order in which the blocks are written down, rows last. See [one pass] in layout.py.
        "pick_loop_orders": False,
        # A kernel serves every size: its first batch, however small, must not decide that one thread is enough for all.
        "cpp.min_chunk_size": 1,
        "cpp.dynamic_threads": True,
    }
}

_NUMBERS = itertools.count()


class KernelError(RuntimeError):
    """The compiler could not make a kernel; the message is its reason."""


class Kernels:
    """The kernels of one loss, each generated when it is first asked for. A copy of a loss begins without any."""

    def __init__(self) -> None:
        self.failure: str | None = None
        """Why the compiler gave up, once it has."""
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
        return self._of_inputs("sums", _sums, formula, name, gradient, (inputs, scale, gradient))

    def losses(self, formula: Formula, name: str, inputs: Inputs, gradient: Tensor | None) -> Tensor:
        """Return the weighted losses, and write the gradient of each into the buffer."""
        return self._of_inputs("losses", _losses, formula, name, gradient, (inputs, gradient))

    def negatives(
        self,
        losses: Callable[..., Tensor],
        name: str,
        logits: Tensor,
        bias: Tensor | None,
        factors: tuple[Tensor, ...],
        constants: dict[str, Tensor],
        scale: Tensor,
        gradient: Tensor | None,
        with_largest: bool = False,
    ) -> Tensor:
        """Return sums by label of the losses of negatives, and write the scaled gradient into the buffer.

        For a walk within :func:`calls`.

        Args:
            losses: The loss of a negative, of logits and constants.
            name: Of the loss, for messages.
            logits: (C, N), a row for each label, without the bias.
            bias: (C, 1).
            factors: Each scales the losses, broadcastable.
            constants: What the formula has one of for each label.
            scale: Of the gradient.
            gradient: (C, N), the buffer. None if no gradient is wanted.
            with_largest: Whether the largest gradient of each label is wanted too, to find those without any.

        Returns:
            (C, 1), the losses, or with a buffer (C, 2), the scaled gradients too, or (C, 3), the largest absolute one
            too.
        """
        key = "negatives", gradient is not None, with_largest
        nature = _nature(logits), bias is None, *map(_nature, factors), *constants
        given = (logits, bias, factors, constants, scale, gradient)
        sums: Tensor = self._run(key, nature, lambda: _negatives(losses, with_largest), name, given)
        return sums

    def _of_inputs(
        self, kind: str, make: Any, formula: Formula, name: str, gradient: Tensor | None, given: tuple[Any, ...]
    ) -> Tensor:
        key = kind, gradient is not None, repr((formula.neutral, formula.ignored))
        inputs: Inputs = given[0]
        nature: tuple[Any, ...] = inputs.each(_nature)  # type: ignore[arg-type]
        with calls(inputs.logits.device):
            result: Tensor = self._run(key, nature, lambda: make(formula, gradient is not None), name, given)
        return result

    def _run(
        self,
        key: tuple[Any, ...],
        nature: tuple[Any, ...],
        make: Callable[[], Callable[..., Any]],
        name: str,
        given: tuple[Any, ...],
    ) -> Any:
        """Return what the kernel of a key returns, which is made if there is none.

        The nature is what makes the compiler begin anew; sizes do not, but for a single label.
        """
        if key not in self._made:
            self._made[key] = _compiled(make())
        first = (*key, *nature)
        new, begin = first not in self._seen, time.perf_counter()
        try:
            result = self._made[key](*given)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            said = " ".join(str(error).split("\n")[:2]).strip()
            self.failure = f"the compiler gave up ({type(error).__name__}: {said})"
            raise KernelError(self.failure) from error
        seconds = time.perf_counter() - begin
        self._seen.add(first)
        if new and seconds > 1:
            log.info("%s: generated a kernel in %.1f s, which the compiler keeps for the next run.", name, seconds)
        return result


@contextmanager
def calls(device: torch.device) -> Iterator[None]:
    """Have kernels called as they are made: without a graph and autocast, and by a compiler for every size.

    It takes two sizes that are equal in its first batch for two, and a hyper-parameter for a number: one that it sees
    change it would take for unknown, and compute every power of it the long way. A walk over many chunks enters once.
    """
    wanted = [(torch._dynamo.config, "specialize_float", True), (shapes, "use_duck_shape", False)]
    there = [(config, name, value) for config, name, value in wanted if hasattr(config, name)]  # not in every version
    before = [getattr(config, name) for config, name, _ in there]
    # Not `config.patch`, which makes a class each time: that takes longer than a kernel of a thousand elements.
    try:
        for config, name, value in there:
            setattr(config, name, value)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (config, name, _), value in zip(there, before, strict=True):
            setattr(config, name, value)


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


def _negatives(losses_of: Callable[..., Tensor], with_largest: bool) -> Callable[..., Tensor]:
    def negatives(
        logits: Tensor,
        bias: Tensor | None,
        factors: tuple[Tensor, ...],
        constants: dict[str, Tensor],
        scale: Tensor,
        gradient: Tensor | None,
    ) -> Tensor:
        def total(scores: Tensor) -> tuple[Tensor, Tensor]:
            losses = losses_of(scores, constants)
            for factor in factors:
                losses = losses * factor.to(losses.dtype)
            return losses.sum(), losses

        scores = logits if bias is None else logits + bias
        if gradient is None:
            return total(scores)[1].sum(1, keepdim=True)
        slope, (_, losses) = torch.func.grad_and_value(total, has_aux=True)(scores)
        slope = slope * scale
        largest = [slope.abs().amax(1)] if with_largest else []
        gradient.copy_(slope)
        return torch.stack([losses.sum(1), slope.sum(1), *largest], 1)

    return negatives


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
    # The compiler counts its attempts, and remembers what varied, by the code's name: without one of its own each loss
    # would use up the attempts of the others.
    name = f"{function.__name__}_{next(_NUMBERS)}"
    own = types.FunctionType(
        function.__code__.replace(co_name=name), function.__globals__, name, None, function.__closure__
    )
    return torch.compile(own, dynamic=True, fullgraph=True, **HOW)
