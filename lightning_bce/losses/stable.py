r"""The few stable pieces that the losses are made of.

With :math:`s(z) = \log(1 + e^z)`, :math:`-\log p = s(-x)` and :math:`-\log(1 - p) = s(x)`: nothing cancels and
nothing is clamped, on either side.
"""

from __future__ import annotations

import math

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


def power_of_miss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    r"""Return :math:`(1 - p_t)^\gamma` with :math:`p_t = y p + (1 - y)(1 - p)`, for hard and for soft targets.

    Finite with all derivatives for every ``gamma`` of at least 0, also where 1 - p_t rounds to 0, and within a few
    units in the last place where it does not.
    """
    hard = (target == 0) | (target == 1)
    of_hard = torch.where(target == 1, logits, -logits)
    soft = torch.where(hard, 0.5, target)
    # log(y q + (1 - y) p) from its larger term; torch.logaddexp has no second derivative where one term is far below.
    log_soft, log_rest = soft.log(), torch.log1p(-soft)
    lead = log_soft - log_rest - logits
    of_soft = torch.where(
        lead > 0, log_soft - softplus(logits) + softplus(-lead), log_rest - softplus(-logits) + softplus(lead)
    )
    log_miss = torch.where(hard, -softplus(of_hard), of_soft)
    # Through the logarithm: as a power it rounds to 0, and for gamma < 1 its gradient to nan.
    smooth = (gamma * log_miss).exp()
    # But a product of 40 is rounded by 2e-6, which is then the relative error of its exponential. The power itself
    # has none of that: it corrects the value, and with it every derivative, by a factor that is 1 to within 1e-5.
    mixed = soft * torch.sigmoid(-logits) + (1 - soft) * torch.sigmoid(logits)
    miss = torch.where(hard, torch.sigmoid(-of_hard), mixed).detach()
    tiny = torch.finfo(miss.dtype).tiny
    rounded = _in_dtype(gamma, miss.dtype)
    exact = miss.pow(rounded) * ((gamma - rounded) * log_miss.detach()).exp()
    near = smooth.detach()
    factor = torch.where((miss >= tiny) & (near >= tiny), exact / near.clamp(min=tiny), 1.0)
    return smooth * factor


def _in_dtype(value: float, dtype: torch.dtype) -> float:
    """Return the float32 nearest to ``value`` for float32 arithmetic, in Python, so that compiled code can fold it."""
    if dtype != torch.float32 or value == 0:
        return value
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**24) / 2**24, exponent)
