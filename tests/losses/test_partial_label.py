"""Partial cross-entropy: the factor of each sample, its two extremes, and samples of which nothing is known."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, PartialLabelBCELoss, bce_with_logits, partial_label_bce

FACTORS = [{}, {"slope": 1.0, "offset": 0.0, "power": -1.0}, {"slope": -0.5, "offset": 0.7, "power": 0.5}]


def batch(*shape):
    """Logits, labels, and which are known: of the first sample all, of the second none."""
    known = torch.rand(shape) < 0.5
    known[0], known[1] = True, False
    return torch.randn(shape).double().requires_grad_(), torch.rand(shape).double(), known


@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_it_is_the_formula(factor):
    logits, target, known = batch(33, 7)
    slope, offset, power = ({"slope": -4.45, "offset": 5.45, "power": 1.0} | factor).values()
    p = torch.sigmoid(logits)
    theirs = torch.zeros(33, 7).double()
    for row in range(33):
        count = int(known[row].sum())
        if count:
            of_row = -target[row] * p[row].log() - (1 - target[row]) * (1 - p[row]).log()
            theirs[row] = known[row] * of_row * (slope * (count / 7) ** power + offset)
    ours = partial_label_bce(logits, target, known, **factor)
    assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    assert_close(*(torch.autograd.grad(loss, logits, upstream) for loss in (ours, theirs)))


@pytest.mark.parametrize("how", ["mask", "ignore_index", "both"])
@pytest.mark.parametrize("factor", FACTORS, ids=str)
def test_the_module_takes_what_is_known_from_mask_and_mark(factor, how):
    logits, target, known = batch(33, 7)
    first = torch.rand(33, 7) < 0.5 if how == "both" else torch.full((33, 7), how == "mask")
    marked = torch.where(known | first, target, -1.0)
    call = {} if how == "ignore_index" else {"mask": known | ~first}
    loss = PartialLabelBCELoss(**factor, reduction="none", ignore_index=-1, validate="always")
    losses = loss(logits, marked, **call)
    assert_close(losses, partial_label_bce(logits, target, known, **factor), rtol=0, atol=0)
    sums = PartialLabelBCELoss(**factor, ignore_index=-1).sums(logits, marked, **call)
    assert_close(sums.loss.sum(), losses.sum())
    assert sums.weight.sum() == known.sum()


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3), (7, 3, 5)], ids=str)
def test_with_everything_known_it_is_bce(shape):
    logits, target = 9 * torch.randn(shape), torch.rand(shape)
    expected = bce_with_logits(logits, target)
    assert_close(partial_label_bce(logits, target), expected, rtol=0, atol=0)
    everything = torch.ones(shape, dtype=torch.bool)
    assert_close(partial_label_bce(logits, target, everything), expected, rtol=0, atol=0)
    assert_close(PartialLabelBCELoss()(logits, target, mask=everything), BCEWithLogitsLoss()(logits, target))


@pytest.mark.parametrize("shape", [(7,), (7, 3)], ids=str)
@pytest.mark.parametrize(
    "factor",
    [
        *FACTORS,
        {"slope": 1.0, "offset": 0.0, "power": 1.0},
        *({"slope": a, "offset": b, "power": 0.0} for a, b in ((2.0, -1.0), (-1.0, 2.0), (1.0, 2.0))),
    ],
    ids=str,
)
def test_with_everything_known_the_factor_is_its_sum_at_every_power(factor, shape):
    logits, target, _ = batch(*shape)
    total = factor.get("slope", -4.45) + factor.get("offset", 5.45)
    expected = total * bce_with_logits(logits, target)
    assert_close(partial_label_bce(logits, target, **factor), expected)
    assert_close(partial_label_bce(logits, target, torch.ones(shape, dtype=torch.bool), **factor), expected)
    assert_close(PartialLabelBCELoss(**factor, reduction="none")(logits, target), expected)


def test_a_factor_whose_parts_nearly_cancel_keeps_its_digits_in_float32():
    known = torch.arange(99) < 98
    losses = partial_label_bce(torch.zeros(1, 99), torch.zeros(1, 99), known, slope=-1.0, offset=1.0)
    expected = torch.where(known, torch.tensor(math.log(2) / 99), 0.0)[None]
    assert_close(losses, expected, rtol=2e-7, atol=0)


def test_without_slope_each_known_label_counts_the_same_and_with_the_inverse_each_sample():
    logits, target, known = batch(33, 7)
    plain = BCEWithLogitsLoss(reduction="none")(logits, target, mask=known)
    assert_close(partial_label_bce(logits, target, known, slope=0.0, offset=1.0), plain, rtol=0, atol=0)
    by_sample = partial_label_bce(logits, target, known, slope=1.0, offset=0.0, power=-1.0).sum(1) / 7
    assert_close(by_sample, plain.sum(1) / known.sum(1).clamp(min=1))


def test_the_paper_s_mean_is_batchmean_over_the_labels():
    logits, target, known = batch(33, 7)
    known[1, 0] = True  # no sample is wholly unknown
    theirs = partial_label_bce(logits, target, known).sum(1).mean() / 7
    assert_close(PartialLabelBCELoss(reduction="batchmean")(logits, target, mask=known) / 7, theirs)


def test_the_default_factor_is_one_for_all_and_five_for_a_tenth():
    known = torch.zeros(2, 10, dtype=torch.bool)
    known[0], known[1, 3] = True, True
    losses = partial_label_bce(torch.zeros(2, 10).double(), torch.ones(2, 10), known) / math.log(2)
    assert losses[0, 3].item() == pytest.approx(1, rel=1e-15)
    assert losses[1, 3].item() == pytest.approx(5.005, rel=1e-15)


def test_each_position_has_its_own_fraction():
    logits, target, known = batch(7, 3, 5)
    losses = partial_label_bce(logits, target, known)
    for place in range(5):
        alone = partial_label_bce(logits[..., place], target[..., place], known[..., place])
        assert_close(losses[..., place], alone, rtol=0, atol=0)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, label, count):
    def reference(logit, label):
        with mp.workdps(50):
            factor = mpf(-4.45) * count / 7 + mpf(5.45)
            return tuple(factor * part for part in exact.bce(logit, label))

    def loss(logits, target):
        known = (torch.arange(7) < count).expand(len(logits), 7)
        return partial_label_bce(logits[:, None].expand(-1, 7), target[:, None].expand(-1, 7), known)[:, 0]

    assert exact.errors(loss, reference, label, dtype) < (1e-6 if dtype == torch.float32 else 1e-14)


@pytest.mark.parametrize("factor", FACTORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_all_derivatives_are_finite_whatever_stands_where_nothing_is_known(dtype, factor):
    logits = torch.tensor([[-1e4, 0.0, 1e4], [1e4, torch.nan, torch.inf], [torch.nan] * 3], dtype=dtype)
    known = torch.tensor([[True] * 3, [True, False, False], [False] * 3])
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, torch.nan, -1.0], [5.0] * 3])
    losses = partial_label_bce(logits.requires_grad_(), target, known, **factor)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), logits)
    assert all(values.isfinite().all() for values in (losses, gradient, curvature))
    assert (losses[~known] == 0).all() and (gradient[~known] == 0).all()
    assert gradient[0, 0] < -0.1 and gradient[1, 0] > 0.1  # confident mistakes


def test_both_derivatives_are_right_with_gaps():
    logits, target, known = batch(5, 3)
    assert gradcheck(lambda x: partial_label_bce(x, target, known), (logits,))
    assert gradgradcheck(lambda x: partial_label_bce(x, target, known), (logits,))


def test_compiled_and_mapped_it_gives_the_same_with_gaps():
    logits, target, known = batch(5, 7, 3)
    loss = PartialLabelBCELoss(ignore_index=-1)
    marked = torch.where(known, target, -1.0)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(logits, marked), loss(logits, marked))
    each = torch.stack([loss(x, y) for x, y in zip(logits, marked, strict=True)])
    assert_close(torch.func.vmap(loss)(logits, marked), each)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(n, {n: v}) for n in ("slope", "offset", "power") for v in (math.nan, math.inf, "1", None, True)],
        ("slope", {"slope": -6.0}),
        ("offset", {"slope": 2.0, "offset": -1.0}),
        ("power", {"slope": -1.0, "offset": 2.0, "power": -1.0}),
        ("slope", {"slope": 0.0, "offset": 0.0}),
        ("power", {"slope": 0.0, "offset": 1.0, "power": 2.0}),
    ],
)
def test_impossible_arguments_and_those_without_effect_are_refused(name, options):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        PartialLabelBCELoss(**options)
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        partial_label_bce(torch.zeros(2, 2), torch.zeros(2, 2), **options)


def test_a_factor_that_may_be_negative_is_told_the_paper_s():
    with pytest.raises(ValueError, match=r"must not be negative .*\. The paper's are -4\.45, 5\.45 and 1\.$"):
        PartialLabelBCELoss(slope=-6.0)
