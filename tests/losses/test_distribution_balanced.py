"""Distribution-balanced loss: its formula, an implementation without torch, its parts, and labels never seen."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import DistributionBalancedLoss, bce_with_logits, distribution_balanced_bce

COUNTS, TOTAL = [900, 40, 300], 1000
DEFAULTS = {"alpha": 0.1, "beta": 10.0, "mu": 0.2, "lam": 2.0, "kappa": 0.05, "gamma": 0.0}
OTHERS = {"alpha": 0.3, "beta": 4.0, "mu": 0.5, "lam": 3.0, "kappa": 0.7, "gamma": 1.5}
OF_DATA = {"counts": COUNTS, "total": TOTAL}


def naive(logits, target, alpha, beta, mu, lam, kappa, gamma):
    """The paper's formula, label by label, for samples with a positive."""
    inverse = 1 / torch.tensor(COUNTS, dtype=torch.float64)
    losses = []
    for c, n in enumerate(COUNTS):
        share = inverse[c] / torch.stack([target[:, j] * inverse[j] for j in range(3)]).sum(0)
        weight = alpha + 1 / (1 + torch.exp(-beta * (share - mu)))
        z = logits[:, c] - kappa * math.log(TOTAL / n - 1) / lam
        p, p_scaled = torch.sigmoid(z), torch.sigmoid(lam * z)
        positive, negative = -((1 - p) ** gamma) * p.log(), -(p_scaled**gamma) * (1 - p_scaled).log() / lam
        losses.append(weight * (target[:, c] * positive + (1 - target[:, c]) * negative))
    return torch.stack(losses, 1)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("options", [DEFAULTS, DEFAULTS | {"gamma": 2.0}, OTHERS], ids=["paper", "focal", "others"])
