"""Large losses: which are taken out, what becomes of them, how their share grows, and that evaluation leaves all in."""

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

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, LargeLossBCELoss, bce_with_logits, large_loss_bce

STRATEGIES = ["reject", "correct"]


def naive(logits, target, rate, known=None, strategy="reject"):
    """One element after the other, by Python's floats: the k largest losses of negatives."""
    x, y = logits.flatten().tolist(), target.flatten().tolist()
    seen = [True] * len(x) if known is None else known.expand(logits.shape).flatten().tolist()
    assumed = [i for i in range(len(x)) if seen[i] and y[i] == 0]
    count = math.ceil(round(rate * len(assumed), 9))
    large = sorted(assumed, key=lambda i: -math.log(1 - 1 / (1 + math.exp(-x[i]))), reverse=True)[:count]
    losses = []
    for i in range(len(x)):
        label = 1.0 if i in large else y[i]
        p = 1 / (1 + math.exp(-x[i])) if seen[i] else 0.5
        loss = -label * math.log(p) - (1 - label) * math.log(1 - p)
        losses.append(0.0 if not seen[i] or (i in large and strategy == "reject") else loss)
    return torch.tensor(losses, dtype=torch.float64).reshape(logits.shape)


def batch(*shape):
    """Logits, labels of all kinds of which most are 0, and which are known."""
    labels = torch.rand(shape).double()
    target = torch.where(labels < 0.7, 0.0, torch.where(labels > 0.85, 1.0, labels))
    return 2 * torch.randn(shape).double(), target, torch.rand(shape) < 0.7


def at_rate(rate, **options):
    """A loss in the epoch that has this rate."""
    loss = LargeLossBCELoss(rate_per_epoch=rate, max_rate=1.0, **options)
    loss.start_epoch(1)
    return loss


# -- which ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_is_the_formula(strategy, rate, gaps):
    logits, target, known = batch(33, 7)
    known = known if gaps else None
    logits.requires_grad_()
    losses = large_loss_bce(logits, target, rate, known, strategy=strategy)
    assert_close(losses, naive(logits, target, rate, known, strategy))
    tensor = large_loss_bce(logits, target, torch.tensor(rate, dtype=torch.float64), known, strategy=strategy)
    assert_close(tensor, losses, rtol=0, atol=0)
    if rate:
        loss = at_rate(rate, strategy=strategy, reduction="none", validate="always")
        by_module = loss(logits, target, mask=known)
        assert_close(by_module, losses, rtol=0, atol=0)
        upstream = torch.randn_like(losses)
        assert_close(*(torch.autograd.grad(value, logits, upstream) for value in (by_module, losses)), rtol=0, atol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_at_a_rate_of_zero_it_is_bce(strategy):
    logits, target, _ = batch(33, 3)
    losses = large_loss_bce(logits, target, 0.0, strategy=strategy)
    assert_close(losses, bce_with_logits(logits, target), rtol=0, atol=0)


@pytest.mark.parametrize("count", [1, 7, 100, 501])
@pytest.mark.parametrize("epoch", range(0, 12))
def test_the_count_is_the_share_rounded_up_and_no_more(count, epoch):
    loss = LargeLossBCELoss(reduction="none")
    loss.start_epoch(epoch)
    losses = loss(torch.randn(count), torch.zeros(count))
    exactly = -(-count * 2 * epoch // 1000)  # ceil, in whole numbers
    assert (losses == 0).sum() == exactly


def test_a_rounding_error_takes_out_no_further_one():
    assert 3 * 0.1 * 10 > 3  # so that this test can fail
    for size in range(10, 3000, 10):
        losses = at_rate(3 * 0.1, reduction="none")(torch.randn(size), torch.zeros(size))
        assert (losses == 0).sum() == 3 * size // 10


@pytest.mark.parametrize("size", [50, 90, 100, 170])
def test_a_share_keeps_its_digits_in_a_batch_of_float32(size):
    assert torch.tensor(0.3) * size > 0.3 * size  # so that this test can fail
    losses = large_loss_bce(torch.randn(size), torch.zeros(size), 0.3)
    assert (losses == 0).sum() == 3 * size // 10


def test_only_known_zeros_are_counted_and_taken_out():
    logits = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 0.0])
    target = torch.tensor([1.0, 0.5, 1e-6, 0.0, 0.0, 0.0])
    known = torch.tensor([True, True, True, False, True, True])
    losses = large_loss_bce(logits, target, 0.5, known)
    expected = bce_with_logits(logits, target)
    expected[3] = expected[4] = 0  # the unknown one, and the larger one of two
    assert_close(losses, expected, rtol=0, atol=0)


