"""Focal loss: the paper's formula, written naively and to 50 digits, and its limits."""

import math
import re

import pytest
import torch
from mpmath import mp
from torch.testing import assert_close

from lightning_bce import FocalLoss, bce_with_logits, focal_loss, quality_focal_loss

GAMMAS = [0.5, 1.0, 1.5, 2.0, 3.3, 5.0]


def labels(kind, *shape):
    return torch.rand(shape).double() if kind == "soft" else torch.randint(0, 2, shape).double()


def naive(logits, target, gamma, alpha):
    """The paper's and torchvision's definition: alpha_t (1 - p_t)^gamma times cross-entropy."""
    p = torch.sigmoid(logits)
    cross_entropy = -target * p.log() - (1 - target) * (1 - p).log()
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = 1.0 if alpha is None else alpha * target + (1 - alpha) * (1 - target)
    return alpha_t * (1 - p_t) ** gamma * cross_entropy


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 0.9, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 3.0, 4.0, *GAMMAS])  # up to 4 a whole one is a product
def test_it_is_the_formula_of_the_paper(gamma, alpha, kind):
    logits, target = (2 * torch.randn(257).double()).requires_grad_(), labels(kind, 257)
    ours, theirs = focal_loss(logits, target, gamma=gamma, alpha=alpha), naive(logits, target, gamma, alpha)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_without_focus_is_bce(kind):
    logits, target = 9 * torch.randn(257), labels(kind, 257).float()
    assert_close(focal_loss(logits, target, gamma=0.0), bce_with_logits(logits, target), rtol=0, atol=0)
    halved = focal_loss(logits, target, gamma=0.0, alpha=0.5)
    assert_close(halved, bce_with_logits(logits, target) / 2)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, gamma, label):
    # A power multiplies the relative error of its base, which is a unit or two in the last place, by gamma.
    tolerance = 1e-6 if dtype == torch.float32 else 10 * torch.finfo(dtype).eps
    reach = 87.0 if dtype == torch.float32 else 700.0
    logits = torch.cat([torch.linspace(-reach, reach, 257), torch.linspace(-9, 9, 257)]).to(dtype).requires_grad_()
    target = torch.full_like(logits, label)
    losses = focal_loss(logits, target, gamma=gamma)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    values, slopes, terms = zip(*(exact.focal(z, target[0].item(), gamma) for z in logits.tolist()), strict=True)
    assert exact.worst(losses, values) < tolerance
    assert exact.worst(gradient, slopes, terms) < tolerance


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.99])
def test_below_one_the_focus_has_finite_derivatives(gamma, label):
    logits = torch.tensor([-1e4, -100.0, -20.0, -1e-3, 0.0, 20.0, 100.0, 1e4]).requires_grad_()
    losses = focal_loss(logits, torch.full_like(logits, label), gamma=gamma)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), logits)
    for values in (losses, gradient, curvature):
        assert values.isfinite().all(), values


def test_as_a_power_the_same_test_fails():  # the trap that the log form avoids is still there
    logits = torch.tensor([20.0, 1e4]).requires_grad_()
    p = logits.sigmoid()
    (gradient,) = torch.autograd.grad(((1 - p) ** 0.5 * bce_with_logits(logits, torch.ones(2))).sum(), logits)
    assert gradient.isnan().any()


