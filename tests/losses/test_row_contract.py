"""The contract that every loss of rows keeps: what a row is, masks, weights, derivatives, extremes, and its sums."""

import copy
import gc
import inspect
import itertools
import math
import pickle
import weakref

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import BinaryLoss, LossSums, LossTracker, RowLoss
from lightning_bce.spec import build

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TARGETS = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(7, 3), (5, 3, 7), (5, 3, 2, 3)]
REDUCTIONS = ["none", "mean", "sum"]


def batch(row_case, *shape):
    return row_case.logits(*shape), row_case.target(*shape)


def in_rows(row_case, values):
    """Return (N, C, ...) with a row in the last dimension."""
    if row_case.rows == "label":
        return values.movedim(1, 0).flatten(1)
    return values.flatten(1) if row_case.rows == "sample" else values.movedim(1, -1).flatten(0, -2)


def from_checkpoint(loss):
    twin = build(loss.spec(), BinaryLoss)
    twin.load_state_dict(loss.state_dict())
    return twin


def takes_weights(row_case):
    return row_case.rows != "label" and not row_case.cls.couples_rows


def test_the_contract_finds_the_losses_and_keeps_the_two_kinds_apart(row_cases, cases):
    found = {case.cls.__name__ for case in row_cases}
    assert found >= {
        "ZLPRLoss",
        "DiceLoss",
        "JaccardLoss",
        "TverskyLoss",
        "TwoWayLoss",
        "SoftF1Loss",
        "MCCLoss",
        "PairwiseLoss",
        "PositiveUnlabeledLoss",
        "AUCMarginLoss",
    }
    assert not found & {case.cls.__name__ for case in cases}
    assert all(case.cls.per_element for case in cases) and not any(case.cls.per_element for case in row_cases)


# -- shapes and values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_without_reduction_there_is_a_value_for_each_row(row_case, shape):
    expected = {"label": shape[1:2], "sample": shape[:1], "position": shape[:1] + shape[2:]}[row_case.rows]
    logits, target = batch(row_case, *shape)
    assert row_case.make(reduction="none")(logits, target).shape == expected
    assert row_case.make()(logits, target).shape == ()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_module_and_function_have_the_same_defaults_and_values(row_case, shape):
    function = inspect.signature(row_case.function).parameters
    module = inspect.signature(row_case.cls).parameters
    options = {n: p for n, p in function.items() if p.kind is inspect.Parameter.KEYWORD_ONLY and n != "mask"}
    variables = {name: options.pop(name).default for name in row_case.variables}
    assert all(default is None for default in variables.values())  # the module has them, the function their optimum
    assert {name: p.default for name, p in options.items()} == {name: module[name].default for name in options}
    given = {name: value for name, value in row_case.arguments if name in options}
    given |= {name: torch.tensor(value) for name, value in row_case.variables.items()}
    logits, target = batch(row_case, *shape)
    mask = torch.rand(shape) > 0.2
    mask[1] = mask[:, 1] = False  # a row that does not count, whatever a row is
    for call in ({}, {"mask": mask}):
        by_row = row_case.function(
            *(in_rows(row_case, t) for t in (logits, target)),
            **given,
            **{name: in_rows(row_case, value) for name, value in call.items()},
        )
        reduction = "none" if by_row.ndim else "mean"
        module = row_case.make(reduction=reduction)
        assert_close(module(logits, target, **call).flatten(), by_row.reshape(-1))
        assert all(getattr(module, name) == value for name, value in row_case.arguments)


def test_a_function_takes_rows_in_any_dimensions_before_them(row_case):
    logits, target, mask = *batch(row_case, 7, 5), torch.rand(7, 5) > 0.2
    given = {
        name: value for name, value in row_case.arguments if name in inspect.signature(row_case.function).parameters
    }
    losses = row_case.function(logits, target, mask=mask, **given)
    if not losses.ndim:
        pytest.skip("its rows are those of one batch")
    for of_row, row in zip(losses, zip(logits, target, mask, strict=True), strict=True):
        assert_close(row_case.function(*row[:2], mask=row[2], **given), of_row)
    six = [t[1:].reshape(2, 3, 5) for t in (logits, target, mask)]
    assert_close(row_case.function(*six[:2], mask=six[2], **given), losses[1:].reshape(2, 3))


