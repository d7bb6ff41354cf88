"""Binary cross-entropy on logits: torch's loss where torch is right, and 50 digits where it is not."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, bce_with_logits

# Two roundings of the softplus, one of the product with a soft label, one of the sum.
ROUNDINGS = {torch.float32: (1e-6, 87.0), torch.float64: (1e-14, 707.0)}


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3, 0.001])
@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label):
    tolerance, reach = ROUNDINGS[dtype]
    logits = torch.linspace(-reach, reach, 1025, dtype=dtype)
    logits = torch.cat([logits, torch.linspace(-3, 3, 257, dtype=dtype)]).requires_grad_()
    target = torch.full_like(logits, label)
    losses = bce_with_logits(logits, target)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    values, slopes, terms = zip(*(exact.bce(z, target[0].item()) for z in logits.tolist()), strict=True)
    assert exact.worst(losses, values) < tolerance
    assert exact.worst(gradient, slopes, terms) < tolerance


def test_the_ruler_finds_a_formula_that_cancels(exact):
    logits = torch.linspace(-30, 30, 257)
    cancelling = logits - torch.nn.functional.logsigmoid(logits)
    assert exact.worst(cancelling, [exact.bce(z, 0.0)[0] for z in logits.tolist()]) > 0.5


def test_a_sure_and_right_negative_still_has_a_loss():
    # torch 2.13 returns 0 here in float32: its kernel computes (1 - t) * z - log sigmoid(z), which cancels.
    logits = torch.tensor([-20.0, -16.0, -10.0, -87.0])
    expected = torch.log1p(torch.exp(logits.double())).float()
    assert_close(bce_with_logits(logits, torch.zeros(4)), expected, rtol=3e-7, atol=0)


def test_changing_sides_changes_nothing():
    logits, target = 5 * torch.randn(257), torch.rand(257)
    assert_close(bce_with_logits(logits, target), bce_with_logits(-logits, 1 - target))


def test_at_logit_zero_every_label_costs_one_bit():
    assert_close(bce_with_logits(torch.zeros(33), torch.rand(33)), torch.full((33,), math.log(2)))


def test_the_gradient_is_probability_minus_target():
    logits, target = torch.randn(257, dtype=torch.float64).requires_grad_(), torch.rand(257, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(bce_with_logits(logits, target).sum(), logits)
    assert_close(gradient, (logits.sigmoid() - target).detach())


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(
    ("shape", "of_factor"),
    [
        ((7,), ()),
        ((7,), (1,)),
        ((7,), (7,)),
        ((7, 1), (1,)),
        ((7, 3), ()),
        ((7, 3), (3,)),
        ((7, 3), (1, 3)),
        ((7, 3), (7, 1)),
        ((7, 3), (7, 3)),
        ((7, 3, 5), (5,)),
        ((7, 3, 5), (3, 1)),
        ((7, 3, 5), (7, 1, 1)),
        ((), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["weight", "pos_weight", "both"])
def test_it_is_torchs_loss(name, dtype, shape, of_factor, reduction):
    logits = (3 * torch.randn(shape, dtype=dtype)).requires_grad_()
    target = torch.rand(shape, dtype=dtype)
    factors = {n: torch.rand(of_factor, dtype=dtype) * 5 for n in ("weight", "pos_weight") if name in (n, "both")}
    ours = BCEWithLogitsLoss(**factors, reduction=reduction)(logits, target)
    # torch in float64: its own float32 kernel is the less exact of the two.
    wide = {n: f.double() for n, f in factors.items()}
    theirs = torch.nn.BCEWithLogitsLoss(**wide, reduction=reduction)(logits.double(), target.double())
    assert_close(ours, theirs.to(dtype))
    upstream = torch.randn_like(ours)
    gradients = [torch.autograd.grad(loss, logits, upstream.to(loss.dtype))[0] for loss in (ours, theirs)]
    assert_close(*gradients)


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize(
    ("shape", "of_factor"),
    [((7, 1), (7,)), ((7, 1), (3,)), ((7,), (7, 1)), ((7, 3), (7,)), ((1, 3), (7, 3)), ((), (1,)), ((7, 3), (1, 7, 3))],
    ids=str,
)
def test_a_factor_that_would_enlarge_the_result_is_refused(name, shape, of_factor):
    loss = BCEWithLogitsLoss(**{name: torch.ones(of_factor)})
    for call in (loss, loss.sums):
        with pytest.raises(ValueError, match=f"`{name}` has shape"):
            call(torch.zeros(shape), torch.zeros(shape))
    if name == "pos_weight":
        with pytest.raises(ValueError, match="`pos_weight` has shape"):
            bce_with_logits(torch.zeros(shape), torch.zeros(shape), pos_weight=torch.ones(of_factor))


@pytest.mark.parametrize("pos_weight", [None, torch.tensor(3.0, dtype=torch.float64)])
def test_the_dtype_is_that_of_the_logits_whatever_the_target_has(pos_weight):
    assert bce_with_logits(torch.randn(7), torch.rand(7).double(), pos_weight=pos_weight).dtype == torch.float32


def test_factors_may_be_numbers_lists_and_tensors():
    logits, target = torch.randn(7, 3), torch.randint(0, 2, (7, 3))
    for plain in (2.0, 3, [1.0, 2.0, 0.5], (1, 2, 3)):
        for name in ("weight", "pos_weight"):
            given, as_tensor = (BCEWithLogitsLoss(**{name: f}) for f in (plain, torch.as_tensor(plain)))
            assert_close(given(logits, target), as_tensor(logits, target), rtol=0, atol=0)


def test_the_weight_may_be_given_first_as_in_torch():
    ours, theirs = (
        next(iter(inspect.signature(m).parameters)) for m in (BCEWithLogitsLoss, torch.nn.BCEWithLogitsLoss)
    )
    assert ours == theirs == "weight"
    assert_close(BCEWithLogitsLoss(torch.tensor(3.0)).weight, BCEWithLogitsLoss(weight=3.0).weight)


def test_a_factor_given_as_a_tensor_is_the_losss_own():
    factor = torch.ones(3, dtype=torch.float64)  # of the dtype it is kept in: no conversion makes a copy
    loss = BCEWithLogitsLoss(pos_weight=factor, class_weight=factor)
    factor.mul_(9)
    assert_close(loss.pos_weight, torch.ones(3, dtype=torch.float64))
    assert_close(loss.class_weight, torch.ones(3, dtype=torch.float64))


def test_positives_count_as_many_times_as_their_weight_says():
    logits, target = torch.randn(33, dtype=torch.float64), torch.randint(0, 2, (33,))
    repeated = torch.cat([logits, logits[target == 1], logits[target == 1]])
    expected = BCEWithLogitsLoss(reduction="sum")(repeated, torch.cat([target, torch.ones(2 * int(target.sum()))]))
    assert_close(BCEWithLogitsLoss(pos_weight=3.0, reduction="sum")(logits, target), expected)


def test_the_weighted_mean_divides_by_both_weights():
    logits, target = torch.randn(7, 3).double(), torch.randint(0, 2, (7, 3))
    own, of_sample = torch.rand(3).double(), torch.rand(7).double()
    loss = BCEWithLogitsLoss(own, pos_weight=2.0, reduction="weighted_mean")(logits, target, of_sample)
    weight = own * of_sample[:, None]
    losses = bce_with_logits(logits, target, pos_weight=torch.tensor(2.0))
    assert_close(loss, (losses * weight).sum() / weight.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_constant_keeps_its_digits_when_the_model_is_cast(dtype):
    loss = BCEWithLogitsLoss(99.7, pos_weight=[0.1, 99.7]).to(dtype)
    logits, target = torch.randn(7, 2), torch.randint(0, 2, (7, 2))
    assert_close(loss(logits, target), BCEWithLogitsLoss(99.7, pos_weight=[0.1, 99.7])(logits, target), rtol=0, atol=0)


def test_with_and_without_factors_a_checkpoint_is_the_same():
    loss = BCEWithLogitsLoss(torch.ones(3), pos_weight=2.0)
    assert loss.state_dict() == {}
    BCEWithLogitsLoss().load_state_dict(loss.state_dict())


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_of_one_side_is_finite(label):
    sums = BCEWithLogitsLoss(pos_weight=3.0).sums(torch.randn(7, 3), torch.full((7, 3), label))
    assert sums.loss.isfinite().all() and sums.mean().isfinite()
    assert sums.weight[:, int(label)].tolist() == [7.0] * 3 and sums.weight[:, 1 - int(label)].tolist() == [0.0] * 3


def test_only_the_plain_mean_is_the_log_loss():
    assert BCEWithLogitsLoss().is_log_loss and BCEWithLogitsLoss(ignore_index=-1).is_log_loss
    for options in ({"weight": 1.0}, {"pos_weight": 2.0}, {"class_weight": [1.0]}, {"reduction": "sum"}):
        assert not BCEWithLogitsLoss(**options).is_log_loss


@pytest.mark.parametrize("pos_weight", [None, torch.tensor([3.0, 0.25, 7.0])], ids=["plain", "weighted"])
def test_hard_labels_give_the_same_bits_alone_and_beside_a_soft_one(pos_weight):  # alone they take a shorter way
    logits = torch.cat([20 * torch.randn(85, 3), torch.tensor([[1e4, -1e4, 0.0]])]).requires_grad_()
    target = torch.randint(0, 2, (86, 3)).float()
    alone = bce_with_logits(logits, target, pos_weight=pos_weight)
    among = bce_with_logits(
        torch.cat([logits, torch.zeros(1, 3)]), torch.cat([target, torch.full((1, 3), 0.5)]), pos_weight=pos_weight
    )[:-1]
    slopes = [torch.autograd.grad(losses.sum(), logits, retain_graph=True)[0] for losses in (alone, among)]
    assert torch.equal(alone, among) and torch.equal(*slopes)
