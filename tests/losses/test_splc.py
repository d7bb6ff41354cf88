"""SPLC: the paper's formula, what is corrected and when, and that evaluation takes the labels as they are."""

import copy
import math
import pickle
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from mpmath import mp, mpf
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier, SPLCLoss, splc_loss

OPTIONS = [
    {},
    {"threshold": 0.3, "margin": 0.0, "gamma": 0.0},
    {"threshold": 0.9, "margin": 0.3, "gamma": 0.5},
]


def naive(logits, target, correct, threshold=0.6, margin=1.0, gamma=2.0):
    """One element after the other, by Python's floats."""
    losses = []
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p, shifted = 1 / (1 + math.exp(-x)), 1 / (1 + math.exp(margin - x))
        if correct and y == 0 and p > threshold:
            y = 1.0
        losses.append(-y * (1 - shifted) ** gamma * math.log(shifted) - (1 - y) * p**gamma * math.log(1 - p))
    return torch.tensor(losses, dtype=torch.float64).reshape(logits.shape)


def batch(*shape):
    """Logits on both sides of every threshold, and labels of all kinds."""
    labels = torch.rand(shape).double()
    return 2 * torch.randn(shape).double(), torch.where(labels < 0.6, 0.0, torch.where(labels > 0.8, 1.0, labels))


def at_epoch(epoch, **options):
    loss = SPLCLoss(**options)
    loss.start_epoch(epoch)
    return loss


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_formula_of_the_paper(options, correct):
    logits, target = batch(33, 7)
    losses = splc_loss(logits, target, correct, **options)
    assert_close(losses, naive(logits, target, correct, **options))
    module = at_epoch(int(correct), **options, reduction="none", validate="always")
    assert_close(module(logits, target), losses, rtol=0, atol=0)


