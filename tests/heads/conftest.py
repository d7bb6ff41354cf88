"""What the tests of heads share: losses, batches and the dense formula that everything is compared with."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_bce import BinaryLoss
from lightning_bce.heads import MultiLabelHead, SparseTarget


class Dense(NamedTuple):
    """Loss, sums and gradients by nn.Linear's formula and a dense target."""

    loss: Tensor
    sums: Any
    inputs: Tensor
    weight: Tensor
    bias: Tensor | None


def dense(
    loss: BinaryLoss, head: MultiLabelHead, inputs: Tensor, target: Tensor, weight: Tensor | None = None
) -> Dense:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (inputs, head.weight, head.bias)]
    logits = F.linear(*leaves)
    scores = torch.sigmoid(logits) if loss.input_space == "probabilities" else logits
    value = loss(scores, target, weight)
    value.backward()
    gradients = [None if leaf is None else leaf.grad for leaf in leaves]
    return Dense(value.detach(), loss.sums(scores.detach(), target, weight), *gradients)


def sparse(target: Tensor) -> SparseTarget:
    return SparseTarget.from_sparse(target.to_sparse(), ignore_index=-1)


@pytest.fixture
def a_target():
    """A dense target with few positives, and of other kinds if wished."""

    def make(rows: int, labels: int, soft: bool = False, unknown: bool = False, dtype: Any = torch.float64) -> Tensor:
        target = (torch.rand(rows, labels) < 0.05).to(dtype)
        if soft:
            target *= torch.rand(rows, labels).to(dtype)
        if unknown:
            target[torch.rand(rows, labels) < 0.1] = -1
        return target

    return make


@pytest.fixture
def compared():
    """Compare everything that a head computes with the dense formula."""

    def compare(
        head: MultiLabelHead, inputs: Tensor, target: Tensor, weight: Tensor | None = None, tolerance: float = 1e-10
    ) -> None:
        inputs = inputs.detach().requires_grad_()
        head.zero_grad()
        value, sums = head.loss_and_sums(inputs, sparse(target), weight)
        value.backward()
        fused, head.loss.fused = head.loss.fused, False
        head.loss.validate = "off"
        right = dense(head.loss, head, inputs, target, weight)
        head.loss.fused = fused

        def close(found: Tensor, expected: Tensor) -> None:
            scale = max(float(expected.abs().max()), 1e-30)
            torch.testing.assert_close(
                found / scale, expected / scale, rtol=tolerance, atol=tolerance, check_dtype=False
            )

        close(value.detach(), right.loss)
        assert inputs.grad is not None and head.weight.grad is not None
        close(inputs.grad, right.inputs)
        close(head.weight.grad, right.weight)
        if head.bias is not None:
            close(head.bias.grad, right.bias)
        for found, expected in zip(sums, right.sums, strict=True):
            close(found, expected if head.per_label else expected.sum(0, keepdim=True))

    return compare
