"""Label smoothing: cross-entropy of the smoothed label, and which amounts go together."""

import math

import pytest
import torch
from mpmath import mp
from torch.testing import assert_close

from lightning_bce import SmoothedBCELoss, bce_with_logits, smoothed_bce

AMOUNTS = [
    {},
    {"smoothing": 0.2},
    {"positive_smoothing": 0.3},
    {"negative_smoothing": 0.05},
    {"positive_smoothing": 0.2, "negative_smoothing": 1e-9},
]


def both(smoothing=0.1, positive_smoothing=None, negative_smoothing=None):
    if positive_smoothing is None and negative_smoothing is None:
        return smoothing / 2, smoothing / 2
    return positive_smoothing or 0.0, negative_smoothing or 0.0


@pytest.mark.parametrize("amounts", AMOUNTS, ids=str)
def test_it_is_cross_entropy_of_the_smoothed_label(amounts):
    lost, gained = both(**amounts)
    logits, target = (3 * torch.randn(257).double()).requires_grad_(), torch.rand(257).double().round(decimals=1)
    smoothed = torch.where(target == 1, 1 - lost, torch.where(target == 0, gained, target))
    smoothed = torch.where((target > 0) & (target < 1), target * (1 - lost) + (1 - target) * gained, smoothed)
    p = logits.sigmoid()
    losses, naive = smoothed_bce(logits, target, **amounts), -smoothed * p.log() - (1 - smoothed) * (1 - p).log()
    assert_close(losses, naive)
    upstream = torch.randn_like(losses)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (losses, naive)))


def test_one_amount_takes_half_from_each_side():
    logits, target = 3 * torch.randn(257), torch.rand(257)
    halves = smoothed_bce(logits, target, positive_smoothing=0.1, negative_smoothing=0.1)
    assert_close(smoothed_bce(logits, target, smoothing=0.2), halves, rtol=0, atol=0)
    assert_close(smoothed_bce(logits, target), smoothed_bce(logits, target, smoothing=0.1), rtol=0, atol=0)
    assert_close(smoothed_bce(logits, target), bce_with_logits(logits, target * 0.9 + 0.05))


@pytest.mark.parametrize("amounts", [{"smoothing": 0}, {"positive_smoothing": 0.0}, {"negative_smoothing": 0.0}])
def test_without_smoothing_it_is_bce(amounts):
    logits = torch.cat([9 * torch.randn(257), torch.tensor([torch.inf, -torch.inf])])
    target = torch.cat([torch.randint(0, 2, (257,)), torch.tensor([1, 0])]).float()
    assert_close(smoothed_bce(logits, target, **amounts), bce_with_logits(logits, target), rtol=0, atol=0)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("amounts", AMOUNTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, amounts, label):
    def reference(logit, target):
        with mp.workdps(50):
            lost, gained = map(mp.mpf, both(**amounts))
            smoothed = target * (1 - lost) + (1 - mp.mpf(target)) * gained
            return exact.bce(logit, smoothed)

    error = exact.errors(lambda x, y: smoothed_bce(x, y, **amounts), reference, label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_the_derived_values():
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    target = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert_close(SmoothedBCELoss(smoothing=0.1)(logits, target).item(), 1.0810790074, rtol=0, atol=1e-10)
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    target = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert_close(SmoothedBCELoss()(logits, target).item(), 1.9021926258, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("amounts", AMOUNTS[:-1], ids=str)
def test_the_minimum_lies_at_the_smoothed_label(amounts, label):
    lost, gained = both(**amounts)
    smoothed = label * (1 - lost) + (1 - label) * gained
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    losses = smoothed_bce(p.logit(), torch.full_like(p, label), **amounts)
    assert math.isclose(p[losses.argmin()].item(), smoothed, abs_tol=3e-4)


@pytest.mark.parametrize("name", ["smoothing", "positive_smoothing", "negative_smoothing"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, math.nan, math.inf, "0.1", True])
def test_an_amount_outside_its_range_is_refused(name, value):
    for make in (SmoothedBCELoss, lambda **amounts: smoothed_bce(torch.zeros(1), torch.zeros(1), **amounts)):
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            make(**{name: value})


@pytest.mark.parametrize("other", ["positive_smoothing", "negative_smoothing"])
@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_one_amount_and_a_separate_one_are_refused(other, amount):
    with pytest.raises(ValueError, match=r"and smooths both sides.*Give both of these, or `smooth"):
        SmoothedBCELoss(**{"smoothing": 0.1, other: amount})


def test_amounts_that_would_exchange_the_sides_are_refused():
    with pytest.raises(ValueError, match=r"`positive_smoothing` is 0\.4 and `negative_smoothing` 0\.6: .* below 1"):
        SmoothedBCELoss(positive_smoothing=0.4, negative_smoothing=0.6)
    SmoothedBCELoss(positive_smoothing=0.5, negative_smoothing=0.4)
