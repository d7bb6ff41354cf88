"""The article's three losses: its numbers, torch's loss on probabilities, and the formulas written naively."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BCEFocalLoss, BCELoss, WeightedBCELoss, bce, bce_focal, bce_with_logits, weighted_bce

EPS = 1e-5


@pytest.fixture
def article():
    """The batch whose losses the article prints."""
    torch.manual_seed(0)
    return torch.rand(2, 3), torch.tensor([[0, 0, 1], [1, 0, 0]])


def labels(kind, *shape):
    return torch.rand(shape).double() if kind == "soft" else torch.randint(0, 2, shape).double()


def with_edges(count):
    """Random probabilities with both ends among them."""
    p = torch.rand(count, dtype=torch.float64)
    p[:5], p[5:10] = 0.0, 1.0
    return p


# The numbers of the article are the specification: they may be pasted, with the digits it prints.
def test_the_elements_are_those_of_the_article(article):
    losses = BCELoss(reduction="none")(*article)
    assert_close(losses, torch.tensor([[0.6857, 1.4620, 2.4250], [2.0247, 0.3673, 1.0053]]), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("loss", "printed", "digit"),
    [(BCELoss(), 1.3283, 5e-5), (WeightedBCELoss(), 0.702869, 5e-7), (BCEFocalLoss(), 0.503796, 5e-7)],
    ids=["bce", "weighted", "focal"],
)
def test_the_mean_is_that_of_the_article(article, loss, printed, digit):
    assert_close(loss(*article), torch.tensor(printed), atol=digit, rtol=0)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_bce_is_torchs_loss_from_end_to_end(kind, dtype, reduction):
    p, target = with_edges(257).to(dtype), labels(kind, 257).to(dtype)
    weight = torch.rand(257, dtype=dtype)
    assert_close(BCELoss(reduction=reduction)(p, target), torch.nn.BCELoss(reduction=reduction)(p, target))
    theirs = torch.nn.BCELoss(weight, reduction=reduction)(p, target)
    assert_close(BCELoss(weight, reduction=reduction)(p, target), theirs)


def test_bce_has_torchs_gradient_inside():
    p, target = (0.001 + 0.998 * torch.rand(257).double()).requires_grad_(), labels("soft", 257)
    losses = bce(p, target), torch.nn.functional.binary_cross_entropy(p, target, reduction="none")
    upstream = torch.randn(257).double()
    assert_close(*(torch.autograd.grad(loss, p, upstream) for loss in losses))


def test_bce_holds_at_one_hundred_with_no_slope():
    p = torch.tensor([0.0, 1.0]).requires_grad_()
    losses = bce(p, torch.tensor([1.0, 0.0]))
    assert losses.tolist() == [100.0, 100.0]
    assert torch.autograd.grad(losses.sum(), p)[0].tolist() == [0.0, 0.0]


def test_bce_of_a_sigmoid_is_bce_of_its_logit():
    logits, target = 2 * torch.randn(257).double(), labels("soft", 257)
    assert_close(bce(logits.sigmoid(), target), bce_with_logits(logits, target))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("eps", [EPS, 1e-3])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 2.0, 5.0])
def test_the_weighted_losses_are_their_formulas(gamma, alpha, eps, kind):
    p, target = with_edges(257), labels(kind, 257)
    positive, negative = -(1 - alpha) * (p + eps).log(), -alpha * (1 - p + eps).log()
    if gamma is None:
        ours = weighted_bce(p, target, alpha=alpha, eps=eps)
    else:
        ours = bce_focal(p, target, gamma=gamma, alpha=alpha, eps=eps)
        positive, negative = (1 - p + eps) ** gamma * positive, (p + eps) ** gamma * negative
    assert_close(ours, target * positive + (1 - target) * negative)


def test_without_focus_the_focal_loss_is_the_weighted_one():
    p, target = with_edges(33), labels("hard", 33)
    assert_close(BCEFocalLoss(gamma=0.0)(p, target), WeightedBCELoss()(p, target))


def test_here_alpha_weighs_the_negatives():
    p = torch.tensor([0.3, 0.7]).double()
    assert (weighted_bce(p, torch.ones(2), alpha=1.0) == 0).all()
    assert (weighted_bce(p, torch.zeros(2), alpha=0.0) == 0).all()
    assert_close(weighted_bce(p, torch.zeros(2), alpha=1.0, eps=0.0), bce(p, torch.zeros(2)))


@pytest.mark.parametrize("function", [weighted_bce, bce_focal])
def test_eps_bounds_the_loss_on_both_ends(function):
    ends = torch.tensor([0.0, 1.0]).double()
    for target in (torch.zeros(2), torch.ones(2)):
        losses = function(ends, target)
        assert (losses <= -math.log(EPS) * 1.001).all()
        assert (losses >= -2 * EPS).all()  # a perfect prediction scores a little less than nothing, as documented


def test_plain_bce_is_never_negative():
    assert (bce(with_edges(257).float(), labels("soft", 257)) >= 0).all()


def test_a_float32_probability_near_one_keeps_the_digits_it_has():
    p = 1 - torch.tensor([2.0**-24, 2.0**-12])
    assert_close(bce(p, torch.ones(2)), -p.double().log().float(), rtol=3e-7, atol=0)
    assert_close(bce(p, torch.zeros(2)), -(1 - p.double()).log().float(), rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (weighted_bce, {"alpha": 1.5}),
        (weighted_bce, {"eps": -1.0}),
        (bce_focal, {"gamma": -1.0}),
        (bce_focal, {"alpha": -1}),
        (bce_focal, {"eps": -1.0}),
    ],
)
def test_a_wrong_hyper_parameter_is_refused_by_the_function_too(function, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        function(torch.zeros(1), torch.zeros(1), **wrong)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [(WeightedBCELoss, {"alpha": 1.5}), (WeightedBCELoss, {"eps": -1.0}), (BCEFocalLoss, {"eps": -1.0})],
)
def test_a_wrong_hyper_parameter_is_refused_where_the_module_is_made(loss, wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        loss(**wrong)


@pytest.mark.parametrize(
    ("loss", "function", "options"),
    [
        (WeightedBCELoss, weighted_bce, {"alpha": 0.9, "eps": 1e-3}),
        (BCEFocalLoss, bce_focal, {"gamma": 3.3, "alpha": 0.9, "eps": 1e-3}),
    ],
)
def test_the_module_hands_all_its_options_to_the_function(loss, function, options):
    p, target = with_edges(33), labels("soft", 33)
    assert_close(loss(**options, reduction="none")(p, target), function(p, target, **options), rtol=0, atol=0)


@pytest.mark.parametrize("function", [bce, weighted_bce, bce_focal])
def test_the_dtype_is_that_of_the_probabilities_whatever_the_target_has(function):
    assert function(torch.rand(7), torch.rand(7).double()).dtype == torch.float32


@pytest.mark.parametrize("loss", [BCELoss, WeightedBCELoss, BCEFocalLoss])
def test_they_say_that_they_take_probabilities(loss):
    assert loss.input_space == "probabilities"
