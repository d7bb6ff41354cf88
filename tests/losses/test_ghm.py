"""GHM-C: the factor of each bin, the histogram that is remembered, saved and counted over ranks."""

import copy
import math
import pickle
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, GHMCLoss, bce_with_logits, ghm_c

REDUCTIONS = ["none", "mean", "weighted_mean", "sum", "batchmean"]


def count(logits, target, known=None, bins=30):
    """The elements in each bin, one after the other."""
    counts = [0.0] * bins
    seen = torch.ones(logits.shape) if known is None else known.expand(logits.shape)
    for x, y, k in zip(logits.flatten().tolist(), target.flatten().tolist(), seen.flatten().tolist(), strict=True):
        if k:
            counts[min(int(abs(1 / (1 + math.exp(-x)) - y) * bins), bins - 1)] += 1
    return counts


def naive(logits, target, counts, known=None):
    """N / GD times cross-entropy of each element, by Python's floats."""
    bins, losses = len(counts), []
    seen = torch.ones(logits.shape) if known is None else known.expand(logits.shape)
    for x, y, k in zip(logits.flatten().tolist(), target.flatten().tolist(), seen.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        density = max(counts[min(int(abs(p - y) * bins), bins - 1)], 1) / (1 / bins)  # a count by the width of its bin
        loss = -y * math.log(p) - (1 - y) * math.log(1 - p) if 0 < p < 1 else math.nan
        losses.append(sum(counts) / density * loss if k else 0.0)
    return torch.tensor(losses, dtype=torch.float64).reshape(logits.shape)


def batch(*shape):
    """Logits of which most are easy, labels of all kinds, and which are known."""
    labels = torch.rand(shape).double()
    target = torch.where(labels < 0.7, 0.0, torch.where(labels > 0.85, 1.0, labels))
    return 2 * torch.randn(shape).double() - 2, target, torch.rand(shape) < 0.7


# -- the factor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("bins", [1, 2, 7, 30])
def test_it_is_the_formula_of_the_paper(bins, gaps):
    logits, target, known = batch(33, 7)
    known = known if gaps else None
    logits.requires_grad_()
    losses = ghm_c(logits, target, known, bins=bins)
    own = count(logits, target, known, bins)
    assert_close(losses, naive(logits, target, own, known))
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    valid = torch.ones_like(logits) if known is None else known
    factor = torch.where(valid.bool(), losses / bce_with_logits(logits, target), 0.0).detach()
    assert_close(gradient, factor * (logits.sigmoid() - target).detach())  # the factor has none
    for momentum in (0.0, 0.75):  # the first batch is all that is remembered
        loss = GHMCLoss(bins=bins, momentum=momentum, reduction="none", validate="always")
        assert_close(loss(logits, target, mask=known), losses, rtol=0, atol=0)


def test_counts_that_are_given_are_taken():
    logits, target, known = batch(33, 7)
    counts = torch.rand(30).double() * 9
    counts[3] = 0
    assert_close(ghm_c(logits, target, known, counts), naive(logits, target, counts.tolist(), known))
    assert_close(ghm_c(logits, target, counts=counts.long()), naive(logits, target, counts.long().tolist()))


def test_in_one_bin_it_is_bce():
    logits, target = 9 * torch.randn(33, 3), torch.rand(33, 3)
    assert_close(ghm_c(logits, target, bins=1), bce_with_logits(logits, target), rtol=0, atol=0)


def test_the_mean_factor_is_the_share_of_bins_that_are_not_empty_and_each_weighs_the_same():
    logits, target, _ = batch(257)
    target = target.round()
    factors = ghm_c(logits, target, bins=7) / bce_with_logits(logits, target)
    filled = [c > 0 for c in count(logits, target, bins=7)]
    assert_close(factors.mean().item(), sum(filled) / 7)
    place = ((logits.sigmoid() - target).abs() * 7).long()
    totals = torch.zeros(7).double().scatter_add(0, place, factors)
    assert_close(totals, torch.tensor(filled).double() * 257 / 7)


def test_the_last_bin_includes_one_and_a_bin_begins_at_its_edge():
    logits = torch.tensor([0.0, 100.0, -100.0, torch.inf], dtype=torch.float64)
    target = torch.tensor([0.0, 0.0, 1.0, 0.0])
    loss = GHMCLoss(bins=4)
    loss(logits, target)
    assert loss.histogram.tolist() == [0, 0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_losses_and_both_derivatives_are_finite_at_the_extremes(dtype):
    logits = torch.tensor([-1e4, -30.0, 0.0, 30.0, 1e4], dtype=dtype).requires_grad_()
    for label in (0.0, 0.3, 1.0):
        for losses in (
            ghm_c(logits, torch.full((5,), label)),
            GHMCLoss(reduction="none")(logits, torch.full((5,), label)),
        ):
            (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
            (curvature,) = torch.autograd.grad(gradient.sum(), logits)
            assert all(values.isfinite().all() for values in (losses, gradient, curvature))


def test_an_infinite_logit_gives_the_limit_and_a_nan_stays_and_is_not_counted():
    logits = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, torch.inf])
    target = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
    loss = GHMCLoss(bins=2, reduction="none")
    for losses in (ghm_c(logits, target, bins=2), loss(logits, target)):
        assert losses[:2].tolist() == [0, 0] and losses[2].isnan() and losses[4] == torch.inf
        assert_close(losses[3].item(), math.log(2))  # 4 elements, 2 in each of 2 bins
    assert loss.histogram.tolist() == [2, 2]


def test_both_derivatives_are_right():
    logits, target, known = batch(7)
    call = partial(ghm_c, target=target, known=known)
    assert gradcheck(call, (logits.requires_grad_(),))
    assert gradgradcheck(call, (logits,))


# -- what is remembered -----------------------------------------------------------------------------------------------


def test_the_histogram_is_a_fading_sum_of_counts_and_the_batch_is_in_it():
    loss, expected = GHMCLoss(bins=7, momentum=0.6, reduction="none"), [0.0] * 7
    for rows in (33, 7, 1, 257):  # uneven
        logits, target, known = batch(rows, 3)
        expected = [0.6 * old + new for old, new in zip(expected, count(logits, target, known, 7), strict=True)]
        losses = loss(logits, target, mask=known)
        assert_close(loss.histogram.tolist(), expected)
        assert_close(losses, naive(logits, target, expected, known))


def test_after_batches_of_one_size_the_factor_is_the_papers_without_its_slow_start():
    average, loss = [0.0] * 30, GHMCLoss(reduction="none")
    for step in range(1, 6):
        logits, target, _ = batch(33, 3)
        average = [0.75 * old + 0.25 * new for old, new in zip(average, count(logits, target), strict=True)]
        losses, theirs = loss(logits, target), torch.empty(33, 3).double()
        for index, g in enumerate((logits.sigmoid() - target).abs().flatten().tolist()):
            theirs.view(-1)[index] = 99 / (30 * average[min(int(g * 30), 29)])
        assert_close(losses, (1 - 0.75**step) * theirs * bce_with_logits(logits, target))


def test_each_call_in_training_counts_and_none_in_evaluation():
    logits, target, _ = batch(33, 3)
    loss = GHMCLoss(momentum=0.5)
    loss(logits, target)
    first = loss.histogram.clone()
    assert first.sum() == 99
    loss.sums(logits, target)
    assert_close(loss.histogram, 1.5 * first)
    kept = loss.histogram.clone()
    loss.eval()
    other, labels, _ = batch(7, 3)
    for value in (loss(other, labels), loss.sums(other, labels).mean()):
        assert_close(value, naive(other, labels, kept.tolist()).mean())
    assert_close(loss.histogram, kept, rtol=0, atol=0)


def test_before_any_training_a_batch_has_its_own_histogram():
    logits, target, _ = batch(33, 3)
    loss = GHMCLoss().eval()
    assert_close(loss(logits, target), ghm_c(logits, target).mean())
    assert loss.histogram.sum() == 0
    assert loss.histogram.dtype == torch.float64  # of which a bin that is rarely met keeps its digits


def test_after_a_single_element_the_histogram_is_that_of_training():
    loss, logits, target = GHMCLoss(bins=2, reduction="none"), torch.tensor([-5.0, -5.0, 5.0]), torch.zeros(3)
    loss(logits[:1], target[:1])
    counts = torch.tensor([1, 0])
    assert_close(loss.eval()(logits, target), ghm_c(logits, target, counts=counts, bins=2))


def test_without_momentum_nothing_is_remembered_and_every_batch_has_its_own():
    loss = GHMCLoss(momentum=0.0)
    for _ in range(3):
        logits, target, _ = batch(33, 3)
        assert_close(loss(logits, target), ghm_c(logits, target).mean())
        assert_close(loss.eval()(logits, target), ghm_c(logits, target).mean())
        loss.train()
    assert loss.histogram is None and loss.state_dict() == {}


def test_a_bin_that_training_never_met_or_met_long_ago_counts_as_one():
    loss = GHMCLoss(bins=2, momentum=0.5, reduction="none")
    loss(torch.tensor([5.0]), torch.tensor([0.0]))  # a hard one, once
    for _ in range(2000):
        loss(torch.full((4,), -5.0), torch.zeros(4))
    assert loss.histogram[1] == 0
    losses = loss.eval()(torch.tensor([5.0]), torch.tensor([0.0]))
    assert_close(losses, 8 / 2 * bce_with_logits(torch.tensor([5.0]), torch.tensor([0.0])))


def test_a_backward_that_comes_after_the_next_batch_is_right():
    logits, target, _ = batch(33, 3)
    logits.requires_grad_()
    loss, twin = GHMCLoss(), GHMCLoss()
    first = loss(logits, target)
    loss(logits.flip(0), target)
    assert_close(torch.autograd.grad(first, logits), torch.autograd.grad(twin(logits, target), logits))


# -- masks and means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("how", ["mask", "ignore_index"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_what_is_ignored_is_not_counted_and_poisons_nothing(reduction, how, remembered):
    logits, target, known = batch(33, 3)
    weight, factors = torch.rand(33, 3).double(), [0.3, 1.0, 2.0]
    loss = GHMCLoss(
        bins=7, reduction=reduction, ignore_index=-1 if how == "ignore_index" else None, class_weight=factors
    )
    counts = count(logits, target, known, 7)
    if remembered:
        loss.histogram.copy_(torch.arange(7.0))
        loss.eval()
        counts = list(range(7))
    losses = naive(logits, target, counts, known) * weight * torch.tensor(factors).double()
    by = {"weighted_mean": (weight * known).sum(), "batchmean": known.any(1).sum(), "sum": 1, "mean": known.sum()}
    expected = losses if reduction == "none" else losses.sum() / by[reduction]
    dirty = torch.where(known, logits, torch.tensor([math.nan, math.inf, 50.0]).double()).requires_grad_()
    marked = torch.where(known, target, -1.0) if how == "ignore_index" else target
    call = {"mask": known} if how == "mask" else {}
    value = loss(dirty, marked, weight, **call)
    assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), dirty)
    assert gradient.isfinite().all() and (gradient[~known] == 0).all()
    if not remembered:
        assert loss.histogram.tolist() == counts
    sums = loss.eval().sums(dirty, marked, weight, **call)
    if reduction not in ("none", "sum"):
        assert_close(sums.mean(), value)


