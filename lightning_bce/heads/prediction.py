"""Scores of the labels that are wanted: of the best ones, and of chosen ones."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_bce.heads.precision import full_dtype
from lightning_bce.heads.walk import GATHERED, chunks


def best_labels(inputs: Tensor, weight: Tensor, bias: Tensor | None, k: int, chunk: int) -> tuple[Tensor, Tensor]:
    """Return scores and labels of the k highest scores of each sample, (N, k) both, the highest first.

    Args:
        inputs: (N, D).
        weight: (C, D).
        bias: (C,), or None.
        k: At most C.
        chunk: Labels at a time.
    """
    full = full_dtype(weight.dtype)
    inputs = inputs.to(full)
    best = torch.empty(len(inputs), 0, dtype=full, device=inputs.device)
    labels = torch.empty(len(inputs), 0, dtype=torch.int64, device=inputs.device)
    with torch.autocast(inputs.device.type, enabled=False):
        for begin, end in chunks(len(weight), chunk):
            scores = inputs @ weight[begin:end].to(full).t()
            if bias is not None:
                scores = scores + bias[begin:end].to(full)
            some, where = scores.topk(min(k, end - begin), dim=1)
            candidates = torch.cat([labels, where + begin], 1)
            both = torch.cat([best, some], 1)
            best, kept = both.topk(min(k, both.shape[1]), dim=1)
            labels = candidates.gather(1, kept)
    return best, labels


def scores_of(inputs: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Return the scores of chosen labels, (N, K), of labels (K,) or (N, K)."""
    full = full_dtype(weight.dtype)
    inputs = inputs.to(full)
    with torch.autocast(inputs.device.type, enabled=False):
        if labels.ndim == 1:
            scores = inputs @ weight[labels].to(full).t()
        else:
            # The gathered weights of one sample are (K, D).
            size = max(1, GATHERED // max(1, labels.shape[1] * weight.shape[1] * full.itemsize))
            scores = inputs.new_empty(labels.shape)
            for begin in range(0, len(inputs), size):
                some = slice(begin, begin + size)
                scores[some] = torch.einsum("nkd,nd->nk", weight[labels[some]].to(full), inputs[some])
    return scores if bias is None else scores + bias[labels].to(full)
