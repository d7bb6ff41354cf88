"""ZLPR: the paper's sums as loops, its limits, and what it says of sides."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import ZLPRLoss, bce_with_logits, zlpr_loss


def loops(logits, target, mask):
    """Return the two terms of each row, written as in the paper."""
    rows = []
    for x, y, known in zip(logits.tolist(), target.tolist(), mask.tolist(), strict=True):
        negative = 1 + sum(math.exp(a) for a, b, k in zip(x, y, known, strict=True) if k and b == 0)
        positive = 1 + sum(math.exp(-a) for a, b, k in zip(x, y, known, strict=True) if k and b == 1)
        rows.append([math.log(negative), math.log(positive)])
    return torch.tensor(rows, dtype=torch.float64)


def test_it_is_the_papers_formula():
    logits, target = 3 * torch.randn(33, 7, dtype=torch.float64), torch.randint(0, 2, (33, 7))
    mask = torch.rand(33, 7) > 0.2
    assert_close(zlpr_loss(logits, target), loops(logits, target, torch.ones_like(mask)).sum(1))
    assert_close(zlpr_loss(logits, target, mask=mask), loops(logits, target, mask).sum(1))
    sums = ZLPRLoss().sums(logits, target, mask=mask)
    assert_close(sums.loss, loops(logits, target, mask).sum(0, keepdim=True))
    assert_close(sums.weight, torch.tensor([[16.5, 16.5]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("logits", "target", "expected"),  # by a second program: plain Python in float64
    [
        ([[5.0, -5.0, 0.0], [5.0, -5.0, 0.0]], [[1, 0, 1], [0, 1, 0]], 5.3616635452),
        ([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], [[1, 1, 0], [0, 1, 0]], 3.0143868904),
    ],
)
def test_two_programs_agree(logits, target, expected):
    loss = ZLPRLoss()(torch.tensor(logits, dtype=torch.float64), torch.tensor(target))
    assert loss.item() == pytest.approx(expected, abs=1e-10)


def test_of_one_label_it_is_cross_entropy():
    logits, target = torch.linspace(-200, 200, 257), torch.randint(0, 2, (257,))
    assert_close(ZLPRLoss(reduction="none")(logits, target), bce_with_logits(logits, target))


def test_turning_all_signs_and_labels_changes_nothing():
    logits, target = torch.randn(7, 5), torch.randint(0, 2, (7, 5))
    assert_close(zlpr_loss(-logits, 1 - target), zlpr_loss(logits, target))


def test_a_row_of_sure_and_right_labels_keeps_its_loss_and_its_gradient():  # 1 + 3e-9 is 1 in float32
    logits = torch.tensor([[-20.0, -21.0, 20.0]], requires_grad=True)
    exact = logits.detach().double().requires_grad_()
    target = torch.tensor([[0, 0, 1]])
    losses = [zlpr_loss(x, target) for x in (logits, exact)]
    assert losses[0] > 0
    assert_close(losses[0].double(), losses[1], rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss.sum(), x)[0] for loss, x in zip(losses, (logits, exact), strict=True)]
    assert_close(gradients[0].double(), gradients[1], rtol=1e-6, atol=0)


def test_far_from_zero_the_worst_label_is_the_loss():
    logits = torch.tensor([[1e4, -1e4, -1e4, 0.0]])
    assert_close(zlpr_loss(logits, torch.tensor([[0, 0, 1, 1]])), torch.tensor([2e4]))


def test_a_side_without_labels_costs_nothing():
    logits = torch.randn(7, 3)
    for label in (0, 1):
        sums = ZLPRLoss().sums(logits, torch.full((7, 3), label))
        assert sums.loss[0, 1 - label] == 0 and sums.loss[0, label] > 0


def test_a_dense_output_is_a_row_at_each_position():
    logits, target = torch.randn(2, 3, 5, 7), torch.randint(0, 2, (2, 3, 5, 7))
    losses = ZLPRLoss(reduction="none")(logits, target)
    for n, i, j in ((0, 0, 0), (1, 4, 6), (0, 2, 3)):
        assert_close(losses[n, i, j], zlpr_loss(logits[n, :, i, j], target[n, :, i, j]))
