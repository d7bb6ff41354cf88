"""Bi-tempered logistic loss: the paper's two formulas to 50 digits, cross-entropy at one, and its bound."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import BiTemperedLoss, bce_with_logits, bi_tempered_loss

TEMPERATURES = [(0.8, 1.2), (1.0, 1.0), (0.8, 1.0), (1.0, 1.2), (0.2, 4.0), (0.0, 1.5), (0.5, 1.001)]


def log_t(u, t):
    return mp.log(u) if t == 1 else (u ** (1 - t) - 1) / (1 - t)


def tempered(z, t2):
    """Probability and rest, by halving the interval of their logit and then by Newton's method."""

    def sides(s):
        return 1 / (1 + mp.exp(-s)), 1 / (1 + mp.exp(s))

    def off(s):
        p, q = sides(s)
        return log_t(p, t2) - log_t(q, t2) - z

    low, high = -abs(z) - 1, abs(z) + 1  # it is nearer to 0 than z
    for _ in range(40):
        low, high = ((low + high) / 2, high) if off((low + high) / 2) < 0 else (low, (low + high) / 2)
    for _ in range(6):
        p, q = sides(low)
        low -= off(low) / (p ** (1 - t2) * q + q ** (1 - t2) * p)
    return sides(low)


def exactly(logit, label, t1, t2):
    with mp.workdps(60 + int(abs(logit))):
        z, t, t1, t2 = map(mpf, (logit, label, t1, t2))
        p, q = tempered(z, t2)
        a = 2 - t1
        cost = [-log_t(u, t1) - (1 - p**a - q**a) / a for u in (p, q)]
        slope = 1 / (p**-t2 + q**-t2)  # of p, by the equation
        terms = [-t * (p**-t1 - p ** (a - 1) + q ** (a - 1)) * slope]
        terms += [(1 - t) * (q**-t1 - q ** (a - 1) + p ** (a - 1)) * slope]
        return t * cost[0] + (1 - t) * cost[1], mp.fsum(terms), mp.fsum(map(abs, terms))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_the_papers_to_the_last_digits(exact, dtype, t1, t2, label):
    reach = 87.0 if dtype == torch.float32 else 300.0
    logits = torch.cat([torch.linspace(-reach, reach, 9), torch.linspace(-9, 9, 9)]).to(dtype).requires_grad_()
    losses = bi_tempered_loss(logits, torch.full_like(logits, label), t1=t1, t2=t2)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    label = torch.tensor(label, dtype=dtype).item()
    values, slopes, terms = zip(*(exactly(z, label, t1, t2) for z in logits.tolist()), strict=True)
    # The root is a logit: what is off in its last digit is a relative error of the probability.
    tolerance = 1e-6 if dtype == torch.float32 else 2e-13
    assert exact.worst(losses, values) < tolerance
    assert exact.worst(gradient, slopes, terms) < tolerance


def test_at_one_it_is_bce():
    logits, target = 9 * torch.randn(257), torch.rand(257)
    for label in (target, target.round()):
        assert_close(bi_tempered_loss(logits, label, t1=1.0, t2=1.0), bce_with_logits(logits, label))
        near = bi_tempered_loss(logits.double(), label, t1=1 - 1e-9, t2=1 + 1e-9)
        assert_close(near, bce_with_logits(logits.double(), label), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
def test_both_derivatives_are_right_also_at_zero(t1, t2):
    logits, target = torch.linspace(-5, 5, 7).double().requires_grad_(), torch.full((7,), 0.4).double()
    assert gradcheck(lambda x: bi_tempered_loss(x, target, t1=t1, t2=t2), (logits,))
    assert gradgradcheck(lambda x: bi_tempered_loss(x, target, t1=t1, t2=t2), (logits,))


def test_changing_sides_changes_nothing():
    logits, target = 30 * torch.randn(257), torch.rand(257)
    assert_close(bi_tempered_loss(logits, target), bi_tempered_loss(-logits, 1 - target))


@pytest.mark.parametrize("t1", [0.0, 0.5, 0.8])
def test_no_mistake_costs_more_than_its_bound(t1):
    logits = torch.tensor([-math.inf, -1e30, -1e4], dtype=torch.float64)
    losses = bi_tempered_loss(logits, torch.ones(3), t1=t1)
    assert_close(losses[0].item(), 1 / (1 - t1))
    assert (losses.diff() <= 0).all()


def test_the_slope_of_a_sure_mistake_fades():
    logits = torch.tensor([-5.0, -50.0, -500.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(bi_tempered_loss(logits, torch.ones(3)).sum(), logits)
    assert (gradient < 0).all() and (gradient.diff() > 0).all()


@pytest.mark.parametrize("label", [0.2, 0.4, 0.9])
@pytest.mark.parametrize(("t1", "t2"), TEMPERATURES)
def test_for_a_soft_label_the_minimum_lies_where_the_tempered_probability_is_the_label(t1, t2, label):
    k = t2 - 1
    at = math.log(label / (1 - label)) if k == 0 else ((1 - label) ** -k - label**-k) / k
    logits = (at + torch.linspace(-1, 1, 2001)).double()
    losses = bi_tempered_loss(logits, torch.full_like(logits, label), t1=t1, t2=t2)
    assert math.isclose(logits[losses.argmin()].item(), at, abs_tol=2e-3)
    surer = 1 / (1 + math.exp(-at)) - label
    assert k == 0 or surer * (label - 0.5) > 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("t1", [-0.1, 1.1, math.nan, math.inf, "1", None, True]),
        ("t2", [0.9, -1.0, math.nan, math.inf, "2", None, True]),
    ],
)
def test_an_impossible_temperature_is_refused(name, values):
    for make in (BiTemperedLoss, lambda **options: bi_tempered_loss(torch.zeros(1), torch.zeros(1), **options)):
        for value in values:
            with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
                make(**{name: value})