def test_equal_logits_are_taken_out_together_or_not_at_all():
    losses = large_loss_bce(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), torch.zeros(5), 0.4)  # two of five
    assert (losses == 0).tolist() == [True, False, False, False, False]
    losses = large_loss_bce(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), torch.zeros(5), 0.8)
    assert (losses == 0).tolist() == [True, True, True, True, False]
    assert (large_loss_bce(torch.zeros(7, 3), torch.zeros(7, 3), 0.5) > 0).all()  # an untrained last layer


def test_the_order_of_the_batch_does_not_matter():
    logits, target, known = batch(33, 7)
    logits = logits.round()  # with ties
    order = torch.randperm(33)
    losses = large_loss_bce(logits, target, 0.2, known)
    assert_close(large_loss_bce(logits[order], target[order], 0.2, known[order]), losses[order], rtol=0, atol=0)


def test_losses_that_float32_cannot_tell_apart_are_ranked_by_their_logits():
    logits = torch.tensor([-100.0, -104.0, -105.0])  # the losses of the last two are 0 or one bit
    losses = large_loss_bce(logits, torch.zeros(3), 0.5, strategy="correct")
    assert (losses > 1).tolist() == [True, True, False]


# -- what becomes of them ---------------------------------------------------------------------------------------------


def test_a_rejected_loss_and_its_gradient_are_zero_and_a_corrected_one_is_a_positives():
    logits = torch.tensor([3.0, 1.0, 0.0]).requires_grad_()
    for module in (False, True):
        for strategy in STRATEGIES:
            loss = at_rate(0.3, strategy=strategy, reduction="none")
            call = loss if module else partial(large_loss_bce, rate=0.3, strategy=strategy)
            losses = call(logits, torch.zeros(3))
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
            assert losses[0] == 0 if strategy == "reject" else losses[0] == bce_with_logits(logits, torch.ones(3))[0]
            assert gradient[0] == 0 if strategy == "reject" else -0.05 < gradient[0] < 0
            assert (gradient[1:] > 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_at_extreme_and_infinite_logits_what_is_taken_out_is_finite(strategy, dtype):
    for top in (1e4, torch.inf):
        logits = torch.tensor([top, top, 0.0, -1e4, -torch.inf, 3.0], dtype=dtype).requires_grad_()
        target = torch.tensor([0, 0, 0, 0, 0, 1])
        loss = at_rate(0.4, strategy=strategy, reduction="none")
        for losses in (large_loss_bce(logits, target, 0.4, strategy=strategy), loss(logits, target)):
            (gradient,) = torch.autograd.grad(losses.sum(), logits)
            assert losses.isfinite().all() and gradient.isfinite().all()
            assert losses[:2].tolist() == [0, 0] and gradient[:2].tolist() == [0, 0]
            assert losses[2] > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_nan_is_not_counted_and_stays(strategy):
    logits = torch.tensor([torch.nan, torch.nan, torch.nan, 3.0, 2.0, 1.0])
    for losses in (
        large_loss_bce(logits, torch.zeros(6), 0.3, strategy=strategy),
        at_rate(0.3, strategy=strategy, reduction="none")(logits, torch.zeros(6)),
    ):
        assert losses.isnan().tolist() == [True, True, True, False, False, False]
        assert losses[3] < 0.1 and losses[4] > 2  # one of three


def test_both_derivatives_are_right_with_large_losses():
    logits, target, known = batch(5, 3)
    for strategy in STRATEGIES:
        call = partial(large_loss_bce, target=target, rate=0.3, known=known, strategy=strategy)
        assert gradcheck(call, (logits.requires_grad_(),))
        assert gradgradcheck(call, (logits,))


# -- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_share_grows_by_the_epoch_up_to_its_bound(strategy):
    logits, target, _ = batch(33, 7)
    loss = LargeLossBCELoss(strategy=strategy, rate_per_epoch=0.07, max_rate=0.2)
    values = [loss(logits, target)]  # told nothing, it is in its first epoch
    for epoch in (1, 2, 3, 99, 0):
        loss.start_epoch(epoch)
        values.append(loss(logits, target))
    rates = [0, 0.07, 0.14, 0.2, 0.2, 0]
    assert_close(values, [naive(logits, target, rate, strategy=strategy).mean() for rate in rates])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_in_evaluation_it_is_bce(strategy):
    logits, target, _ = batch(33, 7)
    loss = at_rate(0.3, strategy=strategy).eval()
    rate = loss.rate.clone()
    assert_close(loss(logits, target), BCEWithLogitsLoss()(logits, target), rtol=0, atol=0)
    assert_close(tuple(loss.sums(logits, target)), tuple(BCEWithLogitsLoss().sums(logits, target)), rtol=0, atol=0)
    assert loss.rate == rate
    assert_close(loss.train()(logits, target), naive(logits, target, 0.3, strategy=strategy).mean())


# -- masks and means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mask", "ignore_index"])
@pytest.mark.parametrize("reduction", ["none", "mean", "weighted_mean", "sum", "batchmean"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_ignored_is_not_ranked_and_what_is_rejected_counts_in_every_mean(strategy, reduction, how):
    logits, target, known = batch(33, 3)
    weight = torch.rand(33, 3).double()
    losses = naive(logits, target, 0.2, known, strategy) * weight
    counts = {"weighted_mean": (weight * known).sum(), "batchmean": known.any(1).sum(), "sum": 1, "mean": known.sum()}
    expected = losses if reduction == "none" else losses.sum() / counts[reduction]
    dirty = torch.where(known, logits, torch.tensor([math.nan, math.inf, 50.0]).double()).requires_grad_()
    marked = torch.where(known, target, -1.0)
    loss = at_rate(0.2, strategy=strategy, reduction=reduction, ignore_index=-1 if how == "ignore_index" else None)
    call = {"mask": known} if how == "mask" else {}
    value = loss(dirty, marked if how == "ignore_index" else target, weight, **call)
    assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), dirty)
    assert gradient.isfinite().all() and (gradient[~known] == 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_taken_out_stays_on_the_side_that_it_came_on(strategy):
    logits, target, known = batch(33, 3)
    target = target.round()
    losses = naive(logits, target, 0.2, known, strategy)
    sums = at_rate(0.2, strategy=strategy).sums(logits, target, mask=known)
    for side in (0, 1):
        assert_close(sums.loss[:, side], (losses * (target == side)).sum(0))
        assert_close(sums.weight[:, side], (known & (target == side)).sum(0).double())


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (7, 3), ()], ids=str)
def test_a_one_sided_or_empty_batch_is_finite_with_a_gradient(strategy, label, shape):
    logits = torch.randn(shape).requires_grad_()
    target = torch.full(shape, label)
    for known in (torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)):
        value = at_rate(1.0, strategy=strategy)(logits, target, mask=known)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and gradient.isfinite().all() and gradient.shape == shape
        if not known.any() or (label == 0 and strategy == "reject"):  # of the negatives all are taken out
            assert value == 0 and (gradient == 0).all()
        else:
            assert value > 0


