"""A long training leaves nothing behind: tensors, memory and open files are as many after the last step as before.

`SOAK_EPOCHS=3000 pytest tests/test_soak.py` runs 45,000 steps and 3,000 evaluations, a plain run 150 and 10.
"""

import gc
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, DiceLoss, FocalLoss
from lightning_bce.callbacks import PerClassLossMonitor, ThresholdTuner

EPOCHS = int(os.environ.get("SOAK_EPOCHS", "10"))


class Watched(pl.Callback):
    """Counts what the process holds at the end of each epoch."""

    def __init__(self):
        self.tensors, self.files, self.memory = [], [], []

    def on_train_epoch_end(self, trainer, module):
        gc.collect()
        self.tensors.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        self.files.append(len(os.listdir("/proc/self/fd")))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts in /proc, which Linux has")
@pytest.mark.parametrize("loss", [FocalLoss(), 0.5 * BCEWithLogitsLoss() + DiceLoss()], ids=["elements", "a sum"])
def test_nothing_grows_over_a_long_training(loss, tmp_path):
    target = torch.randint(0, 2, (240, 3)).float()
    rows, others = (TensorDataset(torch.randn(240, 5), target) for _ in range(2))
    watched = Watched()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=CSVLogger(tmp_path, flush_logs_every_n_steps=10),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
        callbacks=[watched, PerClassLossMonitor(), ThresholdTuner("fbeta")],
    )
    loaders = [DataLoader(part, batch_size=16) for part in (rows, others)]
    trainer.fit(BinaryClassifier(nn.Linear(5, 3), loss=loss, num_labels=3), *loaders)
    assert trainer.global_step == 15 * EPOCHS
    half = EPOCHS // 2
    assert watched.tensors[-1] == watched.tensors[half], watched.tensors
    assert watched.files[-1] == watched.files[half], watched.files
    # Some MiB, because the allocator keeps what it had; a batch that stays would be 20 times as much by the long run.
    assert watched.memory[-1] - watched.memory[half] < 8, watched.memory
