"""Two-way loss: loops over samples and labels, a second program's values, and rows without a side."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import TwoWayLoss, two_way_loss


def one_row(pairs, positive, negative):
    """Return the loss of (logit, label) pairs, or None where none is positive."""
    low = sum(math.exp(-x / positive) for x, y in pairs if y == 1)
    high = sum(math.exp(x / negative) for x, y in pairs if y == 0)
    return math.log(1 + high**negative * low**positive) if low else None


def loops(logits, target, mask, positive, negative):
    total = 0.0
    for x, y, known in ((logits, target, mask), (logits.T, target.T, mask.T)):
        rows = [
            one_row([(a, b) for a, b, k in zip(*row, strict=True) if k], positive, negative)
            for row in zip(x.tolist(), y.tolist(), known.tolist(), strict=True)
        ]
        counted = [row for row in rows if row is not None]
        total += sum(counted) / len(counted)
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("temperatures", [(4.0, 1.0), (1.0, 1.0), (0.5, 3.0)])
def test_it_is_the_papers_formula(temperatures):
    logits, target = 3 * torch.randn(33, 7, dtype=torch.float64), (torch.rand(33, 7) < 0.2).long()
    target[:, 3] = 0  # a label without positives
    target[4], target[5] = 0, 1  # samples with one side only
    mask = torch.rand(33, 7) > 0.2
    positive, negative = temperatures
    for known in (torch.ones_like(mask), mask):
        expected = loops(logits, target, known, positive, negative)
        options = {"pos_temperature": positive, "neg_temperature": negative}
        assert_close(two_way_loss(logits, target, mask=known, **options), expected)
        loss = TwoWayLoss(**options)
        assert_close(loss(logits, target, mask=known), expected)
        sums = loss.sums(logits, target, mask=known)
        assert_close(sums.mean(), expected)
        assert sums.weight.tolist() == [[0.0, ((target == 1) & known).any(1).sum().item()]]


@pytest.mark.parametrize(
    ("temperatures", "data", "expected"),  # by a second program: plain Python in float64
    [
        ((4.0, 1.0), 0, 5.7056720236),
        ((1.0, 1.0), 0, 5.6999076241),
        ((4.0, 1.0), 1, 3.4081796999),
        ((1.0, 1.0), 1, 2.8167667259),
    ],
)
def test_two_programs_agree(temperatures, data, expected):
    logits = ([[5.0, -5.0, 0.0], [5.0, -5.0, 0.0]], [[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]])[data]
    target = ([[1, 0, 1], [0, 1, 0]], [[1, 1, 0], [0, 1, 0]])[data]
    loss = TwoWayLoss(pos_temperature=temperatures[0], neg_temperature=temperatures[1])
    assert loss(torch.tensor(logits, dtype=torch.float64), torch.tensor(target)).item() == pytest.approx(expected)


def test_the_two_ways_are_alike():
    logits, target = torch.randn(7, 5), torch.randint(0, 2, (7, 5))
    assert_close(two_way_loss(logits.T, target.T), two_way_loss(logits, target))


def test_only_differences_count():
    logits, target = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 2, (7, 5))
    options = {"pos_temperature": 1.0, "neg_temperature": 1.0}
    assert_close(two_way_loss(logits + 3, target, **options), two_way_loss(logits, target, **options))


def test_of_one_pair_it_is_the_logistic_loss_of_their_difference():
    logits, target = torch.tensor([[2.0, -1.0]]), torch.tensor([[0, 1]])
    assert_close(two_way_loss(logits, target), torch.tensor(3.0).exp().log1p())


def test_without_positives_it_is_zero_and_attached():
    logits = torch.randn(7, 5, requires_grad=True)
    loss = TwoWayLoss()
    value = loss(logits, torch.zeros(7, 5))
    assert value == 0 and (torch.autograd.grad(value, logits)[0] == 0).all()
    assert loss.sums(logits, torch.zeros(7, 5)).weight.sum() == 0


def test_a_single_label_is_ranked_over_the_batch():
    logits, target = torch.randn(7, requires_grad=True), torch.tensor([1, 0, 0, 1, 0, 0, 0])
    (gradient,) = torch.autograd.grad(TwoWayLoss()(logits, target), logits)
    assert ((gradient < 0) == (target == 1)).all()


def test_positions_are_rows_of_their_own():
    logits, target = torch.randn(2, 3, 5), torch.randint(0, 2, (2, 3, 5))
    flat = (t.movedim(1, -1).reshape(-1, 3) for t in (logits, target))
    assert_close(TwoWayLoss()(logits, target), two_way_loss(*flat))


@pytest.mark.parametrize("name", ["pos_temperature", "neg_temperature"])
def test_temperatures_out_of_range_are_refused_by_their_name(name):
    for value in (0, -1.0, math.nan, math.inf, "4", None, True):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            TwoWayLoss(**{name: value})
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            two_way_loss(torch.zeros(2, 3), torch.zeros(2, 3), **{name: value})


def test_the_function_wants_samples_and_labels():
    with pytest.raises(ValueError, match=r"\(N, C\), samples and their labels"):
        two_way_loss(torch.zeros(3), torch.zeros(3))