@pytest.mark.parametrize("label", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_and_gradient_are_right_to_the_last_digits(exact, dtype, options, label):
    margin, gamma = mpf(options.get("margin", 1.0)), mpf(options.get("gamma", 2.0))

    def positive(z):
        return (1 / (1 + mp.exp(z - margin))) ** gamma * mp.log1p(mp.exp(margin - z))

    def negative(z):
        return (1 / (1 + mp.exp(-z))) ** gamma * mp.log1p(mp.exp(z))

    error = exact.errors(
        lambda x, y: splc_loss(x, y, False, **options),
        lambda z, y: exact.sides(positive, negative, z, y),
        label,
        dtype,
    )
    assert error < (2e-6 if dtype == torch.float32 else 1e-14)


def test_a_corrected_negative_costs_what_a_positive_costs():
    logits, target = batch(33, 7)
    logits.requires_grad_()
    corrected = (target == 0) & (logits.sigmoid() > 0.6)
    assert corrected.any() and not corrected.all()
    losses = splc_loss(logits, target, correct=True)
    as_positives = splc_loss(logits, target.masked_fill(corrected, 1), correct=False)
    assert_close(losses, as_positives, rtol=0, atol=0)
    assert_close(*(torch.autograd.grad(loss.sum(), logits)[0] for loss in (losses, as_positives)), rtol=0, atol=0)


def test_at_the_threshold_a_negative_is_believed_and_above_it_not():
    logits = torch.tensor([0.0, torch.finfo(torch.float32).tiny, -1.0])
    losses = splc_loss(logits, torch.zeros(3), correct=True, threshold=0.5)
    believed = splc_loss(logits, torch.zeros(3), correct=False)
    assert (losses == believed).tolist() == [True, False, True]


def test_a_threshold_that_the_sigmoid_cannot_reach_in_float32_is_reached():
    threshold = 1 - 1e-9  # a logit of 20.7
    losses = splc_loss(torch.tensor([20.0, 21.0]), torch.zeros(2), correct=True, threshold=threshold)
    assert losses[0] > 19 and losses[1] < 1e-9


def test_only_a_label_of_exactly_zero_is_corrected():
    logits, target = torch.full((3,), 5.0), torch.tensor([0.0, 1e-6, 0.5])
    losses, believed = (splc_loss(logits, target, correct=flag) for flag in (True, False))
    assert (losses == believed).tolist() == [False, True, True]


def test_above_the_threshold_a_negative_pulls_up_and_below_it_down():
    logits = torch.tensor([-3.0, 0.0, 0.4, 0.41, 3.0, 1e4]).requires_grad_()  # logit(0.6) is 0.405
    (gradient,) = torch.autograd.grad(splc_loss(logits, torch.zeros(6), correct=True).sum(), logits)
    assert (gradient[:3] > 0).all() and (gradient[3:5] < 0).all() and gradient[5] == 0


# -- when -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change_epoch", [0, 1, 3])
def test_labels_are_corrected_from_its_epoch_on(change_epoch):
    logits, target = batch(33, 3)
    loss = SPLCLoss(change_epoch=change_epoch)
    values = []
    for epoch in range(5):
        if epoch:  # a loss that is told nothing is in its first epoch
            loss.start_epoch(epoch)
        values.append(loss(logits, target))
    expected = [naive(logits, target, epoch >= change_epoch).mean() for epoch in range(5)]
    assert_close(values, expected)
    loss.start_epoch(0)  # a second fit
    assert_close(loss(logits, target), expected[0])


def test_in_evaluation_labels_are_taken_as_they_are():
    logits, target = batch(33, 3)
    loss = at_epoch(7).eval()
    believed = naive(logits, target, False).mean()
    assert_close(loss(logits, target), believed)
    assert_close(loss.sums(logits, target).mean(), believed)
    assert_close(loss.train()(logits, target), naive(logits, target, True).mean())


@pytest.mark.parametrize("how", ["mask", "ignore_index"])
@pytest.mark.parametrize("reduction", ["none", "mean", "weighted_mean", "sum", "batchmean"])
def test_what_is_ignored_is_not_corrected_and_poisons_nothing(reduction, how):
    logits, target = batch(33, 3)
    weight, known = torch.rand(33, 3).double(), torch.rand(33, 3) > 0.3
    losses = naive(logits, target, True) * weight * known
    counts = {"weighted_mean": (weight * known).sum(), "batchmean": known.any(1).sum(), "sum": 1, "mean": known.sum()}
    expected = losses if reduction == "none" else losses.sum() / counts[reduction]
    dirty = torch.where(known, logits, torch.tensor([math.nan, math.inf, 50.0]).double()).requires_grad_()
    marked = torch.where(known, target, -1.0)
    loss = at_epoch(1, reduction=reduction, ignore_index=-1 if how == "ignore_index" else None)
    call = {"mask": known} if how == "mask" else {}
    value = loss(dirty, marked if how == "ignore_index" else target, weight, **call)
    assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value.sum(), dirty)
    assert gradient.isfinite().all() and (gradient[~known] == 0).all()


def test_a_corrected_label_stays_on_the_side_that_it_came_on():
    logits, target = torch.full((3, 1), 5.0), torch.tensor([[0], [0], [1]])
    sums = at_epoch(1).sums(logits, target)
    assert sums.weight.tolist() == [[2.0, 1.0]]
    assert_close(sums.loss[0], splc_loss(logits, target, True).flatten()[0] * torch.tensor([2.0, 1.0]))


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("label", [0.0, 0.3, 1.0])
def test_corrected_losses_and_both_derivatives_are_finite_at_the_extremes(dtype, label):
    logits = torch.tensor([-1e4, -10.0, 0.0, 0.4055, 10.0, 1e4], dtype=dtype).requires_grad_()
    losses = splc_loss(logits, torch.full_like(logits, label), correct=True)
    (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (curvature,) = torch.autograd.grad(gradient.sum(), logits)
    assert all(values.isfinite().all() for values in (losses, gradient, curvature))


def test_a_corrected_infinite_logit_costs_nothing_and_a_nan_stays():
    logits = torch.tensor([torch.inf, -torch.inf, torch.nan]).requires_grad_()
    losses = splc_loss(logits, torch.zeros(3), correct=True)
    assert losses[:2].tolist() == [0, 0] and losses[2].isnan()
    assert torch.autograd.grad(losses[:2].sum(), logits)[0][:2].tolist() == [0, 0]


def test_both_derivatives_are_right_with_corrections():
    logits, target = batch(7)
    assert gradcheck(lambda x: splc_loss(x, target, True), (logits.requires_grad_(),))
    assert gradgradcheck(lambda x: splc_loss(x, target, True), (logits,))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 3, 5)], ids=str)
