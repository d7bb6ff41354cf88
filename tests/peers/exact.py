"""Values and slopes of the shared losses to 50 digits, for hard labels."""

from __future__ import annotations

from collections.abc import Callable

from mpmath import mp, mpf


def _side(logit: float, label: float) -> mpf:
    return mpf(logit) if label else -mpf(logit)


def focal(logit: float, label: float, gamma: float = 2.0) -> float:
    """Return the focal loss; at a ``gamma`` of 0 it is cross-entropy."""
    with mp.workdps(50):
        z = _side(logit, label)
        return float((1 / (1 + mp.exp(z))) ** gamma * mp.log1p(mp.exp(-z)))


def bce(logit: float, label: float) -> float:
    return focal(logit, label, 0)


def slope(loss: Callable[..., float], logit: float, label: float, gamma: float = 0.0) -> float:
    """Return the slope of :func:`focal`, by its formula: a difference would lose the digits that are looked for."""
    assert loss is focal or not gamma
    with mp.workdps(50):
        z = _side(logit, label)
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        along = -(q ** (gamma + 1)) - gamma * q**gamma * p * mp.log1p(mp.exp(-z))
        return float(along if label else -along)


def miss(logit: float, label: float) -> float:
    """Return the probability of the wrong side."""
    with mp.workdps(50):
        return float(1 / (1 + mp.exp(_side(logit, label))))
