"""Generalized cross-entropy: the paper's formula, naively and to 50 digits, and the two losses at its ends."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import GeneralizedCELoss, bce_with_logits, generalized_ce

AMOUNTS = [1e-6, 0.1, 0.5, 0.7, 1.0]


def naive(logits, target, q):
    p = logits.sigmoid()
    return target * (1 - p**q) / q + (1 - target) * (1 - (1 - p) ** q) / q


def exactly(q):
    def positive(z):
        return -mp.expm1(-mpf(q) * mp.log1p(mp.exp(-z))) / mpf(q)

    return positive, lambda z: positive(-z)


@pytest.mark.parametrize("q", AMOUNTS[1:])
def test_it_is_the_formula_of_the_paper(q):
    logits = (2 * torch.randn(257).double()).requires_grad_()
    for target in (torch.randint(0, 2, (257,)).double(), torch.rand(257).double()):
        ours, theirs = generalized_ce(logits, target, q=q), naive(logits, target, q)
        assert_close(ours, theirs)
        upstream = torch.randn_like(ours)
        assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("q", AMOUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, q, label):
    sides = exactly(q)
    error = exact.errors(lambda x, y: generalized_ce(x, y, q=q), lambda z, t: exact.sides(*sides, z, t), label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_at_its_ends_it_is_bce_and_the_absolute_error():
    logits, target = 9 * torch.randn(257), torch.randint(0, 2, (257,)).float()
    assert_close(generalized_ce(logits, target, q=0), bce_with_logits(logits, target), rtol=0, atol=0)
    assert_close(generalized_ce(logits, target, q=1e-9), bce_with_logits(logits, target))
    assert_close(generalized_ce(logits, target, q=1.0), (logits.sigmoid() - target).abs())


def test_no_mistake_costs_more_than_one_over_q_and_its_gradient_fades():
    logits = torch.tensor([-1e4, -60.0]).requires_grad_()
    losses = generalized_ce(logits, torch.ones(2), q=0.5)
    assert losses.tolist() == [2.0, 2.0]
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert_close(gradient, torch.tensor([0.0, -math.exp(-30)]), rtol=1e-6, atol=0)


def test_the_derived_values():
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    target = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert_close(GeneralizedCELoss()(logits, target).item(), 0.6471722570, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    target = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert_close(GeneralizedCELoss()(logits, target).item(), 0.4885796192, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("q", [0.3, 0.7])
def test_for_a_soft_label_the_minimum_lies_beyond_it(q, label):
    logits = torch.linspace(-9, 9, 18001, dtype=torch.float64)
    at = logits[generalized_ce(logits, torch.full_like(logits, label), q=q).argmin()].item()
    assert math.isclose(at, math.log(label / (1 - label)) / (1 - q), abs_tol=2e-3)


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf, "0.7", None, True])
def test_an_impossible_amount_is_refused(q):
    for make in (GeneralizedCELoss, lambda **options: generalized_ce(torch.zeros(1), torch.zeros(1), **options)):
        with pytest.raises((ValueError, TypeError), match="`q` is"):
            make(q=q)
