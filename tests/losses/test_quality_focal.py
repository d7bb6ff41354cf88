"""Quality focal loss: the paper's formula, naively and to 50 digits, and its minimum at the label."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import QualityFocalLoss, bce_with_logits, focal_loss, quality_focal_loss

BETAS = [0.5, 1.0, 1.5, 2.0, 3.3]


def naive(logits, target, beta):
    p = logits.sigmoid()
    return (target - p).abs() ** beta * (-target * p.log() - (1 - target) * (1 - p).log())


def exactly(logit, label, beta):
    with mp.workdps(50 + int(abs(logit))):
        z, t, b = map(mpf, (logit, label, beta))
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        away = p - t
        losses = t * mp.log1p(mp.exp(-z)) + (1 - t) * mp.log1p(mp.exp(z))
        slopes = [abs(away) ** b * away, b * abs(away) ** (b - 1) * mp.sign(away) * p * q * losses]
        # Near the label p - y is a small difference, as exact as the smaller pair it can be taken of.
        lost = max(1, b * min(max(p, t), max(q, 1 - t)) / abs(away)) if 0 < t < 1 else 1
        value = abs(away) ** b * losses
        return value, mp.fsum(slopes), lost * mp.fsum(map(abs, slopes)), lost * value


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("beta", [0.0, *BETAS])
def test_it_is_the_formula_of_the_paper(beta, kind):
    logits = (2 * torch.randn(257).double()).requires_grad_()
    target = (torch.rand(257) if kind == "soft" else torch.randint(0, 2, (257,))).double()
    ours, theirs = quality_focal_loss(logits, target, beta=beta), naive(logits, target, beta)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3, 0.999, 1e-6])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, beta, label):
    def loss(logits, target):
        return quality_focal_loss(logits, target, beta=beta)

    error = exact.errors(loss, lambda z, t: exactly(z, t, beta), label, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("beta", [0.5, 2.0, 3.3])
def test_for_hard_labels_it_is_focal_loss(beta):
    logits, target = 30 * torch.randn(257), torch.randint(0, 2, (257,)).float()
    assert_close(quality_focal_loss(logits, target, beta=beta), focal_loss(logits, target, gamma=beta), rtol=0, atol=0)


def test_without_focus_it_is_bce():
    logits, target = 9 * torch.randn(257), torch.rand(257)
    bce = bce_with_logits(logits, target)
    assert_close(quality_focal_loss(logits, target, beta=0), bce, rtol=0, atol=0)
    assert_close(QualityFocalLoss(beta=0, reduction="none")(logits, target), bce, rtol=0, atol=0)


@pytest.mark.parametrize("label", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("beta", BETAS)
def test_for_a_soft_label_the_minimum_lies_at_the_label_and_is_zero(beta, label):
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    losses = quality_focal_loss(p.logit(), torch.full_like(p, label), beta=beta)
    assert math.isclose(p[losses.argmin()].item(), label, abs_tol=3e-4)
    assert losses.min() < 1e-6


@pytest.mark.parametrize("beta", BETAS)
def test_at_the_label_every_derivative_is_finite(beta):
    logits = torch.zeros(3, dtype=torch.float64).requires_grad_()
    losses = quality_focal_loss(logits, torch.full_like(logits, 0.5), beta=beta)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), logits)
    assert (losses == 0).all() and (gradient == 0).all() and curvature.isfinite().all()
    if beta == 2:
        assert_close(curvature, torch.full_like(curvature, 2 * 0.25**2 * math.log(2)))


@pytest.mark.parametrize("beta", BETAS)
def test_away_from_the_label_both_derivatives_are_right(beta):
    logits, target = torch.linspace(-5, 5, 7).double().requires_grad_(), torch.full((7,), 0.4).double()
    assert gradcheck(lambda x: quality_focal_loss(x, target, beta=beta), (logits,))
    assert gradgradcheck(lambda x: quality_focal_loss(x, target, beta=beta), (logits,))


@pytest.mark.parametrize("beta", [-1.0, math.nan, math.inf, "2", None, True])
def test_an_impossible_focus_is_refused(beta):
    for make in (QualityFocalLoss, lambda **options: quality_focal_loss(torch.zeros(1), torch.zeros(1), **options)):
        with pytest.raises((ValueError, TypeError), match="`beta` is"):
            make(beta=beta)