def test_the_dimensions_of_one_label_do_not_matter(row_case):
    if row_case.needs_labels:
        pytest.skip("one label of a sample has nothing to be ranked against")
    logits, target = batch(row_case, 7)
    loss = row_case.make(1)(logits, target)
    for shape in ((7, 1), (7, 1, 1)):
        assert_close(row_case.make(1)(logits.reshape(shape), target.reshape(shape)), loss)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduction_is_that_of_the_rows_that_count(row_case, reduction):
    logits, target = batch(row_case, 7, 3)
    mask = torch.rand(7, 3) > 0.4
    mask[0] = mask[:, 2] = False
    losses = row_case.make(reduction="none")(logits, target, mask=mask)
    expected = losses.sum()
    if reduction == "mean":
        expected = expected / row_case.make().sums(logits, target, mask=mask).weight.sum().clamp(min=1)
    assert_close(row_case.make(reduction=reduction)(logits, target, mask=mask), expected)


def test_one_row_of_sums_is_for_a_label_or_for_all(row_case):
    logits, target = batch(row_case, 7, 3)
    loss = row_case.make()
    rows = 3 if row_case.rows == "label" else 1
    sums = loss.sums(logits, target)
    assert sums.loss.shape == sums.weight.shape == (rows, 2)
    assert loss.num_rows(3) == rows and loss.num_rows(1) == 1
    assert_close(sums.loss.sum(), row_case.make(reduction="sum")(logits, target))
    assert_close(sums.weight.sum().item(), 3.0 if row_case.rows == "label" else 7.0)
    if row_case.rows == "label":
        assert_close(sums.loss.sum(1), row_case.make(reduction="none")(logits, target))


def test_a_cut_changes_the_sums_where_samples_are_coupled_and_nowhere_else(row_case):
    logits, target = batch(row_case, 7, 3)
    loss = row_case.make()
    whole, parts = loss.sums(logits, target), [loss.sums(logits[at], target[at]) for at in (slice(3), slice(3, 7))]
    same = all(map(torch.allclose, parts[0].merge(parts[1]), whole))
    assert same != loss.couples_samples


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_mean_of_the_sums_is_the_loss_with_its_gradient(row_case, shape):
    logits, target = batch(row_case, *shape)
    logits.requires_grad_()
    options = {"class_weight": [0.3, 1.0, 99.7]} if row_case.rows == "label" else {}
    call = {"weight": torch.rand(shape[0]).double()} if takes_weights(row_case) else {}
    loss = row_case.make(ignore_index=-1, **options)
    target[torch.rand(shape) < 0.2] = -1
    mean, sums = loss(logits, target, **call), loss.sums(logits, target, **call)
    assert_close(sums.mean(), mean)
    assert_close(torch.autograd.grad(sums.mean(), logits), torch.autograd.grad(mean, logits))
    assert not sums.detach().loss.requires_grad


