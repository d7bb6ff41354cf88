"""The arguments of the classifier: checked, built where they are written down, and written down for a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_bce.heads import MultiLabelHead
from lightning_bce.losses import BinaryLoss
from lightning_bce.spec import Recorded, Spec, SpecError, build, call_factory, factory_spec, is_spec, to_plain

_FACTORIES: dict[str, type] = {"optimizer": Optimizer, "lr_scheduler": LRScheduler}
_UNWRITTEN: Spec = {"class_path": "", "init_args": {}}


def plain_arguments(classifier: Recorded) -> dict[str, Any]:
    """Return the constructor's arguments as plain values, those of a subclass if it is one."""
    given, defaults = classifier._arguments()
    from_command_line = _command_line_arguments()
    plain: dict[str, Any] = {}
    for name, value in {**defaults, **given}.items():
        try:
            base = _FACTORIES.get(name)
            plain[name] = to_plain(value, name) if base is None else factory_spec(value, base, name)
        except SpecError as error:
            if name in from_command_line:
                plain[name] = to_plain(from_command_line[name], name)
            elif name == "model":
                advice = "Until then checkpoints load with `load_from_checkpoint(path, model=...)` only."
                warnings.warn(f"{error} {advice}", stacklevel=4)
                plain[name] = dict(_UNWRITTEN)
            elif name in given:
                raise  # a default need not be written down: it is there again when the module is built
    return plain


def _command_line_arguments() -> dict[str, Any]:
    """Return the arguments that LightningCLI is building a module from, as plain values; empty outside of it."""

    class Probe(HyperparametersMixin):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters()

    return {name: value for name, value in Probe().hparams.items() if not name.startswith("_")}


def built_model(model: Any) -> nn.Module:
    """Return the model, built where a checkpoint or a file wrote it down."""
    if isinstance(model, nn.Module):
        return model
    if model == _UNWRITTEN:
        raise SpecError(
            "The checkpoint holds the weights and could not hold how the model was made. Pass it: "
            "`load_from_checkpoint(path, model=...)`."
        )
    if is_spec(model):
        built: nn.Module = build(model, nn.Module)
        return built
    raise TypeError(f"`model` is {type(model).__name__}; an nn.Module was expected.")


def built_head(head: Any) -> MultiLabelHead | None:
    """Return the head, built where it was written down."""
    if head is None or isinstance(head, MultiLabelHead):
        return head
    if is_spec(head):
        built: MultiLabelHead = build(head, MultiLabelHead)
        return built
    raise TypeError(f"`head` is {type(head).__name__}; a MultiLabelHead was expected.")


def check_head(
    head: MultiLabelHead | None,
    loss: Any,
    num_labels: int,
    threshold: Any,
    top_k: int | None,
    prior_bias: bool | str,
    deployment_prior: Any,
) -> None:
    """Refuse options that a head has itself, or that have no effect with or without one."""
    if head is None:
        if top_k is not None:
            raise ValueError("`top_k` has no effect without a `head`: predictions then are those of all labels.")
        return
    if loss is not None:
        raise ValueError("`loss` was given beside a `head`, which has a loss already. Give it to the head.")
    if num_labels not in (1, head.num_labels):
        raise ValueError(f"`num_labels` is {num_labels}, and the head has {head.num_labels} labels. Leave it out.")
    if threshold != 0.5:
        raise ValueError("`threshold` has no effect with a `head`, which predicts the most probable labels.")
    if prior_bias not in (False, "auto"):
        raise ValueError(f"`prior_bias` is {prior_bias!r}, and a `head` has the last bias: give it its `prior`.")
    if deployment_prior is not None:
        raise ValueError("`deployment_prior` has no effect with a `head`, which predicts the most probable labels.")
    if top_k is not None and not 1 <= top_k <= head.num_labels:
        raise ValueError(f"`top_k` is {top_k}; from 1 to the head's {head.num_labels} labels were expected.")


def built_loss(loss: Any) -> BinaryLoss:
    """Return the loss, built where it was written down; one that gives no scalar is refused."""
    if isinstance(loss, BinaryLoss):
        built = loss
    elif is_spec(loss):
        built = build(loss, BinaryLoss)
    else:
        raise TypeError(
            f"`loss` is {type(loss).__module__}.{type(loss).__name__}; a BinaryLoss was expected. For one of torch "
            "use its equal here (`BCEWithLogitsLoss`, `BCELoss`); for your own derive from `lightning_bce.BinaryLoss` "
            "and write `elementwise`."
        )
    if built.reduction == "none":
        raise ValueError("The loss has reduction 'none', and training needs a scalar. Use 'mean' or another reduction.")
    return built


def built_factory(value: Any, base: type, name: str) -> Callable[[Any], Any] | None:
    """Return what makes an optimizer of parameters, or a scheduler of an optimizer."""
    if is_spec(value):
        spec = factory_spec(value, base, name) or {}
        return partial(call_factory, spec, base)
    if value is not None and not callable(value):
        raise TypeError(
            f"`{name}` is {type(value).__name__}; a subclass of {base.__name__} or functools.partial of one was "
            "expected, because the parameters are known only later."
        )
    return value  # type: ignore[no-any-return]


def label_names(class_names: Sequence[str] | None, num_labels: int) -> list[str]:
    """Return a name for each label."""
    names = [f"label_{i}" for i in range(num_labels)] if class_names is None else [str(name) for name in class_names]
    if len(names) != num_labels or len(set(names)) != num_labels:
        raise ValueError(
            f"`class_names` has {len(names)} names ({len(set(names))} different); one for each of {num_labels} "
            "label(s) was expected."
        )
    return names