@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(0,), (0, 3), (7, 3), ()], ids=str)
def test_a_one_sided_or_empty_batch_is_finite_with_a_gradient(shape, label, momentum):
    logits = torch.randn(shape).requires_grad_()
    for known in (torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)):
        loss = GHMCLoss(momentum=momentum)
        for module in (loss, loss.eval()):
            value = module(logits, torch.full(shape, label), mask=known)
            (gradient,) = torch.autograd.grad(value, logits)
            assert value.isfinite() and gradient.isfinite().all() and gradient.shape == shape
            assert (value > 0) == (logits.numel() > 0 and bool(known.any()))


# -- ranks ------------------------------------------------------------------------------------------------------------


def train_on_this_rank(rank, parts, momentum):
    """Return losses and gradients of uneven batches, on one rank one more in evaluation, and the histogram."""
    loss, found = GHMCLoss(bins=7, momentum=momentum, reduction="none"), []
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step, batches in enumerate(parts):
        logits, target, known = batches[rank]
        logits = logits.clone().requires_grad_()
        losses = (compiled if step == 2 else loss)(logits, target, mask=known)
        found.append((losses.detach(), *torch.autograd.grad(losses.sum(), logits)))
    loss.eval()
    before = None if loss.histogram is None else loss.histogram.clone()
    if rank == 0:  # in evaluation no rank waits for another
        found.append((loss(*parts[0][0][:2]).detach(),))
    return found, before, loss.histogram


