"""Reductions, weights, masks and sums of every loss, against loops over the elements in float64."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import LossSums

REDUCTIONS = ["none", "mean", "weighted_mean", "sum", "batchmean"]
AVERAGES = ["mean", "weighted_mean", "batchmean"]
SHAPES = [(7,), (7, 3), (5, 3, 2, 3)]
OPTIONS = ["nothing", "sample weight", "element weight", "broadcast weight", "mask", "-1", "nan", "class weight", "all"]


def batch(case, shape, option):
    """Return outputs, target, the loss's options, and the call's weight and mask."""
    everything = option == "all"
    outputs, target = case.outputs(*shape), torch.randint(0, 2, shape).double()
    options, call = {}, {}
    if option == "sample weight":
        call["weight"] = torch.rand(shape[0], dtype=torch.float64)
    if option == "broadcast weight":
        call["weight"] = torch.rand(1, *shape[1:], dtype=torch.float64)
    if option == "element weight" or everything:
        call["weight"] = torch.rand(shape, dtype=torch.float64)
    if option == "mask" or everything:
        call["mask"] = torch.rand(shape[0]) > 0.3
    if option in ("-1", "nan") or everything:
        unknown = -1.0 if option == "-1" else math.nan
        options["ignore_index"] = unknown
        target[torch.rand(shape) < 0.3] = unknown
        target[0] = unknown  # a sample of which nothing is known
    if option == "class weight" or everything:
        options["class_weight"] = torch.rand(shape[1] if len(shape) > 1 else 1).tolist()
    return outputs, target, options, call


def elements(case, outputs, target, options, call):
    """Yield index, loss with its factors, own weight, and target of each known element."""
    losses = case.function(outputs, target.nan_to_num(0).clamp(0, 1))
    weight, mask = call.get("weight"), call.get("mask")
    for index in itertools.product(*map(range, outputs.shape)):
        if mask is not None and not mask[index[0]]:
            continue
        if not 0 <= target[index] <= 1:
            continue
        label = index[1] if len(index) > 1 else 0
        own = 1.0 if weight is None else weight[tuple(i % n for i, n in zip(index, weight.shape, strict=False))].item()
        factor = own * options["class_weight"][label] if "class_weight" in options else own
        yield index, losses[index].item() * factor, own, target[index].item()


def denominators(known, reduction):
    """Return what each known element counts in the denominator."""
    if reduction == "weighted_mean":
        return {index: own for index, _, own, _ in known}
    if reduction == "batchmean":
        of_row = {row: sum(index[0] == row for index, *_ in known) for row in {index[0] for index, *_ in known}}
        return {index: 1 / of_row[index[0]] for index, *_ in known}
    return {index: 1.0 for index, *_ in known}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduction_is_the_loop_over_the_elements(case, reduction, shape, option):
    outputs, target, options, call = batch(case, shape, option)
    known = list(elements(case, outputs, target, options, call))
    if reduction == "none":
        expected = torch.zeros(shape, dtype=torch.float64)
        for index, loss, _, _ in known:
            expected[index] = loss
    else:
        counts = denominators(known, reduction)
        expected = torch.tensor(math.fsum(loss for _, loss, *_ in known), dtype=torch.float64)
        expected /= 1.0 if reduction == "sum" else math.fsum(counts.values())
    assert_close(case.make(reduction=reduction, **options)(outputs, target, **call), expected)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_are_the_loop_by_label_and_side_and_their_mean_is_the_loss(case, reduction, shape, option):
    outputs, target, options, call = batch(case, shape, option)
    if option not in ("-1", "nan", "all"):
        target = torch.rand(shape, dtype=torch.float64)  # soft labels: above one half is positive
    known = list(elements(case, outputs, target, options, call))
    counts = denominators(known, reduction)
    loss, weight = (torch.zeros(shape[1] if len(shape) > 1 else 1, 2, dtype=torch.float64) for _ in range(2))
    for index, value, _, label in known:
        place = (index[1] if len(index) > 1 else 0, int(label > 0.5))
        loss[place] += value
        weight[place] += counts[index]
    module = case.make(reduction=reduction, **options)
    sums = module.sums(outputs, target, **call)
    assert_close(sums.loss, loss)
    assert_close(sums.weight, weight)
    if reduction in AVERAGES:
        assert_close(sums.mean(), module(outputs, target, **call))


def test_one_half_counts_as_a_negative(case):
    sums = case.make().sums(case.outputs(1), torch.tensor([0.5]))
    assert sums.weight.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("reduction", AVERAGES)
def test_sums_have_the_gradient_of_the_loss(case, reduction):
    outputs, target, options, call = batch(case, (7, 3), "all")
    outputs.requires_grad_()
    module = case.make(reduction=reduction, **options)
    by_sums = torch.autograd.grad(module.sums(outputs, target, **call).mean(), outputs)
    assert_close(by_sums, torch.autograd.grad(module(outputs, target, **call), outputs))


def test_merged_sums_are_those_of_the_whole(case):
    outputs, target, weight = case.outputs(33, 3), torch.randint(0, 2, (33, 3)), torch.rand(33)
    module = case.make(reduction="weighted_mean")
    parts = [module.sums(outputs[s], target[s], weight[s]) for s in (slice(7), slice(7, 7), slice(7, 33))]
    whole = module.sums(outputs, target, weight)
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert isinstance(merged, LossSums)
    assert_close((merged.loss, merged.weight), (whole.loss, whole.weight))


def test_detached_sums_have_no_graph(case):
    sums = case.make().sums(case.outputs(7).requires_grad_(), torch.zeros(7))
    assert sums.loss.requires_grad and not sums.detach().loss.requires_grad
    assert_close(sums.detach().mean(), sums.mean().detach(), rtol=0, atol=0)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", ["mask", "ignore_index"])
def test_what_is_ignored_poisons_nothing(case, how, reduction, poison):
    outputs, target, weight = case.outputs(7, 3), torch.randint(0, 2, (7, 3)).double(), torch.rand(7, 3).double()
    clean, known = [t.clone() for t in (outputs, target, weight)], torch.rand(7, 3) > 0.3
    known[0] = False
    outputs[~known] = weight[~known] = poison
    target[~known] = poison if how == "mask" else -1
    call = {"mask": known} if how == "mask" else {}
    module = case.make(reduction=reduction, ignore_index=None if how == "mask" else -1, validate="always")
    leaf = outputs.requires_grad_()
    loss = module(leaf, target, weight, **call)
    (gradient,) = torch.autograd.grad(loss.sum() + module.sums(leaf, target, weight, **call).mean(), leaf)
    assert loss.isfinite().all() and gradient.isfinite().all()
    assert (gradient[~known] == 0).all() and (gradient[known] != 0).all()
    expected = case.make(reduction=reduction)(*clean, mask=known)
    assert_close(loss, expected, rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum", "batchmean"])
@pytest.mark.parametrize("nothing", ["no samples", "no weight", "all masked", "all ignored", "no class weight"])
def test_over_nothing_a_loss_is_zero_with_a_zero_gradient(case, reduction, nothing):
    rows = 0 if nothing == "no samples" else 7
    outputs, target = case.outputs(rows, 3).requires_grad_(), torch.ones(rows, 3)
    options, call = {}, {}
    if nothing == "no weight":
        call["weight"] = torch.zeros(rows)
    elif nothing == "all masked":
        call["mask"] = torch.zeros(rows, 3, dtype=torch.bool)
    elif nothing == "all ignored":
        target, options = -target, {"ignore_index": -1}
    elif nothing == "no class weight":
        options["class_weight"] = [0.0, 0.0, 0.0]
    module = case.make(reduction=reduction, **options)
    for loss in (module(outputs, target, **call), module.sums(outputs, target, **call).mean()):
        assert loss == 0
        assert_close(torch.autograd.grad(loss, outputs)[0], torch.zeros_like(outputs), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 3, 5), (1, 2, 0)], ids=str)
def test_an_empty_batch_keeps_its_shape_and_its_labels(case, shape):
    assert case.make(reduction="none")(case.outputs(*shape), torch.ones(shape)).shape == shape
    assert case.make().sums(case.outputs(*shape), torch.ones(shape)).loss.shape == ((*shape, 1)[1], 2)


@pytest.mark.parametrize("option", [{}, {"class_weight": [2.0]}, {"ignore_index": -1}], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_single_number_is_a_batch_of_one(case, reduction, option):
    module, output, target = case.make(reduction=reduction, **option), case.outputs(), torch.tensor(1)
    loss = module(output, target, torch.tensor(0.5))
    assert loss.shape == ()
    assert_close(loss, module(output[None], target[None], torch.tensor([0.5])).sum())
    assert_close(module.sums(output, target).mean(), module.sums(output[None], target[None]).mean())


def test_the_weight_of_a_sample_reaches_all_its_elements(case):
    outputs, target, weight = case.outputs(3, 3, 5), torch.randint(0, 2, (3, 3, 5)), torch.rand(3).double()
    losses = case.make(reduction="none")(outputs, target, weight)  # square on purpose: a label is no sample
    assert_close(losses, case.make(reduction="none")(outputs, target) * weight[:, None, None])


def test_weighting_is_linear(case):
    outputs, target, weight = case.outputs(7, 3), torch.randint(0, 2, (7, 3)), torch.rand(7, 3).double()
    for reduction in ("mean", "sum", "batchmean"):
        module = case.make(reduction=reduction)
        assert_close(module(outputs, target, 3 * weight), 3 * module(outputs, target, weight))
    module = case.make(reduction="weighted_mean")
    assert_close(module(outputs, target, 3 * weight), module(outputs, target, weight))
