"""Unobserved labels: three strategies, their marks, and how they differ from what is ignored."""

import math

import lightning.pytorch as pl
import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, UnobservedBCELoss, bce_with_logits, unobserved_bce
from lightning_bce.losses.unobserved import entropy

STRATEGIES = ["negative", "weak", "entropy"]


def batch(*shape, mark=-1.0):
    """Logits, labels of which half are marked, and where."""
    hidden = torch.rand(shape) < 0.5
    labels = torch.rand(shape).double()
    return torch.randn(shape).double(), torch.where(hidden, mark, labels), hidden


@pytest.mark.parametrize("mark", [-1.0, -7, math.nan])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_the_formula(strategy, mark):
    logits, target, hidden = batch(33, 5, mark=mark)
    logits.requires_grad_()
    p = torch.sigmoid(logits)
    of_hidden = {
        "negative": -(1 - p).log(),
        "weak": -(1 - p).log() / 4,
        "entropy": 0.1 * (p * p.log() + (1 - p) * (1 - p).log()),
    }[strategy]
    theirs = torch.where(hidden, of_hidden, bce_with_logits(logits, target.nan_to_num(0)))
    ours = unobserved_bce(logits, target, unobserved=mark, strategy=strategy)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))
    loss = UnobservedBCELoss(unobserved=mark, strategy=strategy, reduction="none", validate="always")
    assert_close(loss(logits, target), ours, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_everything_observed_it_is_bce(strategy):
    logits, target = 9 * torch.randn(33, 3), torch.rand(33, 3)
    loss = unobserved_bce(logits, target, strategy=strategy)
    assert_close(loss, bce_with_logits(logits, target), rtol=0, atol=0)


def test_a_weak_negative_of_full_weight_is_a_negative_and_of_none_is_nothing():
    logits, target, hidden = batch(33, 3)
    negative = unobserved_bce(logits, target)
    assert_close(negative, bce_with_logits(logits, target.masked_fill(hidden, 0)), rtol=0, atol=0)
    assert_close(unobserved_bce(logits, target, strategy="weak", strength=1.0), negative, rtol=0, atol=0)
    for strategy in ("weak", "entropy"):
        nothing = unobserved_bce(logits, target, strategy=strategy, strength=0.0)
        assert_close(nothing, negative.masked_fill(hidden, 0), rtol=0, atol=0)


def test_of_two_labels_a_weak_negative_has_full_weight():
    logits, target, hidden = batch(33, 2)
    losses = unobserved_bce(logits, target, strategy="weak")
    assert_close(losses, bce_with_logits(logits, target.masked_fill(hidden, 0)), rtol=0, atol=0)


def test_all_weak_negatives_of_a_sample_weigh_as_much_as_its_positive():
    logits = torch.zeros(1, 7).double().requires_grad_()
    target = torch.tensor([[-1, -1, 1, -1, -1, -1, -1]])
    (gradient,) = torch.autograd.grad(unobserved_bce(logits, target, strategy="weak").sum(), logits)
    assert gradient[0, 2] == -0.5
    assert_close(gradient.sum(), torch.tensor(0.0).double())


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.parametrize("strength", [0.2, 0.7])
def test_the_minima_lie_where_the_docstring_says(share, strength):
    def slope(logit, strategy, strength):
        logits = torch.full((2,), logit, dtype=torch.float64, requires_grad=True)
        losses = unobserved_bce(logits, torch.tensor([1, -1]), strategy=strategy, strength=strength)
        of_both = losses * torch.tensor([share, 1 - share], dtype=torch.float64)
        return torch.autograd.grad(of_both.sum(), logits)[0].sum().item()

    assert slope(math.log(share / (1 - share)), "negative", None) == pytest.approx(0, abs=1e-15)
    p = share / (share + strength * (1 - share))
    assert slope(math.log(p / (1 - p)), "weak", strength) == pytest.approx(0, abs=1e-15)
    wanted, x = share / (strength * (1 - share)), 1.0
    for _ in range(99):  # x p(x) = wanted, by bisection's faster cousin
        p = 1 / (1 + math.exp(-x))
        x -= (x * p - wanted) / (p + x * p * (1 - p))
    assert x > 0 and slope(x, "entropy", strength) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_entropy_and_its_slope_are_right_to_the_last_digits(exact, dtype):
    def reference(logit, _):
        with mp.workdps(50):
            z = mpf(logit)
            p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
            # The slope is the difference of two terms around 0, where it is 0 itself.
            terms = p * q * (mp.log1p(mp.exp(-z)) + mp.log1p(mp.exp(z)))
            return p * mp.log1p(mp.exp(-z)) + q * mp.log1p(mp.exp(z)), -z * p * q, terms

    error = exact.errors(lambda x, _: entropy(x), reference, 0.0, dtype)
    assert error < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_an_unobserved_label_has_finite_derivatives_everywhere(strategy, dtype):
    logits = torch.tensor([[-1e4, -100.0, -1e-3, 0.0, 20.0, 100.0, 1e4]], dtype=dtype).requires_grad_()
    losses = unobserved_bce(logits, torch.full_like(logits, -1), strategy=strategy)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), logits)
    assert all(values.isfinite().all() for values in (losses, gradient, curvature))


