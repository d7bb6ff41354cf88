"""A head computes what nn.Linear and the loss compute, and never as much at once."""

import copy
import inspect

import pytest
import torch
from discovery import concrete_losses
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_bce import (
    AsymmetricLoss,
    BCEWithLogitsLoss,
    BinaryLoss,
    BrierLoss,
    DiceLoss,
    FocalLoss,
    GHMCLoss,
    HillLoss,
    LogitAdjustedLoss,
    MarginBCELoss,
    PairwiseLoss,
    PartialLabelBCELoss,
    PolyLoss,
    SmoothedBCELoss,
    UnobservedBCELoss,
)
from lightning_bce.engine.compiler import reason_against as no_compiler
from lightning_bce.heads import HeadBackwardError, MultiLabelHead, SparseTarget, walk
from lightning_bce.heads.formula import reason_against
from lightning_bce.spec import build

ROWS, WIDTH, LABELS = 33, 7, 257
REQUIRED = {
    "LogitAdjustedLoss": {"prior": 0.2},
    "MarginBCELoss": {"counts": 40},
    "PositiveUnlabeledLoss": {"prior": 0.2},
}
REQUIRED["DistributionBalancedLoss"] = {"counts": 40, "total": 257}
MADE = [cls(**REQUIRED.get(cls.__name__, {})) for cls in concrete_losses() if cls.per_element]
ELEMENTWISE = [type(loss) for loss in MADE if reason_against(loss, LABELS) is None]

needs_a_compiler = pytest.mark.skipif(no_compiler("cpu") is not None, reason=str(no_compiler("cpu")))


def inputs(dtype=torch.float64):
    return torch.randn(ROWS, WIDTH, dtype=dtype)


def a_head(loss=None, dtype=torch.float64, **options):
    head = MultiLabelHead(WIDTH, LABELS, loss, chunk_labels=64, dtype=dtype, **options)
    with torch.no_grad():
        head.weight.mul_(5)  # logits on both sides, some far out
    return head


# -- the numbers ------------------------------------------------------------------------------------------------------


def test_the_losses_by_element_are_found():
    names = {cls.__name__ for cls in ELEMENTWISE}
    assert {"BCEWithLogitsLoss", "FocalLoss", "AsymmetricLoss", "HillLoss", "PolyLoss", "BCELoss"} <= names


@pytest.mark.parametrize("cls", ELEMENTWISE, ids=lambda cls: cls.__name__)
def test_every_loss_by_element_equals_its_dense_formula(cls, a_target, compared):
    loss = cls(fused=False, ignore_index=-1, **REQUIRED.get(cls.__name__, {}))
    compared(a_head(loss), inputs(), a_target(ROWS, LABELS, soft=True, unknown=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "weighted_mean"])
@pytest.mark.parametrize("per_label", [False, True])
@pytest.mark.parametrize("weight", [None, (ROWS,), (ROWS, 1), (1, LABELS)], ids=str)
def test_reductions_weights_and_unknown_labels_count_as_in_the_dense_loss(
    reduction, per_label, weight, a_target, compared
):
    factors = {"class_weight": torch.rand(LABELS), "weight": torch.rand(LABELS), "pos_weight": 3.0}
    loss = BCEWithLogitsLoss(reduction=reduction, ignore_index=-1, fused=False, **factors)
    given = None if weight is None else torch.rand(weight, dtype=torch.float64)
    compared(a_head(loss, per_label=per_label), inputs(), a_target(ROWS, LABELS, unknown=True), given)


@pytest.mark.parametrize(
    "loss",
    [
        BCEWithLogitsLoss(pos_weight=torch.rand(LABELS) + 0.5),
        LogitAdjustedLoss(prior=0.1 + 0.8 * torch.rand(LABELS)),
        MarginBCELoss(counts=1 + torch.arange(LABELS)),
        0.5 * BCEWithLogitsLoss() + FocalLoss(gamma=2.0),
    ],
    ids=["pos_weight", "prior", "counts", "sum"],
)
def test_constants_of_labels_are_cut_with_them(loss, a_target, compared):
    loss.fused = False
    compared(a_head(loss), inputs(), a_target(ROWS, LABELS))


def test_a_margin_is_that_of_the_rarest_label_also_in_batches_without_it(a_target, compared):
    target = a_target(ROWS, LABELS)
    target[:, :100] = 0  # the rarest label, and its whole chunk, have no positive
    compared(a_head(MarginBCELoss(counts=1 + torch.arange(LABELS), fused=False)), inputs(), target)


