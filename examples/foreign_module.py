"""The callback on a LightningModule that knows nothing of this package: its step returns logits and target.

python examples/foreign_module.py
"""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_bce import BCEWithLogitsLoss
from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.data import DigitsDataModule


class DigitTagger(pl.LightningModule):
    """Ten labels, one for each digit, with torch's own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        return F.binary_cross_entropy_with_logits(self.model(batch["inputs"]), batch["target"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return what the callback reads."""
        logits = self.model(batch["inputs"])
        loss = F.binary_cross_entropy_with_logits(logits, batch["target"])
        self.log("val_loss", loss, batch_size=len(logits))
        return {"loss": loss, "logits": logits, "target": batch["target"]}

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(max_epochs: int = 5) -> PerClassLossMonitor:
    """Train and print the table of the last validation."""
    data = DigitsDataModule(digit=None, batch_size=64)
    monitor = PerClassLossMonitor(class_names=data.class_names, loss=BCEWithLogitsLoss())
    trainer = pl.Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_model_summary=False, callbacks=[monitor]
    )
    trainer.fit(DigitTagger(), data)
    return monitor


if __name__ == "__main__":
    main()
