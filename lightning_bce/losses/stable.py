r"""The few stable pieces that the losses are made of.

With :math:`s(z) = \log(1 + e^z)`, :math:`-\log p = s(-x)` and :math:`-\log(1 - p) = s(x)`: nothing cancels and
nothing is clamped, on either side.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_bce.engine import in_full


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
    return in_full(logits)


def by_target(target: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return ``target * positive + (1 - target) * negative`` without 0 * inf.

    At an infinite logit on the right side of a hard label the loss is 0, and a NaN stays where it is. The gradient is
    for the two losses; for the target itself it is right only strictly between 0 and 1.
    """
    zero = positive.new_zeros(())
    return torch.where(target == 0, zero, target * positive) + torch.where(target == 1, zero, (1 - target) * negative)


class Folded(NamedTuple):
    r"""The logistic function of a logit, folded at 0: everything from one exponential, :math:`e = e^{-|x|}`.

    The larger of p and 1 - p is :math:`1 / (1 + e)`, the smaller one :math:`e / (1 + e)`, and minus their logarithms
    are :math:`\log(1 + e)` and :math:`|x| + \log(1 + e)`: sums and products of what is not negative. Nothing cancels,
    whatever the label, and the derivatives are exact with all their digits too.

    Args:
        above: Where the logit is above 0.
        size: Its absolute value.
        rest: :math:`e`, in (0, 1].
        larger: :math:`1 / (1 + e)`.
        log1p: :math:`\log(1 + e)`.
    """

    above: Tensor
    size: Tensor
    rest: Tensor
    larger: Tensor
    log1p: Tensor

    @property
    def smaller(self) -> Tensor:
        """The smaller of p and 1 - p."""
        return self.rest * self.larger

    @property
    def p(self) -> Tensor:
        """The probability, with an exact gradient; that of torch's sigmoid is 0 where p rounds to 1."""
        return torch.where(self.above, self.larger, self.smaller)

    @property
    def q(self) -> Tensor:
        """What the probability lacks to 1."""
        return torch.where(self.above, self.smaller, self.larger)

    def softplus(self) -> Tensor:
        """Return log(1 + exp(x)) = -log(1 - p)."""
        return self.log1p + torch.where(self.above, self.size, 0.0)

    def softplus_of_minus(self) -> Tensor:
        """Return log(1 + exp(-x)) = -log(p)."""
        return self.log1p + torch.where(self.above, 0.0, self.size)

    def wrong(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the weight of the side that the logit is not on, of a positive and a negative weight."""
        return torch.where(self.above, negative, positive)

    def cross_entropy(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the cross-entropy with a weight for each side, 0 and not NaN at an infinite logit without a weight."""
        wrong = self.wrong(positive, negative)
        return (positive + negative) * self.log1p + torch.where(wrong == 0, 0.0, wrong * self.size)

    def cross_entropy_of(self, target: Tensor) -> Tensor:
        """Return the cross-entropy of a label, whose weights add up to 1."""
        wrong = self.wrong(target, 1 - target)
        return self.log1p + torch.where(wrong == 0, 0.0, wrong * self.size)

    def miss(self, target: Tensor) -> Tensor:
        r"""Return :math:`1 - p_t = y (1 - p) + (1 - y) p`."""
        wrong = self.wrong(target, 1 - target)
        return (wrong + (1 - wrong) * self.rest) * self.larger


def folded(logits: Tensor) -> Folded:
    """Return the pieces of the logistic function of logits in float32 or better."""
    above = logits > 0
    # Not abs(), whose derivative at 0 is 0: either half of the fold has the right one there.
    size = torch.where(above, logits, -logits)
    rest = (-size).exp()
    sum_ = 1 + rest
    larger = 1 / sum_
    # log1p() by a logarithm, which takes half its time: what the sum has rounded off is added to the first order.
    log1p = sum_.log() + ((rest - (sum_ - 1)) * larger).detach()
    return Folded(above, size, rest, larger, log1p)


class FirstOrder(NamedTuple):
    """Probability and loss of a negative, with their exact first derivatives, and no second ones.

    Args:
        p: The probability.
        softplus: log(1 + exp(x)) = -log(1 - p).
    """

    p: Tensor
    softplus: Tensor


# artanh(h) / h as a polynomial of h^2 up to 1/9, within 5e-9 of it everywhere (the minimax one).
_ARTANH = (0.140788891816, 0.139825788726, 0.200122976154, 0.333331608207, 1.00000000384)


def first_order(logits: Tensor) -> FirstOrder:
    r"""Return the pieces of a negative's loss where nobody asks for a second derivative, in two thirds of the time.

    Autograd need not walk back through the fold: the derivatives are p (1 - p) and p. And of :math:`e = e^{-|x|}` in
    (0, 1] float32 needs no logarithm, but few terms of :math:`\log(1 + e) = 2 \operatorname{artanh}(e / (2 + e))`.
    """
    z = logits.detach()
    above = z > 0
    size = torch.where(above, z, -z)
    rest = (-size).exp()
    sum_ = 1 + rest
    if logits.dtype == torch.float32:
        once = 1 / (sum_ * (2 + rest))  # a division takes as long as a whole series
        larger = (2 + rest) * once
        half = rest * sum_ * once
        square = half * half
        series = torch.full((), _ARTANH[0], device=z.device)
        for coefficient in _ARTANH[1:]:
            series = series * square + coefficient
        log1p = 2 * half * series
    else:
        larger = 1 / sum_
        log1p = sum_.log() + (rest - (sum_ - 1)) * larger
    smaller = rest * larger
    p = torch.where(above, larger, smaller)
    losses = log1p + torch.where(above, z, 0.0)
    step = logits - z  # 0, with a derivative of 1
    return FirstOrder(p + step * (larger * smaller), losses + step * p)


def softplus(z: Tensor) -> Tensor:
    """Return log(1 + exp(z)) to full accuracy in float32 and float64, with exact derivatives.

    torch's own returns z from a threshold of 20 on, which is 1e-10 off in float64.
    """
    return folded(z).softplus()


def power_of_miss(logits: Tensor, target: Tensor, gamma: float, pieces: Folded | None = None) -> Tensor:
    r"""Return :math:`(1 - p_t)^\gamma` with :math:`p_t = y p + (1 - y)(1 - p)`, for hard and for soft targets.

    Finite with all derivatives for every ``gamma`` of at least 0, also where 1 - p_t rounds to 0, and within a few
    units in the last place where it does not.
    """
    pieces = folded(logits) if pieces is None else pieces
    miss = pieces.miss(target)
    if few_factors(gamma):
        return product(miss, gamma)
    # Of a soft label neither part of the sum is 0; of a hard one it can round to 0, and its logarithm is known.
    right = 1 - pieces.wrong(target, 1 - target)
    hard = (target == 0) | (target == 1)
    of_hard = -(pieces.log1p + torch.where(right == 0, 0.0, right * pieces.size))
    return power(miss, torch.where(hard, of_hard, torch.where(hard, 0.5, miss).log()), gamma)


def power_of_probability(logits: Tensor, exponent: float) -> Tensor:
    r"""Return :math:`\sigma(x)^k` for an exponent of at least 0; with ``-logits`` it is :math:`(1 - p)^k`.

    Like :func:`power_of_miss` of a hard label, finite with all derivatives and exact.
    """
    if exponent == 0:
        return torch.ones_like(logits)
    pieces = folded(logits)
    if few_factors(exponent):
        return product(pieces.p, exponent)
    return power(pieces.p, -pieces.softplus_of_minus(), exponent)


def few_factors(exponent: float) -> bool:
    """Return whether a power is a product of so few factors that it beats every other way in time and digits."""
    return exponent in (1, 2, 3, 4)


def product(base: Tensor, exponent: float) -> Tensor:
    """Return ``base ** exponent`` for an exponent of 1, 2, 3 or 4."""
    # Not pow(): its derivative takes another power.
    square = base * base
    return {1: base, 2: square, 3: square * base, 4: square * square}[int(exponent)]


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