@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_two_ranks_have_the_histogram_of_one_process(on_two_ranks, momentum):
    parts = [[batch(rows, 3) for rows in pair] for pair in [(7, 5), (1, 33), (0, 4)]]
    first, second = on_two_ranks(train_on_this_rank, parts, momentum)
    alone = GHMCLoss(bins=7, momentum=momentum, reduction="none")
    for step, pair in enumerate(parts):
        logits, target, known = (torch.cat(tensors) for tensors in zip(*pair, strict=True))
        losses = alone(logits.requires_grad_(), target, mask=known)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert_close(torch.cat([first[0][step][0], second[0][step][0]]), losses.detach())
        assert_close(torch.cat([first[0][step][1], second[0][step][1]]), gradient)
    for _, before, after in (first, second):
        assert_close(before, alone.histogram, rtol=0, atol=0)
        assert_close(after, alone.histogram, rtol=0, atol=0)
    assert_close(first[0][3][0], alone.eval()(*parts[0][0][:2]))


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.75])
def test_compiled_in_one_graph_it_gives_and_remembers_the_same(momentum, training):
    logits, target, _ = batch(33, 3)
    target[2, 1] = -1
    loss = GHMCLoss(momentum=momentum, ignore_index=-1)
    loss(logits, target)
    loss.train(training)
    twin = copy.deepcopy(loss)
    compiled = torch.compile(lambda *a: (loss(*a), loss.sums(*a).mean()), fullgraph=True, backend="aot_eager")
    leaf = logits.clone().requires_grad_()
    for _ in range(3):
        values, expected = compiled(leaf, target), (twin(leaf, target), twin.sums(leaf, target).mean())
        assert_close(values, expected)
        gradients = [torch.autograd.grad(value[0], leaf) for value in (values, expected)]
        assert_close(*gradients)
        assert_close(loss.histogram, twin.histogram)
    pure = torch.compile(ghm_c, fullgraph=True, backend="aot_eager")
    assert_close(pure(logits, target.clamp(min=0)), ghm_c(logits, target.clamp(min=0)))
    torch.compiler.reset()


