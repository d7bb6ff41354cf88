"""The constants of a loss: factors and numbers, given or left to the training data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_bce.losses.checks import Factor, check_factor
from lightning_bce.losses.count_rules import OfCounts, Rule, is_rule
from lightning_bce.spec import Recorded

if TYPE_CHECKING:
    from lightning_bce.losses.label_counts import LabelCounts


class WithConstants(Recorded, nn.Module):
    """A module whose constants keep their digits on every device and stay out of checkpoints.

    They are buffers in float64. An argument may be a rule in place of numbers, such as "auto": it waits for
    :meth:`resolve`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rules: dict[str, OfCounts] = {}

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
            plain: Any = value.item() if value.numel() == 1 else value.tolist()
            found[name] = plain
        for name, plain in found.items():
            self._take(name, plain, counts)
        self._rules.clear()
        self._record(**{name: getattr(self, name) for name in found})
        return found

    def _take(self, name: str, value: Any, counts: LabelCounts) -> None:
        """Put a resolved argument where the formula reads it."""
        # Of `_number`. It stays, because DDP counts on a buffer that it has seen.
        waiting = self._buffers.get(f"_{name}")
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
