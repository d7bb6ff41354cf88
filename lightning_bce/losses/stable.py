r"""The few stable pieces that the losses are made of.

With :math:`s(z) = \log(1 + e^z)`, :math:`-\log p = s(-x)` and :math:`-\log(1 - p) = s(x)`: nothing cancels and
nothing is clamped, on either side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_bce.losses.checks import may_look


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


def all_hard(target: Tensor) -> bool:
    """Return whether all labels are known to be 0 or 1, for a shorter way to the same bits.

    On the host a look at the labels is one cheap pass, and it saves most of the others. On a device it would have to be
    waited for, so that there nothing is known.
    """
    on_host = target.device.type == "cpu" and not target.requires_grad
    return on_host and may_look() and bool(((target == 0) | (target == 1)).all())


def power_of_miss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    r"""Return :math:`(1 - p_t)^\gamma` with :math:`p_t = y p + (1 - y)(1 - p)`, for hard and for soft targets.

    Finite with all derivatives for every ``gamma`` of at least 0, also where 1 - p_t rounds to 0, and within a few
    units in the last place where it does not.
    """
    if all_hard(target):
        return power_of_probability(torch.where(target == 1, -logits, logits), gamma)
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
    mixed = soft * torch.sigmoid(-logits) + (1 - soft) * torch.sigmoid(logits)
    return power(torch.where(hard, torch.sigmoid(-of_hard), mixed), log_miss, gamma)


def power_of_probability(logits: Tensor, exponent: float) -> Tensor:
    r"""Return :math:`\sigma(x)^k` for an exponent of at least 0; with ``-logits`` it is :math:`(1 - p)^k`.

    Like :func:`power_of_miss` of a hard label, finite with all derivatives and exact.
    """
    if exponent == 0:
        return torch.ones_like(logits)
    return power(torch.sigmoid(logits), -softplus(-logits), exponent)


def falling_power(logits: Tensor, exponent: float) -> Tensor:
    r"""Return :math:`(1 - \sigma(x)^k) / k` for an exponent above 0, exact with all derivatives on both sides."""
    # By expm1 where p^k is near 1, which would cancel; its own gradient cancels where p^k is near 0. And where even
    # k log p has no digits left, by the series in it.
    losses = softplus(-logits)
    scaled = exponent * losses
    tiny, near = scaled < 1e-5, scaled < 0.5
    of_tiny, of_near = torch.where(tiny, losses, 0.0), torch.where(near, scaled, 0.25)
    series = of_tiny * (1 - exponent * of_tiny / 2 * (1 - exponent * of_tiny / 3))
    beyond = torch.where(near, -torch.expm1(-of_near), 1 - power_of_probability(logits, exponent))
    return torch.where(tiny, series, beyond / exponent)


def power(base: Tensor, log_base: Tensor, exponent: float) -> Tensor:
    """Return ``base ** exponent`` with the derivatives of ``(exponent * log_base).exp()``."""
    # Through the logarithm: as a power it rounds to 0, and for an exponent below 1 its gradient to nan.
    smooth = (exponent * log_base).exp()
    # But a product of 40 is rounded by 2e-6, which is then the relative error of its exponential. The power itself
    # has none of that: it corrects the value, and with it every derivative, by a factor that is 1 to within 1e-5.
    base = base.detach()
    tiny = torch.finfo(base.dtype).tiny
    rounded = in_dtype(exponent, base.dtype)
    exact = base.pow(rounded) * ((exponent - rounded) * log_base.detach()).exp()
    near = smooth.detach()
    factor = torch.where((base >= tiny) & (near >= tiny), exact / near.clamp(min=tiny), 1.0)
    return smooth * factor


def probability(logits: Tensor) -> Tensor:
    """Return the sigmoid with an exact gradient; torch's is ``p * (1 - p)``, which is 0 where p rounds to 1."""
    return torch.where(logits < 0, torch.sigmoid(logits), 1 - torch.sigmoid(-logits))


def residual(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``p - target`` to full accuracy on both sides: at a large logit it is the small difference of two rests.

    The derivatives are exact too.
    """
    return torch.where(logits < 0, torch.sigmoid(logits) - target, (1 - target) - torch.sigmoid(-logits))


def sides(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of the positive and of the negative term, 0 where a hard label leaves the term out.

    What :func:`by_target` leaves out can be infinite, and its gradient of 0 then becomes a NaN in any product.
    """
    return torch.where(target == 0, 0.0, logits), torch.where(target == 1, 0.0, logits)


def in_dtype(value: float, dtype: torch.dtype) -> float:
    """Return the float32 nearest to ``value`` for float32 arithmetic, in Python, so that compiled code can fold it."""
    if dtype != torch.float32 or value == 0:
        return value
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**24) / 2**24, exponent)
