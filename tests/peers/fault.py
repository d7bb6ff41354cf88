"""What a fault of another library is to these tests, and how a value or a slope is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Fault:
    """An input at which a library gives another number than the formula, or another one than its users expect.

    Args:
        library: Its name in the table.
        call: The function with its options, as its users write them.
        given: The input, in words.
        what: What is asked for: the loss or a gradient.
        right: The number that the formula has, or what should happen.
        theirs: Asks the library.
        ours: Asks ours.
        because: Why it is so, in a few words; first "documented" where the library says so.
    """

    library: str
    call: str
    given: str
    what: str
    right: float | str
    theirs: Callable[[Any], float | str]
    ours: Callable[[], float | str]
    because: str

    def __str__(self) -> str:
        return f"{self.library} {self.call}: {self.what} at {self.given}"


def value(loss: Loss, logits: Any, target: Any, dtype: torch.dtype = torch.float32) -> float | str:
    """Return the first loss, or the name of the error."""
    try:
        return loss(torch.tensor(logits, dtype=dtype), torch.tensor(target, dtype=dtype)).reshape(-1)[0].item()
    except Exception as error:  # what another library raises is what is asked for
        return type(error).__name__


def gradient(loss: Loss, logits: Any, target: Any, dtype: torch.dtype = torch.float32) -> float:
    """Return the gradient of the first logit."""
    outputs = torch.tensor(logits, dtype=dtype).requires_grad_()
    (slope,) = torch.autograd.grad(loss(outputs, torch.tensor(target, dtype=dtype)).sum(), outputs)
    return slope.reshape(-1)[0].item()


def agree(left: float | str, right: float | str, tolerance: float) -> bool:
    """Return whether two answers are the same, numbers to a relative tolerance."""
    if isinstance(left, str) or isinstance(right, str):
        return left == right
    return left == right or abs(left - right) <= tolerance * abs(right)


def logits_of(probabilities: list[float]) -> list[list[float]]:
    """Return one label with these probabilities."""
    return torch.tensor(probabilities)[:, None].logit().tolist()


def bits(loss: Loss) -> float:
    """Return how many bits the loss of float64 logits has."""
    zero = torch.zeros(1, 1, dtype=torch.float64)
    return torch.finfo(loss(zero, zero).dtype).bits
