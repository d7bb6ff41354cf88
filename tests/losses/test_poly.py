"""Poly loss: the paper's formula, naively and to 50 digits, where terms cancel too, and its limits."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import PolyLoss, bce_with_logits, focal_loss, poly_bce

OPTIONS = [(1.0, 0.0), (2.0, 0.0), (-1.0, 0.0), (-0.4, 0.0), (-1.0, 2.0), (0.3, 0.5), (1.0, 3.3)]


def labels(kind, *shape):
    return torch.rand(shape).double() if kind == "soft" else torch.randint(0, 2, shape).double()


def naive(logits, target, epsilon=1.0, gamma=0.0, alpha=None):
    p = logits.sigmoid()
    cross_entropy = -target * p.log() - (1 - target) * (1 - p).log()
    miss = target * (1 - p) + (1 - target) * p
    alpha_t = 1.0 if alpha is None else alpha * target + (1 - alpha) * (1 - target)
    return alpha_t * (miss**gamma * cross_entropy + epsilon * miss ** (gamma + 1))


def exactly(logit, label, epsilon, gamma):
    with mp.workdps(50 + int(abs(logit))):
        z, t, e, g = map(mpf, (logit, label, epsilon, gamma))
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        slope = p * q
        miss = t * q + (1 - t) * p
        inner = t * mp.log1p(mp.exp(-z)) + (1 - t) * mp.log1p(mp.exp(z)) + e * miss
        terms = [-(miss**g) * t * q * (q + (1 + e) * p), miss**g * (1 - t) * p * (p + (1 + e) * q)]
        if g:
            terms += [-g * miss ** (g - 1) * t * slope * inner, g * miss ** (g - 1) * (1 - t) * slope * inner]
        return miss**g * inner, mp.fsum(terms), mp.fsum(map(abs, terms))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 1.0])
@pytest.mark.parametrize(("epsilon", "gamma"), OPTIONS)
def test_it_is_the_formula_of_the_paper(epsilon, gamma, alpha, kind):
    logits, target = (2 * torch.randn(257).double()).requires_grad_(), labels(kind, 257)
    options = {"epsilon": epsilon, "gamma": gamma, "alpha": alpha}
    ours, theirs = poly_bce(logits, target, **options), naive(logits, target, **options)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize(("epsilon", "gamma"), OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, epsilon, gamma, label):
    def loss(logits, target):
        return poly_bce(logits, target, epsilon=epsilon, gamma=gamma)

    error = exact.errors(loss, lambda z, t: exactly(z, t, epsilon, gamma), label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_as_a_difference_the_same_test_fails():  # what the series is for
    logits = torch.linspace(0, 30, 33)
    cancelling = torch.nn.functional.softplus(-logits) - torch.sigmoid(-logits)
    reference = [exactly(z, 1.0, -1.0, 0.0)[0] for z in logits.tolist()]
    assert max(abs(c - r) / r for c, r in zip(cancelling.tolist(), reference, strict=True)) > 0.1


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_with_the_coefficient_of_the_series_it_is_focal_loss(gamma, alpha, kind):
    logits, target = 9 * torch.randn(257).double(), labels(kind, 257)
    assert_close(
        poly_bce(logits, target, epsilon=0.0, gamma=gamma, alpha=alpha),
        focal_loss(logits, target, gamma=gamma, alpha=alpha),
    )
    assert_close(poly_bce(logits, target, epsilon=0), bce_with_logits(logits, target))


def test_a_confident_mistake_keeps_its_gradient():
    logits = torch.tensor([-1e4, -60.0, -30.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(poly_bce(logits, torch.ones(3)).sum(), logits)
    assert_close(gradient, -torch.ones(3))


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, 2.4021926258, 1.4246860132),
        ({"epsilon": 2.0}, 2.9021926258, 1.8132930190),
        ({"epsilon": -1.0, "gamma": 2.0}, 1.3360508292, 0.5682218509),
        ({"gamma": 2.0, "alpha": 0.25}, 1.0363773579, 0.5752112889),
    ],
)
def test_the_derived_values(options, first, second):
    loss = PolyLoss(**options)
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    assert_close(loss(logits, torch.tensor([[1, 0, 1], [0, 1, 0]])).item(), first, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    assert_close(loss(logits, torch.tensor([[1, 1, 0], [0, 1, 0]])).item(), second, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("epsilon", "gamma", "beyond"), [(1.0, 0.0, 1), (-0.5, 0.0, -1), (-1.0, 0.0, -1), (1.0, 2.0, 1)]
)
@pytest.mark.parametrize("label", [0.3, 0.7])
def test_for_a_soft_label_the_minimum_lies_on_the_side_the_docstring_says(label, epsilon, gamma, beyond):
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    at = p[poly_bce(p.logit(), torch.full_like(p, label), epsilon=epsilon, gamma=gamma).argmin()].item()
    away = (at - label) * (1 if label > 0.5 else -1)
    assert away * beyond > 0.01 and (at - 0.5) * (label - 0.5) > 0


@pytest.mark.parametrize("epsilon", [-1.1, math.nan, math.inf, "1", None, True])
def test_a_coefficient_below_minus_one_is_refused_and_a_weight_that_is_no_share(epsilon):
    for make in (PolyLoss, lambda **options: poly_bce(torch.zeros(1), torch.zeros(1), **options)):
        with pytest.raises((ValueError, TypeError), match="`epsilon` is"):
            make(epsilon=epsilon)
    with pytest.raises(ValueError, match=r"`alpha` is 1\.1"):
        poly_bce(torch.zeros(1), torch.zeros(1), alpha=1.1)
