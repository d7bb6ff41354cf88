"""The pieces that losses are made of, by themselves: at the ends of their ranges, and for derivatives."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce.losses.stable import by_target, first_order, folded, in_dtype, power, softplus


def test_a_hard_label_takes_one_side_whatever_the_other_is():
    target = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0])
    positive = torch.tensor([2.0, math.inf, 4.0, math.nan, math.nan])
    negative = torch.tensor([math.inf, 3.0, 2.0, 1.0, 7.0])
    found = by_target(target, positive, negative)
    assert found[:3].tolist() == [2.0, 3.0, 3.0]
    assert found[3].isnan() and found[4] == 7.0  # what is not looked at stays out, and what is stays in


@pytest.mark.parametrize("value", [3.0, 0.1, -0.1, 1e-40, 1e30, 7, 0, 1 / 3, 2**-126, 1 - 2**-30])
def test_a_number_is_rounded_as_float32_rounds_it(value):
    nearest = torch.tensor(value, dtype=torch.float32).item()
    assert in_dtype(value, torch.float32) == (nearest if abs(value) >= 2**-126 or value == 0 else pytest.approx(value))
    assert in_dtype(value, torch.float64) == value


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0, 2.5, 4.0])
def test_a_power_is_right_down_to_the_smallest_numbers(exponent):
    log_base = torch.linspace(-87.0, 0.0, 2001).requires_grad_()
    base = log_base.detach().double().exp()
    found = power(base.float(), log_base, exponent)
    right = base.pow(exponent)
    normal = right >= torch.finfo(torch.float32).tiny
    assert_close(found.double()[normal], right[normal], rtol=1e-6, atol=0)
    assert bool((found[~normal] < 1.2e-38).all()) and bool(found.isfinite().all())
    (slope,) = torch.autograd.grad(found.sum(), log_base)
    assert_close(slope.double()[normal], exponent * right[normal], rtol=1e-6, atol=0)


@pytest.mark.parametrize("base", [0.0, 1e-45, 1e-39])
def test_the_power_of_what_rounds_to_nothing_keeps_its_derivative(base):
    """Where the base holds no digits any more, its logarithm does."""
    log_base = torch.tensor([-100.0], requires_grad=True)
    found = power(torch.tensor([base]), log_base, 0.5)
    (slope,) = torch.autograd.grad(found, log_base)
    assert_close(found, torch.tensor([math.exp(-50)]), rtol=4e-6, atol=0)
    assert_close(slope, torch.tensor([0.5 * math.exp(-50)]), rtol=4e-6, atol=0)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 5e-7), (torch.float64, 1e-14)], ids=str)
def test_probability_and_loss_of_a_negative_are_right_with_their_derivatives(dtype, within):
    logits = torch.cat([torch.linspace(-80, 80, 4001), torch.linspace(-1, 1, 2001)]).to(dtype).requires_grad_()
    wide = logits.detach().double()
    e = (-wide.abs()).exp()
    loss = torch.log1p(e) + wide.clamp(min=0)
    p = torch.where(wide > 0, 1 / (1 + e), e / (1 + e))
    for found, right, slope in (
        (first_order(logits).softplus, loss, p),
        (first_order(logits).p, p, e / (1 + e) ** 2),
        (softplus(logits), loss, p),
        (folded(logits).p, p, e / (1 + e) ** 2),
    ):
        assert_close(found.double(), right, rtol=within, atol=0)
        (derivative,) = torch.autograd.grad(found.sum(), logits)
        assert_close(derivative.double(), slope, rtol=within, atol=0)
