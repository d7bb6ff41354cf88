"""Shapes of weights, each with one meaning only: nothing is enlarged, and no label is taken for a sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_bce.losses.stable import full_precision


def fit_weight(name: str, weight: Tensor, logits: Tensor) -> Tensor:
    """Return ``weight`` in a shape that broadcasts to that of ``logits`` with one meaning only.

    (N,) is one value for each sample whatever the other dimensions are; the same number of dimensions may hold ones.

    Raises:
        ValueError: If the shape is any other: nothing is enlarged, no label is taken for a sample.
        TypeError: If it is no tensor.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"`{name}` is {type(weight).__name__}; a tensor was expected.")
    if weight.ndim == logits.ndim and all(w in (1, n) for w, n in zip(weight.shape, logits.shape, strict=True)):
        return weight
    if weight.ndim == 1 and logits.ndim > 1 and weight.shape[0] == logits.shape[0]:
        return weight.reshape(-1, *[1] * (logits.ndim - 1))
    advice = "Nothing is enlarged."
    if weight.ndim == 1 and logits.ndim > 1 and weight.shape[0] == logits.shape[1]:
        advice = f"For one value per label use `class_weight`, or pass `{name}[None]` if it repeats for every sample."
    raise ValueError(
        f"`{name}` has shape {tuple(weight.shape)} and the output {tuple(logits.shape)}; expected (N,) for one value "
        f"per sample, or the output's shape with ones where it repeats. {advice}"
    )


def part_of_row(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Return one over how many labels of a sample are known, (N, 1, ...)."""
    dtype = full_precision(logits[:0]).dtype
    if valid is None:
        known = torch.full(logits.shape[:1], math.prod(logits.shape[1:]), dtype=dtype, device=logits.device)
    else:
        known = valid.expand(logits.shape).flatten(1).sum(1).to(dtype)
    return (1 / known.clamp(min=1)).reshape(-1, *[1] * (logits.ndim - 1))


def per_label(name: str, values: Tensor, logits: Tensor) -> Tensor:
    """Return one number for each label (dimension 1) in a shape that broadcasts; a single number stays as it is.

    Raises:
        ValueError: If there are not as many numbers as labels.
    """
    if values.ndim == 0:
        return values
    labels = 1 if logits.ndim < 2 else logits.shape[1]
    if values.ndim > 1 or len(values) != labels:
        given = f"has {len(values)} numbers" if values.ndim == 1 else f"has shape {tuple(values.shape)}"
        raise ValueError(f"`{name}` {given} and the output {labels} label(s).")
    return values.reshape(()) if logits.ndim < 2 else values.reshape(-1, *[1] * (logits.ndim - 2))


def check_constant(name: str, value: Tensor, logits: Tensor) -> None:
    """Refuse a constructor's factor that does not broadcast from the right, as in torch, or would enlarge the output.

    Raises:
        ValueError: With both shapes.
    """
    shape = logits.shape
    fits = value.ndim <= len(shape) and all(
        v == 1 or v == n for v, n in zip(value.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"`{name}` has shape {tuple(value.shape)}, which does not broadcast to the output's {tuple(shape)} without "
            "enlarging it. For one value per label of (N, C, ...) outputs use shape (C, 1, ...)."
        )