@pytest.mark.parametrize("rest", [(), (5,), (2, 3)], ids=str)
def test_it_is_the_formula_of_the_paper(options, kind, rest):
    logits, target = torch.randn(7, 3, *rest).double().requires_grad_(), torch.rand(7, 3, *rest).double()
    if kind == "hard":
        target = target.round()
        target[:, 1] = 1  # no sample without a positive
    ours, theirs = distribution_balanced_bce(logits, target, **OF_DATA, **options), naive(logits, target, **options)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize(
    ("gamma", "of_first", "of_second"), [(2, 2.3807438444, 1.3364749789), (0, 1.3170942418, 0.7856000252)]
)
def test_a_second_implementation_gave_the_same(gamma, of_first, of_second):
    # Our own in plain Python, with the factor 2 of the official focal variant.
    loss = DistributionBalancedLoss(**OF_DATA, gamma=gamma)
    factor = 2 if gamma else 1
    first = torch.tensor([[5, -5, 0], [5, -5, 0]], dtype=torch.float64), torch.tensor([[1, 0, 1], [0, 1, 0]])
    second = (
        torch.tensor([[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], dtype=torch.float64),
        torch.tensor([[1, 1, 0], [0, 1, 0]]),
    )
    assert factor * loss(*first).item() == pytest.approx(of_first, abs=6e-11)
    assert factor * loss(*second).item() == pytest.approx(of_second, abs=6e-11)


def test_with_neither_idea_it_is_weighted_bce():
    logits, target = 9 * torch.randn(33, 3), torch.rand(33, 3)
    even = {"counts": [7, 7, 7], "total": 100, "lam": 1.0, "kappa": 0.0, "beta": 1e-9, "mu": 0.0, "alpha": 0.5}
    assert_close(distribution_balanced_bce(logits, target, **even), bce_with_logits(logits, target))


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_one_label_alone_has_the_weight_of_its_own_draws(gamma):
    logits, target = torch.randn(7).double(), torch.tensor([0, 1, 0, 1, 1, 0, 1])
    column = distribution_balanced_bce(logits[:, None], target[:, None], counts=[40], total=TOTAL, gamma=gamma)[:, 0]
    losses = distribution_balanced_bce(logits, target, counts=40, total=TOTAL, gamma=gamma)
    assert_close(losses, column, rtol=0, atol=0)
    z = logits - 0.025 * math.log(24)
    plain = torch.where(target == 1, torch.sigmoid(-z), torch.sigmoid(2 * z)) ** gamma
    plain *= torch.where(target == 1, bce_with_logits(z, target), bce_with_logits(2 * z, target) / 2)
    weight = torch.where(target == 1, 0.1 + 1 / (1 + math.exp(-8)), 1.1)
    assert_close(losses, weight * plain)


def test_a_sample_without_positives_has_the_limit_of_fewer_and_fewer():
    logits = torch.randn(1, 3).double()
    none = distribution_balanced_bce(logits, torch.zeros(1, 3), **OF_DATA)
    few = distribution_balanced_bce(logits, torch.full((1, 3), 1e-12).double(), **OF_DATA)
    assert_close(none, few, rtol=1e-9, atol=0)
    tiny = torch.full((1, 3), 1e-44)  # subnormal: the share is infinite
    assert_close(distribution_balanced_bce(logits.float(), tiny, **OF_DATA), none.float())


def test_the_minimum_for_a_soft_label_lies_where_the_docstring_says():
    target = torch.rand(7, 3).double()
    logits = target.logit() + 0.4 * (TOTAL / torch.tensor(COUNTS).double() - 1).log()
    losses = distribution_balanced_bce(logits.requires_grad_(), target, **OF_DATA, lam=1.0, kappa=0.4)
    assert_close(torch.autograd.grad(losses.sum(), logits)[0], torch.zeros(7, 3).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("gamma", "column"), [(0.0, 0), (0.5, 1), (2.0, 2)])
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label, gamma, column):
    others = [1.0, 0.0, 1.0]
    shift = torch.tensor(0.025 * math.log(TOTAL / COUNTS[column] - 1), dtype=torch.float64).to(dtype)

    def reference(logit, label):  # against the moved logit, which is rounded
        with mp.workdps(60):
            labels = [mpf(label) if j == column else mpf(others[j]) for j in range(3)]
            share = 1 / mpf(COUNTS[column]) / sum(y / n for y, n in zip(labels, COUNTS, strict=True))
            weight = mpf(0.1) + 1 / (1 + mp.exp(-10 * (share - mpf(0.2))))
        value, slope, terms = exact.sides(
            lambda z: (1 + mp.exp(z)) ** -mpf(gamma) * mp.log1p(mp.exp(-z)),
            lambda z: (1 + mp.exp(-2 * z)) ** -mpf(gamma) * mp.log1p(mp.exp(2 * z)) / 2,
            (torch.tensor(logit, dtype=dtype) - shift).item(),
            label,
        )
        return weight * value, weight * slope, weight * terms

    def loss(logits, target):
        rows = torch.tensor(others, dtype=dtype).repeat(len(logits), 1)
        rows[:, column] = target
        return distribution_balanced_bce(logits[:, None].expand(-1, 3), rows, **OF_DATA, gamma=gamma)[:, column]

    assert exact.errors(loss, reference, label, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_all_derivatives_are_finite_and_a_confident_mistake_keeps_its_gradient(dtype, gamma):
    logits = torch.tensor([[-1e4, 0.0, 1e4]], dtype=dtype).requires_grad_()
    for label in (0.0, 1.0):
        losses = distribution_balanced_bce(logits, torch.full_like(logits, label), **OF_DATA, gamma=gamma)
        (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.sum(), logits)
        assert all(values.isfinite().all() for values in (losses, gradient, curvature))
        mistake = gradient[0, 2 if label == 0 else 0].item()
        assert mistake == pytest.approx(1.1, rel=1e-2) if label == 0 else mistake < -0.1


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_an_infinite_logit_on_the_right_side_costs_nothing(gamma):
    logits = torch.tensor([[torch.inf, -torch.inf, torch.nan]]).requires_grad_()
    losses = distribution_balanced_bce(logits, torch.tensor([[1, 0, 1]]), **OF_DATA, gamma=gamma)
    assert losses[0, :2].tolist() == [0, 0] and losses[0, 2].isnan()
    assert torch.autograd.grad(losses[0, :2].sum(), logits)[0][0, :2].tolist() == [0, 0]
    wrong = distribution_balanced_bce(logits, torch.tensor([[0, 1, 1]]), **OF_DATA, gamma=gamma)
    assert wrong[0, :2].tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_both_derivatives_are_right_with_focus_too(gamma):
    logits, target = torch.randn(5, 3).double().requires_grad_(), torch.rand(5, 3).double()
    target[0], target[1] = 0, torch.tensor([1, 0, 1])

    def loss(x):
        return distribution_balanced_bce(x, target, **OF_DATA, gamma=gamma)

    assert gradcheck(loss, (logits,)) and gradgradcheck(loss, (logits,))


def test_compiled_and_mapped_it_gives_the_same():
    logits, target = torch.randn(5, 3, 7).double(), torch.rand(5, 3, 7).double()
    loss = DistributionBalancedLoss(**OF_DATA, gamma=2.0, ignore_index=-1)
    target[0, 0] = -1
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(logits, target), loss(logits, target))
    each = torch.stack([loss(x[None], y[None]) for x, y in zip(logits, target, strict=True)])
    assert_close(torch.func.vmap(lambda x, y: loss(x[None], y[None]))(logits, target), each)
    torch.compiler.reset()


