"""What a loss refuses: shapes at every call, values at the first batch, hyper-parameters at construction.

Each message says what came, what was expected and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    PerLabel: TypeAlias = Sequence[float] | Tensor
    Factor: TypeAlias = float | PerLabel
else:  # what a command line can say: with the tensor, its help would list torch's subclasses of it
    PerLabel = Sequence[float]
    Factor = float | PerLabel


def may_look() -> bool:
    """Return whether Python may decide by a tensor's values: not in compiled code, nor in a function transform."""
    return not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Refuse a target that has not exactly the shape of the logits.

    Raises:
        ValueError: If the shapes differ, with the remedy for the usual reasons.
        TypeError: If the target is complex or not a tensor.
    """
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        raise TypeError(
            f"A loss takes tensors; got {type(logits).__name__} and {type(target).__name__}. "
            "Use `torch.as_tensor(...)` on lists and arrays."
        )
    if target.is_complex():
        raise TypeError(f"`target` has dtype {target.dtype}; bool, integer or floating point was expected.")
    if target.shape == logits.shape:
        return
    given = f"`target` has shape {tuple(target.shape)} and `logits` {tuple(logits.shape)}: they must be equal. "
    if logits.numel() == target.numel() and abs(logits.ndim - target.ndim) == 1:
        advice = "Use `target.view_as(logits)`, or `logits.squeeze(-1)` in the model."
    elif logits.ndim == target.ndim + 1 and logits.shape[:1] == target.shape[:1] and logits.shape[1] > 1:
        advice = (
            "For class indices: `torch.nn.functional.one_hot(target, num_classes)`. For one label the model needs one "
            "output, not one for each class."
        )
    else:
        advice = "Nothing is broadcast: give one target for each logit."
    raise ValueError(given + advice)


def check_target_values(target: Tensor, valid: Tensor | None) -> None:
    """Refuse target values outside [0, 1] and NaN that is not declared unknown. Waits for the device.

    Raises:
        ValueError: With the values that were found and their counts.
    """
    values = (target if valid is None else target[valid.expand_as(target)]).detach()
    if values.numel() == 0 or values.dtype == torch.bool:
        return
    values = values.double() if values.is_floating_point() else values
    wrong = ~((values >= 0) & (values <= 1))
    if not bool(wrong.any()):
        return
    found, counts = torch.unique(values[wrong], return_counts=True)
    nan = int(torch.isnan(values).sum())
    listing = [
        f"{_digits(v)} ({c} times)" for v, c in zip(found.tolist(), counts.tolist(), strict=True) if not math.isnan(v)
    ]
    if nan:
        listing.insert(0, f"nan ({nan} times)")
    shown = ", ".join(listing[:8]) + (f" and {len(listing) - 8} more values" if len(listing) > 8 else "")
    number = [v for v in found.tolist() if not math.isnan(v)]
    if nan and not number:
        advice = "If NaN marks an unknown label, say so: `ignore_index=float('nan')`."
    elif number == [-1.0]:
        both = bool(((values == 0) & ~wrong).any())
        advice = (
            "If -1 marks an unknown label, say so: `ignore_index=-1`."
            if both
            else "If the labels are coded -1 and 1, pass `(target + 1) / 2`; if -1 is unknown, `ignore_index=-1`."
        )
    elif number in ([-100.0], [255.0]):
        advice = f"If it marks an unknown label, say so: `ignore_index={number[0]:g}`."
    else:
        advice = "Pass 0 and 1 (or probabilities), or mark unknown labels and say so with `ignore_index`."
    raise ValueError(f"`target` has values outside [0, 1]: {shown}. {advice}")


def _digits(value: float) -> str:
    # 1.0000001 must not be shown as the 1 that is allowed.
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def check_probabilities(probabilities: Tensor, valid: Tensor | None) -> None:
    """Refuse model outputs outside [0, 1]. Waits for the device.

    Raises:
        ValueError: With the range that was found.
    """
    values = (probabilities if valid is None else probabilities[valid.expand_as(probabilities)]).detach()
    wrong = (values < 0) | (values > 1)  # NaN is not refused: it shows itself in the loss
    if values.numel() and bool(wrong.any()):
        raise ValueError(
            f"This loss takes probabilities in [0, 1]; got values from {values.min().item():g} to "
            f"{values.max().item():g}. Apply `torch.sigmoid` first, or use the loss on logits, such as "
            "`BCEWithLogitsLoss` or `FocalLoss`."
        )


def check_factor(name: str, value: float | Sequence[float] | Tensor | None) -> None:
    """Refuse a weight or factor that is negative or not finite.

    Raises:
        ValueError: With the offending values.
        TypeError: If the value is no number, sequence of numbers or tensor.
    """
    if value is None:
        return
    try:
        numbers = torch.as_tensor(value, dtype=torch.float64).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"`{name}` is {value!r}; a number, a list of numbers or a tensor was expected.") from error
    wrong = ~(torch.isfinite(numbers) & (numbers >= 0))
    if numbers.device.type != "meta" and bool(wrong.any()):
        raise ValueError(f"`{name}` must be finite and at least 0; got {numbers[wrong].flatten()[:8].tolist()}.")


def check_unit(name: str, value: float | None) -> None:
    """Refuse a number outside [0, 1]; None passes.

    Raises:
        ValueError: With the number.
        TypeError: If it is no number.
    """
    if value is not None:
        check_number(name, value, at_least=0, at_most=1, advice=" To multiply the positives only, use `pos_weight`.")


def check_number(
    name: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    advice: str = "",
) -> None:
    """Refuse a hyper-parameter that is no number, not finite or out of its bounds.

    Raises:
        ValueError: With the number and its bounds.
        TypeError: If it is no number.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        number
        and math.isfinite(value)
        and (at_least is None or value >= at_least)
        and (above is None or value > above)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    ):
        return
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    said = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    if not number:
        raise TypeError(f"`{name}` is {value!r}; a number of {said} was expected.")
    raise ValueError(f"`{name}` is {value}; it must be finite and {said}.{advice}")


def check_flag(name: str, value: bool) -> None:
    """Refuse what is neither True nor False.

    Raises:
        TypeError: With what came.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; True or False was expected.")


def check_whole(name: str, value: int, *, at_least: int) -> None:
    """Refuse what is no whole number or too small.

    Raises:
        ValueError: With the number and its bound.
        TypeError: If it is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` is {value!r}; a whole number of at least {at_least} was expected.")
    if value < at_least:
        raise ValueError(f"`{name}` is {value}; it must be at least {at_least}.")
