"""Pairwise ranking: double loops over the pairs, what order alone decides, and rows without pairs."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import PairwiseLoss, pairwise_loss

SURROGATES = ["log_sum_exp", "logistic", "squared_hinge"]


def one_row(x, y, known, surrogate, margin):
    pairs = [
        x[j] - x[i] for i in range(len(x)) for j in range(len(x)) if known[i] and known[j] and y[i] == 1 and y[j] == 0
    ]
    if not pairs:
        return 0.0
    if surrogate == "log_sum_exp":
        return math.log(1 + sum(math.exp(d) for d in pairs))
    if surrogate == "logistic":
        return sum(math.log(1 + math.exp(d)) for d in pairs) / len(pairs)
    return sum(max(0.0, margin + d) ** 2 for d in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("surrogate", "margin"),
    [("log_sum_exp", None), ("logistic", None), ("squared_hinge", None), ("squared_hinge", 2.5)],
)
def test_it_is_the_papers_formula(surrogate, margin):
    logits, target = 2 * torch.randn(33, 7, dtype=torch.float64), torch.randint(0, 2, (33, 7))
    mask = torch.rand(33, 7) > 0.2
    target[3], target[4] = 0, 1
    lists = (t.tolist() for t in (logits, target, mask))
    rows = [one_row(x, y, k, surrogate, margin or 1.0) for x, y, k in zip(*lists, strict=True)]
    expected = torch.tensor(rows, dtype=torch.float64)
    options = {"surrogate": surrogate, "margin": margin}
    assert_close(pairwise_loss(logits, target, mask=mask, **options), expected)
    assert_close(PairwiseLoss(reduction="none", **options)(logits, target, mask=mask), expected)
    counted = sum(row > 0 for row in rows) if surrogate != "squared_hinge" else None
    if counted is not None:
        assert_close(PairwiseLoss(**options)(logits, target, mask=mask), expected.sum() / counted)
    by_label = PairwiseLoss(reduction="none", batch=True, **options)(logits.T, target.T, mask=mask.T)
    assert_close(by_label, expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_only_differences_count(surrogate):
    logits, target = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 2, (7, 5))
    loss = pairwise_loss(logits, target, surrogate=surrogate)
    assert_close(pairwise_loss(logits + 3, target, surrogate=surrogate), loss)
    assert_close(pairwise_loss(-logits, 1 - target, surrogate=surrogate), loss)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_positive_is_pulled_up_and_a_negative_down(surrogate):
    logits, target = (0.1 * torch.randn(7, 5)).requires_grad_(), torch.tensor([[1, 0, 1, 0, 0]]).expand(7, 5)
    (gradient,) = torch.autograd.grad(pairwise_loss(logits, target, surrogate=surrogate).sum(), logits)
    assert ((gradient < 0) == (target == 1)).all()


def test_of_one_pair_the_two_logarithms_are_the_same():
    logits, target = torch.randn(7, 2), torch.tensor([[1, 0]]).expand(7, 2)
    assert_close(pairwise_loss(logits, target), pairwise_loss(logits, target, surrogate="logistic"))


def test_beyond_the_margin_the_hinge_is_zero():
    logits, target = torch.tensor([[3.0, 0.0], [3.0, 2.5]]), torch.tensor([[1, 0], [1, 0]])
    assert pairwise_loss(logits, target, surrogate="squared_hinge").tolist() == [0.0, 0.25]
    assert pairwise_loss(logits, target, surrogate="squared_hinge", margin=4.0).tolist() == [1.0, 12.25]
    assert PairwiseLoss(surrogate="squared_hinge", margin=0.75, reduction="none")(logits, target).tolist() == [
        0.0,
        0.0625,
    ]


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("label", [0, 1])
def test_a_row_without_pairs_does_not_count(surrogate, label):
    logits, target = torch.randn(7, 5), torch.full((7, 5), label)
    target[2, 3] = 1 - label
    loss = PairwiseLoss(surrogate=surrogate)
    assert loss.sums(logits, target).weight.tolist() == [[0.0, 1.0]]
    assert_close(loss(logits, target), loss(logits[2:3], target[2:3]))


def test_one_label_is_ranked_over_the_batch_only():
    logits, target = torch.randn(7, 1), torch.randint(0, 2, (7, 1))
    PairwiseLoss(batch=True)(logits, target)
    for values in (logits, logits[:, 0]):
        with pytest.raises(ValueError, match="use `batch=True`"):
            PairwiseLoss()(values, target.reshape(values.shape))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("surrogate", ["hinge", None, 1]),
        ("margin", [1.0]),  # of the squared hinge only
        ("batch", [1, None, "True"]),
    ],
)
def test_an_option_without_effect_or_out_of_range_is_refused_by_its_name(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            PairwiseLoss(**{name: value})
    with pytest.raises(ValueError, match="one of log_sum_exp, logistic, squared_hinge"):
        PairwiseLoss(surrogate="hinge")
    for margin in (0, -1.0, math.nan, math.inf, "1", True):
        with pytest.raises((ValueError, TypeError), match="`margin`"):
            PairwiseLoss(surrogate="squared_hinge", margin=margin)
        with pytest.raises((ValueError, TypeError), match="`margin`"):
            pairwise_loss(torch.zeros(2), torch.zeros(2), surrogate="squared_hinge", margin=margin)
