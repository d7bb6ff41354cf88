"""Brier score: its formula, naively and to 50 digits, and what makes it a proper score."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import BrierLoss, brier_loss


def exactly(logit, label):
    with mp.workdps(50 + int(abs(logit))):
        z, t = mpf(logit), mpf(label)
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        away, slope = p - t, 2 * (p - t) * p * q
        # Near the label p - y is a small difference, as exact as the smaller pair it can be taken of.
        lost = max(1, min(max(p, t), max(q, 1 - t)) / abs(away)) if 0 < t < 1 else 1
        return away**2, slope, lost * abs(slope), lost * away**2


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_it_is_the_squared_distance(kind):
    logits = (3 * torch.randn(257).double()).requires_grad_()
    target = (torch.rand(257) if kind == "soft" else torch.randint(0, 2, (257,))).double()
    ours, theirs = brier_loss(logits, target), (logits.sigmoid() - target).square()
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3, 0.999, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label):
    assert exact.errors(brier_loss, exactly, label, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


def test_as_a_distance_from_one_the_same_test_fails():  # what the two sides are for
    assert (torch.tensor(20.0).sigmoid() - 1).square() == 0 < brier_loss(torch.tensor(20.0), torch.tensor(1.0))


def test_changing_sides_changes_nothing():
    logits, target = 30 * torch.randn(257), torch.rand(257)
    assert_close(brier_loss(logits, target), brier_loss(-logits, 1 - target))


def test_no_mistake_costs_more_than_one():
    logits = torch.tensor([-1e4, -math.inf])
    assert brier_loss(logits, torch.ones(2)).tolist() == brier_loss(-logits, torch.zeros(2)).tolist() == [1.0, 1.0]


def test_the_derived_values():
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    target = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert_close(BrierLoss()(logits, target).item(), 0.4122346289, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    target = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert_close(BrierLoss()(logits, target).item(), 0.3106485250, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label", [0.1, 0.5, 0.7])
def test_the_minimum_lies_at_the_label_and_for_many_at_their_mean(label):
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    one, zero = (brier_loss(p.logit(), torch.full_like(p, side)) for side in (1.0, 0.0))
    for losses in (brier_loss(p.logit(), torch.full_like(p, label)), label * one + (1 - label) * zero):
        assert math.isclose(p[losses.argmin()].item(), label, abs_tol=3e-4)
