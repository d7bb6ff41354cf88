"""Losses of rows in the classifier, the callback and the command: one row for all labels, or one for each."""

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_bce import (
    AUCMarginLoss,
    BCEWithLogitsLoss,
    BinaryClassifier,
    DiceLoss,
    JaccardLoss,
    LossTracker,
    MCCLoss,
    PairwiseLoss,
    PositiveUnlabeledLoss,
    SoftF1Loss,
    TabularMLP,
    TverskyLoss,
    TwoWayLoss,
    ZLPRLoss,
)
from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.cli import main

NAMES = ["red", "green", "blue"]
LOSSES = {
    "all": [PairwiseLoss, TwoWayLoss, ZLPRLoss],
    "label": [DiceLoss, JaccardLoss, MCCLoss, SoftF1Loss, TverskyLoss],
}
EVERY = [(rows, loss) for rows, losses in LOSSES.items() for loss in losses]


def loader(size=8):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(33, 5, generator=generator)
    target = (inputs[:, :3] + 0.3 * torch.randn(33, 3, generator=generator) > 0).long()
    return DataLoader(list(zip(inputs, target, strict=True)), batch_size=size)


def a_trainer(*callbacks, epochs=1):
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.mark.parametrize(("rows", "loss"), EVERY, ids=lambda value: getattr(value, "__name__", value))
def test_a_classifier_logs_the_mean_over_the_rows_and_the_log_loss_over_the_elements(rows, loss):
    classifier = BinaryClassifier(TabularMLP(5, 3), loss(), num_labels=3, class_names=NAMES, metrics=[])
    (logged,) = a_trainer().validate(classifier, loader(), verbose=False)
    tracker, plain = LossTracker(loss(), num_labels=3), LossTracker(BCEWithLogitsLoss(), num_labels=3)
    classifier.eval()
    with torch.no_grad():
        for inputs, target in loader():
            tracker.update(classifier(inputs), target)
            plain.update(classifier(inputs), target)
    assert_close(logged["val_loss"], tracker.compute()["loss"].item())
    assert_close(logged["val_log_loss"], plain.compute()["loss"].item())


@pytest.mark.parametrize(("rows", "loss"), EVERY, ids=lambda value: getattr(value, "__name__", value))
def test_training_brings_the_loss_down_and_the_monitor_names_its_rows(rows, loss, tmp_path):
    classifier = BinaryClassifier(
        TabularMLP(5, 3), loss(), num_labels=3, class_names=NAMES, metrics=[], optimizer=_quick()
    )
    monitor = PerClassLossMonitor(print_table=True)
    before = a_trainer().validate(classifier, loader(), verbose=False)[0]["val_loss"]
    trainer = a_trainer(monitor, epochs=5)
    trainer.fit(classifier, loader(), loader())
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged["val_loss"] < before
    by_row = {name.split("/")[1]: value for name, value in logged.items() if name.startswith("val_loss_class/")}
    assert set(by_row) == ({"all"} if rows == "all" else set(NAMES))
    if rows == "all":
        assert math.isclose(by_row["all"], logged["val_loss"], rel_tol=1e-5)
    assert math.isclose(sum(v for name, v in logged.items() if name.startswith("val_loss_share/")), 1.0, rel_tol=1e-5)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    twin = BinaryClassifier.load_from_checkpoint(tmp_path / "one.ckpt")
    assert type(twin.loss) is loss and twin.loss.spec() == classifier.loss.spec()


def _quick():
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.03}}


@pytest.mark.parametrize(
    "loss", [*(loss for _, loss in EVERY), PositiveUnlabeledLoss, AUCMarginLoss], ids=lambda loss: loss.__name__
)
def test_the_command_trains_with_it(loss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
    if loss is PairwiseLoss:  # the data have one label
        quiet.append("--model.loss.batch=true")
    if loss is PositiveUnlabeledLoss:
        quiet.append("--model.loss.prior=0.3")
    main(["fit", "--data=BreastCancerDataModule", f"--model.loss={loss.__name__}", *quiet, "--trainer.max_epochs=1"])
    (checkpoint,) = Path("runs").glob("**/best.ckpt")
    assert type(BinaryClassifier.load_from_checkpoint(checkpoint).loss) is loss