def test_an_ignored_label_is_no_positive_of_its_sample():
    logits, target = torch.randn(7, 3), torch.randint(0, 2, (7, 3)).float()
    hidden = torch.rand(7, 3) < 0.4
    loss = DistributionBalancedLoss(**OF_DATA, ignore_index=-1, reduction="none")
    expected = distribution_balanced_bce(logits, target.masked_fill(hidden, 0), **OF_DATA).masked_fill(hidden, 0)
    assert_close(loss(logits, target.masked_fill(hidden, -1)), expected, rtol=0, atol=0)
    assert_close(loss(logits, target, mask=~hidden), expected, rtol=0, atol=0)


def test_a_label_never_or_always_seen_counts_half_a_sample():
    logits, target = torch.randn(7, 3), torch.randint(0, 2, (7, 3))
    extreme = distribution_balanced_bce(logits, target, counts=[0, 1000, 300], total=TOTAL)
    half = distribution_balanced_bce(logits, target, counts=[0.5, 999.5, 300], total=TOTAL)
    assert_close(extreme, half, rtol=0, atol=0)
    given = distribution_balanced_bce(logits, target, counts=torch.tensor([0, 1000, 300]), total=TOTAL)
    assert_close(given, half)
    assert half.isfinite().all()


@pytest.mark.parametrize("given", [tuple, torch.tensor, lambda c: torch.tensor(c).float()])
def test_lists_and_tensors_of_counts_mean_the_same(given):
    logits, target = torch.randn(7, 3), torch.rand(7, 3)
    listed = distribution_balanced_bce(logits, target, **OF_DATA)
    assert_close(distribution_balanced_bce(logits, target, counts=given(COUNTS), total=TOTAL), listed)
    each = distribution_balanced_bce(logits, target, counts=given(COUNTS), total=given([TOTAL] * 3))
    assert_close(each, listed)
    loss = DistributionBalancedLoss(counts=given(COUNTS), total=TOTAL, reduction="none").to(torch.bfloat16)
    assert_close(loss(logits, target), listed, rtol=0, atol=0)
    assert loss.state_dict() == {}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("counts", [-1, [3, -1], [math.nan], [math.inf], [[1]], [], "1", None, 1001, [7, 1001]]),
        ("total", [0, -1, math.nan, math.inf, "1", None, [7, 7]]),
        ("alpha", [-0.1, 1.1, math.nan, "1", None, True]),
        ("beta", [0, -1.0, math.nan, math.inf, "1", None, True]),
        ("mu", [-0.1, math.nan, math.inf, "1", None, True]),
        ("lam", [0, -1.0, math.nan, math.inf, "1", None, True]),
        ("kappa", [-0.1, math.nan, math.inf, "1", None, True]),
        ("gamma", [-0.1, math.nan, math.inf, "1", None, True]),
    ],
)
def test_impossible_arguments_are_refused(name, values):
    for value in values:
        options = {"counts": [7, 8, 9], "total": 1000} | {name: value}
        for call in (
            lambda o=options: DistributionBalancedLoss(**o),
            lambda o=options: distribution_balanced_bce(torch.zeros(2, 3), torch.zeros(2, 3), **o),
        ):
            with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
                call()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"alpha": 1.1}, r"must lie in \[0, 1\]: .* The steepness is `beta`\.$"),
        ({"beta": 0}, "at which all weights would be the same; it must be above 0"),
        ({"lam": 0}, "at which negatives would never be let go of; it must be above 0"),
    ],
)
def test_a_limit_is_told_with_its_reason(option, said):
    with pytest.raises(ValueError, match=said):
        DistributionBalancedLoss(**OF_DATA, **option)


def test_the_smallest_weight_is_added_to_each_and_may_be_one():
    logits = torch.zeros(1, 3)
    added, without = (distribution_balanced_bce(logits, torch.tensor([[1, 0, 1]]), **OF_DATA, alpha=a) for a in (1, 0))
    of_weight_one = distribution_balanced_bce(logits, torch.zeros(1, 3), **OF_DATA, alpha=0)  # nothing is rebalanced
    assert_close((added - without)[0, 1], of_weight_one[0, 1])


def test_the_number_of_counts_is_that_of_the_labels():
    for shape in ((7,), (7, 1), (7, 2), (3, 7)):
        with pytest.raises(ValueError, match="`counts` has 3 numbers"):
            DistributionBalancedLoss(**OF_DATA)(torch.zeros(shape), torch.zeros(shape))
