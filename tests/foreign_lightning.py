"""A LightningModule of other people, with its data and trainer: what the tests of the callbacks look at.

On the path of the tests (`pythonpath` in pyproject.toml) and of the ranks that they start, unlike the test modules.
"""

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.losses import BCEWithLogitsLoss

ROWS, FEATURES, LABELS, SIZE = 33, 5, 3, 8
NAMES = ["cat", "dog", "a/b"]


class Foreign(pl.LightningModule):
    """A module of other people, which logs nothing itself."""

    def __init__(self, labels=LABELS):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Linear(FEATURES, labels)

    def step(self, batch):
        logits, target = self.net(batch[0]), batch[1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        return {"loss": loss, "logits": logits, "target": target}

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return self.step(batch)

    def test_step(self, batch, batch_idx):
        return self.step(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def samples(rows=ROWS, labels=LABELS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=generator)
    return inputs, (torch.rand(rows, labels, generator=generator) > 0.7).float()


def loader(batch, size=SIZE):
    return DataLoader(
        [tuple(part[start : start + size] for part in batch) for start in range(0, len(batch[0]), size)],
        batch_size=None,
    )


def a_trainer(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | options))


def quiet_monitor(*args, **options):
    return PerClassLossMonitor(*args, **({"print_table": False, "loss": BCEWithLogitsLoss()} | options))


def validate(module, monitor, loaders=None, **options):
    trainer = a_trainer(monitor, **options)
    trainer.validate(module, loader(samples()) if loaders is None else loaders, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}