def test_at_infinity_no_entropy_is_left_and_a_nan_stays():
    logits = torch.tensor([[torch.inf, -torch.inf, torch.nan]]).requires_grad_()
    losses = unobserved_bce(logits, torch.full((1, 3), -1), strategy="entropy")
    assert losses[0, :2].tolist() == [0, 0] and losses[0, 2].isnan()
    (gradient,) = torch.autograd.grad(losses[0, :2].sum(), logits)
    assert gradient[0, :2].tolist() == [0, 0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_derivatives_are_right_where_nothing_was_observed_too(strategy):
    logits, target, _ = batch(7, 3)
    logits[0, 0] = 0.0
    target[0, 0] = -1

    def loss(x):
        return unobserved_bce(x, target, strategy=strategy)

    assert gradcheck(loss, (logits.requires_grad_(),))
    assert gradgradcheck(loss, (logits,))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_and_mapped_it_gives_the_same(strategy):
    logits, target, _ = batch(5, 7)
    loss = UnobservedBCELoss(strategy=strategy, strength=None if strategy == "negative" else 0.3)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(logits, target), loss(logits, target))
    each = torch.stack([loss(x, y) for x, y in zip(logits, target, strict=True)])
    assert_close(torch.func.vmap(loss)(logits, target), each)
    torch.compiler.reset()


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "batchmean", "sum"])
def test_unobserved_counts_and_ignored_does_not(reduction):
    logits, target, hidden = batch(33, 3)
    target[::5], weight = -2.0, torch.rand(33).double()
    loss = UnobservedBCELoss(reduction=reduction, ignore_index=-2)(logits, target, weight)
    plain = BCEWithLogitsLoss(reduction=reduction, ignore_index=-2)
    filled = torch.where(hidden & (target == -1), 0.0, target)
    assert_close(loss, plain(logits, filled, weight))
    sums = UnobservedBCELoss(reduction=reduction, ignore_index=-2).sums(logits, target, weight)
    assert_close(tuple(sums), tuple(plain.sums(logits, filled, weight)))


@pytest.mark.parametrize("mark", [-1, -7, math.nan])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_metrics_of_a_classifier_see_observed_labels_only(mark, scaled):
    inputs, (_, target, hidden) = torch.randn(33, 5), batch(33, 3, mark=mark)
    target = torch.where(hidden, target, target.round()).float()
    loss = UnobservedBCELoss(unobserved=mark, strategy="weak")
    model = BinaryClassifier(torch.nn.Linear(5, 3), 2.0 * loss if scaled else loss, num_labels=3, metrics=["Accuracy"])
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, target), batch_size=7)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = pl.Trainer(accelerator="cpu", **quiet)
    (logged,) = trainer.validate(model, data, verbose=False)
    with torch.no_grad():
        logits = model(inputs)
    expected = BCEWithLogitsLoss()(logits, target, mask=~hidden)
    assert logged["val_log_loss"] == pytest.approx(expected.item(), rel=1e-6)
    right = (((logits > 0) == (target > 0.5)) & ~hidden).sum(0) / (~hidden).sum(0)
    assert logged["val_Accuracy"] == pytest.approx(right.mean().item(), rel=1e-6)
    assert logged["val_loss"] == pytest.approx((1 + scaled) * loss(logits, target).item(), rel=1e-6)


