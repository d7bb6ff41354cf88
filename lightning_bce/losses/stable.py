r"""The few stable pieces that the losses are made of.

With :math:`s(z) = \log(1 + e^z)`, :math:`-\log p = s(-x)` and :math:`-\log(1 - p) = s(x)`: nothing cancels and
nothing is clamped, on either side.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def full_precision(logits: Tensor) -> Tensor:
    """Return floating-point ``logits`` in float32 or better.

    Half inputs are upcast by hand: CPU autocast leaves softplus and sigmoid in bfloat16, CUDA autocast the latter.

    Raises:
        TypeError: If the tensor is not floating point.
    """
    if not logits.is_floating_point():
        raise TypeError(
            f"The model's output has dtype {logits.dtype}; a floating-point tensor was expected. Pass scores, not "
            "decisions."
        )
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def softplus(z: Tensor) -> Tensor:
    """Return log(1 + exp(z)) to full accuracy in float32 and float64.

    torch's own threshold of 20 returns z from there on, which is 1e-10 off in float64; at 40 it is exact in both.
    """
    return F.softplus(z, threshold=40.0)


def by_target(target: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return ``target * positive + (1 - target) * negative`` without 0 * inf.

    At an infinite logit on the right side of a hard label the loss is 0, and a NaN stays where it is. The gradient is
    for the two losses; for the target itself it is right only strictly between 0 and 1.
    """
    zero = positive.new_zeros(())
    return torch.where(target == 0, zero, target * positive) + torch.where(target == 1, zero, (1 - target) * negative)


def log_miss(logits: Tensor, target: Tensor) -> Tensor:
    """Return log(1 - p_t), where ``p_t = target * p + (1 - target) * (1 - p)``, for hard and for soft targets."""
    hard = (target == 0) | (target == 1)
    of_hard = -softplus(torch.where(target == 1, logits, -logits))
    # Both terms are positive, so nothing cancels; for hard targets, where one could underflow, it is not used.
    miss = target * torch.sigmoid(-logits) + (1 - target) * torch.sigmoid(logits)
    return torch.where(hard, of_hard, torch.where(hard, torch.ones_like(miss), miss).log())