def test_mapped_and_differentiated_it_gives_each_ones_where_nothing_is_remembered():
    logits, target, _ = batch(5, 7)
    target[2, 3] = -1
    learnt = GHMCLoss(bins=4, ignore_index=-1)
    learnt(*batch(33, 7)[:2])
    for loss in (
        learnt.eval(),
        GHMCLoss(bins=4, ignore_index=-1).eval(),
        GHMCLoss(bins=4, momentum=0.0, ignore_index=-1),
    ):
        each = torch.stack([loss(x, y) for x, y in zip(logits, target, strict=True)])
        assert_close(torch.func.vmap(loss)(logits, target), each)
        leaf = logits.clone().requires_grad_()
        by_hand = torch.stack([loss(x, y) for x, y in zip(leaf, target, strict=True)])
        gradients = torch.func.vmap(torch.func.grad(loss))(logits, target)
        assert_close(gradients, torch.autograd.grad(by_hand.sum(), leaf)[0])


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_a_transform_that_would_have_to_remember_is_refused(transform):
    logits, target, _ = batch(5, 7)
    loss = GHMCLoss()
    with pytest.raises(RuntimeError, match="momentum=0"):
        transform(loss)(logits, target)
    assert loss.histogram.sum() == 0


@pytest.mark.parametrize("training", [True, False])
def test_nothing_waits_for_the_device(training):
    logits, target = torch.empty(7, 3, device="meta"), torch.empty(7, 3, device="meta")  # has no values to read
    loss = GHMCLoss(validate="off").to("meta").train(training)
    assert loss(logits, target).device.type == "meta" and loss.histogram.device.type == "meta"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_every_grad_mode_the_batch_is_counted(mode):
    logits, target, _ = batch(7, 3)
    loss = GHMCLoss()
    with mode():
        loss(logits, target)
    assert loss.histogram.sum() == 21
    assert not loss.histogram.requires_grad and not loss.histogram.is_inference()
    leaf = logits.clone().requires_grad_()
    torch.autograd.grad(loss(leaf, target), leaf)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_remembers_the_same_and_goes_its_own_way(copied):
    logits, target, _ = batch(33, 3)
    loss = GHMCLoss()
    loss(logits, target)
    twin = copied(loss)
    assert_close(twin.histogram, loss.histogram, rtol=0, atol=0)
    twin(logits, target)
    assert twin.histogram.sum() > loss.histogram.sum()