# -- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_in_one_graph_it_follows_the_epoch_without_another(strategy):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    logits, target, _ = batch(7, 3)
    loss = LargeLossBCELoss(strategy=strategy, rate_per_epoch=0.05, max_rate=1.0)
    compiled = torch.compile(loss, fullgraph=True, backend=count)
    for epoch in range(12):
        loss.start_epoch(epoch)
        assert_close(compiled(logits, target), naive(logits, target, 0.05 * epoch, strategy=strategy).mean())
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_compiled_and_mapped_it_gives_the_same(strategy):
    logits, target, _ = batch(5, 7)
    target[2, 3] = -1
    logits.requires_grad_()
    loss = at_rate(0.3, strategy=strategy, ignore_index=-1)
    compiled = torch.compile(lambda *a: (loss(*a), loss.sums(*a).mean()), fullgraph=True, backend="aot_eager")
    value, mean = compiled(logits, target)
    assert_close((value, mean), (loss(logits, target), loss.sums(logits, target).mean()))
    assert_close(torch.autograd.grad(value, logits), torch.autograd.grad(loss(logits, target), logits))
    pure = torch.compile(partial(large_loss_bce, strategy=strategy), fullgraph=True, backend="aot_eager")
    clean = target.clamp(min=0)
    assert_close(pure(logits, clean, 0.3), large_loss_bce(logits, clean, 0.3, strategy=strategy))
    each = torch.stack([loss(x, y) for x, y in zip(logits, target, strict=True)])
    assert_close(torch.func.vmap(loss)(logits, target), each)
    torch.compiler.reset()


