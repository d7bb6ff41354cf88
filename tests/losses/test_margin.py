"""Margin cross-entropy: its formula, where its minimum lies, and labels never seen."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import MarginBCELoss, bce_with_logits, margin_bce

COUNTS = [900, 40, 300]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("max_margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rest", [(), (5,), (2, 3)], ids=str)
def test_it_is_the_formula(max_margin, scale, rest):
    logits, target = torch.randn(7, 3, *rest).double().requires_grad_(), torch.rand(7, 3, *rest).double()
    ours = margin_bce(logits, target, counts=COUNTS, max_margin=max_margin, scale=scale)
    roots = [n**-0.25 for n in COUNTS]
    margin = torch.tensor([max_margin * r / max(roots) for r in roots], dtype=torch.float64)
    p = torch.sigmoid(scale * (logits - target * margin.reshape(3, *[1] * len(rest))))
    theirs = -target * p.log() - (1 - target) * (1 - p).log()
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


def test_without_a_margin_it_is_bce():
    logits, target = 9 * torch.randn(33, 3), torch.rand(33, 3)
    assert_close(
        margin_bce(logits, target, counts=COUNTS, max_margin=0), bce_with_logits(logits, target), rtol=0, atol=0
    )
    for scale in (0.25, 4.0):
        scaled = margin_bce(logits, target, counts=COUNTS, max_margin=0, scale=scale)
        assert_close(scaled, bce_with_logits(scale * logits, target), rtol=0, atol=0)


def test_negatives_have_no_margin():
    logits = 9 * torch.randn(33, 3)
    assert_close(
        margin_bce(logits, torch.zeros(33, 3), counts=COUNTS, max_margin=3.0),
        bce_with_logits(logits, torch.zeros(33, 3)),
        rtol=0,
        atol=0,
    )


def test_the_margin_falls_with_the_fourth_root_and_the_rarest_label_has_the_largest():
    expected = torch.nn.functional.softplus(torch.tensor([[0.6, 0.3, 0.2]]).double())
    for rarest in (0.5, 1, 7):
        counts = [rarest, rarest * 16, rarest * 81]
        zero_loss = margin_bce(torch.zeros(1, 3).double(), torch.ones(1, 3), counts=counts, max_margin=0.6)
        assert_close(zero_loss, expected)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_at_a_mixture_of_hard_labels_the_minimum_lies_above_the_logit_of_their_rate(rate):
    keep = math.exp(-0.7)  # with a = exp(x): rate (1 + a) = (1 - rate) a (1 + a keep)
    root = math.sqrt((1 - 2 * rate) ** 2 + 4 * rate * (1 - rate) * keep)
    best = math.log((root - (1 - 2 * rate)) / (2 * (1 - rate) * keep))
    assert best > math.log(rate / (1 - rate))
    if rate == 0.5:
        assert best == pytest.approx(0.35)
    logits = torch.full((2,), best, dtype=torch.float64, requires_grad=True)
    losses = margin_bce(logits, torch.tensor([0, 1]), counts=7, max_margin=0.7)
    (gradient,) = torch.autograd.grad((losses * torch.tensor([1 - rate, rate], dtype=torch.float64)).sum(), logits)
    assert abs(gradient.sum().item()) < 1e-15


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_for_a_soft_label_the_minimum_is_where_the_docstring_says(scale):
    target = torch.rand(7).double()
    logits = (target.logit() / scale + target * 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(margin_bce(logits, target, counts=7, scale=scale).sum(), logits)
    assert_close(gradient, torch.zeros(7).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label, scale):
    def reference(logit, label):  # against the moved and scaled logit, which is rounded
        moved = scale * (torch.tensor(logit, dtype=dtype) - torch.tensor(label, dtype=dtype) * 0.5)
        return exact.bce(moved.item(), label)

    def loss(logits, target):
        losses = margin_bce(logits, target, counts=40, scale=scale)
        # The gradient is that of the scaled logit, times the scale.
        return losses.detach() + (losses - losses.detach()) / scale

    assert exact.errors(loss, reference, label, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_all_derivatives_are_finite_and_a_confident_mistake_keeps_its_gradient(scale):
    logits = torch.tensor([-1e4, 0.0, 1e4]).requires_grad_()
    for label, slope in ((0.0, scale), (1.0, -scale)):
        losses = margin_bce(logits, torch.full_like(logits, label), counts=3, scale=scale)
        (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.sum(), logits)
        assert all(values.isfinite().all() for values in (losses, gradient, curvature))
        assert gradient[2 if label == 0 else 0] == slope


def test_a_label_never_seen_counts_half_a_sample():
    logits, target = torch.randn(7, 3), torch.ones(7, 3)
    never, half = (margin_bce(logits, target, counts=[n, 40, 300]) for n in (0, 0.5))
    assert_close(never, half, rtol=0, atol=0)
    assert never.isfinite().all()
    nothing = margin_bce(logits, target, counts=[0, 0, 0])
    assert_close(nothing, margin_bce(logits, target, counts=7), rtol=0, atol=0)


@pytest.mark.parametrize("given", [tuple, torch.tensor, lambda c: torch.tensor(c).float()])
def test_lists_and_tensors_of_counts_mean_the_same(given):
    logits, target = torch.randn(7, 3), torch.rand(7, 3)
    listed = margin_bce(logits, target, counts=COUNTS)
    assert_close(margin_bce(logits, target, counts=given(COUNTS)), listed)
    loss = MarginBCELoss(counts=given(COUNTS), reduction="none")
    assert_close(loss(logits, target), listed, rtol=0, atol=0)
    assert loss.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("counts", [-1, [3, -1], [math.nan], [math.inf], [[1]], [], "1", None]),
        ("max_margin", [-0.5, math.nan, math.inf, "1", None, True]),
        ("scale", [0, -1.0, math.nan, math.inf, "1", None, True]),
    ],
)
def test_impossible_arguments_are_refused(name, values):
    for value in values:
        options = {"counts": 7} | {name: value}
        for call in (
            lambda o=options: MarginBCELoss(**o),
            lambda o=options: margin_bce(torch.zeros(2, 2), torch.zeros(2, 2), **o),
        ):
            with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
                call()


def test_a_scale_of_zero_is_told_why():
    with pytest.raises(ValueError, match=r"^`scale` is 0, at which nothing is learnt; it must be above 0"):
        MarginBCELoss(counts=7, scale=0)


def test_the_number_of_counts_is_that_of_the_labels():
    for shape in ((7,), (7, 1), (7, 2), (3, 7)):
        with pytest.raises(ValueError, match="`counts` has 3 numbers"):
            MarginBCELoss(counts=COUNTS)(torch.zeros(shape), torch.zeros(shape))