@pytest.mark.parametrize(("alpha", "silent"), [(0.0, 1), (1.0, 0)])
def test_alpha_zero_and_one_silence_one_side_exactly(alpha, silent):
    logits, target = (9 * torch.randn(33)).requires_grad_(), torch.randint(0, 2, (33,))
    losses = focal_loss(logits, target, alpha=alpha)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    for values in (losses.detach(), gradient):
        assert (values[target == silent] == 0).all() and (values[target != silent] != 0).all()
    assert_close(losses[target != silent], focal_loss(logits, target)[target != silent], rtol=0, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_changing_sides_changes_nothing(gamma, kind):
    logits, target = 5 * torch.randn(257).double(), labels(kind, 257)
    mirrored = focal_loss(-logits, 1 - target, gamma=gamma, alpha=0.75)
    assert_close(focal_loss(logits, target, gamma=gamma, alpha=0.25), mirrored)


def test_more_focus_never_costs_more():
    logits, target = 5 * torch.randn(257), torch.randint(0, 2, (257,))
    losses = torch.stack([focal_loss(logits, target, gamma=gamma) for gamma in [0.0, *GAMMAS]])
    assert (losses.diff(dim=0) <= 0).all()


@pytest.mark.parametrize("gamma", [1.0, 2.0, 5.0])
def test_an_easy_example_is_silenced_by_the_power_of_its_miss(gamma):
    logits = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    ratio = focal_loss(logits, torch.ones(3), gamma=gamma) / bce_with_logits(logits, torch.ones(3))
    assert_close(ratio, torch.sigmoid(-logits) ** gamma)


def test_a_wrong_hyper_parameter_is_refused_by_the_function_too():
    logits, target = torch.zeros(1), torch.zeros(1)
    for wrong in ({"gamma": -1.0}, {"gamma": math.nan}, {"alpha": 1.1}, {"alpha": -0.1}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            focal_loss(logits, target, **wrong)


@pytest.mark.parametrize("soft_targets", ["linear", "two_term", "quality"])
def test_the_module_hands_all_its_options_to_the_function(soft_targets):
    logits, target = torch.randn(33).double(), torch.rand(33).double()
    options = {"gamma": 3.3, "alpha": 0.9, "soft_targets": soft_targets}
    ours = FocalLoss(**options, reduction="none")(logits, target)
    assert_close(ours, focal_loss(logits, target, **options), rtol=0, atol=0)


@pytest.mark.parametrize("soft_targets", ["linear", "two_term", "quality"])
def test_an_alpha_for_each_label_is_the_loop_over_labels(soft_targets):
    logits, target, alpha = torch.randn(7, 3).double(), torch.rand(7, 3).double(), [0.1, 0.5, 0.7]
    columns = [focal_loss(logits[:, i], target[:, i], alpha=a, soft_targets=soft_targets) for i, a in enumerate(alpha)]
    for given in (alpha, torch.tensor(alpha, dtype=torch.float64)):
        assert_close(focal_loss(logits, target, alpha=given, soft_targets=soft_targets), torch.stack(columns, 1))
        loss = FocalLoss(alpha=given, soft_targets=soft_targets, reduction="none")
        assert_close(loss(logits, target), torch.stack(columns, 1))
        assert loss(logits.float(), target.float()).dtype == torch.float32


def test_a_wrong_alpha_among_several_is_refused():
    for wrong in ([0.5, 1.1], [-0.1, 0.5], torch.tensor([0.5, 1.1])):
        with pytest.raises(ValueError, match="`alpha`"):
            FocalLoss(alpha=wrong)
    with pytest.raises(ValueError, match=r"`alpha` has 2 numbers and the output 3 label\(s\)"):
        focal_loss(torch.zeros(7, 3), torch.zeros(7, 3), alpha=[0.5, 0.1])


@pytest.mark.parametrize("soft_targets", ["linear", "two_term", "quality"])
def test_the_dtype_is_that_of_the_logits_whatever_the_target_has(soft_targets):
    losses = focal_loss(torch.randn(7), torch.rand(7).double(), alpha=0.25, soft_targets=soft_targets)
    assert losses.dtype == torch.float32


# -- soft targets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.3])
@pytest.mark.parametrize("soft_targets", ["two_term", "quality"])
def test_for_hard_labels_every_definition_is_the_same(soft_targets, gamma, alpha):
    logits, target = 30 * torch.randn(257), torch.randint(0, 2, (257,)).float()
    other = focal_loss(logits, target, gamma=gamma, alpha=alpha, soft_targets=soft_targets)
    assert_close(other, focal_loss(logits, target, gamma=gamma, alpha=alpha), rtol=1e-6, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.3])
def test_of_soft_labels_each_definition_is_its_formula(gamma):
    logits, target = 2 * torch.randn(257).double(), torch.rand(257).double()
    p, weight = logits.sigmoid(), 0.25 * target + 0.75 * (1 - target)
    two_terms = -0.25 * target * (1 - p) ** gamma * p.log() - 0.75 * (1 - target) * p**gamma * (1 - p).log()
    assert_close(focal_loss(logits, target, gamma=gamma, alpha=0.25, soft_targets="two_term"), two_terms)
    quality = weight * quality_focal_loss(logits, target, beta=gamma)
    assert_close(focal_loss(logits, target, gamma=gamma, alpha=0.25, soft_targets="quality"), quality)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_terms_are_right_to_the_last_digits(exact, dtype, gamma):
    def reference(logit, label):
        with mp.workdps(50):
            sides = [(w, exact.focal(logit, y, gamma)) for w, y in ((mp.mpf(label), 1.0), (1 - mp.mpf(label), 0.0))]
            return tuple(sum(w * f(x) for w, x in sides) for f in (lambda x: x[0], lambda x: x[1], lambda x: x[2]))

    def loss(logits, target):
        return focal_loss(logits, target, gamma=gamma, soft_targets="two_term")

    assert exact.errors(loss, reference, 0.3, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize(("soft_targets", "place"), [("linear", 0), ("two_term", 1), ("quality", 2)])
def test_for_a_soft_label_the_minimum_lies_where_the_docstring_says(soft_targets, place):
    p = torch.linspace(0, 1, 2001, dtype=torch.float64)
    at = p[focal_loss(p.logit(), torch.full_like(p, 0.7), soft_targets=soft_targets).argmin()].item()
    (told,) = re.findall(r"p = (\S+), (\S+) and (\S+)\.\n", focal_loss.__doc__)
    assert f"{at:.2f}" == told[place]


@pytest.mark.parametrize("soft_targets", ["two_term", "quality"])
@pytest.mark.parametrize("label", [0.0, 1.0, 0.25])
def test_every_definition_is_finite_at_the_extremes_and_infinite_for_an_infinite_mistake(soft_targets, label):
    logits = torch.tensor([-1e4, 0.0, 1e4]).requires_grad_()
    losses = focal_loss(logits, torch.full_like(logits, label), gamma=0.5, soft_targets=soft_targets)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), logits)
    assert all(values.isfinite().all() for values in (losses, gradient, curvature))
    far = torch.tensor([-torch.inf, torch.inf])
    costs = focal_loss(far, torch.full_like(far, label), soft_targets=soft_targets)
    assert costs.tolist() == [0.0 if label == 0 else math.inf, 0.0 if label == 1 else math.inf]


