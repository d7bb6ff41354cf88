"""Without a generated kernel: a large batch goes through the formula in chunks, and what cannot says why."""

import math

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, BinaryLoss, FocalLoss
from lightning_bce.engine import KernelError, Kernels
from lightning_bce.losses import base

SHAPES = [(), (1,), (7,), (5, 1), (6, 3), (4, 3, 2)]


@pytest.fixture(autouse=True)
def chunked(monkeypatch):
    """A machine without a compiler, on which every batch is large."""
    monkeypatch.setattr(base, "reason_against", lambda device: "there is none")
    monkeypatch.setattr(base, "WORTHWHILE", 0)


@pytest.mark.parametrize("reduction", ["none", "mean", "weighted_mean", "sum", "batchmean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_reduction_has_the_formulas_value_and_gradient(shape, reduction, dtype):
    for options in ({}, {"ignore_index": math.nan}):
        target = torch.rand(shape, dtype=dtype)
        if options:
            target[torch.rand(shape) < 0.3] = math.nan
        chunked, formula = (FocalLoss(reduction=reduction, fused=fused, **options) for fused in (None, False))
        logits = torch.randn(shape, dtype=dtype)
        one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        found, right = chunked(one, target), formula(other, target)
        assert_close(found, right)
        assert_close(chunked.losses(logits, target), formula.losses(logits, target))
        assert_close(chunked.sums(logits, target).loss, formula.sums(logits, target).loss)
        for loss in (found, right):
            loss.sum().backward()
        assert_close(one.grad, other.grad)


def test_half_inputs_have_the_scale_of_full_precision():
    logits = torch.randn(3, 1001).bfloat16().requires_grad_()
    target = torch.randint(0, 2, logits.shape)
    BCEWithLogitsLoss()(logits, target).backward()
    chunked, logits.grad = logits.grad, None
    BCEWithLogitsLoss(fused=False)(logits, target).backward()
    assert torch.equal(chunked, logits.grad)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_kernel_that_cannot_be_made_is_said_and_replaced(monkeypatch, reduction):
    reasons = []
    monkeypatch.setattr(base, "reason_against", lambda device: reasons.append(device))

    def broken(self, *given):
        self.failure = "the compiler gave up"
        raise KernelError("the compiler gave up (no such instruction)")

    monkeypatch.setattr(Kernels, "sums", broken)
    monkeypatch.setattr(Kernels, "losses", broken)
    logits, target = torch.randn(64, 256), torch.rand(64, 256)
    loss = FocalLoss(reduction=reduction)
    said = r"^FocalLoss goes on without a generated kernel: the compiler gave up \(no such instruction\)\.$"
    with pytest.warns(UserWarning, match=said) as caught:
        found = loss(logits, target)
    assert len(caught) == 1 and set(reasons) == {"cpu"}
    right = FocalLoss(reduction=reduction, fused=False)(logits, target)
    assert_close(found, right)
    assert_close(loss(logits, target), right)  # and is not tried again
    with pytest.raises(
        RuntimeError, match=r"`fused` is True, and FocalLoss cannot .* here: the compiler gave up\. Leave"
    ):
        FocalLoss(reduction=reduction, fused=True)(logits, target)


class Squared(BinaryLoss):
    """A loss of a user."""

    def elementwise(self, logits, target):
        return (logits - target).square()


class Scaled(Squared):
    """A loss of a user that keeps tensors, one of them as a plain attribute."""

    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("scale", torch.ones(3))
        self.shift = torch.zeros(3)


def test_a_loss_that_keeps_tensors_says_which(monkeypatch):
    monkeypatch.setattr(base, "reason_against", lambda device: None)
    logits, target = torch.randn(4, 3), torch.rand(4, 3)
    with pytest.raises(RuntimeError) as caught:
        Scaled(fused=True)(logits, target)
    assert str(caught.value) == (
        "`fused` is True, and Scaled cannot have a generated kernel here: it keeps tensors (scale, shift), and nobody "
        "knows how they are meant to broadcast to the blocks that a kernel walks. Leave `fused` out to take the "
        "fastest way that there is."
    )
    assert Squared(class_weight=[1.0, 2.0, 3.0])._reason_against_blocks(logits) is None  # the base's own stand apart
    assert FocalLoss(alpha=[0.1, 0.2, 0.3])._reason_against_blocks(logits) is None


def test_logits_of_another_kind_go_through_the_formula():
    class Marked(torch.Tensor):
        pass

    logits = torch.randn(4, 3).as_subclass(Marked)
    with pytest.raises(RuntimeError, match="the logits are Marked, and a kernel takes plain tensors"):
        Squared(fused=True)(logits, torch.rand(4, 3))
    assert isinstance(Squared()(logits, torch.rand(4, 3)), Marked)


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        (lambda logits: logits.sum(), r"shape \(\), torch.float32"),
        (lambda logits: logits > 0, r"shape \(4, 3\), torch.bool"),
        (lambda logits: 1.0, "float"),
        (lambda logits: None, "NoneType"),
    ],
)
def test_what_is_no_loss_of_each_element_is_named(returned, what):
    class Wrong(BinaryLoss):
        def elementwise(self, logits, target):
            return returned(logits)

    said = rf"^Wrong\.elementwise returned {what}; one floating-point loss for each element, shape \(4, 3\), was exp"
    with pytest.raises(TypeError, match=said):
        Wrong(fused=False)(torch.zeros(4, 3), torch.zeros(4, 3))
