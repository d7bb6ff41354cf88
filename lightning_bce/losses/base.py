"""The base of every loss: masks, weights, reduction and sums happen here, once."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from lightning_bce.engine import Formula, Inputs, KernelError, Kernels, Pass, reason_against
from lightning_bce.losses.checks import (
    PerLabel,
    check_factor,
    check_flag,
    check_probabilities,
    check_shapes,
    check_target_values,
    may_look,
)
from lightning_bce.losses.constants import WithConstants
from lightning_bce.losses.count_rules import Rule, class_weight_rule
from lightning_bce.losses.shapes import check_constant, fit_weight, part_of_row, per_label
from lightning_bce.losses.stable import full_precision, in_dtype
from lightning_bce.losses.sums import LossSums, safe_ratio

Reduction = Literal["none", "mean", "weighted_mean", "sum", "batchmean"]
Validation = Literal["first_batch", "always", "off"]
Result = TypeVar("Result")


WORTHWHILE = 2**17  # elements; a kernel then saves milliseconds a step, and some thousand steps pay for the compiler


class BinaryLoss(WithConstants, ABC):
    r"""Base of the losses of a binary or multi-label classifier.

    A new loss writes :meth:`elementwise`. The base gives it masks, weights, reductions, :class:`LossSums`, the checks
    and a spec for checkpoints.

    With losses :math:`\ell_i`, class weights :math:`c_i`, weights :math:`w_i` (constructor times call) and valid
    elements :math:`V`, the reductions are

    .. math::
        \text{sum} = \sum_{i \in V} c_i w_i \ell_i, \quad
        \text{mean} = \frac{\text{sum}}{|V|}, \quad
        \text{weighted\_mean} = \frac{\text{sum}}{\sum_{i \in V} w_i}, \quad
        \text{batchmean} = \frac{\text{sum}}{\text{rows with a valid element}}.

    ``none`` returns :math:`c_i w_i \ell_i`, 0 where ignored. A mean over nothing (an empty batch, all ignored, all
    weights 0) is 0 with a gradient of zeros.

    Args:
        reduction: One of "none", "mean", "weighted_mean", "sum", "batchmean".
        ignore_index: Target value that marks an unknown label, NaN included. Such an element counts nowhere.
        class_weight: One factor of at least 0 for each label (dimension 1). Scales the loss, not the denominator.
            "auto" or a rule of :func:`class_weight_rule` computes it from the training data.
        validate: Whether target values are checked at the "first_batch" (that waits for the device once), "always" or
            not at all ("off"). Shapes are always checked. Compiled code does not check values.
        fused: Whether value, sums and gradient come out of one pass, by a kernel that torch.compile generates from the
            formula, to the same numbers. None takes it for batches of 2^17 elements and more, below which the wait
            for the compiler does not pay, and without a compiler goes through such a batch in chunks. True takes it
            always and raises where it cannot be had, False never. What only the formula can do, it does: a second
            derivative, a gradient for the target or a weight, ``torch.func``, a model that is compiled as a whole.

    Raises:
        ValueError: If an option is out of range or has no effect.
        RuntimeError: When the first batch arrives, if ``fused`` is True and no kernel can be had, with the reason.

    Example:
        >>> import torch
        >>> class SquaredError(BinaryLoss):
        ...     '''Brier score.'''
        ...     def elementwise(self, logits, target):
        ...         return (logits.sigmoid() - target).square()
        >>> SquaredError()(torch.tensor([0.0, 0.0]), torch.tensor([0, 1]))
        tensor(0.2500)
    """

    input_space: ClassVar[Literal["logits", "probabilities"]] = "logits"
    """What the loss takes. `BinaryClassifier` applies the sigmoid for a loss on probabilities."""

    per_element: ClassVar[bool] = True
    """Whether an element has a loss of its own. Not so in a :class:`RowLoss`, such as Dice or a ranking."""

    def __init__(
        self,
        *,
        reduction: Reduction = "mean",
        ignore_index: float | None = None,
        class_weight: PerLabel | Rule | None = None,
        validate: Validation = "first_batch",
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        if fused is not None:
            check_flag("fused", fused)
        _check_choice("reduction", reduction, get_args(Reduction))
        _check_choice("validate", validate, get_args(Validation))
        if ignore_index is not None and (isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, float))):
            raise TypeError(f"`ignore_index` is {ignore_index!r}; a number or None was expected.")
        if ignore_index is not None and 0 <= ignore_index <= 1:
            raise ValueError(f"`ignore_index` is {ignore_index}, which is also a label. Use -1 or float('nan').")
        self.reduction: Reduction = reduction
        self.ignore_index = ignore_index
        self.validate: Validation = validate
        self.fused = fused
        self._checked = False
        self._kernels = Kernels()
        self._constant("class_weight", class_weight, class_weight_rule)
        if self.class_weight is not None and "class_weight" not in self._rules and self.class_weight.ndim != 1:
            raise ValueError(
                f"`class_weight` has shape {tuple(self.class_weight.shape)}; one number for each label was expected."
            )

    class_weight: Tensor | None

    @abstractmethod
    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element in nats, in the shape of ``logits``.

        Both arguments have one shape and one dtype (float32 or float64). Ignored elements hold harmless values. The
        loss of an element depends on that element alone; what it takes from the others comes from :meth:`context`.
        """

    def negatives(self, logits: Tensor) -> Tensor:
        """Return the loss of each element if its target is 0, as :meth:`elementwise` does.

        A head of many labels calls it for nearly all of them, and asks for the first derivative only: a loss may have
        a shorter form of that side.
        """
        return self.elementwise(logits, torch.zeros_like(logits))

    def context(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the target to learn from and a factor for each element, for a loss in which they depend on the batch.

        Args:
            logits: What :meth:`elementwise` gets, without a graph.
            target: What :meth:`elementwise` would get.
            valid: Where labels are known, broadcastable; None means everywhere.

        Returns:
            The target, as it came or relabelled, and factors that broadcast to the logits, or None for 1 everywhere.
            ``sums`` files an element under the side of the target that came.
        """
        return target, None

    def sums(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> LossSums:
        """Return loss and weight of the batch by label and side, the loss differentiable.

        ``sums(...).mean()`` is the loss under every averaging reduction; "sum" and "none" count as "mean" does.

        Args:
            logits: Model output, (N,), (N, 1), (N, C) or (N, C, ...).
            target: Labels in [0, 1] of any real dtype, the shape of ``logits``.
            weight: Factors of at least 0: (N,) one for each sample, or the shape of ``logits`` with ones where it
                repeats.
            mask: True where the label is known, in a shape that ``weight`` may have.

        Raises:
            ValueError: If shapes differ, or values are checked and wrong.
        """
        batch = self._batch(logits, target, weight, mask)
        if self._in_one_pass(batch):
            return LossSums(*self._run_pass(batch, Pass.sums))
        losses = self._formula.weighted(batch, full_precision(logits))
        # (N, C, P): one label for (N,), one position for (N, C)
        shape = (*logits.shape, 1, 1)[:2]
        sums = [
            part.reshape(*shape, math.prod(part.shape[2:])).sum((0, 2)) for part in self._formula.parts(batch, losses)
        ]
        return LossSums(torch.stack(sums[:2], -1), torch.stack(sums[2:], -1))

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the reduced loss in nats, in float32 or better. The arguments are those of :meth:`sums`."""
        if self.reduction == "none":
            return self.losses(logits, target, weight, mask=mask)
        batch = self._batch(logits, target, weight, mask)
        if self._in_one_pass(batch):
            sums = LossSums(*self._run_pass(batch, Pass.sums))
            return sums.loss.sum() if self.reduction == "sum" else sums.mean()
        losses = self._formula.weighted(batch, full_precision(logits))
        if self.reduction == "sum":
            return losses.sum()
        counts = self._formula.counts(batch, losses)
        if counts is None:
            return losses.sum() / max(losses.numel(), 1)
        return safe_ratio(losses.sum(), counts.sum())

    def losses(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each element in nats, times its factors and 0 where ignored, whatever the reduction is.

        The arguments are those of :meth:`sums`, the shape that of ``logits``; a :class:`RowLoss` returns one number
        for each row.
        """
        batch = self._batch(logits, target, weight, mask)
        if self._in_one_pass(batch):
            return self._run_pass(batch, Pass.losses)
        return self._formula.weighted(batch, full_precision(logits))

    def valid(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return where labels are known by ``mask`` and ``ignore_index``, broadcastable; None means everywhere."""
        return self._known(target, self._fitted_mask(logits, mask))

    def observed(self, logits: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """Return where the target holds a label that metrics can count, broadcastable; None means everywhere.

        It is :meth:`valid`, unless the loss has a use for what is no label.
        """
        return self.valid(logits, target, mask)

    @property
    def couples_samples(self) -> bool:
        """Whether the loss of a sample depends on the others of its batch, so that the cut into batches matters.

        With :meth:`context` that is assumed, unless the loss says that it looks at single samples only.
        """
        return type(self).context is not BinaryLoss.context

    @property
    def log_odds_shift(self) -> Tensor | None:
        """By how much the logit of the smallest expected loss lies above the log-odds, a number or (C,).

        0 for a proper loss. None where it is no shift, as for a focal loss, or is not known.
        """
        return None

    def num_rows(self, num_labels: int) -> int:
        """Return how many rows :meth:`sums` has: one for each label, unless the loss has no form by label."""
        return num_labels

    def start_epoch(self, epoch: int) -> None:
        """Take note of the epoch of training that begins, counted from 0.

        Most losses do not depend on it. :class:`BinaryClassifier` calls this; a training loop of one's own has to,
        where the loss says that it depends on the epoch.
        """

    def recheck(self) -> None:
        """Have the next batch count as the first one again, so that its values are checked."""
        self._checked = False

    def __mul__(self, factor: float) -> BinaryLoss:
        """Return this loss times a number, as a :class:`CombinedLoss` of one term."""
        from lightning_bce.losses.combined import scaled  # which is made of losses

        return scaled(self, factor)

    __rmul__ = __mul__

    def __add__(self, other: BinaryLoss) -> BinaryLoss:
        """Return the sum of two losses, a :class:`CombinedLoss`."""
        from lightning_bce.losses.combined import combined

        if not isinstance(other, BinaryLoss):
            return NotImplemented
        return combined(self, other)

    def extra_repr(self) -> str:
        """Return the arguments that were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self._arguments()[0].items())

    @property
    def _formula(self) -> Formula:
        return Formula(self._checked_elementwise, 0.0 if self.input_space == "logits" else 0.5, self.ignore_index)

    def _checked_elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.elementwise(logits, target)
        self._check_contract(losses, logits)
        return losses

    def _fitted_mask(self, logits: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the mask in a shape that broadcasts to that of the logits."""
        if mask is None:
            return None
        if mask.dtype != torch.bool:
            raise TypeError(f"`mask` has dtype {mask.dtype}; torch.bool was expected, True where the label is known.")
        return fit_weight("mask", mask, logits)

    def _known(self, target: Tensor, masked: Tensor | None) -> Tensor | None:
        """Return where labels are known by a fitted mask and ``ignore_index``."""
        return self._formula.valid(Inputs(target, target, mask=masked))

    def _batch(self, logits: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None) -> Inputs:
        """Return what the formula takes of a batch, after the checks."""
        self._refuse_unresolved()
        check_shapes(logits, target)
        masked = self._fitted_mask(logits, mask)
        own = []
        constant = self._buffers.get("weight")
        if constant is not None:
            check_constant("weight", constant, logits)
            own.append(constant)
        if weight is not None:
            own.append(fit_weight("weight", weight, logits))
        self._check_values(logits, target, weight, masked)
        factors, counts = list(own), list(own) if self.reduction == "weighted_mean" else []
        if self.class_weight is not None:
            factors.append(per_label("class_weight", self.class_weight, logits))
        if self.reduction == "batchmean" and logits.ndim > 1:
            counts.append(part_of_row(logits, self._known(target, masked)))
        learnt = None
        if type(self).context is not BinaryLoss.context:
            valid = self._known(target, masked)
            scores = full_precision(logits.detach())
            labels = target.to(scores.dtype)
            if valid is not None:
                scores = torch.where(valid, scores, self._formula.neutral)
                labels = torch.where(valid, labels, 0.0)
            other, factor = self.context(scores, labels, valid)
            learnt = None if other is labels else other
            factors += [] if factor is None else [factor]
        # The mask alone: the formula compares with `ignore_index` by itself, in its own pass.
        return Inputs(logits, target, learnt, masked, tuple(factors), tuple(counts))

    def _in_one_pass(self, batch: Inputs) -> bool:
        """Return whether this batch takes one pass; see ``fused`` in the class."""
        # In compiled code the compiler of the whole model makes the kernel, and may not ask for sizes; transforms see
        # through the formula only.
        if self.fused is False or not may_look():
            return False
        if self.fused is None and batch.logits.numel() < WORTHWHILE:
            return False
        if any(t is not None and t.requires_grad for t in (batch.target, batch.learnt, *batch.factors, *batch.counts)):
            return False
        reason = self._reason_against_blocks(batch.logits)
        if self.fused and (reason := reason or self._reason_against_kernels(batch.logits.device)):
            raise RuntimeError(
                f"`fused` is True, and {type(self).__name__} cannot have a generated kernel here: {reason}. Leave "
                "`fused` out to take the fastest way that there is."
            )
        return reason is None

    def _reason_against_kernels(self, device: torch.device) -> str | None:
        return reason_against(device.type) or self._kernels.failure

    def _run_pass(self, batch: Inputs, run: Callable[[Pass], Result]) -> Result:
        """Return what a pass over the batch gives, in chunks if the compiler fails."""
        try:
            return run(self._pass(batch))
        except KernelError as error:
            if self._in_one_pass(batch):  # which raises if a kernel was asked for
                warnings.warn(f"{type(self).__name__} goes on without a generated kernel: {error}.", stacklevel=3)
            return run(self._pass(batch))

    def _pass(self, batch: Inputs) -> Pass:
        """Return the pass over a batch."""
        logits = batch.logits
        count = {"sum": 1, "none": 1, "batchmean": len(logits) if logits.ndim else 1}.get(
            self.reduction, logits.numel()
        )
        # As float32 divides, so that the gradient of a mean is the expected one to the last bit.
        scale = 1 / in_dtype(max(count, 1), full_precision(logits[:0] if logits.ndim else logits).dtype)
        kernels = None if self._reason_against_kernels(logits.device) else self._kernels
        formula = self._formula._replace(losses=self._blockwise)
        return Pass(type(self).__name__, formula, batch, scale, self._alike(), kernels)

    def _blockwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :meth:`elementwise` of blocks, in which dimension 1 are the labels and the others have no order."""
        return self._checked_elementwise(logits, target)

    def _alike(self) -> bool:
        """Return whether the formula is known to be the same for every label, and not to ask how many there are."""
        ours = type(self).__module__.startswith("lightning_bce.")
        return ours and not any(value.numel() > 1 for value in self._constants().values())

    def _constants(self) -> dict[str, Tensor]:
        """Return the tensors that the formula may read."""
        found: dict[str, Tensor] = dict(self.named_buffers()) | dict(self.named_parameters())
        found |= {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return {name: value for name, value in found.items() if name not in ("weight", "class_weight")}

    def _reason_against_blocks(self, logits: Tensor) -> str | None:
        """Return why this loss cannot be computed in blocks, or None."""
        if type(logits) not in (Tensor, nn.Parameter):
            return f"the logits are {type(logits).__name__}, and a kernel takes plain tensors"
        constants = self._constants()
        if constants and not type(self).__module__.startswith("lightning_bce."):
            return (
                f"it keeps tensors ({', '.join(constants)}), and nobody knows how they are meant to broadcast to the "
                "blocks that a kernel walks"
            )
        return None

    def _check_values(self, logits: Tensor, target: Tensor, weight: Tensor | None, masked: Tensor | None) -> None:
        if self.validate == "off" or (self.validate == "first_batch" and self._checked):
            return
        if not may_look() or target.is_meta:  # a tensor without values is no first batch either
            return
        self._refuse_values(logits, target, weight, self._known(target, masked))
        self._checked = target.numel() > 0

    def _refuse_values(self, logits: Tensor, target: Tensor, weight: Tensor | None, valid: Tensor | None) -> None:
        check_target_values(target, valid)
        if self.input_space == "probabilities":
            check_probabilities(logits, valid)
        if weight is not None:
            fitted = fit_weight("weight", weight, logits).expand(logits.shape)
            check_factor("weight", fitted if valid is None else fitted[valid.expand(logits.shape)])

    def _check_contract(self, losses: Any, scores: Tensor) -> None:
        if isinstance(losses, Tensor) and losses.shape == scores.shape and losses.is_floating_point():
            return
        what = f"shape {tuple(losses.shape)}, {losses.dtype}" if isinstance(losses, Tensor) else type(losses).__name__
        raise TypeError(
            f"{type(self).__name__}.elementwise returned {what}; one floating-point loss for each element, shape "
            f"{tuple(scores.shape)}, was expected. Leave weights, masks and the mean to BinaryLoss."
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(choices)}.")
