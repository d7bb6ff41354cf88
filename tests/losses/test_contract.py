"""The contract that every loss of the library keeps: shapes, dtypes, derivatives, extremes, and no side effects."""

import copy
import gc
import inspect
import pickle
import weakref

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from lightning_bce import BinaryLoss
from lightning_bce.spec import build

SHAPES = [(), (7,), (7, 1), (7, 3), (7, 3, 5), (3, 2, 1, 5, 7)]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
TARGETS = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def hard(*shape):
    return torch.randint(0, 2, shape)


def soft(*shape):
    """Labels of all kinds: both hard ones and everything between."""
    labels = torch.rand(shape, dtype=torch.float64)
    return torch.where(labels < 0.25, 0.0, torch.where(labels > 0.75, 1.0, labels))


def test_the_contract_finds_the_losses(cases):
    found = {case.cls.__name__ for case in cases}
    assert found >= {"BCEWithLogitsLoss", "FocalLoss", "BCELoss", "WeightedBCELoss", "BCEFocalLoss"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elements_keep_their_shape_and_a_mean_has_none(case, shape):
    outputs, target = case.outputs(*shape), hard(*shape)
    assert case.make(reduction="none")(outputs, target).shape == shape
    assert case.make()(outputs, target).shape == ()
    assert case.function(outputs, target).shape == shape


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_losses_are_computed_in_float32_or_better(case, dtype):
    outputs, target = case.outputs(7, 3, dtype=dtype), hard(7, 3)
    wide = torch.promote_types(dtype, torch.float32)
    for reduction in ("none", "mean"):
        loss = case.make(reduction=reduction)(outputs, target)
        assert loss.dtype == wide
        assert_close(loss, case.make(reduction=reduction)(outputs.to(wide), target), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TARGETS, ids=str)
def test_targets_of_every_dtype_mean_the_same(case, dtype):
    outputs, target = case.outputs(33, dtype=torch.float32), hard(33)
    expected = case.make(reduction="none")(outputs, target.float())
    assert_close(case.make(reduction="none")(outputs, target.to(dtype)), expected, rtol=0, atol=0)
    assert_close(case.function(outputs, target.to(dtype)), expected, rtol=0, atol=0)


def test_a_float32_target_leaves_float64_outputs_alone(case):
    outputs, target = case.outputs(33), hard(33)
    assert_close(case.make()(outputs, target.float()), case.make()(outputs, target.double()), rtol=0, atol=0)


def test_module_and_function_have_the_same_defaults_and_values(case):
    function = inspect.signature(case.function).parameters
    module = inspect.signature(case.cls).parameters
    options = {name: p.default for name, p in function.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    # What a function needs, a module may leave to the training data.
    needed = {name for name, default in options.items() if default is inspect.Parameter.empty}
    counted = {name for name in needed if module[name].default is None}
    assert {name: None if name in counted else default for name, default in options.items()} == {
        name: module[name].default for name in options
    }
    outputs, target = case.outputs(7, 3), soft(7, 3)
    assert_close(case.make(reduction="none")(outputs, target), case.function(outputs, target), rtol=0, atol=0)


# Options that this batch does not show, or that are no numbers: their own files test them.
ELSEWHERE = {
    "AsymmetricLoss": {"detach_focus"},
    "BCEWithLogitsLoss": {"pos_weight"},
    "DistributionBalancedLoss": {"counts", "total"},
    "FocalLoss": {"soft_targets"},
    "LargeLossBCELoss": {"strategy"},
    "MarginBCELoss": {"counts"},
    "PartialLabelBCELoss": {"power", "slope"},
    "SPLCLoss": {"threshold"},
    "UnobservedBCELoss": {"unobserved", "strategy", "strength"},
}


def test_each_option_of_the_module_is_that_of_the_function(case):
    outputs, target = case.outputs(33, 3), soft(33, 3)
    plain, known = case.function(outputs, target), inspect.signature(case.cls).parameters
    options = [
        name
        for name, p in inspect.signature(case.function).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and name in known
    ]
    for name in sorted(set(options) - ELSEWHERE.get(case.cls.__name__, set())):
        module, losses = _with_another(case, name, outputs, target)
        assert not torch.equal(losses, plain), name  # or a module that drops it would not be seen
        assert_close(module(outputs, target), losses, rtol=0, atol=0)


def _with_another(case, name, outputs, target):
    """A module with another value of one option than it had, and the losses of the function with that value."""
    before = getattr(case.make(), name)
    others = [0.25] if before is None else [not before] if isinstance(before, bool) else [before * 1.25, before + 1]
    for value in others:
        if value == before:
            continue
        try:
            return case.make(reduction="none", **{name: value}), case.function(outputs, target, **{name: value})
        except (TypeError, ValueError):
            continue
    raise AssertionError(f"none of {others} is a value of `{name}`")


def test_both_derivatives_are_right(case):
    outputs = case.outputs(7).requires_grad_()
    for target in (hard(7), soft(7)):
        assert gradcheck(lambda x, y=target: case.make(reduction="none")(x, y), (outputs,))
        assert gradgradcheck(lambda x, y=target: case.make(reduction="none")(x, y), (outputs,))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("label", [0.0, 0.25, 1.0])
def test_everything_is_finite_at_the_extremes(case, dtype, label):
    values, exact = (_derivatives(case, case.extremes(dtype).to(d), label) for d in (dtype, torch.float64))
    for value, reference in zip(values, exact, strict=True):
        assert reference.isfinite().all()
        # A slope of 0.75 / eps is more than float16 holds, which no formula can change.
        assert (value.isfinite() == reference.to(value.dtype).isfinite()).all(), value


def _derivatives(case, outputs, label):
    """Losses, gradient and curvature."""
    outputs = outputs.requires_grad_()
    losses = case.make(reduction="none")(outputs, torch.full_like(outputs, label))
    (gradient,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True)
    return losses, gradient, *torch.autograd.grad(gradient.sum(), outputs)


def test_an_infinite_logit_gives_the_limit(case):
    if not case.on_logits:
        pytest.skip("a probability is never infinite")
    loss, logits = case.make(reduction="none"), torch.tensor([torch.inf, -torch.inf]).requires_grad_()
    right, wrong, soft = torch.tensor([1, 0]), torch.tensor([0, 1]), torch.tensor([0.3, 0.3])
    if not case.softens:
        assert_close(loss(logits, right), torch.zeros(2), rtol=0, atol=0)
        assert_close(torch.autograd.grad(loss(logits, right).sum(), logits)[0], torch.zeros(2), rtol=0, atol=0)
    for target in (wrong, soft, right) if case.softens else (wrong, soft):
        limit = torch.full((2,), torch.inf)
        if case.bounded:
            far = loss(logits.double().clamp(-1e30, 1e30), target).float()
            limit = torch.where(far < 100, far, limit)
            assert (far < 100).any()
        assert_close(loss(logits, target), limit)


def test_a_nan_stays_in_its_element(case):
    outputs = case.outputs(7)
    outputs[3] = torch.nan
    for label in (0, 1, 0.3):
        losses = case.make(reduction="none")(outputs, torch.full_like(outputs, label))
        assert losses.isnan().tolist() == [i == 3 for i in range(7)]
    assert case.make()(outputs, hard(7)).isnan()


def test_a_surer_positive_costs_no_more_when_it_is_right_and_no_less_when_it_is_wrong(case):
    if case.softens:
        pytest.skip("a surer positive costs more beyond the softened label")
    outputs = torch.linspace(-30, 30, 257, dtype=torch.float64)
    outputs = outputs if case.on_logits else outputs.sigmoid()
    loss = case.make(reduction="none")
    # An eps inside the logarithms dips below zero at a perfect prediction and comes back up by less than itself.
    slack = getattr(loss, "eps", 0.0)
    assert (loss(outputs, torch.ones(257)).diff() <= slack).all()
    assert (loss(outputs, torch.zeros(257)).diff() >= -slack).all()


def test_half_precision_does_not_overflow_in_the_mean(case):
    count = 70_001  # more than float16 can count
    loss = case.make()(case.extremes(torch.float16)[-1].expand(count), torch.zeros(count))
    assert_close(loss, case.make()(case.extremes(torch.float32)[-1:], torch.zeros(1)))


def test_nothing_that_came_in_is_changed_or_kept(case):
    loss = case.make(ignore_index=-1)
    given = [case.outputs(7, 3), hard(7, 3).double(), torch.rand(7, 3), torch.rand(7, 3) > 0.2]
    given[1][0, 0] = -1
    copies = [tensor.clone() for tensor in given]
    loss.sums(*given[:3], mask=given[3])
    loss(*given[:3], mask=given[3])
    for tensor, before in zip(given, copies, strict=True):
        assert tensor._version == before._version + (tensor is given[1])  # the one write above
        assert_close(tensor, before, rtol=0, atol=0)
    references = [weakref.ref(tensor) for tensor in given]
    del given, tensor
    gc.collect()
    assert [reference() for reference in references] == [None] * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_grad_mode_is_not_touched(case, mode):
    outputs, target = case.outputs(7).requires_grad_(), hard(7)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        loss = case.make()(outputs, target)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
        assert loss.requires_grad == before[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_does_not_reach_into_a_loss(case, dtype):
    outputs, target = case.outputs(33, dtype=dtype), soft(33).to(dtype)
    expected = case.make()(outputs, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.make()(outputs, target)
    assert loss.dtype == torch.float32
    assert_close(loss, expected, rtol=0, atol=0)


def test_strides_do_not_matter(case):
    wide, target = case.outputs(7, 6), soft(7, 6)
    for view in (lambda t: t[:, ::2], lambda t: t.T, lambda t: t[:1].expand(5, 6), lambda t: t.flip(0)):
        dense = case.make(reduction="none")(view(wide).contiguous(), view(target).contiguous())
        assert_close(case.make(reduction="none")(view(wide), view(target)), dense)


def test_compiled_in_one_graph_it_gives_the_same(case):
    batch = case.outputs(7, 3).requires_grad_(), hard(7, 3).double(), torch.rand(7, dtype=torch.float64)
    for options in ({}, {"reduction": "weighted_mean", "ignore_index": -1, "class_weight": [1.0, 2.0, 0.5]}):
        loss = case.make(**options)
        compiled = torch.compile(lambda *a, f=loss: (f(*a), f.sums(*a).mean()), fullgraph=True, backend="aot_eager")
        value, mean = compiled(*batch)
        assert_close((value, mean), (loss(*batch), loss.sums(*batch).mean()))
        assert_close(torch.autograd.grad(value, batch[0]), torch.autograd.grad(loss(*batch), batch[0]))
    torch.compiler.reset()


def test_mapped_over_samples_it_gives_each_ones_loss_and_gradient(case):
    outputs, target = case.outputs(5, 7), soft(5, 7)
    target[2, 3] = -1
    loss = case.make(ignore_index=-1)
    expected = torch.stack([loss(x, y) for x, y in zip(outputs, target, strict=True)])
    assert_close(torch.func.vmap(loss)(outputs, target), expected)
    gradients = torch.func.vmap(torch.func.grad(loss))(outputs, target)
    leaf = outputs.clone().requires_grad_()
    by_hand = torch.stack([loss(x, y) for x, y in zip(leaf, target, strict=True)])
    assert_close(gradients, torch.autograd.grad(by_hand.sum(), leaf)[0])


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss)), lambda loss: build(loss.spec(), BinaryLoss)],
    ids=["deepcopy", "pickle", "spec"],
)
def test_a_copy_computes_the_same(case, copied):
    loss = case.make(reduction="weighted_mean", ignore_index=-1, class_weight=[1.0, 0.1, 99.7], validate="always")
    twin = copied(loss)
    batch = case.outputs(7, 3), hard(7, 3), torch.rand(7)
    assert type(twin) is type(loss) and twin is not loss
    assert_close(twin(*batch), loss(*batch), rtol=0, atol=0)
    assert (twin.spec(), twin.fingerprint) == (loss.spec(), loss.fingerprint)


def test_a_loss_has_nothing_to_save(case):
    loss = case.make(class_weight=[1.0, 2.0, 3.0])
    assert loss.state_dict() == {}
    case.make().load_state_dict(loss.state_dict())  # strictly: with and without factors are the same checkpoint


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_constants_keep_their_digits_when_the_model_is_cast(case, cast):
    loss = cast(torch.nn.Sequential(case.make(class_weight=[99.7, 0.1])))[0]
    assert_close(loss.class_weight, torch.tensor([99.7, 0.1], dtype=torch.float64), rtol=0, atol=0)


def test_constants_move_with_the_model(case):
    assert case.make(class_weight=[99.7, 0.1]).to("meta").class_weight.device.type == "meta"


def test_a_cut_changes_no_sum_unless_samples_are_coupled(case):
    outputs, target = case.outputs(7, 3), hard(7, 3)
    loss = case.make()
    if loss.couples_samples:
        assert case.cls.__name__ in {"GHMCLoss", "LargeLossBCELoss"}  # which say so
        return
    whole, parts = loss.sums(outputs, target), [loss.sums(outputs[at], target[at]) for at in (slice(3), slice(3, 7))]
    assert_close(parts[0].merge(parts[1]), whole)