def test_a_tracker_adds_batches_up_row_by_row(row_case):
    loss = row_case.make()
    tracker = LossTracker(loss, num_labels=3)
    batches = [batch(row_case, n, 3) for n in (7, 5, 2)]
    whole = LossSums(*[torch.zeros(loss.num_rows(3), 2)] * 2)
    for logits, target in batches:
        tracker.update(logits, target)
        whole = whole.merge(loss.sums(logits, target))
    result = tracker.compute()
    assert_close(result["loss"], whole.mean())
    assert_close(result["class_loss"].reshape(-1), whole.loss.sum(1) / whole.weight.sum(1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_losses_are_computed_in_float32_or_better(row_case, dtype):
    logits, target = row_case.logits(7, 3, dtype=dtype), row_case.target(7, 3)
    wide = torch.promote_types(dtype, torch.float32)
    for reduction in REDUCTIONS:
        loss = row_case.make(reduction=reduction)(logits, target)
        assert loss.dtype == wide
        assert_close(loss, row_case.make(reduction=reduction)(logits.to(wide), target), rtol=0, atol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(row_case.make(reduction=reduction)(logits, target), loss, rtol=0, atol=0)
    assert row_case.make().sums(logits, target).loss.dtype == wide


@pytest.mark.parametrize("dtype", TARGETS, ids=str)
def test_targets_of_every_dtype_mean_the_same(row_case, dtype):
    logits, target = batch(row_case, 7, 3)
    expected = row_case.make(reduction="none")(logits, target)
    assert_close(row_case.make(reduction="none")(logits, target.to(dtype)), expected, rtol=0, atol=0)
    single = logits.float()
    assert_close(row_case.function(single, target.to(dtype)), row_case.function(single, target.float()))


def test_the_order_of_samples_and_labels_does_not_matter(row_case):
    logits, target = batch(row_case, 7, 5)
    module = row_case.make(5)
    loss = module(logits, target)
    assert_close(module(logits.flip(0), target.flip(0)), loss)
    assert_close(module(logits.flip(1), target.flip(1)), loss)
    for view in (lambda t: t.T.contiguous().T, lambda t: t.repeat_interleave(2, 1)[:, ::2]):
        assert_close(module(view(logits), view(target)), loss)


# -- what is unknown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mask", "-1", "nan"])
def test_what_is_unknown_is_as_if_it_were_not_there(row_case, how):
    unknown = math.nan if how == "nan" else -1.0
    options = {} if how == "mask" else {"ignore_index": unknown}
    for index, kept in (
        ((slice(None), 2), (slice(None), [0, 1, 3, 4])),  # a label
        ((3,), ([0, 1, 2, 4, 5, 6],)),  # a sample
    ):
        logits, target = batch(row_case, 7, 5)
        expected = row_case.make(target[kept].shape[1])(logits[kept], target[kept])
        mask = torch.ones(7, 5, dtype=torch.bool)
        mask[index] = False
        logits[index], target[index] = math.nan, unknown
        loss = row_case.make(5, **options)(logits, target, mask=mask if how == "mask" else None)
        assert_close(loss, expected)


def test_elements_that_are_unknown_leave_their_row(row_case):
    if row_case.cls.couples_rows:
        pytest.skip("each element is in two rows")
    logits, target = batch(row_case, 7, 5)
    mask = torch.rand(7, 5) > 0.3
    losses = row_case.make(5, reduction="none")(logits, target, mask=mask)
    for row, loss in enumerate(losses):
        places = (slice(None), row) if row_case.rows == "label" else row
        known = mask[places]
        if row_case.needs_labels and known.sum() < 2:
            assert loss == 0
            continue
        shape = (-1, 1) if row_case.rows == "label" else (1, -1)
        alone = (t[places][known].reshape(shape) for t in (logits, target))
        assert_close(loss, row_case.make(shape[1] if row_case.rows == "label" else 5, reduction="sum")(*alone))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("how", ["mask", "ignore_index"])
def test_what_is_ignored_poisons_nothing(row_case, how, reduction, poison):
    (logits, target), known = batch(row_case, 7, 3), torch.rand(7, 3) > 0.3
    known[6] = False
    clean = logits.clone(), target.clone()
    logits[~known] = poison
    target[~known] = poison if how == "mask" else -1
    call = {"mask": known} if how == "mask" else {}
    kept = {}
    if takes_weights(row_case):
        kept["weight"] = torch.rand(7).double()
        call["weight"] = kept["weight"].clone()
        call["weight"][6] = poison
    ignore = None if how == "mask" else -1
    module = row_case.make(reduction=reduction, ignore_index=ignore, validate="off")
    leaf = logits.requires_grad_()
    loss = module(leaf, target, **call)
    (gradient,) = torch.autograd.grad(loss.sum() + module.sums(leaf, target, **call).mean(), leaf)
    assert loss.isfinite().all() and gradient.isfinite().all()
    assert (gradient[~known] == 0).all() and (gradient != 0).any()
    assert_close(loss, row_case.make(reduction=reduction)(*clean, mask=known, **kept), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("nothing", ["no samples", "all masked", "all ignored"])
def test_over_nothing_a_loss_is_zero_with_a_zero_gradient(row_case, reduction, nothing):
    count = 0 if nothing == "no samples" else 7
    logits, target = row_case.logits(count, 3).requires_grad_(), torch.ones(count, 3)
    options, call = {}, {}
    if nothing == "all masked":
        call["mask"] = torch.zeros(count, 3, dtype=torch.bool)
    elif nothing == "all ignored":
        target, options = -target, {"ignore_index": -1}
    module = row_case.make(reduction=reduction, **options)
    sums = module.sums(logits, target, **call)
    assert (sums.loss == 0).all() and (sums.weight == 0).all() and len(sums.loss) == module.num_rows(3)
    for loss in (module(logits, target, **call), sums.mean()):
        assert loss == 0
        for leaf in (logits, *module.parameters()):  # a rank without a gradient would let the others wait
            assert_close(torch.autograd.grad(loss, leaf, retain_graph=True)[0], torch.zeros_like(leaf), rtol=0, atol=0)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("shape", [(1, 3), (7, 3), (5, 3, 7)], ids=str)
def test_with_one_side_only_all_is_finite_and_attached(row_case, label, shape):
    for scale in (1.0, 1e4):
        logits = (scale * row_case.logits(*shape)).requires_grad_()
        module, target = row_case.make(), torch.full(shape, label)
        for loss in (module(logits, target), module.sums(logits, target).mean()):
            assert loss.isfinite() and loss >= 0
            assert torch.autograd.grad(loss, logits)[0].isfinite().all()


# -- derivatives and extremes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 2)], ids=str)
def test_both_derivatives_are_right(row_case, shape):
    logits, target = batch(row_case, *shape)
    logits.requires_grad_()
    mask = torch.rand(shape) > 0.2
    targets = [target] if row_case.cls.hard_targets else [target, torch.rand(shape, dtype=torch.float64)]
    for labels, known in itertools.product(targets, (None, mask)):

        def rows(x, y=labels, known=known):
            return row_case.make(shape[1], reduction="none")(x, y, mask=known)

        if row_case.has_its_values_gradient:
            assert gradcheck(rows, (logits,))
        assert gradgradcheck(rows, (logits,))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_everything_is_finite_at_the_extremes(row_case, dtype):
    for values in itertools.combinations_with_replacement([-1e4, -80.0, 80.0, 1e4], 2):
        logits = torch.tensor([values, values[::-1]], dtype=dtype).requires_grad_()
        for labels in itertools.product([0, 1], [0, 1], [0], [0, 1]):
            losses = row_case.make(2, reduction="none")(logits, torch.tensor(labels).reshape(2, 2))
            (gradient,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
            (curvature,) = torch.autograd.grad(gradient.sum(), logits)
            for value in (losses, gradient, curvature):
                assert value.isfinite().all(), (values, labels, value)
            assert row_case.may_be_negative or (losses >= 0).all()


def test_ten_steps_separate_what_can_be_separated(row_case):
    features = torch.randn(33, 5, dtype=torch.float64)
    truth = torch.randn(5, 3, dtype=torch.float64)
    target = (features @ truth > 0).double()
    weights = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
    loss, values = row_case.make(), []
    optimizer = torch.optim.Adam([weights, *loss.parameters()], lr=0.3)
    for _ in range(10):
        values.append(loss(features @ weights, target))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    logits = (features @ weights).detach()
    assert values[-1] < 0.8 * values[0]
    for label in range(3):
        positive = target[:, label] == 1
        assert logits[positive, label].mean() > logits[~positive, label].mean()
    within = (logits * target).sum(1) / target.sum(1) - (logits * (1 - target)).sum(1) / (1 - target).sum(1)
    assert (within[within.isfinite()] > 0).double().mean() > 0.9


# -- no side effects --------------------------------------------------------------------------------------------------


def test_compiled_in_one_graph_it_gives_the_same(row_case):
    logits, target = batch(row_case, 7, 3)
    logits.requires_grad_()
    loss = row_case.make(ignore_index=-1)
    target[2, 2] = -1
    compiled = torch.compile(lambda *a: (loss(*a), loss.sums(*a).mean()), fullgraph=True, backend="aot_eager")
    value, mean = compiled(logits, target)
    assert_close((value, mean), (loss(logits, target), loss.sums(logits, target).mean()))
    assert_close(torch.autograd.grad(value, logits), torch.autograd.grad(loss(logits, target), logits))
    torch.compiler.reset()


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss)), from_checkpoint],
    ids=["deepcopy", "pickle", "spec"],
)
def test_a_copy_computes_the_same(row_case, copied):
    options = {"class_weight": [1.0, 0.1, 99.7]} if row_case.rows == "label" else {}
    loss = row_case.make(reduction="sum", ignore_index=-1, validate="always", **options)
    twin = copied(loss)
    logits, target = batch(row_case, 7, 3)
    assert type(twin) is type(loss) and twin is not loss
    assert_close(twin(logits, target), loss(logits, target), rtol=0, atol=0)
    assert (twin.spec(), twin.fingerprint) == (loss.spec(), loss.fingerprint)
    assert set(loss.state_dict()) == set(row_case.variables)


def test_nothing_that_came_in_is_changed_or_kept(row_case):
    loss = row_case.make(ignore_index=-1)
    given = [*batch(row_case, 7, 3), torch.rand(7, 3) > 0.2]
    given[1][0, 0] = -1
    copies = [tensor.clone() for tensor in given]
    loss.sums(*given[:2], mask=given[2])
    loss(*given[:2], mask=given[2])
    for tensor, before in zip(given, copies, strict=True):
        assert_close(tensor, before, rtol=0, atol=0)
    references = [weakref.ref(tensor) for tensor in given]
    del given, tensor
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_samples_weight_multiplies_its_rows_or_is_refused(row_case, shape):
    logits, target = batch(row_case, *shape)
    weight = torch.rand(shape[0]).double()
    if not takes_weights(row_case):
        for call in (row_case.make(), row_case.make().sums):
            with pytest.raises(
                ValueError, match=f"`weight` has no meaning in (this )?{row_case.cls.__name__}:"
            ) as error:
                call(logits, target, weight)
            assert "`mask`." in str(error.value)
        return
    plain = row_case.make(reduction="none")(logits, target)
    expected = plain * weight.reshape(-1, *[1] * (plain.ndim - 1))
    for given in (weight, weight.reshape(-1, *[1] * (len(shape) - 1))):
        assert_close(row_case.make(reduction="none")(logits, target, given), expected)
        assert_close(row_case.make()(logits, target, given), expected.mean())
        assert_close(row_case.make().sums(logits, target, given).mean(), expected.mean())
    with pytest.raises(ValueError, match=r"belongs to a (sample|position)"):
        row_case.make()(logits, target, torch.rand(shape))
    with pytest.raises(ValueError, match="`weight` has shape"):
        row_case.make()(logits, target, torch.rand(shape[0] + 1))


def test_a_labels_weight_multiplies_its_row_or_is_refused(row_case):
    if row_case.rows != "label":
        with pytest.raises(ValueError, match="`class_weight` has no meaning"):
            row_case.make(class_weight=[1.0, 2.0, 3.0])
        return
    logits, target = batch(row_case, 7, 3)
    expected = row_case.make(reduction="none")(logits, target) * torch.tensor([0.0, 2.0, 99.7])
    weighted = row_case.make(class_weight=[0.0, 2.0, 99.7])
    assert_close(weighted(logits, target), expected.mean())
    assert_close(weighted.sums(logits, target).loss.sum(1), expected)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["weighted_mean", "batchmean"])
