"""Scores, labels and weights as rows: one form for whatever a model returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_bce.losses.checks import check_shapes, check_target_values


class Rows(NamedTuple):
    """Elements as a table.

    Args:
        score: Logits or probabilities, (n, C).
        target: Labels in [0, 1], (n, C).
        weight: What they count, (n, C), at least 0; 0 where the label is unknown.
    """

    score: Tensor
    target: Tensor
    weight: Tensor


def rows_of(score: Any, target: Any, weight: Any = None, mask: Any = None) -> Rows:
    """Return scores, labels and weights as a table with one column for each label, on the CPU.

    Args:
        score: (N,), (N, 1), (N, C) or (N, C, ...), a tensor or an array. Further dimensions become rows.
        target: Labels in [0, 1], the shape of ``score``; NaN is unknown.
        weight: (N,), or the shape of ``score``. None is 1.
        mask: True where the label is known, (N,) or the shape of ``score``. None is everywhere.

    Raises:
        ValueError: If shapes differ, a known target lies outside [0, 1], a weight is negative or not finite, or the
            score of a known label is NaN.

    Example:
        >>> rows_of(torch.zeros(3), torch.tensor([0.0, 1.0, float("nan")])).weight.flatten()
        tensor([1., 1., 0.])
    """
    score, target = torch.as_tensor(score).detach().cpu(), torch.as_tensor(target).detach().cpu()
    check_shapes(score, target)
    known = torch.ones((), dtype=torch.bool) if mask is None else _like(score, mask, "mask").bool()
    if target.is_floating_point():
        known = known & ~target.isnan()
    known = known.expand(score.shape)
    check_target_values(target, known)
    counts = torch.ones(()) if weight is None else _like(score, weight, "weight")
    if weight is not None and not bool((torch.isfinite(counts) & (counts >= 0)).all()):
        raise ValueError("`weight` must be finite and at least 0.")
    counts = torch.where(known, counts.to(score.dtype), 0)
    if bool((score.isnan() & (counts > 0)).any()):
        raise ValueError("A score of a known label is NaN: the model went wrong before there was anything to fit.")
    score = torch.where(counts > 0, score, 0)
    target = torch.where(counts > 0, target.to(score.dtype), 0)
    return Rows(_table(score), _table(target), _table(counts))


def _like(score: Tensor, factor: Any, name: str) -> Tensor:
    values = torch.as_tensor(factor).detach().cpu()
    if values.shape == score.shape or values.ndim == 0:
        return values
    if values.ndim == 1 and score.ndim and len(values) == len(score):
        return values.reshape(-1, *[1] * (score.ndim - 1))
    if values.numel() == len(score) == score.numel():
        return values.reshape(score.shape)
    raise ValueError(
        f"`{name}` has shape {tuple(values.shape)} and the scores {tuple(score.shape)}; one value for each row, "
        f"({len(score) if score.ndim else 0},), or the shape of the scores was expected."
    )


def _table(values: Tensor) -> Tensor:
    if values.ndim < 2:
        return values.reshape(-1, 1)
    return values if values.ndim == 2 else values.movedim(1, -1).reshape(-1, values.shape[1])
