"""Arguments that the training data decide: how an "auto" or a rule becomes the numbers of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lightning_bce.losses.class_counts import (
    check_cap,
    check_positives,
    effective_number_weight,
    inverse_frequency_weight,
    pos_weight_from_counts,
)

if TYPE_CHECKING:
    from lightning_bce.losses.label_counts import LabelCounts

Rule: TypeAlias = str | dict[str, Any]
"""A name, such as "auto", or a name with options: ``{"rule": "ratio", "power": 0.5, "cap": 20}``."""

OfCounts: TypeAlias = Callable[["LabelCounts"], Tensor]


def is_rule(value: Any) -> bool:
    """Return whether an argument waits for counts, and is no number yet."""
    return isinstance(value, (str, Mapping))


def pos_weight_rule(name: str, rule: Rule) -> OfCounts:
    r"""Return what makes a ``pos_weight`` of counts.

    With :math:`n` positives of :math:`N` known labels, :math:`w = \min(\mathrm{cap}, r)` and

    - "ratio", which "auto" is: :math:`r = ((N - n) / n)^{\mathrm{power}}`, power 1: both sides weigh the same in total;
    - "sqrt": the same at power 1/2;
    - "effective_number": :math:`r = (1 - \beta^{N - n}) / (1 - \beta^n)` at beta 0.999, after Cui et al. (2019): where
      there are more than 1 / (1 - beta) positives, more of them no longer make a difference.

    Args:
        name: The argument, for the error.
        rule: A name, or ``{"rule": name, "power" or "beta": ..., "cap": ...}``.

    Raises:
        ValueError: If there is no such rule or option, or a value is out of range.

    Example:
        >>> from lightning_bce.losses.label_counts import LabelCounts
        >>> pos_weight_rule("pos_weight", {"rule": "ratio", "cap": 5})(LabelCounts([25, 10], [75, 90]))
        tensor([3., 5.], dtype=torch.float64)
    """
    options: dict[str, dict[str, Any]] = {
        "ratio": {"power": 1.0, "cap": None},
        "sqrt": {"cap": None},
        "effective_number": {"beta": 0.999, "cap": None},
    }
    kind, chosen = _parse(name, rule, options, auto="ratio")

    def ratio(counts: LabelCounts) -> Tensor:
        if kind == "effective_number":
            check_cap(chosen["cap"])
            seen, known = check_positives("positives", counts.positives, counts.total)
            pair = torch.stack([seen, known - seen])
            weight = [effective_number_weight(sides, beta=chosen["beta"]) for sides in pair.unbind(1)]
            odds = torch.stack([w[0] / w[1] for w in weight])
            return odds if chosen["cap"] is None else odds.clamp(max=chosen["cap"])
        power = chosen.get("power", 0.5)
        return pos_weight_from_counts(counts.positives, counts.total, power=power, cap=chosen["cap"])

    _try(ratio)
    return ratio


def alpha_rule(name: str, rule: Rule) -> OfCounts:
    r"""Return what makes a focal ``alpha`` of counts: :math:`w / (1 + w)` with the ``pos_weight`` of the same rule.

    "auto" is thus the share of the negatives.

    Args:
        name: The argument, for the error.
        rule: One of :func:`pos_weight_rule`.

    Raises:
        ValueError: If there is no such rule or option, or a value is out of range.
    """
    weight = pos_weight_rule(name, rule)

    def alpha(counts: LabelCounts) -> Tensor:
        found = weight(counts)
        return found / (1 + found)

    return alpha


def class_weight_rule(name: str, rule: Rule) -> OfCounts:
    """Return what makes a ``class_weight`` of counts.

    "inverse_frequency", which "auto" is, with its ``power`` of 1, and "effective_number" with its ``beta`` of 0.999:
    see :func:`inverse_frequency_weight` and :func:`effective_number_weight`.

    Args:
        name: The argument, for the error.
        rule: A name, or ``{"rule": name, "power" or "beta": ...}``.

    Raises:
        ValueError: If there is no such rule or option, a value is out of range, or, once counted, there is one label.
    """
    options = {"inverse_frequency": {"power": 1.0}, "effective_number": {"beta": 0.999}}
    kind, chosen = _parse(name, rule, options, auto="inverse_frequency")
    function: Callable[..., Tensor]
    function = inverse_frequency_weight if kind == "inverse_frequency" else effective_number_weight

    def weight(counts: LabelCounts) -> Tensor:
        if counts.num_labels == 1:
            raise ValueError(
                f"`{name}` is {rule!r} and there is one label: its weight would be 1, without effect. To lift its "
                "positives use `pos_weight`."
            )
        return function(counts.positives, **chosen)

    function([1.0, 2.0], **chosen)  # refuses an option out of range now, and not after counting
    return weight


def prior_rule(name: str, rule: Rule) -> OfCounts:
    """Return what makes a prior of counts: "auto", the frequency of each label's positives."""
    _parse(name, rule, {"frequency": {}}, auto="frequency")
    return lambda counts: counts.prior


def positives_rule(name: str, rule: Rule) -> OfCounts:
    """Return what makes the positives of each label of counts: "auto"."""
    _parse(name, rule, {"count": {}}, auto="count")
    return lambda counts: counts.positives


def total_rule(name: str, rule: Rule) -> OfCounts:
    """Return what makes the known labels of each label of counts: "auto"."""
    _parse(name, rule, {"count": {}}, auto="count")
    return lambda counts: counts.total


def _parse(name: str, rule: Rule, options: Mapping[str, Mapping[str, Any]], auto: str) -> tuple[str, dict[str, Any]]:
    given = {"rule": rule} if isinstance(rule, str) else dict(rule)
    kind = str(given.pop("rule", None))
    kind = auto if kind == "auto" else kind
    if kind not in options:
        raise ValueError(
            f"`{name}` is {rule!r}; a number, a list of numbers, or a rule was expected: 'auto', "
            f"{', '.join(map(repr, options))}"
            + (", or {'rule': name, ...} with its options." if any(options.values()) else ".")
        )
    known = options[kind]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"`{name}` has the rule {kind!r} with {', '.join(unknown)}; its options are: {', '.join(known) or 'none'}."
        )
    return kind, {**known, **given}


def _try(of_counts: OfCounts) -> None:
    """Have a rule refuse an option out of range now, and not after counting."""
    from lightning_bce.losses.label_counts import LabelCounts  # which is made of the base, which is made of rules

    of_counts(LabelCounts(1, 1))