@pytest.mark.parametrize("mark", [-1, math.nan])
def test_observed_is_neither_marked_nor_ignored_nor_masked(mark):
    logits, target, hidden = batch(33, 3, mark=mark)
    mask = torch.rand(33) < 0.7
    assert torch.equal(UnobservedBCELoss(unobserved=mark).observed(logits, target), ~hidden)
    target[3:7] = -2.0
    hidden[3:7] = True
    loss = UnobservedBCELoss(unobserved=mark, ignore_index=-2)
    assert torch.equal(loss.observed(logits, target), ~hidden)
    assert torch.equal(loss.observed(logits, target, mask), ~hidden & mask[:, None])


def test_a_nan_mark_counts_as_a_negative_in_the_sums():
    sums = UnobservedBCELoss(unobserved=math.nan).sums(torch.zeros(3), torch.tensor([1.0, torch.nan, 0.0]))
    assert sums.weight.tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_every_dtype_of_targets_that_holds_the_mark_is_read(dtype):
    logits, target = torch.randn(3), torch.tensor([0, 1, -1])
    loss = UnobservedBCELoss(strategy="weak", strength=0.3)
    assert_close(loss(logits, target.to(dtype)), loss(logits, target), rtol=0, atol=0)


def test_other_values_are_refused_and_a_byte_holds_no_mark():
    logits = torch.zeros(3)
    with pytest.raises(ValueError, match=r"-2 \(1 times\)"):
        UnobservedBCELoss()(logits, torch.tensor([0, -1, -2]))
    with pytest.raises(ValueError, match=r"-1\.000000000001 \(1 times\)"):  # which float32 cannot tell from the mark
        UnobservedBCELoss()(logits, torch.tensor([0, -1, -1 - 1e-12], dtype=torch.float64))
    for mark in (-1, -1.0):  # torch compares a byte with the remainder of a whole number
        with pytest.raises(ValueError, match=r"255 \(1 times\)"):
            UnobservedBCELoss(unobserved=mark)(logits, torch.tensor([0, 1, 255], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"nan \(1 times\)"):
        UnobservedBCELoss()(logits, torch.tensor([0, -1, torch.nan]))


def test_a_single_label_needs_a_strength():
    target = torch.tensor([0, 1, -1])
    for shape in ((3,), (3, 1)):
        with pytest.raises(ValueError, match=r"give the `strength` of an unobserved label\.$"):
            UnobservedBCELoss(strategy="weak")(torch.zeros(shape), target.reshape(shape))
        assert UnobservedBCELoss(strategy="weak", strength=0.5)(torch.zeros(shape), target.reshape(shape)).isfinite()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[("unobserved", {"unobserved": v}) for v in (0, 1, 0.5, 255, -0.5, -math.inf, -1e9, "-1", True, None)],
        *[("strategy", {"strategy": v}) for v in ("ignore", None, 1)],
        *[("strength", {"strategy": "weak", "strength": v}) for v in (-1.0, math.nan, math.inf, "1", True)],
        ("strength", {"strength": 0.5}),
    ],
)
def test_impossible_arguments_and_those_without_effect_are_refused(name, options):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        UnobservedBCELoss(**options)
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        unobserved_bce(torch.zeros(2, 2), torch.zeros(2, 2), **options)


def test_a_mark_is_a_whole_number_that_every_dtype_holds_or_nan():
    logits = torch.zeros(2)
    for dtype in (torch.float16, torch.bfloat16):
        target = torch.tensor([-1024, 0], dtype=dtype)
        assert UnobservedBCELoss(unobserved=-1024).observed(logits, target).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"from -1024 to -1,.* or NaN, was expected\. Use `target\.masked_fill"):
        UnobservedBCELoss(unobserved=-1025)
    with pytest.raises(ValueError, match="expected one of negative, weak, entropy"):
        UnobservedBCELoss(strategy="ignore")


@pytest.mark.parametrize("mark", [-1, math.nan])
def test_one_mark_for_both_meanings_is_refused(mark):
    with pytest.raises(ValueError, match=r"would have no effect\. Leave out `ignore_index`\.$"):
        UnobservedBCELoss(unobserved=mark, ignore_index=mark)