def test_the_histogram_is_saved_and_nothing_else():
    logits, target, _ = batch(33, 3)
    loss, again = GHMCLoss(class_weight=[1.0, 2.0, 3.0]), GHMCLoss(class_weight=[1.0, 2.0, 3.0])
    loss(logits, target)
    assert list(loss.state_dict()) == ["histogram"]
    again.load_state_dict(loss.state_dict())
    assert_close(again(logits, target), loss(logits, target), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        GHMCLoss(bins=7).load_state_dict(loss.state_dict())


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_the_histogram_keeps_its_digits_when_the_model_is_cast(cast):
    logits, target, _ = batch(333, 3)
    loss = GHMCLoss()
    loss(logits, target)
    kept = loss.histogram.clone()
    same = cast(torch.nn.Sequential(loss))[0]
    assert_close(same.histogram, kept, rtol=0, atol=0)
    same(logits.bfloat16(), target)
    assert same.histogram.sum() == 1.75 * 999


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_resumed_classifier_goes_on_as_if_it_had_not_stopped(tmp_path, factor):
    inputs, target, _ = batch(33, 3)
    loader = DataLoader(TensorDataset(inputs.float(), target.round()), batch_size=8)
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    a_trainer = partial(pl.Trainer, accelerator="cpu", **quiet)

    def a_classifier():
        torch.manual_seed(7)
        loss = GHMCLoss(bins=7) if factor == 1 else factor * GHMCLoss(bins=7) + 0.1 * BCEWithLogitsLoss()
        rate = partial(torch.optim.SGD, lr=0.1)
        return BinaryClassifier(torch.nn.Linear(3, 3), loss, num_labels=3, optimizer=rate, metrics=[])

    whole, half = a_classifier(), a_classifier()
    untouched = a_trainer(max_epochs=4)
    untouched.fit(whole, loader, loader)
    stopped = a_trainer(max_epochs=2)
    stopped.fit(half, loader, loader)
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "half.ckpt")
    resumed = a_trainer(max_epochs=4)
    resumed.fit(again, loader, loader, ckpt_path=tmp_path / "half.ckpt")
    assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert any(name.endswith("histogram") for name in whole.state_dict())
    for name in ("train_loss", "val_loss"):
        assert resumed.callback_metrics[name] == untouched.callback_metrics[name]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bins", [0, -1, 1.0, "30", None, True]),
        ("momentum", [-0.1, 1, 1.5, math.nan, "0.75", None, True]),
    ],
)
def test_impossible_options_are_refused(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            GHMCLoss(**{name: value})
        if name == "bins":
            with pytest.raises((ValueError, TypeError), match="`bins` is"):
                ghm_c(torch.zeros(2), torch.zeros(2), bins=value)


@pytest.mark.parametrize("shape", [(), (29,), (1, 30), (30, 1)], ids=str)
def test_counts_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`counts` has shape .* \(30,\) was expected"):
        ghm_c(torch.zeros(2), torch.zeros(2), counts=torch.ones(shape))
