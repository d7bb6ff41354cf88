"""Positive-unlabeled risk: loops over the elements, the risk of the true labels, and where value and gradient part."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import PositiveUnlabeledLoss, positive_unlabeled_loss

SURROGATES = ["sigmoid", "logistic"]


def cost(z, surrogate):
    return 1 / (1 + math.exp(z)) if surrogate == "sigmoid" else math.log(1 + math.exp(-z))


def mean(values):
    return sum(values) / len(values)


def one_row(x, y, known, prior, surrogate):
    """The positives' part and the risk of the negatives, or None where a side is missing."""
    positives = [z for z, label, there in zip(x, y, known, strict=True) if there and label == 1]
    unlabeled = [z for z, label, there in zip(x, y, known, strict=True) if there and label == 0]
    if not positives or not unlabeled:
        return None
    risk = mean([cost(-z, surrogate) for z in unlabeled]) - prior * mean([cost(-z, surrogate) for z in positives])
    return prior * mean([cost(z, surrogate) for z in positives]), risk


def low_and_high():
    """A row whose risk of the negatives is below 0, and one where it is not."""
    logits = torch.tensor([[3.0, 2.0, -4.0, -3.0, -5.0], [2.0, -1.0, 0.5, -3.0, 0.0]], dtype=torch.float64)
    return logits.requires_grad_(), torch.tensor([[1, 1, 0, 0, 0]] * 2)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("options", [{}, {"beta": 0.1, "gamma": 0.5}, {"non_negative": False}], ids=str)
def test_it_is_the_papers_formula(surrogate, options):
    logits, target = 3 * torch.randn(33, 7, dtype=torch.float64), torch.randint(0, 2, (33, 7))
    logits += 2 * target[:, :1]  # so that the risk of the negatives is below 0 in some
    mask, prior = torch.rand(33, 7) > 0.2, (0.2 + 0.6 * torch.rand(33)).tolist()
    target[3], target[4] = 0, 1
    lists = (t.tolist() for t in (logits, target, mask))
    parts = [one_row(*row, surrogate) for row in zip(*lists, prior, strict=True)]
    assert parts[3] is None and parts[4] is None and any(part and part[1] < -0.1 for part in parts)
    floor = -options.get("beta", 0.0) if options.get("non_negative", True) else -math.inf
    expected = torch.tensor([0.0 if p is None else p[0] + max(floor, p[1]) for p in parts], dtype=torch.float64)
    given = {"prior": prior, "surrogate": surrogate, **options}
    assert_close(positive_unlabeled_loss(logits, target, mask=mask, **given), expected)
    loss = PositiveUnlabeledLoss(reduction="none", **given)
    assert_close(loss(logits.T, target.T, mask=mask.T), expected)
    sums = loss.sums(logits.T, target.T, mask=mask.T)
    both = [(0.0, 0.0) if part is None else (max(floor, part[1]), part[0]) for part in parts]
    assert_close(sums.loss, torch.tensor(both, dtype=torch.float64))
    assert sums.weight.tolist() == [[0.5 * (part is not None)] * 2 for part in parts]


@pytest.mark.parametrize(
    ("logits", "prior", "positive_part", "risk"),
    [
        ([2.0, -1.0, 0.5, -3.0, 0.0], 0.4, 0.1700523001, 0.1600140349),
        ([2.0, -1.0, 0.5, -3.0, 0.0], 0.7, 0.2975915252, -0.0124467400),
        ([3.0, 2.0, -4.0, -3.0, -5.0], 0.5, 0.0416571988, -0.4343078232),
    ],
)
def test_two_programs_agree(logits, prior, positive_part, risk):
    logits, target = torch.tensor(logits, dtype=torch.float64), torch.tensor([1, 1, 0, 0, 0])
    for options, expected in (({}, max(0.0, risk)), ({"non_negative": False}, risk)):
        loss = PositiveUnlabeledLoss(prior=prior, **options)
        assert loss(logits, target).item() == pytest.approx(positive_part + expected, abs=2e-10)
        assert loss.sums(logits, target).loss[0].tolist() == pytest.approx([expected, positive_part], abs=1e-10)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_over_a_true_mixture_it_is_the_risk_of_the_true_labels(surrogate):
    positives, negatives = torch.randn(3, dtype=torch.float64) + 1, torch.randn(7, dtype=torch.float64) - 1
    logits = torch.cat([positives, positives, negatives])  # 3 positives among the 10 that are unlabelled
    target = torch.cat([torch.ones(3), torch.zeros(10)])
    right = sum(cost(z, surrogate) for z in positives.tolist()) + sum(cost(-z, surrogate) for z in negatives.tolist())
    for options in ({}, {"non_negative": False}):
        loss = positive_unlabeled_loss(logits, target, prior=0.3, surrogate=surrogate, **options)
        assert loss.item() == pytest.approx(right / 10, rel=1e-12)