def test_an_empty_batch_is_zero_with_a_zero_gradient(shape):
    logits = torch.zeros(shape).requires_grad_()
    value = at_epoch(1)(logits, torch.ones(shape))
    assert value == 0 and torch.autograd.grad(value, logits)[0].shape == shape


# -- tools ------------------------------------------------------------------------------------------------------------


def test_compiled_it_follows_the_epoch_and_is_compiled_twice_and_no_more():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    logits, target = batch(7, 3)
    loss = SPLCLoss(change_epoch=3)
    compiled = torch.compile(loss, fullgraph=True, backend=count)
    for epoch in range(12):
        loss.start_epoch(epoch)
        assert_close(compiled(logits, target), naive(logits, target, epoch >= 3).mean())
    assert len(graphs) == 2
    torch.compiler.reset()


def test_compiled_in_one_graph_and_mapped_it_gives_the_same():
    logits, target = batch(5, 7)
    loss = at_epoch(1, ignore_index=-1)
    target[2, 3] = -1
    compiled = torch.compile(lambda *a: (loss(*a), loss.sums(*a).mean()), fullgraph=True, backend="aot_eager")
    assert_close(compiled(logits, target), (loss(logits, target), loss.sums(logits, target).mean()))
    each = torch.stack([loss(x, y) for x, y in zip(logits, target, strict=True)])
    assert_close(torch.func.vmap(loss)(logits, target), each)
    torch.compiler.reset()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_is_in_the_same_epoch(copied):
    logits, target = batch(7, 3)
    loss = at_epoch(1)
    assert_close(copied(loss)(logits, target), loss(logits, target), rtol=0, atol=0)
    assert loss.state_dict() == {}


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_classifier_corrects_from_the_second_epoch_on_resumed_too_and_never_in_validation(tmp_path, factor):
    inputs, target = batch(33, 3)
    target = target.round()
    loader = DataLoader(TensorDataset(inputs.float(), target), batch_size=8)
    loss = SPLCLoss() if factor == 1 else factor * SPLCLoss()
    still = partial(torch.optim.SGD, lr=0.0)
    classifier = BinaryClassifier(torch.nn.Linear(3, 3), loss, num_labels=3, optimizer=still, metrics=[])
    with torch.no_grad():
        classifier.model.weight.copy_(torch.eye(3))
        classifier.model.bias.zero_()
    path = None
    for epoch in range(3):  # each a run of its own, from the checkpoint of the one before
        trainer = a_trainer(max_epochs=epoch + 1)
        trainer.fit(classifier, loader, loader, ckpt_path=path)
        logged = trainer.callback_metrics
        for name, correct in (("train_loss", epoch > 0), ("val_loss", False)):
            expected = factor * naive(inputs.float(), target, correct).mean().item()
            assert logged[name].item() == pytest.approx(expected, rel=1e-6)
        path = tmp_path / f"{epoch}.ckpt"
        trainer.save_checkpoint(path)
        classifier = BinaryClassifier.load_from_checkpoint(path)


def a_trainer(**options):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return pl.Trainer(accelerator="cpu", **quiet, **options)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("threshold", [0, 1, -0.1, 1.1, math.nan, "0.6", None, True]),
        ("margin", [-1.0, math.inf, math.nan, "1", None]),
        ("gamma", [-1.0, math.inf, math.nan, "2", None]),
        ("change_epoch", [-1, 1.0, "1", None, True]),
    ],
)
def test_impossible_options_are_refused(name, values):
    for value in values:
        with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
            SPLCLoss(**{name: value})
        if name != "change_epoch":
            with pytest.raises((ValueError, TypeError), match=f"`{name}` is"):
                splc_loss(torch.zeros(2), torch.zeros(2), True, **{name: value})


@pytest.mark.parametrize("correct", [1, None, "yes", 0.6])
def test_what_is_no_flag_is_refused(correct):
    with pytest.raises(TypeError, match="`correct`"):
        splc_loss(torch.zeros(2), torch.zeros(2), correct)
