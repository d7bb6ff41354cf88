"""Varifocal loss: the paper's formula, naively and to 50 digits, and what it becomes without weight and focus."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import VarifocalLoss, bce_with_logits, focal_loss, varifocal_loss

GAMMAS = [0.0, 0.5, 2.0, 3.3]


def naive(logits, target, weight, gamma):
    p = logits.sigmoid()
    positive = -target * (target * p.log() + (1 - target) * (1 - p).log())
    return torch.where(target > 0, positive, -weight * p**gamma * (1 - p).log())


def exactly(exact, logit, label, weight, gamma):
    with mp.workdps(50):
        factor = mpf(label) if label else mpf(weight)
        return tuple(factor * x for x in exact.focal(logit, label, 0.0 if label else gamma))


@pytest.mark.parametrize("weight", [0.0, 0.75, 3.0])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_it_is_the_formula_of_the_paper(gamma, weight):
    logits = (2 * torch.randn(257).double()).requires_grad_()
    target = (torch.rand(257) * torch.randint(0, 2, (257,))).double()
    ours = varifocal_loss(logits, target, negative_weight=weight, gamma=gamma)
    theirs = naive(logits, target, weight, gamma)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3, 0.001])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, gamma, label):
    def loss(logits, target):
        return varifocal_loss(logits, target, gamma=gamma, negative_weight=0.7)

    error = exact.errors(loss, lambda z, t: exactly(exact, z, t, 0.7, gamma), label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_for_hard_labels_it_is_bce_of_positives_and_focal_loss_of_negatives():
    logits, ones, zeros = 9 * torch.randn(257), torch.ones(257), torch.zeros(257)
    assert_close(varifocal_loss(logits, ones), bce_with_logits(logits, ones), rtol=0, atol=0)
    assert_close(varifocal_loss(logits, zeros), 0.75 * focal_loss(logits, zeros))
    target = torch.randint(0, 2, (257,)).float()
    plain = varifocal_loss(logits, target, negative_weight=1.0, gamma=0.0)
    assert_close(plain, bce_with_logits(logits, target), rtol=0, atol=0)


def test_a_confident_mistake_keeps_its_gradient():
    logits = torch.tensor([-1e4, -60.0, 60.0, 1e4]).requires_grad_()
    target = torch.tensor([1.0, 1.0, 0.0, 0.0])
    (gradient,) = torch.autograd.grad(varifocal_loss(logits, target).sum(), logits)
    assert_close(gradient, torch.tensor([-1.0, -1.0, 0.75, 0.75]))


def test_the_derived_values():
    loss = VarifocalLoss()
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    assert_close(loss(logits, torch.tensor([[1, 0, 1], [0, 1, 0]])).item(), 1.5902473526, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    assert_close(loss(logits, torch.tensor([[1, 1, 0], [0, 1, 0]])).item(), 0.8699812259, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label", [0.1, 0.3, 0.7])
def test_for_a_quality_the_minimum_lies_at_it(label):
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    losses = varifocal_loss(p.logit(), torch.full_like(p, label))
    assert math.isclose(p[losses.argmin()].item(), label, abs_tol=3e-4)


@pytest.mark.parametrize("name", ["negative_weight", "gamma"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "2", None, True])
def test_an_impossible_hyper_parameter_is_refused(name, value):
    for make in (VarifocalLoss, lambda **options: varifocal_loss(torch.zeros(1), torch.zeros(1), **options)):
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            make(**{name: value})
