"""The base of every loss: masks, weights, reduction and sums happen here, once."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from lightning_bce.engine import Formula, Inputs, KernelError, Kernels, Pass, reason_against
from lightning_bce.losses.checks import (
    Factor,
    PerLabel,
    check_factor,
    check_flag,
    check_probabilities,
    check_shapes,
    check_target_values,
    may_look,
)
from lightning_bce.losses.count_rules import OfCounts, Rule, class_weight_rule, is_rule
from lightning_bce.losses.stable import full_precision, in_dtype
from lightning_bce.losses.sums import LossSums, safe_ratio
from lightning_bce.spec import Recorded

if TYPE_CHECKING:
    from lightning_bce.losses.label_counts import LabelCounts

Reduction = Literal["none", "mean", "weighted_mean", "sum", "batchmean"]
Validation = Literal["first_batch", "always", "off"]
Result = TypeVar("Result")


WORTHWHILE = 2**17  # elements; a kernel then saves milliseconds a step, and some thousand steps pay for the compiler


class BinaryLoss(Recorded, nn.Module, ABC):
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
        self._rules: dict[str, OfCounts] = {}
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

    # -- arguments that the training data decide ----------------------------------------------------------------------

    @property
    def unresolved(self) -> tuple[str, ...]:
        """The arguments that wait for :meth:`resolve`, such as a ``pos_weight`` that is "auto"."""
        return tuple(self._rules)

    def resolve(self, counts: LabelCounts) -> dict[str, Any]:
        """Compute the arguments that were left to the training data; the loss is then the one made with the numbers.

        :class:`BinaryClassifier` calls this before training. In a loop of one's own:
        ``loss.resolve(LabelCounts.of(target))`` with the target of the whole training set.

        Args:
            counts: Positives and negatives of each label in the training data.

        Returns:
            What was computed, by name, in plain numbers. Empty if nothing waited.

        Raises:
            ValueError: If the counts cannot be used.
        """
        found: dict[str, Any] = {}
        for name, of_counts in self._rules.items():
            value = of_counts(counts)
            plain: Any = value.item() if value.numel() == 1 and name != "class_weight" else value.tolist()
            found[name] = plain
        for name, plain in found.items():
            self._take(name, plain, counts)
        self._rules.clear()
        self._record(**{name: getattr(self, name) for name in found})
        return found

    def _take(self, name: str, value: Any, counts: LabelCounts) -> None:
        """Put a resolved argument where the formula reads it."""
        waiting = self._buffers.get(
            f"_{name}"
        )  # of `_number`; it stays, because DDP counts on a buffer that it has seen
        if waiting is not None:
            del self.__dict__[name]
            if not isinstance(value, list):
                setattr(self, name, value)
                return
            self.register_buffer(name, None, persistent=False)
        else:
            waiting = self._buffers[name]
        assert waiting is not None
        self._buffers[name] = torch.as_tensor(value, dtype=waiting.dtype, device=waiting.device)

    def _refuse_unresolved(self) -> None:
        if self._rules:
            raise RuntimeError(
                f"{type(self).__name__} cannot be computed yet: {', '.join(self._rules)} waits for the training data. "
                "BinaryClassifier counts them when training starts; in a loop of your own call "
                "`loss.resolve(LabelCounts.of(target))` with the labels of the whole training set, or give numbers."
            )

    def _constant(
        self, name: str, value: Factor | Rule | None, rule: Callable[[str, Rule], OfCounts] | None = None
    ) -> None:
        """Keep a factor as a buffer that moves with the module, stays out of checkpoints and keeps its precision.

        With ``rule`` the value may be a rule. Until it is resolved NaN stands for it, which no formula hides.
        """
        if rule is not None and is_rule(value):
            self._rules[name] = rule(name, value)  # type: ignore[arg-type]
            value = math.nan
        else:
            check_factor(name, value)  # type: ignore[arg-type]
        tensor = None if value is None else torch.as_tensor(value, dtype=torch.float64).detach().clone()
        self.register_buffer(name, tensor, persistent=False)

    def _number(self, name: str, value: Factor | Rule | None, rule: Callable[[str, Rule], OfCounts]) -> None:
        """Keep a number as a plain attribute, which a schedule may move, and one for each label as a buffer."""
        if is_rule(value):
            self._rules[name] = rule(name, value)  # type: ignore[arg-type]
            self.register_buffer(f"_{name}", torch.tensor(math.nan, dtype=torch.float64), persistent=False)
            setattr(self, name, value)
        elif value is None or isinstance(value, (int, float)):
            setattr(self, name, value)
        else:
            self._constant(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Constants keep float64 when the module is cast, because bfloat16 makes a pos_weight of 99.7 a 99.5. So does
        # what a loss remembers, because bfloat16 counts to 256.
        constants = dict(self._buffers)
        if fn(torch.zeros(1)).device.type == "mps":  # which has no float64
            constants = {
                name: value.float() if value is not None and value.dtype == torch.float64 else value
                for name, value in constants.items()
            }
            self._buffers.update(constants)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in constants.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)
        return self

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
            counts.append(_part_of_row(logits, self._known(target, masked)))
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


def fit_weight(name: str, weight: Tensor, logits: Tensor) -> Tensor:
    """Return ``weight`` in a shape that broadcasts to that of ``logits`` with one meaning only.

    (N,) is one value for each sample whatever the other dimensions are; the same number of dimensions may hold ones.

    Raises:
        ValueError: If the shape is any other: nothing is enlarged, no label is taken for a sample.
        TypeError: If it is no tensor.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"`{name}` is {type(weight).__name__}; a tensor was expected.")
    if weight.ndim == logits.ndim and all(w in (1, n) for w, n in zip(weight.shape, logits.shape, strict=True)):
        return weight
    if weight.ndim == 1 and logits.ndim > 1 and weight.shape[0] == logits.shape[0]:
        return weight.reshape(-1, *[1] * (logits.ndim - 1))
    advice = "Nothing is enlarged."
    if weight.ndim == 1 and logits.ndim > 1 and weight.shape[0] == logits.shape[1]:
        advice = f"For one value per label use `class_weight`, or pass `{name}[None]` if it repeats for every sample."
    raise ValueError(
        f"`{name}` has shape {tuple(weight.shape)} and the output {tuple(logits.shape)}; expected (N,) for one value "
        f"per sample, or the output's shape with ones where it repeats. {advice}"
    )


