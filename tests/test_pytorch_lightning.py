"""The other namespace, `pytorch_lightning`: what works with its Trainer, and what is refused with the way out."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: both namespaces register what they have in common twice.
PROGRAM = """
import pathlib
import pytest
import pytorch_lightning as other
import torch
from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, FocalLoss, LossTracker, TabularMLP
from lightning_bce.callbacks import (
    ExactResume, FiniteGuard, HardExamples, LiveLossTable, LossSchedule, PerClassLossMonitor, PictureLogger,
    PredictionWriter, ProbabilityCalibrator, RunRecorder, ThresholdTuner,
)
from lightning_bce.data import BreastCancerDataModule


class Module(other.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.loss = TabularMLP(30, hidden=(8,)), FocalLoss(gamma=2.0)
        self.tracker = LossTracker(self.loss)

    def training_step(self, batch, batch_idx):
        logits = self.net(batch["inputs"])
        sums = self.loss.sums(logits, batch["target"])
        return {"loss": sums.mean(), "logits": logits.detach(), "target": batch["target"], "sums": sums.detach()}

    def validation_step(self, batch, batch_idx):
        outputs = self.training_step(batch, batch_idx)
        self.tracker.update(outputs["logits"], batch["target"])
        return outputs

    def on_validation_epoch_end(self):
        self.log("val_loss", self.tracker.compute()["loss"])
        self.tracker.reset()

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        logits = self.net(batch["inputs"]).squeeze(1)
        return {"probability": logits.sigmoid(), "decision": logits > 0, "id": batch["id"]}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def trainer(*callbacks):
    return other.Trainer(
        max_epochs=2, accelerator="cpu", logger=other.loggers.CSVLogger("."), enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), num_sanity_val_steps=0,
    )


data = BreastCancerDataModule()
loaders = data.train_dataloader(), data.val_dataloader()
monitor, tuner, calibrator = PerClassLossMonitor(), ThresholdTuner(bootstrap=0), ProbabilityCalibrator()
with_all = trainer(
    ExactResume(), FiniteGuard(), HardExamples(), LiveLossTable(), LossSchedule("gamma", 2.0, 1.0), monitor,
    PictureLogger(), PredictionWriter("predictions.csv"), calibrator, RunRecorder(), tuner,
)
module = Module()
with_all.fit(module, *loaders)
(tested,) = with_all.test(module, data.test_dataloader())
with_all.predict(module, data.test_dataloader(), return_predictions=False)
assert len(pathlib.Path("predictions.csv").read_text().splitlines()) == 114 + 1
assert calibrator.calibration.method == "platt" and 0 < tuner.threshold.item() < 1
assert module.loss.gamma < 2.0, "the schedule has moved it"
assert list(pathlib.Path(".").rglob("record")) and tested["test_loss_share/label_0"] == 1
epochs = trainer(FiniteGuard())
epochs.fit(Module(), *loaders, ckpt_path=with_all.checkpoint_callback.best_model_path)

with pytest.raises(TypeError, match="must be a `LightningModule`.* got `BinaryClassifier`"):
    trainer().fit(BinaryClassifier(TabularMLP(30)), *loaders)
with pytest.raises(TypeError, match="Use `lightning.pytorch.Trainer`, or pass the loaders"):
    trainer().fit(Module(), datamodule=data)
"""


def test_callbacks_losses_tracker_and_loaders_work_with_its_trainer_and_the_rest_says_what_to_do(tmp_path):
    call = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
