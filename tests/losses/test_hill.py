"""Hill loss: the paper's formula, naively and to 50 digits, its bound, and its minimum for a soft label."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import HillLoss, focal_loss, hill_loss

OPTIONS = [
    {},
    {"lamb": 1.0, "margin": 0.0, "gamma": 0.0},
    {"lamb": 1.2, "margin": 0.3, "gamma": 0.5},
    {"lamb": 2.0, "margin": 2.7, "gamma": 3.3},
]


def naive(logits, target, lamb=1.5, margin=1.0, gamma=2.0):
    p, shifted = logits.sigmoid(), (logits - margin).sigmoid()
    return -target * (1 - shifted) ** gamma * shifted.log() + (1 - target) * (lamb - p) * p**2


def exactly(lamb=1.5, margin=1.0, gamma=2.0):
    def positive(z):
        return (1 / (1 + mp.exp(z - mpf(margin)))) ** mpf(gamma) * mp.log1p(mp.exp(mpf(margin) - z))

    def negative(z):
        p = 1 / (1 + mp.exp(-z))
        return (mpf(lamb) - p) * p**2

    return positive, negative


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_formula_of_the_paper(options):
    logits = (2 * torch.randn(257).double()).requires_grad_()
    for target in (torch.randint(0, 2, (257,)).double(), torch.rand(257).double()):
        ours, theirs = hill_loss(logits, target, **options), naive(logits, target, **options)
        assert_close(ours, theirs)
        upstream = torch.randn_like(ours)
        assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, options, label):
    positive, negative = exactly(**options)
    lamb = options.get("lamb", 1.5)

    def reference(logit, target):
        value, slope, terms = exact.sides(positive, negative, logit, target)
        with mp.workdps(50):  # off 1.5 the slope of a negative is itself a difference: p^2 q times 2 lamb - 3 p
            p, q = 1 / (1 + mp.exp(-mpf(logit))), 1 / (1 + mp.exp(mpf(logit)))
            apart = (1 - mpf(target)) * p**2 * q * (abs(2 * mpf(lamb) - 3) + 3 * q)
        return value, slope, max(terms, apart)

    error = exact.errors(lambda x, y: hill_loss(x, y, **options), reference, label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


def test_as_a_product_the_slope_of_a_mistake_is_lost():  # what the powers of 1 - p are for
    logits = torch.tensor([20.0]).requires_grad_()
    p, q = logits.sigmoid(), (-logits).sigmoid()
    (product,) = torch.autograd.grad((0.5 + q) * p**2, logits)
    (ours,) = torch.autograd.grad(hill_loss(logits, torch.zeros(1)), logits)
    assert_close(ours, 3 * q.square().detach(), rtol=1e-6, atol=0)
    assert abs(product.item() / ours.item() - 1) > 0.1


def test_positives_have_the_focal_loss_of_the_shifted_logit():
    logits, ones = 9 * torch.randn(257).double(), torch.ones(257).double()
    for gamma in (0.0, 0.5, 2.0):
        assert_close(hill_loss(logits, ones, gamma=gamma, margin=1.3), focal_loss(logits - 1.3, ones, gamma=gamma))
    assert_close(hill_loss(logits, ones, margin=0), focal_loss(logits, ones), rtol=0, atol=0)


def test_a_positive_keeps_its_gradient_and_a_negative_is_bounded():
    logits = torch.tensor([-1e4, -60.0, -30.0]).requires_grad_()
    (gradient,) = torch.autograd.grad(hill_loss(logits, torch.ones(3)).sum(), logits)
    assert_close(gradient, -torch.ones(3))
    negatives = hill_loss(-logits, torch.zeros(3), lamb=1.7)
    assert_close(negatives, torch.full((3,), 0.7))


@pytest.mark.parametrize("lamb", [1.0, 1.2])
def test_below_one_and_a_half_the_hill_has_its_top_where_the_docstring_says(lamb):
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert math.isclose(p[hill_loss(p.logit(), torch.zeros_like(p), lamb=lamb).argmax()], 2 / 3 * lamb, abs_tol=3e-4)


def test_the_derived_values():
    logits = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64)
    target = torch.tensor([[1, 0, 1], [0, 1, 0]])
    assert_close(HillLoss()(logits, target).item(), 1.2374504729, rtol=0, atol=1e-10)
    logits = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    target = torch.tensor([[1, 1, 0], [0, 1, 0]])
    assert_close(HillLoss()(logits, target).item(), 0.7054346219, rtol=0, atol=1e-10)


def test_for_a_soft_label_the_minimum_lies_where_the_docstring_says():
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    at = p[hill_loss(p.logit(), torch.full_like(p, 0.3)).argmin()].item()
    assert f"near {at:.2f} for 0.3" in hill_loss.__doc__


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("lamb", [0.9, -1.0, math.nan, math.inf, "2", None, True]),
        ("margin", [-1.0, math.nan, math.inf, "2", None, True]),
        ("gamma", [-1.0, math.nan, math.inf, "2", None, True]),
    ],
)
def test_an_impossible_hyper_parameter_is_refused(name, values):
    for make in (HillLoss, lambda **options: hill_loss(torch.zeros(1), torch.zeros(1), **options)):
        for value in values:
            with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
                make(**{name: value})
