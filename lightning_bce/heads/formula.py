"""What a head asks of a loss: the formula of an element, which constants are cut with the labels, and why it cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_bce.losses import BinaryLoss, CombinedLoss, UnobservedBCELoss

_FAR = (-1e4, -30.0, -3.0, 0.0)  # logits at which the loss of a negative may be nothing
_SURE = -8.0  # a logit at which a negative is sure, and its gradient not rounded to 0


class HeadFormula:
    """The loss of an element, for a head that walks over its labels.

    Args:
        loss: By element, with the same formula for every label or constants that have one number for each.
        num_labels: Number of labels C.

    Raises:
        ValueError: If the loss has no such form, with the reason.
    """

    def __init__(self, loss: BinaryLoss, num_labels: int) -> None:
        reason = reason_against(loss, num_labels)
        if reason is not None:
            raise ValueError(
                f"{type(loss).__name__} cannot live in a head that cuts its labels into chunks: {reason}. Use it "
                "on the logits of an nn.Linear."
            )
        self.name = type(loss).__name__
        self.loss = loss
        self._part = _Elementwise(loss)
        # A subclass may have a formula of its own and inherit the short form of another.
        short = _owner(loss, "negatives")
        self._short_form = short is not BinaryLoss and issubclass(short, _owner(loss, "elementwise"))
        self.by_label = [name for name, value in _constants(loss).items() if value.numel() > 1]
        device = next((value.device for value in loss.buffers()), torch.device("cpu"))
        with torch.inference_mode(False), torch.enable_grad():
            leaf = torch.tensor([(*_FAR, _SURE)], device=device, requires_grad=True)
            losses = self.negatives(leaf, self.cut(0, 1))
            (slope,) = torch.autograd.grad(losses.sum(), leaf)
        self.far = _FAR[int(losses[0, : len(_FAR)].abs().argmin())]
        """The logit that takes a positive's place among the negatives: where the loss of a negative is least."""
        self.has_dead_zone = bool(slope[0, -1] == 0)
        """Whether sure negatives have a gradient of exactly 0 long before floating point rounds it to that."""

    def cut(self, begin: int, end: int) -> dict[str, Tensor]:
        """Return the constants of a slice of the labels."""
        found = dict(self.loss.named_buffers())
        return {name: found[name][begin:end] for name in self.by_label}

    def of_entries(self, labels: Tensor) -> dict[str, Tensor]:
        """Return the constants of the label of each entry."""
        found = dict(self.loss.named_buffers())
        return {name: found[name][labels] for name in self.by_label}

    def losses(self, logits: Tensor, target: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Return the loss of each element of (N, C), of which the constants hold C labels."""
        scores = torch.sigmoid(logits) if self.loss.input_space == "probabilities" else logits
        if not constants:
            return self.loss.elementwise(scores, target)
        replaced = {f"loss.{name}": value for name, value in constants.items()}
        losses: Tensor = torch.func.functional_call(self._part, replaced, (scores, target))
        return losses

    def negatives(self, logits: Tensor, constants: dict[str, Tensor]) -> Tensor:
        """Return the loss of each element of (C, N), label-major, if all targets are 0."""
        loss = self.loss
        if self._short_form:
            return loss.negatives(logits)
        scores = logits.t() if constants else logits
        losses = self.losses(scores, torch.zeros_like(scores), constants)
        return losses.t() if constants else losses


class _Elementwise(nn.Module):
    """The formula as a module, so that its constants can be replaced for a call."""

    def __init__(self, loss: BinaryLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element."""
        return self.loss.elementwise(logits, target)


def reason_against(loss: Any, num_labels: int) -> str | None:
    """Return why a loss cannot be computed label by label, or None."""
    if not isinstance(loss, BinaryLoss):
        return f"it is {type(loss).__name__}, and a BinaryLoss was expected"
    if loss.reduction == "none":
        return "its reduction is 'none', and the losses of the elements never exist together"
    if loss.unresolved:
        return (
            f"its {', '.join(loss.unresolved)} waits for counts of the training data; call `loss.resolve(counts)` first"
        )
    if isinstance(loss, CombinedLoss):
        return _reason_against_terms(loss, num_labels)
    if not loss.per_element:
        return "it looks at the scores of a whole sample or label together"
    if type(loss).context is not BinaryLoss.context:
        return "it takes from the whole batch what an element weighs or learns"
    if isinstance(loss, UnobservedBCELoss):
        return "it reads marks of unobserved labels in the target, and what a sparse target does not hold is a 0"
    if next(loss.parameters(), None) is not None:
        return "it has parameters of its own, whose gradient the head does not compute"
    own = loss._buffers.get("weight")
    if own is not None and own.numel() not in (1, num_labels):
        return f"its `weight` has shape {tuple(own.shape)}, and a head takes one number, or one for each label"
    if loss.class_weight is not None and len(loss.class_weight) != num_labels:
        return f"its `class_weight` has {len(loss.class_weight)} numbers, and the head {num_labels} labels"
    ours = type(loss).__module__.startswith("lightning_bce.")
    for name, value in _constants(loss).items():
        if value.numel() > 1 and not (ours and value.shape == (num_labels,) and name in loss._buffers):
            return (
                f"its `{name}` has shape {tuple(value.shape)}, and only one number, or in a loss of this package one "
                "for each label, can be cut with the labels"
            )
    return None


def _reason_against_terms(loss: CombinedLoss, num_labels: int) -> str | None:
    terms = dict(loss.terms.items())
    for name, term in terms.items():
        reason = reason_against(term, num_labels)
        if reason is None and isinstance(term, BinaryLoss):
            if term._buffers.get("weight") is not None or term.class_weight is not None or _constants(term):
                reason = "in a sum a head takes no factors of labels"
            elif term.reduction != "mean":
                reason = f"its reduction is {term.reduction!r}, and in a sum a head takes 'mean' only"
        if reason is not None:
            return f"of its term {name!r}: {reason}"
    return None


def _owner(loss: BinaryLoss, method: str) -> type:
    """Return the class that a loss has a method from."""
    return next(cls for cls in type(loss).__mro__ if method in vars(cls))


def _constants(loss: BinaryLoss) -> dict[str, Tensor]:
    return {} if isinstance(loss, CombinedLoss) else loss._constants()
