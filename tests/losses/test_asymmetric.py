"""Asymmetric loss: the paper's formula, naively and to 50 digits, its margin, and what it becomes without."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import AsymmetricLoss, asymmetric_loss, bce_with_logits, focal_loss

OPTIONS = [
    {},
    {"gamma_pos": 1.0},
    {"gamma_pos": 1.0, "clip": 0.0},
    {"gamma_neg": 0.0, "clip": 0.3},
    {"gamma_neg": 0.5, "gamma_pos": 0.5, "clip": 0.001},
    {"gamma_neg": 2.7, "gamma_pos": 3.3, "clip": 0.6},
]


def naive(logits, target, gamma_neg=4.0, gamma_pos=0.0, clip=0.05):
    p = logits.sigmoid()
    shifted = (p - clip).clamp(min=0)
    safe = torch.where(shifted > 0, shifted, 0.5)  # a power below 1 has no slope at 0
    negative = torch.where(shifted > 0, -(safe**gamma_neg) * (1 - safe).log(), 0.0)
    return -target * (1 - p) ** gamma_pos * p.log() + (1 - target) * negative


def exactly(gamma_neg=4.0, gamma_pos=0.0, clip=0.05):
    def positive(z):
        return (1 / (1 + mp.exp(z))) ** mpf(gamma_pos) * mp.log1p(mp.exp(-z))

    def negative(z):
        shifted = 1 / (1 + mp.exp(-z)) - mpf(clip)
        if shifted <= 0:
            return mpf(0)
        rest = 1 / (1 + mp.exp(z)) + mpf(clip)
        return -(shifted ** mpf(gamma_neg)) * mp.log(rest)

    return positive, negative


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_formula_of_the_paper(options):
    logits = (2 * torch.randn(257).double()).requires_grad_()
    for target in (torch.randint(0, 2, (257,)).double(), torch.rand(257).double()):
        losses, expected = asymmetric_loss(logits, target, **options), naive(logits, target, **options)
        assert_close(losses, expected)
        upstream = torch.randn_like(losses)
        assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (losses, expected)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, options, label):
    if label == 0 and options.get("clip", 0.05) == 0.6:
        pytest.skip("three quarters of the losses are 0")
    sides = exactly(**options)
    error = exact.errors(
        lambda x, y: asymmetric_loss(x, y, **options), lambda z, t: exact.sides(*sides, z, t), label, dtype
    )
    # In float64 the margin itself, a logit, is only known to its last digit, and the distance from it to fewer.
    assert error < (1e-6 if dtype == torch.float32 else 2e-13)


@pytest.mark.parametrize("clip", [0.05, 0.5, 0.6])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_just_above_the_margin_no_digit_is_lost(exact, clip, gamma):
    margin = math.log(clip / (1 - clip))
    logits = (margin + torch.logspace(-4, 0, 33)).requires_grad_()
    losses = asymmetric_loss(logits, torch.zeros(33), gamma_neg=gamma, clip=clip)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    _, negative = exactly(gamma_neg=gamma, clip=clip)
    values, slopes, _ = zip(*(exact.sides(negative, negative, z, 0.0) for z in logits.tolist()), strict=True)
    assert max(exact.worst(losses, values), exact.worst(gradient, slopes)) < 1e-6


@pytest.mark.parametrize("gamma", [0.5, 1.0, 4.0])
def test_an_easy_negative_costs_nothing(gamma):
    logits = torch.linspace(-30, math.log(0.05 / 0.95) - 1e-6, 33).requires_grad_()
    losses = asymmetric_loss(logits, torch.zeros(33), gamma_neg=gamma)
    assert (losses == 0).all() and (torch.autograd.grad(losses.sum(), logits)[0] == 0).all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("clip", [0.05, 0.3, 0.5, 0.6])
def test_at_the_margin_itself_a_negative_costs_nothing_either(clip, gamma):
    for dtype in (torch.float32, torch.float64):
        margin = torch.tensor([math.log(clip) - math.log1p(-clip)], dtype=dtype, requires_grad=True)
        losses = asymmetric_loss(margin, torch.zeros(1), gamma_neg=gamma, clip=clip)
        (gradient,) = torch.autograd.grad(losses.sum(), margin)
        assert losses.item() == gradient.item() == 0


def test_without_margin_it_is_focal_loss_or_bce():
    logits, target = 9 * torch.randn(257), torch.randint(0, 2, (257,)).float()
    assert_close(asymmetric_loss(logits, target, gamma_neg=2, gamma_pos=2, clip=0), focal_loss(logits, target))
    assert_close(asymmetric_loss(logits, target, gamma_neg=0, clip=0), bce_with_logits(logits, target), rtol=0, atol=0)
    assert_close(  # a margin alone also is bce for the positives
        asymmetric_loss(logits, torch.ones(257)), bce_with_logits(logits, torch.ones(257)), rtol=0, atol=0
    )


def test_a_confident_mistake_keeps_its_gradient_and_with_a_margin_is_bounded():
    logits = torch.tensor([-1e4, -60.0, -19.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(asymmetric_loss(logits, torch.ones(3)).sum(), logits)
    assert_close(gradient, -torch.ones(3))
    (gradient,) = torch.autograd.grad(asymmetric_loss(-logits, torch.zeros(3), clip=0).sum(), logits)
    assert_close(gradient, -torch.ones(3))
    assert_close(asymmetric_loss(-logits, torch.zeros(3)), torch.full((3,), -(0.95**4) * math.log(0.05)))


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_detached_focus_changes_the_gradient_alone(clip):
    logits, target = (2 * torch.randn(257).double()).requires_grad_(), torch.randint(0, 2, (257,)).double()
    plain = asymmetric_loss(logits, target, gamma_pos=1.0, clip=clip)
    detached = asymmetric_loss(logits, target, gamma_pos=1.0, clip=clip, detach_focus=True)
    assert_close(plain, detached, rtol=0, atol=0)
    p = logits.sigmoid()
    shifted = (p - clip).clamp(min=0)
    slope = torch.where(target == 1, -((1 - p) ** 2), shifted**4 * p * (1 - p) / (1 - shifted) * (shifted > 0))
    module = AsymmetricLoss(gamma_pos=1.0, clip=clip, detach_focus=True, reduction="sum")
    for loss in (detached.sum(), module(logits, target)):
        assert_close(torch.autograd.grad(loss, logits)[0], slope.detach())


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, 1.3339380192, 0.7853685407),
        ({"gamma_pos": 1.0}, 1.2694791537, 0.6951796192),
        ({"gamma_pos": 1.0, "clip": 0.0}, 1.7061940953, 0.8454268704),
    ],
)
def test_the_derived_values(options, first, second):
    loss = AsymmetricLoss(**options)
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    assert_close(loss(logits, torch.tensor([[1, 0, 1], [0, 1, 0]])).item(), first, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    assert_close(loss(logits, torch.tensor([[1, 1, 0], [0, 1, 0]])).item(), second, rtol=0, atol=1e-10)


def test_for_a_soft_label_the_minimum_lies_where_the_docstring_says():
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    at = p[asymmetric_loss(p.logit(), torch.full_like(p, 0.3)).argmin()].item()
    assert f"near {at:.2f} for 0.3" in asymmetric_loss.__doc__


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("gamma_neg", [-1.0, math.nan, math.inf, "4", None, True]),
        ("gamma_pos", [-1.0, math.nan, math.inf, "4", None, True]),
        ("clip", [-0.05, 1.0, math.nan, "0", None, True]),
        ("detach_focus", [None, 1, "yes"]),
    ],
)
def test_an_impossible_hyper_parameter_is_refused(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            AsymmetricLoss(**{name: value})
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            asymmetric_loss(torch.zeros(1), torch.zeros(1), **{name: value})


def test_nothing_to_detach_is_refused():
    with pytest.raises(ValueError, match="nothing to detach"):
        AsymmetricLoss(gamma_neg=0, detach_focus=True)
