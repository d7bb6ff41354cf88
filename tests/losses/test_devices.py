"""Every loss computes where its inputs are: a part of the contract of both kinds of losses.

The second device is an accelerator, where there is one. Everywhere it is also `meta`, on which tensors have no values:
what a formula makes on the host shows there too, and so does any look at a value.
"""

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_bce import BCEWithLogitsLoss, BinaryLoss, DiceLoss


@pytest.fixture
def accelerator():
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    pytest.skip("this machine has no second device: neither CUDA nor MPS")


class MadeElsewhere(TorchDispatchMode):
    """Collect the operations whose result is not on a device."""

    def __init__(self, device):
        super().__init__()
        self.device = torch.device(device)
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != self.device.type:
                self.found.append(str(operation))
        return result


def factors(any_case):
    """One factor for each label, where the loss takes any."""
    return {"class_weight": [1.0, 0.1, 99.7]} if any_case.cls.per_element or any_case.rows == "label" else {}


def everything(loss, outputs, target):
    """Return loss, sums and gradient."""
    value = loss(outputs, target)
    return value, *loss.sums(outputs, target), *torch.autograd.grad(value.sum(), outputs)


# -- without values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("validate", ["off", "first_batch", "always"])
def test_without_values_shapes_and_dtypes_are_known(any_case, validate):
    outputs, target = any_case.batch(7, 3)
    for reduction, dtype in (("mean", torch.float64), ("none", torch.bfloat16)):
        options = factors(any_case) | {"reduction": reduction, "ignore_index": -1}
        expected = everything(any_case.make(**options), outputs.to(dtype).requires_grad_(), target)
        loss = any_case.make(**options, validate=validate).to("meta")
        without_values = outputs.to("meta", dtype).requires_grad_(), target.to("meta")
        with MadeElsewhere("meta") as made:
            result = everything(loss, *without_values)
        assert [(t.shape, t.dtype, t.device.type) for t in result] == [(t.shape, t.dtype, "meta") for t in expected]
        assert not made.found, f"made on the host: {made.found}"


def test_a_batch_without_values_is_not_the_first_one(any_case):
    loss = any_case.make().to("meta")
    outputs, target = any_case.batch(7, 3)
    loss(outputs.to("meta"), target.to("meta"))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        loss.to_empty(device="cpu")(outputs, target + 7)


class HostConstant(BinaryLoss):
    def elementwise(self, logits, target):
        return (logits - target).square() * torch.tensor(2.0)


def test_a_constant_on_the_host_is_found():
    with MadeElsewhere("meta") as made:
        HostConstant()(torch.zeros(7, 3, device="meta"), torch.zeros(7, 3, device="meta"))
    assert made.found


# -- two devices ------------------------------------------------------------------------------------------------------


def test_the_accelerator_gives_the_numbers_of_the_host(any_case, accelerator):
    options = factors(any_case) | {"ignore_index": -1}
    outputs, target = (t.float() for t in any_case.batch(33, 3))
    target[2, 1] = -1
    expected = everything(any_case.make(**options), outputs.requires_grad_(), target)
    moved = outputs.detach().to(accelerator).requires_grad_(), target.to(accelerator)
    result = everything(any_case.make(**options).to(accelerator), *moved)
    assert all(t.device.type == accelerator.type for t in result)
    assert_close([t.cpu() for t in result], list(expected), rtol=1e-5, atol=1e-6)


def refuses_or_moves(call, device):
    """Whether a mistake about devices is told, or its result is where the outputs are."""
    try:
        result = call()
    except (RuntimeError, ValueError) as error:
        return "device" in str(error)
    return result.device.type == device


def test_a_loss_on_the_wrong_device_refuses_or_moves(any_case, accelerator):
    outputs, target = (t.float().to(accelerator) for t in any_case.batch(7, 3))
    loss = any_case.make(**factors(any_case))
    assert refuses_or_moves(lambda: loss(outputs, target), accelerator.type)
    assert refuses_or_moves(lambda: loss.to(accelerator)(outputs, target.cpu()), accelerator.type)


def test_a_loss_that_stayed_on_the_host_refuses_or_moves(any_case):
    outputs, target = (t.to("meta") for t in any_case.batch(7, 3))
    loss = any_case.make(**factors(any_case))
    assert refuses_or_moves(lambda: loss(outputs, target), "meta")


def test_a_sum_of_losses_moves_as_one():
    loss = (0.5 * BCEWithLogitsLoss(pos_weight=[1.0, 2.0, 3.0]) + DiceLoss()).to("meta")
    outputs = torch.zeros(7, 3, device="meta", requires_grad=True)
    with MadeElsewhere("meta") as made:
        result = everything(loss, outputs, torch.zeros(7, 3, device="meta"))
    assert all(t.device.type == "meta" for t in result)
    assert not made.found