@pytest.mark.parametrize("cls", ELEMENTWISE, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("options", [{}, {"alpha": 0.25}, {"gamma": 0.0}, {"gamma": 1.5}], ids=str)
def test_the_short_form_of_a_negative_is_its_formula(cls, options):
    options = {name: value for name, value in options.items() if name in inspect.signature(cls.__init__).parameters}
    loss = cls(**(REQUIRED.get(cls.__name__, {}) | options))
    for dtype in (torch.float32, torch.float64):
        outputs = torch.cat([torch.linspace(-30, 30, 601), torch.tensor([-1e4, -100.0, 100.0, 1e4])]).to(dtype)
        outputs = outputs if loss.input_space == "logits" else outputs.sigmoid()
        found, expected = (outputs.clone().requires_grad_() for _ in range(2))
        losses = loss.negatives(found)
        right = loss.elementwise(expected, torch.zeros_like(expected))
        tolerance = {"rtol": 8 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
        assert_close(losses, right, **tolerance)
        gradients = torch.autograd.grad(losses.sum(), found), torch.autograd.grad(right.sum(), expected)
        assert_close(*gradients, **tolerance)


class SquaredAfterAll(FocalLoss):
    """A formula of its own below the short form of another."""

    def elementwise(self, logits, target):
        return (logits.sigmoid() - target).square()


def test_a_subclass_does_not_inherit_the_short_form_of_another_formula(a_target, compared):
    compared(a_head(SquaredAfterAll(fused=False)), inputs(), a_target(ROWS, LABELS))


@needs_a_compiler
@pytest.mark.parametrize(
    "loss",
    [AsymmetricLoss(fused=True), BCEWithLogitsLoss(pos_weight=torch.rand(LABELS) + 0.5, fused=True)],
    ids=["ASL", "BCE with a pos_weight of labels"],
)
def test_a_generated_kernel_computes_the_same(loss, a_target, compared):
    weight = torch.rand(ROWS)
    head = a_head(loss, torch.float32)
    compared(head, inputs(torch.float32), a_target(ROWS, LABELS, dtype=torch.float32), weight, tolerance=1e-5)
    assert loss._kernels._made and loss._kernels.failure is None
    with torch.no_grad():
        x, target = inputs(torch.float32), SparseTarget.from_lists([[i % LABELS] for i in range(ROWS)], LABELS)
        kernel = head(x, target)
        loss.fused = False
        assert_close(kernel, head(x, target))


def test_sure_and_right_negatives_keep_the_digits_of_their_loss(a_target, compared):
    # Positives at logit 40 beside negatives at -12: a sum from which the positives were subtracted would keep none.
    head = a_head(BCEWithLogitsLoss(fused=False), torch.float32, per_label=True)
    target = a_target(ROWS, LABELS, dtype=torch.float32)
    x = torch.zeros(ROWS, WIDTH)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.fill_(-12)
        positive = target.sum(0) == ROWS
        head.bias[positive] = 40
    compared(head, x, target, tolerance=1e-6)


@pytest.mark.parametrize("chunk", [1, 100, 10_000])
def test_chunks_of_any_size_give_the_same(chunk, a_target, compared):
    head = a_head(AsymmetricLoss(fused=False))
    head.chunk_labels = chunk
    compared(head, inputs(), a_target(ROWS, LABELS))


def test_few_live_labels_are_gathered_exactly(a_target, compared):
    head = a_head(AsymmetricLoss(fused=False))
    with torch.no_grad():
        head.weight.mul_(0.01)
        head.bias.fill_(-5)
    target = a_target(ROWS, LABELS)
    target[:, 10:] = 0
    compared(head, inputs(), target)
    assert 0 < head.dense_part < 0.1
    bce = a_head(BCEWithLogitsLoss(fused=False))
    compared(bce, inputs(), target)
    assert bce.dense_part == 1


def test_nothing_to_learn_from_is_a_zero_with_zero_gradients(a_target):
    x = torch.randn(0, WIDTH, dtype=torch.float64, requires_grad=True)
    head = a_head(BCEWithLogitsLoss(fused=False))
    head(x, []).backward()
    assert head.weight.grad.abs().sum() == 0 and head.bias.grad.abs().sum() == 0 and x.grad.shape == (0, WIDTH)
    everything = [list(range(LABELS))] * ROWS
    head = a_head(BCEWithLogitsLoss(fused=False))
    value = head(inputs().requires_grad_(), SparseTarget.from_lists([[]] * ROWS, LABELS, unknown=everything))
    value.backward()
    assert value == 0 and head.weight.grad.abs().sum() == 0


def test_half_precision_is_computed_in_float32(a_target):
    exact = a_head(BCEWithLogitsLoss(fused=False))
    half = copy.deepcopy(exact).bfloat16()
    exact = copy.deepcopy(half).double()
    x = inputs().bfloat16()
    target = SparseTarget.from_sparse(a_target(ROWS, LABELS).to_sparse())
    leaf, right = x.clone().requires_grad_(), x.double().requires_grad_()
    value, expected = half(leaf, target), exact(right, target)
    value.backward()
    expected.backward()
    assert value.dtype == torch.float32 and leaf.grad.dtype == half.weight.grad.dtype == torch.bfloat16
    assert_close(value.double(), expected, rtol=1e-6, atol=0)
    assert_close(leaf.grad, right.grad.bfloat16(), rtol=8e-3, atol=0)  # rounded once, at the end
    assert_close(half.weight.grad, exact.weight.grad.bfloat16(), rtol=8e-3, atol=0)


def test_autocast_changes_nothing(a_target):
    head = a_head(BCEWithLogitsLoss(fused=False), torch.float32)
    x, target = inputs(torch.float32), SparseTarget.from_sparse(a_target(ROWS, LABELS).to_sparse())
    plain = head(x, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(x, target), plain)


# -- gradients --------------------------------------------------------------------------------------------------------


def test_the_parameters_gradient_is_the_tensor_that_the_walk_wrote(a_target, monkeypatch):
    places = []

    def noted(shape, dtype, device):
        buffer = torch.empty(shape, dtype=dtype, device=device)
        if shape == head.weight.shape:
            places.append(buffer.data_ptr())  # a reference to the buffer itself would make autograd copy
        return buffer

    monkeypatch.setattr(walk, "large_buffer", noted)
    head = a_head(BCEWithLogitsLoss(fused=False))
    head(inputs(), SparseTarget.of([[1]] * ROWS, LABELS)).backward()
    assert [head.weight.grad.data_ptr()] == places


def test_an_upstream_gradient_scales_them_all(a_target):
    target = SparseTarget.from_sparse(a_target(ROWS, LABELS).to_sparse())
    head, x = a_head(BCEWithLogitsLoss(fused=False)), inputs().requires_grad_()
    head(x, target).backward()
    once = [x.grad.clone(), head.weight.grad.clone(), head.bias.grad.clone()]
    x.grad = None
    head.zero_grad()
    (head(x, target) * 3).backward()
    for found, expected in zip([x.grad, head.weight.grad, head.bias.grad], once, strict=True):
        assert_close(found, 3 * expected)


def test_gradients_of_several_batches_add_up(a_target):
    head, x = a_head(BCEWithLogitsLoss(fused=False)), inputs()
    target = SparseTarget.from_sparse(a_target(ROWS, LABELS).to_sparse())
    (head(x, target) + head(x, target)).backward()
    twice = head.weight.grad.clone()
    head.zero_grad()
    head(x, target).backward()
    assert_close(twice, 2 * head.weight.grad)


def test_what_is_frozen_gets_none(a_target):
    target = SparseTarget.from_sparse(a_target(ROWS, LABELS).to_sparse())
    head, x = a_head(BCEWithLogitsLoss(fused=False)), inputs().requires_grad_()
    head.weight.requires_grad_(False)
    head(x, target).backward()
    assert head.weight.grad is None and head.bias.grad is not None and x.grad is not None
    assert a_head(BCEWithLogitsLoss(fused=False), bias=False)(inputs(), target).requires_grad


def test_a_second_backward_is_named():
    head = a_head(BCEWithLogitsLoss(fused=False))
    value = head(inputs(), [[1]] * ROWS)
    value.backward(retain_graph=True)
    with pytest.raises(HeadBackwardError, match="a second time"):
        value.backward()


def test_a_gradient_of_a_gradient_is_named():
    head = a_head(BCEWithLogitsLoss(fused=False))
    with pytest.raises(HeadBackwardError, match="create_graph"):
        torch.autograd.grad(head(inputs(), [[1]] * ROWS), head.weight, create_graph=True)


class Products(TorchDispatchMode):
    """Counts matrix products and collects the sizes of all results."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.products += operation.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_without_gradients_one_product_of_three_is_done():
    head, target = a_head(BCEWithLogitsLoss(fused=False)), SparseTarget.of([[1]] * ROWS, LABELS)
    for context, products in ((torch.enable_grad(), 3), (torch.no_grad(), 1), (torch.inference_mode(), 1)):
        with context, Products() as counted:
            head(inputs().requires_grad_(), target)
        assert counted.products == products * 5  # chunks of 64 of 257 labels


def test_logits_never_exist_as_a_whole():
    head, target = a_head(BCEWithLogitsLoss(fused=False)), SparseTarget.of([[1]] * ROWS, LABELS)
    with Products() as counted:
        head(inputs().requires_grad_(), target).backward()
    assert counted.largest <= max(64 * ROWS, LABELS * WIDTH) < ROWS * LABELS


# -- what it refuses --------------------------------------------------------------------------------------------------


class Remembering(BinaryLoss):
    def __init__(self):
        super().__init__()
        self.margin = torch.zeros(LABELS)

    def elementwise(self, logits, target):
        return (logits.sigmoid() - target - self.margin).square()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (DiceLoss(), "looks at the scores of a whole"),
        (PairwiseLoss(), "looks at the scores of a whole"),
        (GHMCLoss(), "takes from the whole batch"),
        (PartialLabelBCELoss(), "takes from the whole batch"),
        (UnobservedBCELoss(), "marks of unobserved"),
        (BCEWithLogitsLoss(reduction="none"), "'none'"),
        (BCEWithLogitsLoss(class_weight=[1.0, 2.0]), "2 numbers"),
        (BCEWithLogitsLoss(pos_weight=[1.0, 2.0]), "`pos_weight` has shape"),
        (Remembering(), "`margin` has shape"),
        (BCEWithLogitsLoss() + DiceLoss(), "of its term 'DiceLoss'"),
        (BCEWithLogitsLoss(pos_weight=2.0) + BrierLoss(), "no factors of labels"),
        (torch.nn.BCEWithLogitsLoss(), "BinaryLoss was expected"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_loss_that_cannot_be_cut_is_refused_with_the_reason(loss, said):
    with pytest.raises(ValueError, match=said):
        MultiLabelHead(WIDTH, LABELS, loss)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"num_labels": 0}, ValueError, "num_labels"),
        ({"in_features": 1.5}, TypeError, "in_features"),
        ({"chunk_labels": 0}, ValueError, "chunk_labels"),
        ({"prior": 1.0}, ValueError, "strictly between"),
        ({"prior": 0.1, "bias": False}, ValueError, "`bias=True`"),
        ({"dtype": "int64"}, ValueError, "floating-point"),
        ({"dtype": "bf16"}, ValueError, "torch does not have"),
    ],
)
def test_options_out_of_range_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        MultiLabelHead(**({"in_features": 3, "num_labels": 5} | options))


def test_shapes_that_do_not_fit_are_refused():
    head = MultiLabelHead(3, 5)
    with pytest.raises(ValueError, match=r"\(N, 3\) was expected"):
        head(torch.zeros(2, 4), [[], []])
    with pytest.raises(ValueError, match="2 inputs and targets of 1 samples"):
        head(torch.zeros(2, 3), [[]])
    with pytest.raises(ValueError, match="as large as the logits"):
        head(torch.zeros(2, 3), [[], []], torch.ones(2, 5))
    with pytest.raises(ValueError, match="at least 0"):
        head(torch.zeros(2, 3), [[], []], -torch.ones(2))


# -- the module -------------------------------------------------------------------------------------------------------


def test_a_prior_is_where_the_biases_begin():
    head = MultiLabelHead(3, 5, prior=0.01)
    assert_close(head.bias.sigmoid(), torch.full((5,), 0.01))


def test_a_head_is_rebuilt_from_its_spec():
    head = MultiLabelHead(3, 5, FocalLoss(gamma=1.5), prior=0.1, per_label=True, dtype=torch.bfloat16, device="cpu")
    again = build(head.spec(), MultiLabelHead)
    assert again.loss.gamma == 1.5 and again.per_label and again.weight.dtype == torch.bfloat16
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.weight, head.weight)
    assert set(head.state_dict()) == {"weight", "bias"}


def test_a_copy_has_a_loss_of_its_own():
    head = MultiLabelHead(3, 5, SmoothedBCELoss())
    again = copy.deepcopy(head)
    again.loss.smoothing = 0.5
    x = torch.randn(2, 3)
    assert again._formula.loss is again.loss
    assert again(x, [[], []]) != head(x, [[], []])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("loss", [HillLoss(), PolyLoss(), AsymmetricLoss()], ids=lambda loss: type(loss).__name__)
def test_on_a_gpu_it_computes_the_same_without_a_wait(loss, a_target):
    loss.validate = "off"
    head = MultiLabelHead(WIDTH, LABELS, loss, chunk_labels=64)
    target = SparseTarget.from_sparse(a_target(ROWS, LABELS).to_sparse())
    x = inputs(torch.float32)
    head(x, target).backward()
    expected, head.weight.grad, head.bias.grad = head.weight.grad, None, None
    head.cuda()
    on_device, there = x.cuda(), target.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        head(on_device, there).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(head.weight.grad.cpu(), expected, rtol=1e-4, atol=1e-7)
