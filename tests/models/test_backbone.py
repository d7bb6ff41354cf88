"""Networks of other packages by their paths: trained, loaded again without the network, and nothing else called."""

from __future__ import annotations

import importlib
import sys
import types
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier
from lightning_bce.cli import main
from lightning_bce.models import Backbone
from lightning_bce.outputs import logits_of
from lightning_bce.spec import SpecError, build

FETCHED = []


class Net(nn.Module):
    def __init__(self, outputs, squeezed=False):
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(5, outputs)
        self.squeezed = squeezed

    def forward(self, inputs):
        logits = self.fc(self.body(inputs).mean((2, 3)))
        return {"aux": logits * 0, "out": logits.squeeze(1)} if self.squeezed else logits


def create_model(model_name, pretrained=False, num_classes=1000, checkpoint_path="", **options):
    if pretrained:
        FETCHED.append(model_name)
    return Net(num_classes, **options)


def resnet(*, weights=None, num_classes=1000):
    if weights is not None:
        FETCHED.append(weights)
    return Net(num_classes, squeezed=weights == "other shape")


def not_a_model():
    FETCHED.append("called")


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins of timm and torchvision, which has to be built for the torch that is there."""
    timm, vision, models = (types.ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
    timm.create_model, timm.not_a_model = create_model, not_a_model
    models.resnet, models.not_a_model, vision.models = resnet, not_a_model, models
    models.list_models = lambda: ["resnet"]
    models.get_model_builder = {"resnet": resnet}.__getitem__
    models.get_model = lambda name, **options: resnet(**options)
    for module in (timm, vision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    FETCHED.clear()


def images(labels=1):
    return DataLoader(TensorDataset(torch.randn(33, 3, 9, 9), torch.arange(33 * labels).reshape(33, labels) % 2.0), 7)


def trained_and_loaded(model, tmp_path, labels=1):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet
    )
    classifier = BinaryClassifier(model, num_labels=labels, prior_bias=True)
    trainer.fit(classifier, images(labels), images(labels))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    inputs = torch.randn(7, 3, 9, 9)
    assert torch.equal(classifier.eval()(inputs), again.eval()(inputs))
    torch.testing.assert_close(again.exportable()(inputs)[0], again(inputs).sigmoid().reshape(7, -1).squeeze(1))
    return again


@pytest.mark.parametrize(
    ("path", "arguments", "labels"),
    [
        ("timm.create_model", {"model_name": "net", "pretrained": True, "num_classes": 3}, 3),
        ("timm.create_model", {"model_name": "net", "num_classes": 1, "squeezed": True}, 1),
        ("torchvision.models.resnet", {"weights": "DEFAULT", "num_classes": 1}, 1),
        ("torchvision.models.get_model", {"name": "resnet", "num_classes": 3}, 3),
    ],
    ids=["timm", "an output (N,) beside another", "a function of torchvision", "by name"],
)
def test_a_function_of_a_package_trains_and_fetches_weights_once_at_most(packages, tmp_path, path, arguments, labels):
    model = Backbone(path, arguments)
    fetched = list(FETCHED)
    assert len(fetched) == (arguments.get("pretrained", False) or "weights" in arguments)
    trained_and_loaded(model, tmp_path, labels)
    assert fetched == FETCHED, "a checkpoint brings the weights itself"


def test_a_class_keeps_the_arguments_that_its_attributes_do_not_tell():
    model = Backbone("torch.nn.TransformerEncoderLayer", {"d_model": 8, "nhead": 2, "dropout": 0.0})
    assert build(model.spec(), nn.Module)(torch.zeros(3, 8)).shape == (3, 8)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os.system", "should name a subclass"),
        ("timm.not_a_model", "should name a subclass"),
        ("torchvision.models.not_a_model", "makes no model"),
        ("torchvision.models.nothing", "There is no 'nothing'"),
    ],
)
def test_nothing_that_makes_no_model_is_called(packages, path, message):
    with pytest.raises(SpecError, match=message):
        build({"class_path": "lightning_bce.models.Backbone", "init_args": {"path": path}}, nn.Module)
    assert FETCHED == []


def test_weights_that_change_the_network_are_refused(packages):
    with pytest.raises(SpecError, match="do not tell how it was made"):
        Backbone("torchvision.models.resnet", {"weights": "other shape", "num_classes": 1})


def test_the_command_takes_a_function_by_its_path(packages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(
        """
model:
  model:
    class_path: Backbone
    init_args: {path: timm.create_model, arguments: {model_name: net, num_classes: 1, squeezed: true}}
data: {class_path: backbone_rows.Images}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
test_after_fit: false
"""
    )
    module = types.ModuleType("backbone_rows")

    class Images(pl.LightningDataModule):
        train_dataloader = val_dataloader = lambda self: images()

    Images.__module__, Images.__qualname__, module.Images = "backbone_rows", "Images", Images
    monkeypatch.setitem(sys.modules, "backbone_rows", module)
    main(["fit", "--config=run.yaml"])
    (path,) = tmp_path.glob("runs/**/best.ckpt")
    assert BinaryClassifier.load_from_checkpoint(path).model.network.squeezed is True


class Output(NamedTuple):
    logits: torch.Tensor
    auxiliary: torch.Tensor


@pytest.mark.parametrize(
    "output", [Output(torch.ones(2), torch.zeros(2)), {"logits": torch.ones(2)}], ids=["object", "mapping"]
)
def test_logits_are_found_in_outputs(output):
    assert torch.equal(logits_of(output), torch.ones(2))


@pytest.mark.parametrize(
    "output", [(torch.ones(2),), {"scores": torch.ones(2)}, None], ids=["tuple", "mapping", "none"]
)
def test_an_output_without_logits_is_named(output):
    with pytest.raises(TypeError, match=r"The model returned a .* or an object with `logits` was expected"):
        logits_of(output)


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("timm.create_model", {"model_name": "resnet10t", "num_classes": 1}),
        ("torchvision.models.resnet18", {"num_classes": 1}),
        ("torchvision.models.segmentation.fcn_resnet50", {"num_classes": 1, "weights_backbone": None}),
    ],
)
def test_the_packages_themselves(tmp_path, path, arguments):
    package = path.partition(".")[0]
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        pytest.skip(f"{package} cannot be imported: {error}")
    model = Backbone(path, arguments)
    again = build(model.spec(), nn.Module)
    again.load_state_dict(model.state_dict())
    inputs = torch.randn(2, 3, 33, 33)
    assert torch.equal(again.eval()(inputs), model.eval()(inputs))
