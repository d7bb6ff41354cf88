"""Soft F1: loops over the elements, its neighbour Dice, and its limit, the F1 error."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import SoftF1Loss, dice_loss, soft_f1_loss


def one_row(x, y, beta, eta):
    tp = fp = fn = 0.0
    for logit, label in zip(x, y, strict=True):
        s = 1 / (1 + math.exp(-beta * (logit + eta)))
        tp, fp, fn = tp + s * label, fp + s * (1 - label), fn + (1 - s) * label
    return 1 - 2 * tp / (2 * tp + fn + fp)


@pytest.mark.parametrize(("beta", "eta"), [(1.0, 0.0), (9.0, 1.0), (0.5, -2.0)])
def test_it_is_the_papers_formula(beta, eta):
    logits, target = torch.randn(33, 7, dtype=torch.float64), torch.randint(0, 2, (33, 7))
    rows = [one_row(x, y, beta, eta) for x, y in zip(logits.T.tolist(), target.T.tolist(), strict=True)]
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(SoftF1Loss(beta=beta, eta=eta, reduction="none")(logits, target), expected)
    assert_close(SoftF1Loss(beta=beta, eta=eta)(logits, target), expected.mean())


def test_two_programs_agree():  # the second one: plain Python in float64, a label without positives counts as 1 there
    first = torch.tensor([[5.0, -5.0, 0.0], [5.0, -5.0, 0.0]], dtype=torch.float64)
    assert SoftF1Loss()(first, torch.tensor([[1, 0, 1], [0, 1, 0]])).item() == pytest.approx(0.6072061360, abs=1e-10)
    second = torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64)
    ours = SoftF1Loss(reduction="sum")(second, torch.tensor([[1, 1, 0], [0, 1, 0]])).item()
    assert (ours + 1) / 3 == pytest.approx(0.5079162917, abs=1e-10)


def test_without_a_slope_and_an_offset_it_is_dice():
    logits, target = torch.randn(7, 33), torch.rand(7, 33)
    for smooth in (0.0, 1.0):
        assert_close(soft_f1_loss(logits, target, smooth=smooth), dice_loss(logits, target, smooth=smooth))
    steep = soft_f1_loss(logits, target, beta=3.0, eta=0.5)
    assert_close(steep, dice_loss(3 * (logits + 0.5), target, smooth=0.0))


def test_at_a_steep_slope_it_is_the_error_of_the_f1_score():
    logits, target = torch.randn(33, dtype=torch.float64), torch.randint(0, 2, (33,))
    decision = logits > -0.25
    hits = (decision & (target == 1)).sum()
    expected = 1 - 2 * hits / (decision.sum() + target.sum())
    loss = soft_f1_loss(logits, target, beta=1e6, eta=0.25)
    assert_close(loss, expected.double())


def test_a_soft_label_is_reached_exactly():
    target = 0.02 + 0.96 * torch.rand(5, 7, dtype=torch.float64)
    logits = target.logit() / 3 + 0.5
    loss = soft_f1_loss(logits, target, beta=3.0, eta=-0.5)
    assert_close(loss, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_label_without_positives_does_not_count_unless_smoothed():
    logits, target = torch.zeros(7, 2, requires_grad=True), torch.zeros(7, 2)
    target[:3, 1] = 1
    assert SoftF1Loss().sums(logits, target).weight.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    gradient = torch.autograd.grad(SoftF1Loss(smooth=1.0)(logits, target), logits)[0]
    assert (gradient[:, 0] > 0).all()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("beta", [0, -1.0, math.nan, math.inf, "1", None, True]),
        ("eta", [math.nan, math.inf, "1", None, True]),
        ("smooth", [-1.0, math.nan, math.inf, "1", None, True]),
    ],
)
def test_numbers_out_of_range_are_refused_by_their_name(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            SoftF1Loss(**{name: value})
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            soft_f1_loss(torch.zeros(1, 2), torch.zeros(1, 2), **{name: value})
