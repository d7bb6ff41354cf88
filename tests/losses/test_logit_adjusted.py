"""Logit-adjusted cross-entropy: its formula, its minimiser, and a prior for each label."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import LogitAdjustedLoss, bce_with_logits, logit_adjusted_bce

PRIOR = [0.9, 0.04, 0.3]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("rest", [(), (5,), (2, 3)], ids=str)
def test_it_is_the_formula(tau, rest):
    logits, target = torch.randn(7, 3, *rest).double().requires_grad_(), torch.rand(7, 3, *rest).double()
    ours = logit_adjusted_bce(logits, target, prior=PRIOR, tau=tau)
    shift = torch.tensor([tau * math.log(p / (1 - p)) for p in PRIOR], dtype=torch.float64).reshape(3, *[1] * len(rest))
    p = torch.sigmoid(logits + shift)
    theirs = -target * p.log() - (1 - target) * (1 - p).log()
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


def test_a_second_implementation_gives_the_same():  # plain Python, sides written out
    logits, target = [[1.5, -2.7, 2.9], [-3.8, 1.2, -4.5]], [[1, 1, 0], [0, 1, 0]]
    total = 0.0
    for row, labels in zip(logits, target, strict=True):
        for x, y, p in zip(row, labels, PRIOR, strict=True):
            odds = math.exp(x) * p / (1 - p)
            total += math.log1p(1 / odds) if y else math.log1p(odds)
    loss = LogitAdjustedLoss(prior=PRIOR)(torch.tensor(logits, dtype=torch.float64), torch.tensor(target))
    assert loss.item() == pytest.approx(total / 6, rel=1e-14)


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_the_module_has_the_strength_that_it_was_given(tau):
    logits, target = torch.randn(7, 3), torch.rand(7, 3)
    losses = LogitAdjustedLoss(prior=PRIOR, tau=tau, reduction="none")(logits, target)
    assert_close(losses, logit_adjusted_bce(logits, target, prior=PRIOR, tau=tau))


@pytest.mark.parametrize("option", [{"prior": 0.5}, {"prior": [0.5] * 3, "tau": 2.0}, {"prior": PRIOR, "tau": 0.0}])
def test_with_even_priors_or_no_strength_it_is_bce(option):
    logits, target = 9 * torch.randn(33, 3), torch.rand(33, 3)
    assert_close(logit_adjusted_bce(logits, target, **option), bce_with_logits(logits, target), rtol=0, atol=0)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_the_minimiser_is_the_logit_of_the_label_less_that_of_the_prior(tau):
    target, prior = torch.rand(7, 3).double(), torch.tensor(PRIOR).double()
    logits = (target.logit() - tau * prior.logit()).requires_grad_()
    (gradient,) = torch.autograd.grad(logit_adjusted_bce(logits, target, prior=prior, tau=tau).sum(), logits)
    assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prior", [1e-6, 0.04, 0.9])
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label, prior):
    shift = torch.tensor(prior).double().logit().to(dtype)  # against the moved logit, which is rounded

    def reference(logit, label):
        return exact.bce((torch.tensor(logit, dtype=dtype) + shift).item(), label)

    def loss(logits, target):
        return logit_adjusted_bce(logits, target, prior=torch.tensor(prior).double())

    assert exact.errors(loss, reference, label, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("prior", [1e-300, 1e-6, 1 - 1e-12])
def test_the_rarest_label_has_finite_derivatives_and_a_confident_mistake_its_gradient(prior):
    logits = torch.tensor([-1e4, 0.0, 1e4]).requires_grad_()
    for label, slope in ((0.0, 1.0), (1.0, -1.0)):
        losses = logit_adjusted_bce(logits, torch.full_like(logits, label), prior=prior)
        (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.sum(), logits)
        assert all(values.isfinite().all() for values in (losses, gradient, curvature))
        assert gradient[2 if label == 0 else 0] == slope


def test_a_prior_belongs_to_a_label_and_not_to_a_sample():
    square = torch.randn(3, 3, 3)
    losses = logit_adjusted_bce(square, torch.ones(3, 3, 3), prior=PRIOR)
    for label in range(3):
        alone = logit_adjusted_bce(square[:, label], torch.ones(3, 3), prior=PRIOR[label])
        assert_close(losses[:, label], alone, rtol=0, atol=0)


def test_the_prior_stays_out_of_the_checkpoint_and_keeps_its_digits():
    loss = LogitAdjustedLoss(prior=PRIOR).to(torch.bfloat16)
    assert loss.state_dict() == {}
    assert_close(loss.prior, torch.tensor(PRIOR, dtype=torch.float64), rtol=0, atol=0)


@pytest.mark.parametrize("prior", [0, 1, -0.1, 1.5, math.nan, [0.2, 1.0], [0.2, 0.0], [[0.2]], [], "0.2", None])
def test_an_impossible_prior_is_refused(prior):
    for call in (
        lambda: LogitAdjustedLoss(prior=prior),
        lambda: logit_adjusted_bce(torch.zeros(2, 2), torch.zeros(2, 2), prior=prior),
    ):
        with pytest.raises((ValueError, TypeError), match="`prior`"):
            call()


def test_a_prior_out_of_range_is_told_the_usual_reasons_and_one_without_values_is_not_looked_at():
    with pytest.raises(
        ValueError, match=r"got \[(2\.0, ){7}2\.0\]\. For a label that never or always occurs, .*`max\("
    ):
        LogitAdjustedLoss(prior=[2.0] * 9)
    with pytest.raises(ValueError, match=r"Percentages are to be divided by 100, counts by N\.$"):
        LogitAdjustedLoss(prior=4)
    with pytest.raises(TypeError, match=r"^`prior` is None; .* in \(0, 1\), was expected\.$"):
        LogitAdjustedLoss(prior=None)
    assert LogitAdjustedLoss(prior=torch.full((3,), 0.2, device="meta")).prior.device.type == "meta"


def test_the_number_of_priors_is_that_of_the_labels():
    for shape in ((7,), (7, 1), (7, 2), (3, 7)):
        with pytest.raises(ValueError, match="`prior` has 3 numbers"):
            LogitAdjustedLoss(prior=PRIOR)(torch.zeros(shape), torch.zeros(shape))
    assert LogitAdjustedLoss(prior=[0.3])(torch.zeros(7), torch.zeros(7)).isfinite()


@pytest.mark.parametrize("tau", [-1.0, math.nan, math.inf, "1", None])
def test_an_impossible_strength_is_refused(tau):
    for call in (
        lambda: LogitAdjustedLoss(prior=0.2, tau=tau),
        lambda: logit_adjusted_bce(torch.zeros(2), torch.zeros(2), prior=0.2, tau=tau),
    ):
        with pytest.raises((ValueError, TypeError), match="`tau`"):
            call()