def test_an_unknown_definition_and_one_without_effect_are_refused():
    for make in (FocalLoss, lambda **options: focal_loss(torch.zeros(1), torch.zeros(1), **options)):
        for wrong in ("qfl", None, True):
            with pytest.raises(ValueError, match="`soft_targets` is"):
                make(soft_targets=wrong)
        for name in ("two_term", "quality"):
            with pytest.raises(ValueError, match="`gamma` 0"):
                make(soft_targets=name, gamma=0.0)


def test_ten_steps_separate_the_sides():
    target = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    logits = torch.zeros(7, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(10):
        optimizer.zero_grad()
        FocalLoss(alpha=0.25)(logits, target).backward()
        optimizer.step()
    assert logits[target == 1].min() > 0 > logits[target == 0].max()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_hard_labels_give_the_same_bits_alone_and_beside_a_soft_one(gamma):  # alone they take a shorter way on the CPU
    logits = torch.cat([20 * torch.randn(257), torch.tensor([1e4, -1e4, 0.0])]).requires_grad_()
    target = labels("hard", 260).float()
    beside = torch.cat([target, torch.tensor([0.5])])
    alone = focal_loss(logits, target, gamma=gamma)
    among = focal_loss(torch.cat([logits, torch.zeros(1)]), beside, gamma=gamma)[:-1]
    assert torch.equal(alone, among)
    slopes = [torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0] for losses in (alone, among)]
    assert torch.equal(*slopes)
