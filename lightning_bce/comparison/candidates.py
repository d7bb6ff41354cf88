"""The losses that are compared: written down, filled with what the training rows say, and searched."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from lightning_bce.losses import BCEWithLogitsLoss, BinaryLoss, LabelCounts
from lightning_bce.plotting import loss_spec
from lightning_bce.spec import Spec, SpecError, build, class_path, is_spec, load_class, to_plain

REFERENCE = "BCEWithLogitsLoss"

_COUNTED = {
    "LogitAdjustedLoss": ["prior"],
    "MarginBCELoss": ["counts"],
    "DistributionBalancedLoss": ["counts", "total"],
}


class Candidate(NamedTuple):
    """A loss that is compared.

    Args:
        label: What tables and pictures call it.
        spec: Class path and the arguments that were given.
    """

    label: str
    spec: Spec


def candidates(losses: Sequence[str | Mapping[str, Any] | BinaryLoss]) -> list[Candidate]:
    """Return what to compare, the reference first: BCE without any argument.

    Args:
        losses: Texts such as "FocalLoss(gamma=2)", specs or losses.

    Raises:
        ValueError: If a loss is given twice.
        SpecError: If one is no loss, or cannot be written down.
        TypeError: If it is none of these.

    Example:
        >>> [candidate.label for candidate in candidates(["FocalLoss(gamma=2)", "BrierLoss"])]
        ['BCEWithLogitsLoss', 'FocalLoss(gamma=2)', 'BrierLoss']
    """
    found = [Candidate(REFERENCE, {"class_path": class_path(BCEWithLogitsLoss), "init_args": {}})]
    for loss in losses:
        one = _candidate(loss)
        if one == found[0]:
            continue  # it is always there
        twins = [other.label for other in found if other.spec == one.spec or other.label == one.label]
        if twins:
            raise ValueError(f"The loss {one.label} is given twice, as {twins[0]} before. Give each once.")
        found.append(one)
    return found


def _candidate(loss: Any) -> Candidate:
    if isinstance(loss, str):
        spec = loss_spec(loss)
    elif isinstance(loss, BinaryLoss):
        given, _ = loss._arguments()
        spec = {"class_path": class_path(type(loss)), "init_args": to_plain(given)}
    elif is_spec(loss):
        spec = {"class_path": loss["class_path"], "init_args": to_plain(loss.get("init_args") or {})}
    else:
        raise TypeError(
            f"{loss!r} is no loss. Give a text such as 'FocalLoss(gamma=2)', a mapping with class_path and init_args, "
            "or an instance of a loss."
        )
    spec["class_path"] = class_path(load_class(_full(spec["class_path"]), BinaryLoss))
    name = spec["class_path"].rpartition(".")[2]
    arguments = ", ".join(f"{key}={_short(value)}" for key, value in spec["init_args"].items())
    return Candidate(f"{name}({arguments})" if arguments else name, spec)


def _full(path: str) -> str:
    return path if "." in path else f"lightning_bce.losses.{path}"


def _short(value: Any) -> str:
    if is_spec(value):
        return _candidate(value).label
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_short(item)}" for key, item in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def filled(spec: Spec, target: npt.NDArray[Any], known: npt.NDArray[Any]) -> Spec:
    """Return a loss with the arguments that the training rows decide, where none were given.

    These are the counts and priors of the losses for rare labels, all that is "auto" or a rule, ``num_labels``, and
    ``ignore_index`` where labels are unknown. The prior of :class:`PositiveUnlabeledLoss` is not among them: it is that
    of the positives which nobody labelled.

    Args:
        spec: A candidate's loss.
        target: Labels of the training rows, (N, C).
        known: Where they are known.

    Example:
        >>> import numpy as np
        >>> loss = {"class_path": "lightning_bce.LogitAdjustedLoss", "init_args": {}}
        >>> filled(loss, np.array([[0.0], [0.0], [0.0], [1.0]]), np.ones((4, 1), bool))["init_args"]["prior"]
        0.25
    """
    arguments = dict(spec["init_args"])
    for name in _COUNTED.get(spec["class_path"].rpartition(".")[2], ()):
        arguments.setdefault(name, "auto")
    if "num_labels" in inspect.signature(load_class(spec["class_path"], BinaryLoss)).parameters:
        arguments.setdefault("num_labels", target.shape[1])
    if not known.all():
        arguments.setdefault("ignore_index", float("nan"))
    found = {"class_path": spec["class_path"], "init_args": arguments}
    loss = build(found, BinaryLoss)
    if not loss.unresolved:
        return found
    # Now and not by the classifier: what was learnt from the rows is then written beside the run.
    loss.resolve(LabelCounts.of(torch.from_numpy(target), mask=torch.from_numpy(known)))
    return {**found, "init_args": to_plain(loss)["init_args"]}


def check(candidate: Candidate, target: npt.NDArray[Any], known: npt.NDArray[Any]) -> None:
    """Refuse, before any run begins, a loss that cannot be built.

    Raises:
        SpecError: With the loss and what is wrong.
    """
    try:
        build(filled(candidate.spec, target, known), BinaryLoss)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{candidate.label}: {error}") from error


def code_of(*specs: Spec) -> dict[str, str]:
    """Return a hash of the file of each class that is not of a package with a version: a user's own, which may change.

    Example:
        >>> code_of({"class_path": "lightning_bce.FocalLoss"})
        {}
    """
    found: dict[str, str] = {}
    for path in sorted({path for spec in specs for path in _paths(spec)}):
        module = sys.modules.get(load_class(path, object).__module__)
        file = getattr(module, "__file__", None)
        if file is None or "site-packages" in file or path.startswith(("lightning_bce.", "torch.")):
            continue
        found[path] = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    return found


def _paths(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        own = [value["class_path"]] if "class_path" in value else []
        return own + [path for item in value.values() for path in _paths(item)]
    return [path for item in value for path in _paths(item)] if isinstance(value, (list, tuple)) else []
