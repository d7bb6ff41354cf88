"""Symmetric cross-entropy: the paper's formula, naively and to 50 digits, and each of its terms alone."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import SymmetricCELoss, bce_with_logits, symmetric_ce

OPTIONS = [{}, {"ce_weight": 1.0, "rce_weight": 0.3, "log_zero": -6.5}, {"ce_weight": 0.0}, {"rce_weight": 0.0}]
LABELS = [0.0, 1.0, 0.3, 0.001, 1 - 2**-20]  # the last two have a logarithm below the least


def naive(logits, target, ce_weight=0.1, rce_weight=1.0, log_zero=-4.0):
    p = logits.sigmoid()
    reverse = -p * target.log().clamp(min=log_zero) - (1 - p) * (1 - target).log().clamp(min=log_zero)
    return ce_weight * (-target * p.log() - (1 - target) * (1 - p).log()) + rce_weight * reverse


def exactly(logit, label, ce_weight=0.1, rce_weight=1.0, log_zero=-4.0):
    with mp.workdps(50 + int(abs(logit))):
        z, t, w, v = map(mpf, (logit, label, ce_weight, rce_weight))
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        log_t, log_rest = (max(mp.log(x), mpf(log_zero)) if x else mpf(log_zero) for x in (t, 1 - t))
        value = w * (t * mp.log1p(mp.exp(-z)) + (1 - t) * mp.log1p(mp.exp(z))) - v * (p * log_t + q * log_rest)
        slopes = [-w * t * q, w * (1 - t) * p, -v * p * q * log_t, v * p * q * log_rest]
        return value, mp.fsum(slopes), mp.fsum(map(abs, slopes))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_formula_of_the_paper(options):
    logits = (2 * torch.randn(257).double()).requires_grad_()
    for target in (torch.randint(0, 2, (257,)).double(), torch.rand(257).double()):
        ours, theirs = symmetric_ce(logits, target, **options), naive(logits, target, **options)
        assert_close(ours, theirs)
        upstream = torch.randn_like(ours)
        assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, options, label):
    def loss(logits, target):
        return symmetric_ce(logits, target, **options)

    error = exact.errors(loss, lambda z, t: exactly(z, t, **options), label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_each_term_alone_is_bce_and_the_absolute_error():
    logits, target = 9 * torch.randn(257), torch.randint(0, 2, (257,)).float()
    alone = symmetric_ce(logits, target, ce_weight=1.0, rce_weight=0.0)
    assert_close(alone, bce_with_logits(logits, target), rtol=0, atol=0)
    alone = symmetric_ce(logits, target, ce_weight=0.0, log_zero=-2.5)
    assert_close(alone, 2.5 * (logits.sigmoid() - target).abs())


def test_without_cross_entropy_no_mistake_costs_more_than_the_least_logarithm():  # 0 times an infinite loss is NaN
    logits = torch.tensor([-torch.inf, torch.inf])
    losses = symmetric_ce(logits, torch.tensor([1, 0]), ce_weight=0, log_zero=-2.5)
    assert_close(losses, torch.full((2,), 2.5), rtol=0, atol=0)


def test_a_confident_mistake_keeps_the_gradient_of_its_cross_entropy():
    logits = torch.tensor([-1e4, -60.0, -30.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(symmetric_ce(logits, torch.ones(3)).sum(), logits)
    assert_close(gradient, torch.full((3,), -0.1))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_hard_label_has_a_finite_derivative_too(label):
    target = torch.full((3,), label).requires_grad_()
    (gradient,) = torch.autograd.grad(symmetric_ce(torch.tensor([-5.0, 0.0, 5.0]), target).sum(), target)
    assert gradient.isfinite().all()


def test_the_derived_values():
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    target = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert_close(SymmetricCELoss()(logits, target).item(), 2.1902192626, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    target = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert_close(SymmetricCELoss()(logits, target).item(), 1.6580359239, rtol=0, atol=1e-10)


def test_for_a_soft_label_the_minimum_lies_where_the_docstring_says():
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    at = p[symmetric_ce(p.logit(), torch.full_like(p, 0.3)).argmin()].item()
    assert f"near {at:.2f} for 0.3" in symmetric_ce.__doc__


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ce_weight", [-1.0, math.nan, math.inf, "2", None, True]),
        ("rce_weight", [-1.0, math.nan, math.inf, "2", None, True]),
        ("log_zero", [0.0, 4.0, math.nan, -math.inf, "-4", None, True]),
    ],
)
def test_an_impossible_hyper_parameter_is_refused(name, values):
    for make in (SymmetricCELoss, lambda **options: symmetric_ce(torch.zeros(1), torch.zeros(1), **options)):
        for value in values:
            with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
                make(**{name: value})


def test_no_term_at_all_is_refused():
    with pytest.raises(ValueError, match=r"both 0: .* Give one"):
        SymmetricCELoss(ce_weight=0, rce_weight=0.0)
