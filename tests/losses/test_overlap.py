"""Dice, Jaccard and Tversky: loops over the elements, each other's limits, and soft labels."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import DiceLoss, JaccardLoss, TverskyLoss, dice_loss, jaccard_loss, tversky_loss

FUNCTIONS = [dice_loss, jaccard_loss, tversky_loss]
# A second program's values: plain Python in float64, by the formula with products.
FIRST = ([[5.0, -5.0, 0.0], [5.0, -5.0, 0.0]], [[1, 0, 1], [0, 1, 0]])
SECOND = ([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], [[1, 1, 0], [0, 1, 0]])


def counts(x, y):
    """Return soft TP, FP and FN of one row of hard labels, by products."""
    tp = fp = fn = 0.0
    for logit, label in zip(x, y, strict=True):
        p = 1 / (1 + math.exp(-logit))
        tp, fp, fn = tp + p * label, fp + p * (1 - label), fn + (1 - p) * label
    return tp, fp, fn


@pytest.mark.parametrize("smooth", [0.0, 1e-5, 1.0, 3.0])
def test_they_are_the_papers_formulas_on_hard_labels(smooth):
    logits, target = 3 * torch.randn(7, 33, dtype=torch.float64), torch.randint(0, 2, (7, 33))
    rows = [counts(x, y) for x, y in zip(logits.tolist(), target.tolist(), strict=True)]
    for function, formula in (
        (dice_loss, lambda tp, fp, fn: 1 - (2 * tp + smooth) / (2 * tp + fp + fn + smooth)),
        (jaccard_loss, lambda tp, fp, fn: 1 - (tp + smooth) / (tp + fp + fn + smooth)),
        (tversky_loss, lambda tp, fp, fn: 1 - (tp + smooth) / (tp + 0.3 * fp + 0.7 * fn + smooth)),
    ):
        expected = torch.tensor([formula(*row) for row in rows], dtype=torch.float64)
        assert_close(function(logits, target, smooth=smooth), expected)


@pytest.mark.parametrize(
    ("data", "options", "expected"),
    [
        (FIRST, {"fp_weight": 0.5, "fn_weight": 0.5}, 0.5),
        (FIRST, {}, 0.5),
        (FIRST, {"gamma": 0.75}, 0.5946035575),
        (SECOND, {"fp_weight": 0.5, "fn_weight": 0.5}, 0.4141616591),
        (SECOND, {}, 0.4291765158),
        (SECOND, {"gamma": 0.75}, 0.5302454643),
    ],
)
def test_two_programs_agree(data, options, expected):
    logits, target = torch.tensor(data[0], dtype=torch.float64).reshape(-1, 1), torch.tensor(data[1]).reshape(-1, 1)
    assert TverskyLoss(smooth=0.0, **options)(logits, target).item() == pytest.approx(expected, abs=1e-10)


def test_dice_and_jaccard_are_tverskys():
    logits, target = torch.randn(7, 33), torch.rand(7, 33)
    assert_close(tversky_loss(logits, target, fp_weight=0.5, fn_weight=0.5, smooth=0.5), dice_loss(logits, target))
    assert_close(tversky_loss(logits, target, fp_weight=1, fn_weight=1), jaccard_loss(logits, target))
    dice = dice_loss(logits, target, smooth=0)
    assert_close(jaccard_loss(logits, target, smooth=0), 2 * dice / (1 + dice))


def test_focal_is_a_power():
    logits, target = torch.randn(7, 33), torch.rand(7, 33)
    plain = tversky_loss(logits, target)
    for gamma in (0.5, 0.75, 2, 3.5):
        assert_close(tversky_loss(logits, target, gamma=gamma), plain**gamma)


def test_a_dearer_error_costs_more_where_it_is_made():
    target = torch.tensor([[1, 1, 0, 0]])
    missed, alarmed = torch.tensor([[9.0, -9, -9, -9]]), torch.tensor([[9.0, 9, 9, -9]])
    for wrong, dear in ((missed, "fn_weight"), (alarmed, "fp_weight")):
        assert tversky_loss(wrong, target, **{dear: 0.9}) > 1.1 * tversky_loss(wrong, target, **{dear: 0.1})
    for wrong, other in ((missed, "fp_weight"), (alarmed, "fn_weight")):
        losses = [tversky_loss(wrong, target, **{other: price}) for price in (0.1, 0.9)]
        assert_close(*losses, rtol=1e-2, atol=0)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_at_the_soft_label_the_loss_is_zero_and_nowhere_else(function, smooth):
    target = 0.02 + 0.96 * torch.rand(5, 7, dtype=torch.float64)
    logits = target.logit()
    assert_close(function(logits, target, smooth=smooth), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-14)
    for step in (-0.1, 0.1):
        for place in range(7):
            moved = logits.clone()
            moved[:, place] += step
            assert (function(moved, target, smooth=smooth) > 1e-5).all()


def test_a_nearly_perfect_overlap_keeps_its_digits():  # 1 - a ratio would be 0 in float32
    logits, target = torch.tensor([[20.0, -20.0, 21.0]]), torch.tensor([[1, 0, 1]])
    for function in FUNCTIONS:
        narrow = logits.clone().requires_grad_()
        wide = logits.double().requires_grad_()
        losses = function(narrow, target), function(wide, target)
        assert losses[0] > 0
        assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(loss, x)[0] for loss, x in zip(losses, (narrow, wide), strict=True)]
        assert_close(gradients[0].double(), gradients[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 0.75, 1.0, 2.0])
def test_a_perfect_overlap_costs_nothing_and_pulls_nowhere(gamma):
    logits = torch.tensor([[200.0], [-200.0]], requires_grad=True)  # float32 has no smaller miss than 0 here
    loss = tversky_loss(logits, torch.tensor([[1.0], [0.0]]), gamma=gamma)
    (slope,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), logits)
    assert loss.sum() == 0 and not slope.any() and not bend.any()


@pytest.mark.parametrize("loss", [DiceLoss, JaccardLoss, TverskyLoss])
def test_a_label_without_positives_is_pulled_down_or_does_not_count(loss):
    logits, target = torch.zeros(7, 2, requires_grad=True), torch.zeros(7, 2)
    target[:3, 1] = 1
    assert (torch.autograd.grad(loss()(logits, target), logits)[0][:, 0] > 0).all()
    unsmoothed = loss(smooth=0.0)
    assert unsmoothed.sums(logits, target).weight.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert_close(unsmoothed(logits, target), unsmoothed(logits[:, 1:], target[:, 1:]))
    assert unsmoothed(logits[:, :1], target[:, :1]) == 0


@pytest.mark.parametrize("loss", [DiceLoss, JaccardLoss, TverskyLoss])
def test_a_row_is_a_label_over_the_batch_or_a_sample(loss):
    logits, target = torch.randn(7, 3, 5), torch.rand(7, 3, 5)
    by_label = loss(reduction="none")(logits, target)
    assert_close(by_label[1], loss()(logits[:, 1:2], target[:, 1:2]))
    by_sample = loss(reduction="none", batch=False)(logits, target)
    assert_close(by_sample[2], loss()(logits[2].reshape(-1, 1), target[2].reshape(-1, 1)))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("smooth", [-1.0, math.nan, math.inf, "1", None, True]),
        ("fp_weight", [-1.0, math.nan, math.inf, "1", None, True]),
        ("fn_weight", [0, 0.0, -1.0, math.nan, math.inf, "1", None, True]),
        ("gamma", [0, 0.0, -1.0, math.nan, math.inf, "1", None, True]),
        ("batch", [1, None, "True"]),
    ],
)
def test_numbers_out_of_range_are_refused_by_their_name(name, values):
    for value in values:
        for loss in (TverskyLoss, DiceLoss, JaccardLoss) if name in ("smooth", "batch") else (TverskyLoss,):
            with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
                loss(**{name: value})
        if name != "batch":
            for function in (tversky_loss, dice_loss, jaccard_loss) if name == "smooth" else (tversky_loss,):
                with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
                    function(torch.zeros(1, 2), torch.zeros(1, 2), **{name: value})
