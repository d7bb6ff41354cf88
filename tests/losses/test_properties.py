"""Every loss under batches of any shape, mask, weight and reduction that hypothesis makes up, against a loop."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

REDUCTIONS = ["none", "mean", "weighted_mean", "sum", "batchmean"]
SHAPES = [(), (0,), (1,), (5,), (0, 3), (4, 1), (3, 3), (2, 1, 2, 2), (2, 3, 2), (1, 2, 0)]
# The loss is a value and not a state: one for all examples is what is meant.
pure = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensor(draw, shape, values, dtype=torch.float64):
    count = math.prod(shape)
    return torch.tensor(draw(st.lists(values, min_size=count, max_size=count)), dtype=dtype).reshape(shape)


def scores(on_logits):
    far, near = st.floats(-1e4, 1e4), st.floats(-6, 6)
    return near | far if on_logits else st.floats(0, 1)


LABELS = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
FACTORS = st.sampled_from([0.0, 1.0]) | st.floats(1e-3, 1e3)


@st.composite
def batches(draw, shape):
    """Return a target, the loss's options and the call's, whatever may go together."""
    options, call = {}, {}
    target = tensor(draw, shape, LABELS)
    if draw(st.booleans()):
        unknown = options["ignore_index"] = draw(st.sampled_from([-1.0, -100.0, 255.0, math.nan]))
        target = torch.where(tensor(draw, shape, st.booleans(), torch.bool), unknown, target)
    shapes = [shape, tuple(1 for _ in shape), shape[:1]]
    if draw(st.booleans()):
        call["mask"] = tensor(draw, draw(st.sampled_from(shapes)), st.booleans(), torch.bool)
    if draw(st.booleans()):
        call["weight"] = tensor(draw, draw(st.sampled_from(shapes)), FACTORS)
    if draw(st.booleans()):
        labels = shape[1] if len(shape) > 1 else 1
        options["class_weight"] = draw(st.lists(FACTORS, min_size=labels, max_size=labels))
    return target, options, call


def at(values, index):
    """Return what a weight or mask says of an element: one for each sample, or ones where it repeats."""
    return values[tuple(i if n > 1 else 0 for i, n in zip(index, values.shape, strict=False))].item()


def loop(case, outputs, target, options, call):
    """Return index, loss with factors, own weight and side of each known element."""
    unknown, known = options.get("ignore_index"), []
    for index in itertools.product(*map(range, outputs.shape)):
        label = target[index].item()
        masked = "mask" in call and not at(call["mask"], index)
        if not masked and not (label == unknown or (math.isnan(label) and unknown is not None)):
            known.append(index)
    clean = torch.zeros_like(target)
    for index in known:
        clean[index] = target[index]
    losses, found = case.function(outputs, clean), []
    for index in known:
        own = at(call["weight"], index) if "weight" in call else 1.0
        factor = own * options["class_weight"][index[1] if len(index) > 1 else 0] if "class_weight" in options else own
        found.append((index, losses[index].item() * factor, own, int(target[index].item() > 0.5)))
    return found


def counted(known, reduction):
    """Return what each known element counts in the denominator."""
    if reduction == "weighted_mean":
        return [own for _, _, own, _ in known]
    if reduction == "batchmean":
        rows = [index[:1] for index, *_ in known]
        return [1 / rows.count(row) for row in rows]
    return [1.0] * len(known)


@pure
@given(st.data(), st.sampled_from(SHAPES))
def test_loss_and_sums_are_the_loop_over_the_elements(case, data, shape):
    outputs = tensor(data.draw, shape, scores(case.on_logits))
    target, options, call = data.draw(batches(shape))
    reduction = data.draw(st.sampled_from(REDUCTIONS))
    module = case.make(reduction=reduction, validate="always", **options)
    known = loop(case, outputs, target, options, call)
    counts = counted(known, reduction)
    loss, sums = module(outputs, target, **call), module.sums(outputs, target, **call)

    labels = shape[1] if len(shape) > 1 else 1
    by_side = torch.zeros(2, labels, 2, dtype=torch.float64)
    for (index, value, _, side), count in zip(known, counts, strict=True):
        place = index[1] if len(index) > 1 else 0
        by_side[0, place, side] += value
        by_side[1, place, side] += count
    assert_close((sums.loss, sums.weight), (by_side[0], by_side[1]), rtol=1e-9, atol=1e-12)

    if reduction == "none":
        expected = torch.zeros(shape, dtype=torch.float64)
        for index, value, *_ in known:
            expected[index] = value
    else:
        total, weight = math.fsum(value for _, value, *_ in known), math.fsum(counts)
        expected = torch.tensor(total if reduction == "sum" or not weight else total / weight, dtype=torch.float64)
        if reduction != "sum":
            assert_close(sums.mean(), expected, rtol=1e-9, atol=1e-12)
    assert_close(loss, expected, rtol=1e-9, atol=1e-12)


@pure
@given(st.data())
def test_the_gradient_is_the_difference_quotient_and_zero_where_unknown(case, data):
    outputs = tensor(data.draw, (3, 2), st.floats(-8, 8) if case.on_logits else st.floats(0.05, 0.95))
    target, options, call = data.draw(batches((3, 2)))
    reduction = data.draw(st.sampled_from(REDUCTIONS[1:]))
    module = case.make(reduction=reduction, **options)
    index = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 1)))
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf, target, **call), leaf)

    def quotient(step):
        beside = [outputs.clone(), outputs.clone()]
        beside[0][index] += step
        beside[1][index] -= step
        return (module(beside[0], target, **call) - module(beside[1], target, **call)) / (2 * step)

    wide, narrow = quotient(2e-5), quotient(1e-5)
    scale = 1 + abs(module(outputs, target, **call).item())
    assume(abs(wide - narrow) <= 1e-6 * scale)  # no kink within reach
    assert_close(gradient[index], narrow, rtol=1e-4, atol=1e-5 * scale)
    if index not in {found[0] for found in loop(case, outputs, target, options, call)}:
        assert gradient[index] == 0


@pure
@given(st.data(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_loss_gradient_and_curvature_are_finite_at_any_finite_output(case, data, dtype):
    reach = min(1e4, torch.finfo(dtype).max)
    if not case.on_logits:
        pytest.skip("derivatives at a probability of 1e-38 are larger than the dtype holds")
    outputs = tensor(data.draw, (6,), st.floats(-reach, reach) | st.floats(-120, 120), dtype).requires_grad_()
    losses = case.make(reduction="none")(outputs, tensor(data.draw, (6,), LABELS, torch.float32))
    (gradient,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True)
    found = [losses, gradient]
    if gradient.requires_grad:
        found += torch.autograd.grad(gradient.sum(), outputs)
    assert all(value.isfinite().all() for value in found)


@pure
@given(st.data(), st.sampled_from([math.nan, math.inf, -math.inf, -1e-9, 1 + 1e-9, 2.0, -1.0]))
def test_one_value_out_of_range_is_refused_wherever_it_is_known_and_nowhere_else(any_case, data, value):
    logits = any_case.batch(4, 3)[0]
    _, good = any_case.batch(4, 3)
    row, column = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
    bad, mask = good.clone(), torch.ones(4, 3, dtype=torch.bool)
    bad[row, column], mask[row, column] = value, False
    loss = any_case.make(validate="always", reduction="sum")
    for call in (loss, loss.sums):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]: .*\(1 times\)"):
            call(logits, bad)
    assert_close(loss(logits, bad, mask=mask), loss(logits, good, mask=mask), rtol=0, atol=0)


# -- losses of rows ---------------------------------------------------------------------------------------------------


def in_rows(row_case, values):
    if row_case.rows == "label":
        return values.movedim(1, 0).flatten(1)
    return values.flatten(1) if row_case.rows == "sample" else values.movedim(1, -1).flatten(0, -2)


@pure
@given(st.data(), st.sampled_from([(0, 3), (1, 3), (4, 3), (3, 3, 2), (2, 3, 0)]))
def test_a_loss_of_rows_is_the_loop_over_the_rows(row_case, data, shape):
    logits = tensor(data.draw, shape, st.floats(-30, 30))
    target = tensor(data.draw, shape, st.sampled_from([0.0, 1.0]) if row_case.cls.hard_targets else LABELS)
    known = tensor(data.draw, shape, st.booleans(), torch.bool)
    poisoned, marked = torch.where(known, logits, math.nan), torch.where(known, target, math.nan)
    reduction = data.draw(st.sampled_from(["mean", "sum"]))
    weighs = row_case.rows != "label" and not row_case.cls.couples_rows
    weight = tensor(data.draw, shape[:1], FACTORS) if weighs and data.draw(st.booleans()) else None
    factors = data.draw(st.lists(FACTORS, min_size=3, max_size=3)) if row_case.rows == "label" else None
    options = {} if factors is None else {"class_weight": factors}
    module = row_case.make(reduction=reduction, ignore_index=math.nan, validate="always", **options)
    sums = module.sums(poisoned, marked, weight)

    plain = row_case.make(1) if row_case.rows == "label" else row_case.make()
    scores, labels, valid = (in_rows(row_case, t) for t in (logits, target, known))
    total, count = 0.0, 0
    if row_case.cls.couples_rows:
        losses, counts = row_case.make().rowwise(scores.where(valid, 0.0), labels.where(valid, 0.0), valid)
        total = losses.where(counts if losses.ndim == 1 else counts[:, None], 0.0).sum().item()
        count = int((counts & valid.any(-1)).sum())
    else:
        for row in range(len(scores)):
            if valid[row].sum() > row_case.needs_labels:  # what is unknown is as if it were not there
                losses, counts = plain.rowwise(*(t[row][valid[row]][None] for t in (scores, labels, valid)))
                each = len(scores) // max(shape[0], 1) if row_case.rows != "label" else 1
                factor = factors[row] if factors else 1.0 if weight is None else weight[row // each].item()
                total += losses.sum().item() * factor if counts.item() else 0.0
                count += int(counts.item())
    expected = total if reduction == "sum" else total / max(count, 1)
    assert_close(module(poisoned, marked, weight).item(), expected, rtol=1e-8, atol=1e-9)
    assert_close(sums.weight.sum().item(), float(count))
    assert_close(sums.loss.sum().item(), total, rtol=1e-8, atol=1e-9)


@pure
@given(st.data())
def test_the_gradient_of_a_loss_of_rows_is_the_difference_quotient(row_case, data):
    if not row_case.has_its_values_gradient:
        pytest.skip("its gradient is on purpose that of another function")
    logits = tensor(data.draw, (4, 3), st.floats(-6, 6))
    target = tensor(data.draw, (4, 3), st.sampled_from([0.0, 1.0]) if row_case.cls.hard_targets else LABELS)
    known = tensor(data.draw, (4, 3), st.booleans(), torch.bool)
    index = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 2)))
    module = row_case.make()
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf, target, mask=known), leaf)

    def quotient(step):
        beside = [logits.clone(), logits.clone()]
        beside[0][index] += step
        beside[1][index] -= step
        with torch.no_grad():
            return (module(beside[0], target, mask=known) - module(beside[1], target, mask=known)) / (2 * step)

    wide, narrow = quotient(2e-5), quotient(1e-5)
    assume(abs(wide - narrow) <= 1e-6 * (1 + abs(narrow)))  # no kink within reach
    assert_close(gradient[index], narrow, rtol=1e-4, atol=1e-5)
    assert known[index] or gradient[index] == 0