def _part_of_row(logits: Tensor, valid: Tensor | None) -> Tensor:
    """Return one over how many labels of a sample are known, (N, 1, ...)."""
    dtype = full_precision(logits[:0]).dtype
    if valid is None:
        known = torch.full(logits.shape[:1], math.prod(logits.shape[1:]), dtype=dtype, device=logits.device)
    else:
        known = valid.expand(logits.shape).flatten(1).sum(1).to(dtype)
    return (1 / known.clamp(min=1)).reshape(-1, *[1] * (logits.ndim - 1))


def per_label(name: str, values: Tensor, logits: Tensor) -> Tensor:
    """Return one number for each label (dimension 1) in a shape that broadcasts; a single number stays as it is.

    Raises:
        ValueError: If there are not as many numbers as labels.
    """
    if values.ndim == 0:
        return values
    labels = 1 if logits.ndim < 2 else logits.shape[1]
    if values.ndim > 1 or len(values) != labels:
        given = f"has {len(values)} numbers" if values.ndim == 1 else f"has shape {tuple(values.shape)}"
        raise ValueError(f"`{name}` {given} and the output {labels} label(s).")
    return values.reshape(()) if logits.ndim < 2 else values.reshape(-1, *[1] * (logits.ndim - 2))


def check_constant(name: str, value: Tensor, logits: Tensor) -> None:
    """Refuse a constructor's factor that does not broadcast from the right, as in torch, or would enlarge the output.

    Raises:
        ValueError: With both shapes.
    """
    shape = logits.shape
    fits = value.ndim <= len(shape) and all(
        v == 1 or v == n for v, n in zip(value.shape[::-1], shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"`{name}` has shape {tuple(value.shape)}, which does not broadcast to the output's {tuple(shape)} without "
            "enlarging it. For one value per label of (N, C, ...) outputs use shape (C, 1, ...)."
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(choices)}.")
