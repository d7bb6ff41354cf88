"""Every loss trains a classifier on separable data, is tracked and logged, and comes back from its checkpoint."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier
from lightning_bce.callbacks import PerClassLossMonitor

ROWS, LABELS = 66, 3


def trained(loss, folder):
    x = torch.randn(ROWS, LABELS)
    target = (x > 0.3).float()
    loader = DataLoader(TensorDataset(x, target), batch_size=22)
    monitor = PerClassLossMonitor(print_table=False)
    trainer = pl.Trainer(
        max_epochs=10,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    classifier = BinaryClassifier(
        torch.nn.Linear(LABELS, LABELS),
        loss,
        num_labels=LABELS,
        optimizer=partial(torch.optim.Adam, lr=0.1),
        metrics=["AUROC"],
    )
    trainer.fit(classifier, loader, loader)
    return trainer, monitor, classifier


def check(loss, folder):
    trainer, monitor, classifier = trained(loss, folder)
    logged = trainer.callback_metrics
    assert torch.isfinite(logged["val_loss"]) and torch.isfinite(logged["train_loss"])
    # A ranking of the labels within a sample leaves those of different samples hard to compare.
    least = 0.75 if getattr(loss, "rows", None) == "position" else 0.9
    assert logged["val_AUROC"] > least, "ten epochs did not separate what is separable"
    assert monitor.results["val"][0]["loss"].float() == pytest.approx(logged["val_loss"].item(), rel=1e-6)
    again = BinaryClassifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)
    assert again.loss.fingerprint == classifier.loss.fingerprint


def test_a_loss_by_element_trains_a_classifier(case, tmp_path):
    check(case.make(), tmp_path)


def test_a_loss_by_row_trains_a_classifier(row_case, tmp_path):
    check(row_case.make(), tmp_path)
