"""Names of labels: where they come from, and which are refused."""

from __future__ import annotations

import re
from collections.abc import Sequence

import lightning.pytorch as pl

from lightning_bce.visible import visible

_OF_A_LABEL = re.compile(
    r"(^|_)((loss_class|loss_share|count)(_negative|_positive)?|threshold(_\w+)?|\w+_tuned(_\w+)?)/"
)


def checked_names(names: Sequence[str], owner: str) -> list[str]:
    """Return names for logs and tables.

    Args:
        names: One name for each label.
        owner: What gave them, for the error.

    Raises:
        TypeError: If they are one string.
        ValueError: If a name occurs twice, because its values would overwrite each other.
    """
    if isinstance(names, str):
        raise TypeError(f"`{owner}` is the string {names!r}; a list of names was expected, such as [{names!r}].")
    shown = [visible(str(name)) for name in names]
    twice = sorted({name for name in shown if shown.count(name) > 1}) if len(set(shown)) < len(shown) else []
    if twice:
        raise ValueError(
            f"`{owner}` holds {', '.join(map(repr, twice[:5]))} more than once; every label needs a name of its own."
        )
    return shown


def label_names(given: list[str] | None, pl_module: pl.LightningModule, num_labels: int) -> list[str]:
    """Return the names of ``num_labels`` labels.

    Args:
        given: The user's choice, checked already. None takes the module's ``class_names`` where there is one for each
            label, and otherwise label_0, label_1, ...
        pl_module: The module.
        num_labels: How many there are. A loss without a form by label has one, which is then called "all".

    Raises:
        ValueError: If ``given`` has another length, or the module's names are not unique.
    """
    of_module = getattr(pl_module, "class_names", None)
    if not isinstance(of_module, Sequence) or isinstance(of_module, str):
        of_module = None
    whole = given if given is not None else of_module
    of_all = _labels_of(pl_module) or 1
    if num_labels == 1 and of_all > 1 and (not whole or len(whole) == of_all):
        return ["all"]
    if given is not None:
        if len(given) != num_labels:
            raise ValueError(
                f"`class_names` has {len(given)} name(s) and there are {num_labels} label(s): {given[:5]}"
                f"{' ...' if len(given) > 5 else ''}. Give one name for each label, in the order of the logits."
            )
        return given
    if of_module is not None and len(of_module) == num_labels:
        return checked_names(of_module, f"{type(pl_module).__name__}.class_names")
    return [f"label_{i}" for i in range(num_labels)]


def _labels_of(pl_module: pl.LightningModule) -> int | None:
    number = getattr(pl_module, "num_labels", None)
    return number if isinstance(number, int) else None


def of_single_label(name: str) -> bool:
    """Return whether a logged value is of one label, as :class:`PerClassLossMonitor` logs eight for each.

    Example:
        >>> of_single_label("val_loss_share_positive/cat"), of_single_label("val_loss/DiceLoss")
        (True, False)
    """
    return _OF_A_LABEL.search(name) is not None
