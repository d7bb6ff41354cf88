r"""Window: the batches and ranks of one step of the optimizer, and the gradient of their common mean.

Lightning takes the mean of the batches' means, over accumulated batches and over ranks. It is another number where
batches differ in size or in known labels, and where a window is cut short by the end of an epoch. With the means
:math:`m_b` of the batches and what they count, :math:`w_b`, the gradient wanted is

.. math:: \nabla L = \frac{\sum_b w_b \nabla m_b}{\sum_b w_b}.

The divisor is known with the last batch only. So each batch is weighed by :math:`w_b / r`, where :math:`r` is what a
batch counts about, the same on all ranks and throughout: half precision then sees gradients of the usual size. After
the last backward the gradients are multiplied by what is missing. Whatever a user adds to the loss of a batch, such as
a regulariser, is averaged with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_bce.engine import sum_dtype
from lightning_bce.engine.memory import own_part
from lightning_bce.losses import BinaryLoss, CombinedLoss, LossSums
from lightning_bce.losses.sums import safe_ratio

Reduce = Callable[[Tensor], Tensor]


class Window:
    """What the batches of one step of the optimizer count. Nothing here waits for the device, but what says so."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin a training: no batch has been seen."""
        self._reference: Tensor | None = None  # what a batch counts about
        self.reset()

    def reset(self) -> None:
        """Begin a window."""
        self._noted: Tensor | None = None  # loss and weight of the batch whose backward is to come
        self._total: Tensor | None = None  # of the batches before it
        self._closed: Tensor | None = None  # of the last whole window, over all ranks
        self._is_sum = self._may_be_empty = False

    def note(self, loss: BinaryLoss, sums: LossSums, target: Tensor, mask: Tensor | None) -> None:
        """Take note of the sums of a batch. They count when its backward comes."""
        self._noted = torch.stack([sums.loss.sum(), sums.weight.sum()]).detach().to(sum_dtype(sums.loss))
        self._is_sum = loss.reduction == "sum"
        self._may_be_empty |= mask is not None or not target.numel() or not _always_counts(loss)

    def weigh(self, loss: Tensor, parts: int, reduce: Reduce) -> Tensor:
        """Return the loss of the noted batch times what the batch counts.

        Args:
            loss: Its mean or sum, divided by the batches of a whole window, as Lightning does.
            parts: Batches of a whole window times ranks.
            reduce: Adds a tensor up over the ranks.
        """
        if self._noted is None:  # a step of the user's own
            return loss
        noted, self._noted = self._noted, None
        self._total = noted if self._total is None else self._total + noted
        if parts == 1:
            return loss
        if self._is_sum:  # which neither Lightning nor the ranks were to divide
            return loss * parts
        if self._reference is None:
            counted, ranks = reduce(torch.stack([noted[1], torch.ones_like(noted[1])])).unbind()
            self._reference = torch.where(counted == 0, 1.0, counted / ranks)
        return loss * (noted[1] / self._reference).to(loss.dtype)

    def close(self, parts: int, reduce: Reduce, optimizers: Iterable[Optimizer]) -> None:
        """Finish the gradients after the last backward of a window; arguments as in :meth:`weigh`."""
        if self._total is None:
            return
        self._closed, self._total = self._total, None
        if parts == 1:
            return
        self._closed = reduce(self._closed)
        if self._is_sum or self._reference is None:
            return
        weight = self._closed[1]
        factor = parts * self._reference / torch.where(weight == 0, 1.0, weight)
        with torch.no_grad():  # or the part of a sharded gradient would be a view that autograd keeps
            for gradients in _gradients(optimizers):
                # One launch for all of them. By a tensor, not by a number: that would wait for the device.
                torch._foreach_mul_(gradients, factor.to(gradients[0].device, gradients[0].dtype))

    def loss(self) -> Tensor | None:
        """Return the loss of the last whole window: the true mean over its batches and all ranks, or the sum.

        Where a strategy takes the backward for itself, as DeepSpeed's does, it is that of the last batch.
        """
        sums = self._noted if self._closed is None else self._closed
        if sums is None:
            return None
        return sums[0] if self._is_sum else safe_ratio(sums[0], sums[1])

    def skip_if_empty(self, optimizer: Optimizer, scaled: bool) -> None:
        """Have the optimizer move nothing, momentum and weight decay included, if the window counted nothing.

        Where every batch counts, this looks at nothing. Where labels can be unknown, a fused optimizer decides on the
        device; any other is told by gradients of None, for which the host waits once a step.

        Args:
            optimizer: The optimizer that is about to step.
            scaled: Whether a GradScaler stands before it.
        """
        may_be_empty, self._may_be_empty = self._may_be_empty, False
        fused: Any = optimizer if getattr(optimizer, "_step_supports_amp_scaling", False) else None
        if fused is not None and not scaled:
            fused.found_inf = None  # that of an earlier window
        if not may_be_empty or self._closed is None or self._closed.is_meta:
            return
        empty = self._closed[1] == 0
        if fused is None:
            if empty:
                optimizer.zero_grad(set_to_none=True)
        elif not scaled:  # a GradScaler brings a `found_inf` of its own, and needs gradients: they stay zeros
            fused.found_inf = empty.float()


def _always_counts(loss: BinaryLoss) -> bool:
    """Return whether each element counts, if none is masked. Rows and weights may be such that none does."""
    counting: Any = loss.terms[loss.leading] if isinstance(loss, CombinedLoss) else loss
    return bool(loss.ignore_index is None and counting.per_element and counting.reduction != "weighted_mean")


def _gradients(optimizers: Iterable[Optimizer]) -> list[list[Tensor]]:
    """Return what this rank holds of the gradients that the optimizers see, of one device and type together."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    seen: set[int] = set()
    for parameter in (p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]):
        if parameter.grad is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            # Its part, because a model may hold sharded weights beside whole ones, which no one launch takes.
            gradient = own_part(parameter.grad)
            alike.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return list(alike.values())
