"""The head as a function of autograd, whose gradients are all known when its loss is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_bce.heads.walk import Walk

if TYPE_CHECKING:
    from lightning_bce.heads.head import MultiLabelHead


class HeadBackwardError(RuntimeError):
    """A head was asked for gradients that it does not have: a second backward, or a gradient of a gradient."""


class HeadFunction(torch.autograd.Function):
    """The loss, of which every gradient is known when it is."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, walk: Walk, wanted: Any, head: MultiLabelHead
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and its sums, and keep the gradients that came with them."""
        losses, gradients, head.dense_part = walk.run(wanted)
        losses, ctx.pending = head._of_all(losses), None
        if head._shards is not None and gradients.inputs is not None:
            ctx.pending = head._shards.begin_to_add_up(gradients.inputs)  # while the host goes on to the backward
        ctx.gradients, ctx.dtypes = gradients, (inputs.dtype, None if bias is None else bias.dtype)
        ctx.stepped = walk.step is not None
        ctx.mark_non_differentiable(losses)
        return (losses.sum() * walk.scale).to(head._full), losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        """Hand the gradients over, times the upstream one.

        Raises:
            HeadBackwardError: If they were handed over before, or a gradient of a gradient is asked for.
        """
        gradients, ctx.gradients = ctx.gradients, None
        if torch.is_grad_enabled():
            raise HeadBackwardError(
                "A gradient of a MultiLabelHead's gradient was asked for (`create_graph=True`): it has none, because "
                "its gradients are computed in the forward pass. Use the loss on the logits of an nn.Linear."
            )
        if gradients is None:
            raise HeadBackwardError(
                "A MultiLabelHead was asked for its gradient a second time. It hands its gradients over, without a "
                "copy, to the first backward. Call it once more, or add the losses up and call backward once."
            )
        if ctx.pending is not None:
            ctx.pending.wait()
        of_inputs, of_weight, of_bias = gradients
        del gradients  # a second reference would make autograd copy
        total = upstream[0]
        if ctx.stepped and total.device.type == "cpu" and total != 1:
            raise HeadBackwardError(
                f"A MultiLabelHead with `update` has moved its weights for a gradient of 1 of its loss, and "
                f"{float(total):g} came: a factor, accumulated batches or a GradScaler. Leave these out, or leave "
                "out `update`."
            )
        # [no sync] On a device the factor is not looked at.
        if total.device.type != "cpu" or total != 1:
            for gradient in (of_inputs, of_weight, of_bias):
                if gradient is not None:
                    gradient.mul_(total)
        inputs_dtype, bias_dtype = ctx.dtypes
        of_inputs = None if of_inputs is None else of_inputs.to(inputs_dtype)
        of_bias = None if of_bias is None else of_bias.to(bias_dtype)
        return of_inputs, of_weight, of_bias, None, None, None