def test_the_logistic_minimum_is_the_logit_of_the_probability():
    # Two kinds of elements: 3 of 4 positives are of the first kind, 1 of 4 negatives, and half of all are positive.
    kinds, target = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([1] * 4 + [0] * 8)
    best = torch.tensor([0.75, 0.25], dtype=torch.float64).logit().requires_grad_()
    for options in ({}, {"non_negative": False}):
        loss = positive_unlabeled_loss(best[kinds], target, prior=0.5, surrogate="logistic", **options)
        assert_close(torch.autograd.grad(loss, best)[0], torch.zeros_like(best), rtol=0, atol=1e-15)
    ways = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(positive_unlabeled_loss(ways[kinds], target, prior=0.5), ways)[0]
    assert slopes[0] < 0 < slopes[1]  # with sigmoid, on and on to the same sides


def test_the_two_sides_of_a_surrogate_add_up():
    logits, target = torch.randn(7, 33, dtype=torch.float64), torch.randint(0, 2, (7, 33))
    (positive, unlabeled), prior = ((target == 1), (target == 0)), 0.3

    def over(where, values):
        return torch.where(where, values, 0.0).sum(1) / where.sum(1)

    p = logits.sigmoid()
    of_sigmoid = 2 * prior * over(positive, 1 - p) - prior + over(unlabeled, p)  # l(z) + l(-z) = 1
    of_logistic = over(unlabeled, -(1 - p).log()) - prior * over(positive, logits)  # l(z) - l(-z) = -z
    for surrogate, expected in zip(SURROGATES, (of_sigmoid, of_logistic), strict=True):
        ours = positive_unlabeled_loss(logits, target, prior=prior, non_negative=False, surrogate=surrogate)
        assert_close(ours, expected)


# -- the step back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 1.0), (0.05, 0.3), (0.0, 0.0)])
def test_below_the_bound_the_value_is_the_bounded_one_and_the_gradient_a_step_back(surrogate, beta, gamma):
    logits, target = low_and_high()
    prior, options = 0.4, {"surrogate": surrogate, "beta": beta, "gamma": gamma}

    def risk(x):  # of the negatives
        costs = torch.sigmoid(x) if surrogate == "sigmoid" else (1 + x.exp()).log()
        return costs[:, 2:].mean(1) - prior * costs[:, :2].mean(1)

    low, high = risk(logits).detach()
    assert low < -beta < high
    losses = positive_unlabeled_loss(logits, target, prior=prior, **options)
    unbounded = positive_unlabeled_loss(logits, target, prior=prior, surrogate=surrogate, non_negative=False)
    assert_close(losses, torch.stack([unbounded[0] - low - beta, unbounded[1]]))
    upstream = torch.randn(2, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(losses, logits, upstream)
    (back,) = torch.autograd.grad(-gamma * risk(logits), logits, upstream)
    (true,) = torch.autograd.grad(unbounded, logits, upstream)
    assert_close(gradient, torch.stack([back[0], true[1]]))
    assert gamma == 0 or (gradient[0] * true[0] <= 0)[2:].all()  # the unlabelled are raised that were lowered


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_where_the_bound_does_not_hold_anything_the_gradient_is_that_of_the_value(surrogate):
    logits, target = low_and_high()

    def above(x):
        return positive_unlabeled_loss(x, target[1:], prior=0.3, surrogate=surrogate)

    assert gradcheck(above, (logits[1:],)) and gradgradcheck(above, (logits[1:],))
    beta = 0.39 if surrogate == "sigmoid" else 9.0
    wide = positive_unlabeled_loss(logits, target, prior=0.4, surrogate=surrogate, beta=beta)
    plain = positive_unlabeled_loss(logits, target, prior=0.4, surrogate=surrogate, non_negative=False)
    assert (plain < 0).any()
    assert_close(wide, plain, rtol=0, atol=0)
    grads = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (wide, plain)]
    assert_close(*grads, rtol=0, atol=0)


