"""Configurations of Hydra: everything is built, lists are lists, and checkpoints hold nothing of OmegaConf."""

from __future__ import annotations

from pathlib import Path

import polars
import pytest
import sklearn.datasets  # noqa: F401  it sets variables of the environment when first imported, which is no test's leak
import torch

from lightning_bce import BinaryClassifier
from lightning_bce.data import TableDataModule

hydra = pytest.importorskip("hydra", reason="hydra-core is not installed")
OmegaConf = pytest.importorskip("omegaconf").OmegaConf

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def built(text):
    return hydra.utils.instantiate(OmegaConf.create(text))


def quick(config):
    config.trainer.update(max_epochs=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    config.trainer.logger = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "."}
    return hydra.utils.instantiate(config)


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("{_target_: lightning_bce.BCEWithLogitsLoss, pos_weight: [1.0, 2.0, 3.0]}", [1.0, 2.0, 3.0]),
        (
            "{_target_: lightning_bce.BCEWithLogitsLoss, pos_weight: {rule: ratio, cap: 20}}",
            {"rule": "ratio", "cap": 20},
        ),
        ("{_target_: lightning_bce.FocalLoss, alpha: [0.2, 0.3]}", [0.2, 0.3]),
        ("{_target_: lightning_bce.MarginBCELoss, counts: [3, 4]}", [3, 4]),
    ],
)
def test_arguments_of_a_loss_are_plain_in_its_spec(text, argument):
    values = built(text).spec()["init_args"].values()
    assert argument in values
    assert {type(value) for value in values} <= {list, dict, str, int, float, bool, type(None)}


@pytest.mark.parametrize(
    "text",
    [
        "{_target_: lightning_bce.CombinedLoss, terms: {a: {_target_: lightning_bce.BrierLoss}}, weights: {a: 0.5}}",
        "{_target_: lightning_bce.LossTracker, loss: {_target_: lightning_bce.FocalLoss}, num_labels: 3}",
        "{_target_: lightning_bce.models.Backbone, path: torch.nn.ReLU, arguments: {inplace: true}}",
        "{_target_: lightning_bce.callbacks.PredictionWriter, output: [a.csv, b.csv]}",
        "{_target_: lightning_bce.callbacks.HardExamples, stages: [val]}",
        "{_target_: lightning_bce.callbacks.ThresholdTuner, objective: recall_at_precision, at_least: 0.9}",
    ],
)
def test_parts_of_all_rooms_are_built(text):
    assert type(built(text)).__name__ in text


def test_a_partial_loss_is_called_later():
    make = built("{_target_: lightning_bce.FocalLoss, _partial_: true, gamma: 1.5}")
    assert make(alpha=0.25).gamma == 1.5


def test_the_example_trains_and_its_checkpoint_loads_with_weights_only():
    run = quick(OmegaConf.load(ROOT / "examples" / "hydra.yaml"))
    run.trainer.fit(run.module, datamodule=run.data)
    path = run.trainer.checkpoint_callback.best_model_path
    torch.load(path, weights_only=True)
    again = BinaryClassifier.load_from_checkpoint(path)
    assert torch.equal(again.loss.pos_weight, run.module.loss.pos_weight) and len(again.loss.pos_weight) == 10
    assert again.model.spec() == run.module.model.spec()
    assert tuple(again.configure_optimizers()["optimizer"].defaults["betas"]) == (0.9, 0.99)


def test_lists_of_a_table_reach_the_data_and_their_checkpoint():
    table = {name: [int(i % size == 0) for i in range(99)] for name, size in (("x", 5), ("z", 7), ("a", 2), ("b", 3))}
    polars.DataFrame(table).write_csv("table.csv")
    config = OmegaConf.load(ROOT / "examples" / "hydra.yaml")
    target = "{_target_: lightning_bce.data.TableDataModule, path: table.csv, target: [a, b], positive: [1]}"
    config.data = OmegaConf.create(target)
    config.module.update(num_labels=2, threshold=[0.3, 0.4], class_names=["c", "d"])
    config.module.model.in_features = 2
    run = quick(config)
    run.trainer.fit(run.module, datamodule=run.data)
    path = run.trainer.checkpoint_callback.best_model_path
    kept = torch.load(path, weights_only=True)["datamodule_hyper_parameters"]
    assert (kept["target"], kept["positive"]) == (["a", "b"], [1])
    assert TableDataModule.load_from_checkpoint(path).class_names == ["a", "b"]
    assert BinaryClassifier.load_from_checkpoint(path).class_names == ["c", "d"]