def test_nothing_waits_for_the_device():
    logits, target = torch.empty(7, 3, device="meta"), torch.empty(7, 3, device="meta")  # has no values to read
    loss = at_rate(0.3, validate="off").to("meta")
    assert loss(logits, target).device.type == "meta"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_is_in_the_same_epoch_and_nothing_is_saved(copied):
    logits, target, _ = batch(33, 3)
    loss = at_rate(0.3)
    assert_close(copied(loss)(logits, target), loss(logits, target), rtol=0, atol=0)
    assert loss.state_dict() == {}


def test_the_rate_keeps_its_digits_when_the_model_is_cast():
    loss = torch.nn.Sequential(at_rate(0.1)).to(torch.bfloat16)[0]
    assert loss.rate.dtype == torch.float64 and loss.rate == 0.1
    loss.start_epoch(2)
    assert loss.rate == 0.2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_classifier_takes_out_more_each_epoch_resumed_too_and_nothing_in_validation(tmp_path, factor, strategy):
    inputs, target, _ = batch(32, 3)
    inputs, target = inputs.float(), target.round()
    loader = DataLoader(TensorDataset(inputs, target), batch_size=32)
    loss = LargeLossBCELoss(strategy=strategy, rate_per_epoch=0.1, max_rate=0.15)
    still = partial(torch.optim.SGD, lr=0.0)
    classifier = BinaryClassifier(
        torch.nn.Linear(3, 3), loss if factor == 1 else factor * loss, num_labels=3, optimizer=still, metrics=[]
    )
    with torch.no_grad():
        classifier.model.weight.copy_(torch.eye(3))
        classifier.model.bias.zero_()
    path = None
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    for epoch, rate in enumerate([0, 0.1, 0.15]):  # each a run of its own, from the checkpoint of the one before
        trainer = pl.Trainer(accelerator="cpu", max_epochs=epoch + 1, **quiet)
        trainer.fit(classifier, loader, loader, ckpt_path=path)
        for name, taken in (("train_loss", rate), ("val_loss", 0)):
            expected = factor * naive(inputs, target, taken, strategy=strategy).mean().item()
            assert trainer.callback_metrics[name].item() == pytest.approx(expected, rel=1e-6)
        path = tmp_path / f"{epoch}.ckpt"
        trainer.save_checkpoint(path)
        classifier = BinaryClassifier.load_from_checkpoint(path)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("strategy", ["drop", None, 1]),
        ("rate_per_epoch", [0, -0.1, 1.1, math.nan, "0.1", None, True]),
        ("max_rate", [0, -0.1, 1.1, math.nan, "0.1", None, True]),
    ],
)
def test_impossible_options_are_refused(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            LargeLossBCELoss(**{name: value})
    if name == "strategy":
        with pytest.raises(ValueError, match=r"`strategy` is 'drop'; expected one of reject, correct\.$"):
            large_loss_bce(torch.zeros(2), torch.zeros(2), 0.1, strategy="drop")


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, "0.1", None, True])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises((ValueError, TypeError), match="`rate` is"):
        large_loss_bce(torch.zeros(2), torch.zeros(2), rate)