def test_a_step_back_has_a_second_derivative_of_its_own():
    logits, target = low_and_high()

    def step(x):
        loss = positive_unlabeled_loss(x, target[:1], prior=0.4, gamma=0.5).sum()
        return torch.autograd.grad(loss, x, create_graph=True)[0]

    assert gradcheck(step, (logits[:1].detach().requires_grad_(),))


def test_by_heart_the_unbiased_risk_falls_below_zero_and_the_other_does_not():
    target = (torch.arange(33) < 3).double()
    ends = {}
    for non_negative in (True, False):
        logits = torch.zeros(
            33, dtype=torch.float64, requires_grad=True
        )  # one for each element: all is learnt by heart
        loss = PositiveUnlabeledLoss(prior=0.4, surrogate="logistic", non_negative=non_negative)
        optimizer = torch.optim.Adam([logits], lr=0.3)
        for _ in range(60):
            optimizer.zero_grad()
            loss(logits, target).backward()
            optimizer.step()
        ends[non_negative] = loss(logits, target).item()
    assert ends[False] < -3 and ends[True] >= 0


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("non_negative", "gamma"), [(False, 1.0), (True, 0.5)])
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label, surrogate, non_negative, gamma):
    prior = 0.75
    other = -2.5 if label else 1.5  # the one element of the other side

    def reference(logit, label):
        with mp.workdps(50 + int(abs(logit))):
            x, u = (mpf(logit), mpf(other)) if label else (mpf(other), mpf(logit))
            share, plus, minus = mpf(prior), mp.exp(x), mp.exp(u)
            if surrogate == "sigmoid":
                costs = [share / (1 + plus), minus / (1 + minus), -share * plus / (1 + plus)]
                at_x, at_u = share * plus / (1 + plus) ** 2, minus / (1 + minus) ** 2
                slopes = [-at_x, -at_x] if label else [0, at_u]
            else:
                costs = [share * mp.log1p(1 / plus), mp.log1p(minus), -share * mp.log1p(plus)]
                p, n = plus / (1 + plus), minus / (1 + minus)
                slopes = [share * (p - 1), -share * p] if label else [0, n]
            held = non_negative and costs[1] + costs[2] < 0
            value = costs[0] if held else mp.fsum(costs)
            slope = -gamma * slopes[1] if held else mp.fsum(slopes)
            return value, slope, abs(slope), abs(value) if held else mp.fsum(map(abs, costs))

    def loss(logits, target):
        rows = torch.stack([logits, torch.full_like(logits, other)], -1)
        return positive_unlabeled_loss(
            rows,
            torch.stack([target, 1 - target], -1),
            prior=prior,
            surrogate=surrogate,
            non_negative=non_negative,
            gamma=gamma,
        )

    assert exact.errors(loss, reference, label, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


def test_a_prior_stays_exact_in_half_precision_and_out_of_checkpoints():
    logits, target = torch.randn(33, 3), torch.randint(0, 2, (33, 3))
    loss = PositiveUnlabeledLoss(prior=[0.1, 0.3, 0.7])
    expected = loss(logits, target)
    assert_close(loss.to(torch.bfloat16)(logits, target), expected, rtol=0, atol=0)
    assert loss.state_dict() == {}


# -- which rows count, and refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0, 1])
def test_a_label_with_one_side_does_not_count(label):
    logits, target = torch.randn(7, 2).requires_grad_(), torch.full((7, 2), label)
    target[:3, 1] = 1 - label
    loss = PositiveUnlabeledLoss(prior=[0.2, 0.4])
    assert loss.sums(logits, target).weight.tolist() == [[0.0, 0.0], [0.5, 0.5]]
    alone = PositiveUnlabeledLoss(prior=0.4)(logits[:, 1], target[:, 1])
    assert_close(loss(logits, target), alone)
    lonely = PositiveUnlabeledLoss(prior=0.2)(logits[:, 0], target[:, 0])
    assert lonely == 0
    assert_close(torch.autograd.grad(lonely, logits)[0], torch.zeros_like(logits), rtol=0, atol=0)


def test_what_is_ignored_is_neither_positive_nor_unlabelled():
    logits, target = torch.randn(33), torch.randint(-1, 2, (33,))
    known = target != -1
    loss = PositiveUnlabeledLoss(prior=0.3, ignore_index=-1)
    assert_close(loss(logits, target), PositiveUnlabeledLoss(prior=0.3)(logits[known], target[known]))


def test_a_prior_belongs_to_a_label_and_not_to_a_sample():
    square, target = torch.randn(3, 3, 3), torch.randint(0, 2, (3, 3, 3))
    prior = [0.1, 0.3, 0.7]
    losses = PositiveUnlabeledLoss(prior=prior, reduction="none")(square, target)
    for label in range(3):
        flat = square[:, label].flatten(), target[:, label].flatten()
        assert_close(losses[label], PositiveUnlabeledLoss(prior=prior[label])(*flat))
    for labels in (2, 4):
        with pytest.raises(ValueError, match=rf"`prior` has shape \(3,\) and there are rows of shape \({labels},\)"):
            PositiveUnlabeledLoss(prior=prior)(torch.zeros(7, labels), torch.zeros(7, labels))
    with pytest.raises(ValueError, match="one number, or one for each label"):
        positive_unlabeled_loss(torch.zeros(3), torch.zeros(3), prior=prior)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("prior", [0.0, 1.0, -0.1, 30, math.nan, [0.5, 1.0], [[0.5]], [], None, "rare"]),
        ("non_negative", [1, None, "True"]),
        ("beta", [-0.1, math.nan, math.inf, "0", None, True]),
        ("gamma", [-0.1, 1.1, math.nan, "1", None, False]),
        ("surrogate", ["hinge", None, 1]),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_name(name, values):
    for value in values:
        options = {"prior": 0.3, name: value}
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            PositiveUnlabeledLoss(**options)
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            positive_unlabeled_loss(torch.zeros(2), torch.tensor([0, 1]), **options)
    with pytest.raises(ValueError, match="one of sigmoid, logistic"):
        PositiveUnlabeledLoss(prior=0.3, surrogate="hinge")


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"gamma": 0.5}])
def test_what_steps_back_has_no_effect_on_the_unbiased_risk_and_is_refused(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}` is .* no effect with `non_negative=False`"):
        PositiveUnlabeledLoss(prior=0.3, non_negative=False, **options)
    with pytest.raises(ValueError, match=f"`{name}` is .* no effect with `non_negative=False`"):
        positive_unlabeled_loss(torch.zeros(2), torch.tensor([0, 1]), prior=0.3, non_negative=False, **options)


def test_a_bound_that_the_sigmoid_never_reaches_is_refused():
    for prior, beta in ((0.3, 0.3), ([0.1, 0.3], 0.5)):
        with pytest.raises(ValueError, match="nothing would be held"):
            PositiveUnlabeledLoss(prior=prior, beta=beta)
        with pytest.raises(ValueError, match="nothing would be held"):
            positive_unlabeled_loss(torch.zeros(2, 2), torch.zeros(2, 2), prior=prior, beta=beta)
    PositiveUnlabeledLoss(prior=[0.1, 0.3], beta=0.2)  # holds the second label
    PositiveUnlabeledLoss(prior=0.3, beta=0.5, surrogate="logistic")  # which has no lowest value


def test_the_prior_cannot_be_left_out():
    with pytest.raises(TypeError, match="prior"):
        PositiveUnlabeledLoss()
