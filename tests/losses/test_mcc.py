"""MCC: loops over the elements, the coefficient itself, symmetries, and rows that have no correlation."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_matthews_corrcoef

from lightning_bce import MCCLoss, mcc_loss


def one_row(x, y, smooth):
    tp = fp = fn = tn = 0.0
    for logit, label in zip(x, y, strict=True):
        p = 1 / (1 + math.exp(-logit))
        tp, fp = tp + p * label, fp + p * (1 - label)
        fn, tn = fn + (1 - p) * label, tn + (1 - p) * (1 - label)
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return 1 - (tp * tn - fp * fn) / (root + smooth)


@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_it_is_the_papers_formula(smooth):
    logits, target = 3 * torch.randn(33, 7, dtype=torch.float64), torch.randint(0, 2, (33, 7))
    rows = [one_row(x, y, smooth) for x, y in zip(logits.T.tolist(), target.T.tolist(), strict=True)]
    expected = torch.tensor(rows, dtype=torch.float64)
    assert_close(MCCLoss(smooth=smooth, reduction="none")(logits, target), expected, rtol=1e-12, atol=0)
    assert_close(MCCLoss(smooth=smooth)(logits, target), expected.mean())


def test_of_sure_predictions_it_is_one_minus_the_coefficient():
    logits, target = 1e4 * torch.randn(257), torch.randint(0, 2, (257,))
    coefficient = binary_matthews_corrcoef(logits, target)
    assert_close(MCCLoss()(logits, target), 1 - coefficient, rtol=1e-5, atol=1e-5)


def test_turning_both_sides_changes_nothing_and_turning_one_side_the_sign():
    logits, target = torch.randn(7, 33, dtype=torch.float64), torch.rand(7, 33, dtype=torch.float64).round()
    loss = mcc_loss(logits, target)
    assert_close(mcc_loss(-logits, 1 - target), loss)
    assert_close(mcc_loss(-logits, target), 2 - loss)


def test_predicting_one_side_everywhere_costs_one():
    target = torch.tensor([[1, 0, 0, 0, 0, 0, 0]])
    for logit in (-1e4, -90.0, 0.0, 90.0, 1e4):
        assert_close(mcc_loss(torch.full((1, 7), logit), target), torch.ones(1), rtol=0, atol=1e-5)


def test_at_the_soft_label_the_loss_is_zero():
    target = 0.02 + 0.96 * torch.rand(5, 7, dtype=torch.float64)
    loss = mcc_loss(target.logit(), target, smooth=1e-12)
    assert_close(loss, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-11)
    assert (mcc_loss(target.logit() + 0.1, target, smooth=1e-12) > 1e-5).all()


@pytest.mark.parametrize("label", [0, 1])
def test_a_label_with_one_side_does_not_count(label):
    logits, target = torch.randn(7, 2), torch.full((7, 2), label)
    target[:3, 1] = 1 - label
    assert MCCLoss().sums(logits, target).weight.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert_close(MCCLoss()(logits, target), MCCLoss()(logits[:, 1:], target[:, 1:]))


def test_a_rare_label_in_many_elements_is_no_overflow():
    logits = torch.full((1, 1_000_003), -8.0)
    target = torch.zeros(1, 1_000_003, dtype=torch.uint8)
    target[0, :3], logits[0, :3] = 1, 8.0
    assert_close(mcc_loss(logits, target).double(), mcc_loss(logits.double(), target), rtol=1e-4, atol=1e-6)


def test_smooth_out_of_range_is_refused():
    for value in (0, -1.0, math.nan, math.inf, "1", None, True):
        with pytest.raises((ValueError, TypeError), match="`smooth`"):
            MCCLoss(smooth=value)
        with pytest.raises((ValueError, TypeError), match="`smooth`"):
            mcc_loss(torch.zeros(1, 2), torch.zeros(1, 2), smooth=value)