def test_a_reduction_over_elements_is_refused_with_its_reason(row_case, reduction):
    with pytest.raises(ValueError, match="no loss of a single element"):
        row_case.make(reduction=reduction)


@pytest.mark.parametrize("option", [{"reduction": "avg"}, {"validate": "never"}, {"ignore_index": 1}, {"gama": 2.0}])
def test_a_bad_option_is_refused_by_its_name(row_case, option):
    with pytest.raises((ValueError, TypeError), match=next(iter(option))):
        row_case.make(**option)


def test_shapes_that_differ_are_refused(row_case):
    for shapes in (((7, 3), (7,)), ((7, 3), (7, 1)), ((7,), (7, 1)), ((7, 3), (3, 7))):
        with pytest.raises(ValueError, match="they must be equal"):
            row_case.make()(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
        with pytest.raises(ValueError, match="they must be equal"):
            row_case.function(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    with pytest.raises(ValueError, match="`mask` has shape"):
        row_case.make()(torch.zeros(7, 3), torch.zeros(7, 3), mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="`mask` has shape"):
        row_case.function(torch.zeros(7, 3), torch.zeros(7, 3), mask=torch.ones(7, dtype=torch.bool))
    with pytest.raises(TypeError, match="`mask` has dtype"):
        row_case.function(torch.zeros(7, 3), torch.zeros(7, 3), mask=torch.ones(7, 3))
    with pytest.raises(ValueError, match="single number"):
        row_case.function(torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(TypeError, match="floating-point"):
        row_case.make()(torch.zeros(7, 3, dtype=torch.int64), torch.zeros(7, 3))


@pytest.mark.parametrize("value", [2.0, -1.0, math.nan])
def test_targets_that_are_no_labels_are_refused_at_the_first_batch(row_case, value):
    logits, target = batch(row_case, 7, 3)
    wrong = target.clone()
    wrong[3, 1] = value
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        row_case.make()(logits, wrong)
    loss = row_case.make()
    loss(logits, target)
    loss(logits, wrong)  # was not looked at
    loss.recheck()
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        loss(logits, wrong)


def test_soft_targets_are_refused_where_the_formula_knows_none(row_case):
    logits, target = batch(row_case, 7, 3)
    target[3, 1] = 0.25
    if row_case.cls.hard_targets:
        with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.25"):
            row_case.make()(logits, target)
        mask = torch.ones(7, 3, dtype=torch.bool)
        mask[3, 1] = False
        row_case.make()(logits, target, mask=mask)
        for between, side in ((0.5, 0.0), (0.51, 1.0)):  # what the function does not look at it has to put on a side
            hard = target.round()
            soft = torch.where(hard == side, between, hard)
            assert_close(row_case.function(logits, soft), row_case.function(logits, hard))
    else:
        harder = target.clone()
        harder[3, 1] = 0.0
        assert row_case.make()(logits, target) != row_case.make()(logits, harder)


def test_a_row_loss_has_no_loss_of_an_element(row_case):
    with pytest.raises(TypeError, match=f"{row_case.cls.__name__} has no loss of a single element"):
        row_case.make().elementwise(torch.zeros(7, 3), torch.zeros(7, 3))


# -- the base ---------------------------------------------------------------------------------------------------------


class Total(RowLoss):
    """The sum of a row, to look at what the base does."""

    def __init__(self, rows="sample", result=None, **options):
        self.rows = rows
        super().__init__(**options)
        self.result = result

    def rowwise(self, logits, target, valid):
        return (logits.sum(-1), valid.any(-1)) if self.result is None else self.result


def test_the_base_cannot_be_made():
    with pytest.raises(TypeError, match="rowwise"):
        RowLoss()


def test_the_three_kinds_of_rows():
    logits = torch.arange(2.0 * 3 * 5).reshape(2, 3, 5)
    for rows, dims in (("label", (0, 2)), ("sample", (1, 2)), ("position", (1,))):
        assert_close(Total(rows, reduction="none")(logits, torch.zeros(2, 3, 5)), logits.sum(dims))


def test_what_is_unknown_reaches_the_formula_as_zeros():
    logits, target, mask = torch.rand(7, 3), torch.ones(7, 3), torch.rand(7, 3) > 0.3
    expected = torch.where(mask, logits, 0.0).sum(1)
    logits[~mask] = math.nan
    assert_close(Total(reduction="none")(logits, target, mask=mask), expected)


def test_a_position_may_have_its_own_weight():
    logits, weight = torch.rand(2, 3, 5), torch.rand(2, 1, 5)
    losses = Total("position", reduction="none")(logits, torch.zeros(2, 3, 5), weight)
    assert_close(losses, logits.sum(1) * weight[:, 0])
    with pytest.raises(ValueError, match="belongs to a sample"):
        Total("sample")(logits, torch.zeros(2, 3, 5), weight)
    for rows in ("sample", "position"):  # without a dimension of labels there is a single one
        of_one_label = Total(rows, reduction="none")(logits[:, 0, 0], torch.zeros(2), weight[:, 0, 0])
        assert_close(of_one_label, logits[:, 0, 0] * weight[:, 0, 0])


@pytest.mark.parametrize(
    "result",
    [
        torch.zeros(7),
        (torch.zeros(3), torch.ones(7, dtype=torch.bool)),
        (torch.zeros(7, 3), torch.ones(7, dtype=torch.bool)),
        (torch.zeros(7), torch.ones(7)),
        (torch.zeros(7, dtype=torch.int64), torch.ones(7, dtype=torch.bool)),
        (torch.zeros(7), None),
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_loss_that_returns_something_else_is_told_what_was_expected(result):
    with pytest.raises(TypeError, match=r"losses of shape \(7,\) or \(7, 2\)"):
        Total(result=result)(torch.zeros(7, 3), torch.zeros(7, 3))


def test_a_row_without_a_known_label_does_not_count_whatever_the_formula_says():
    everything = torch.ones(2), torch.tensor([True, True])
    mask = torch.tensor([[True, False], [False, False]])
    logits, target = torch.zeros(2, 2), torch.zeros(2, 2)
    assert Total(result=everything, reduction="sum")(logits, target, mask=mask) == 1.0
    assert Total(result=everything)(logits, target, mask=mask) == 1.0
    assert Total(result=everything, reduction="none")(logits, target, mask=mask).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_of_rows_is_checked(weight):
    with pytest.raises(ValueError, match="`weight`"):
        Total()(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1.0, weight]))


@pytest.mark.parametrize(
    ("result", "what"),
    [
        (torch.zeros(2), "Tensor"),
        (None, "function"),
        ((torch.zeros(3), torch.ones(2).bool()), r"shapes \(3,\) and \(2,\), torch.float32 and torch.bool"),
        ((torch.zeros(2), torch.ones(2)), r"shapes \(2,\) and \(2,\), torch.float32 and torch.float32"),
        ((torch.zeros(2).long(), torch.ones(2).bool()), r"shapes \(2,\) and \(2,\), torch.int64 and torch.bool"),
    ],
)
def test_what_is_no_loss_of_each_row_is_named(result, what):
    result = (lambda: None) if result is None else result
    said = (
        rf"^Total\.rowwise returned {what}; floating-point losses of shape \(2,\) or \(2, 2\) and bool of shape \(2,\)"
    )
    with pytest.raises(TypeError, match=said):
        Total(result=result)(torch.zeros(2, 3), torch.zeros(2, 3))
