"""Backbone: a model of timm, torchvision or another package by its path, that a checkpoint can make again."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_bce.outputs import logits_of
from lightning_bce.spec import Recorded, SpecError, check_rebuilds, load_class, to_plain

# What each of them is called with where no weights are to be fetched.
_WITHOUT_WEIGHTS = {
    "pretrained": False,
    "pretrained_backbone": False,
    "checkpoint_path": "",
    "weights": None,
    "weights_backbone": None,
    "encoder_weights": None,
}


class Backbone(Recorded, nn.Module):
    """A network by the path of its class, or of timm's or torchvision's function that makes it.

    A module that one of these functions has made does not tell how, so that a checkpoint could not make it again. This
    one remembers, and brings no network traffic with it: the checkpoint has the weights, and what it notes is how to
    make the network without. Where weights are fetched for the first time (``pretrained=True``, ``weights="DEFAULT"``)
    is up to the arguments; by default timm and torchvision fetch none, segmentation_models_pytorch does
    (``encoder_weights=None`` does not).

    Functions are ``timm.create_model``, and of ``torchvision.models`` those that its ``list_models()`` names and
    ``get_model``. No other is called, because a checkpoint of a stranger could name any; classes of modules are taken
    from everywhere.

    Args:
        path: Such as "timm.create_model", "torchvision.models.resnet18" or "segmentation_models_pytorch.Unet".
        arguments: What it is called with, plain values. Give the number of outputs, ``num_classes=1`` in most.

    Raises:
        SpecError: If the path names something else, or the network without fetched weights is another one.
        ImportError: If the package is not installed.

    Example:
        >>> import torch
        >>> Backbone("torch.nn.Linear", {"in_features": 5, "out_features": 1})(torch.zeros(7, 5)).shape
        torch.Size([7, 1])
    """

    def __init__(self, path: str, arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        given = dict(arguments or {})
        make = _factory(path)
        self.network: nn.Module = make(**given)
        if not isinstance(self.network, nn.Module):
            raise SpecError(f"{path!r} returned {type(self.network).__name__}; an nn.Module was expected.")
        parameters = inspect.signature(make).parameters
        without = {name: value for name, value in _WITHOUT_WEIGHTS.items() if name in {*parameters, *given}}
        noted = {**to_plain(given, "arguments"), **without}
        if noted != given:
            self._record(arguments=noted)
        if any(given.get(name) != value for name, value in without.items() if name in given):
            check_rebuilds(self, self.spec())

    def forward(self, inputs: Any) -> Tensor:
        """Return the logits of what the network returns for the inputs."""
        return logits_of(self.network(inputs))


def _factory(path: str) -> Any:
    root, _, name = path.rpartition(".")
    if path == "timm.create_model":
        return _attribute(root, name)
    if root.split(".")[:2] == ["torchvision", "models"]:
        models = importlib.import_module("torchvision.models")
        if name == "get_model":
            return models.get_model
        found = _attribute(root, name)
        if not isinstance(found, type):
            if not any(models.get_model_builder(key) is found for key in models.list_models()):
                raise SpecError(f"{path!r} makes no model: `torchvision.models.list_models()` does not name it.")
            return found
    return load_class(path, nn.Module)


def _attribute(module: str, name: str) -> Any:
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise SpecError(f"There is no {name!r} in {module}.")
    return found
