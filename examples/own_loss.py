"""A loss of one's own in one file: one elementwise formula; masks, weights, reductions and checkpoints come with it.

From Python:            python examples/own_loss.py
From the command line:  lightning-bce fit --data BreastCancerDataModule --model.loss examples.own_loss.CappedBCE
"""

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_bce import BinaryClassifier, BinaryLoss, TabularMLP, bce_with_logits
from lightning_bce.data import BreastCancerDataModule


class CappedBCE(BinaryLoss):
    """Cross-entropy that grows only logarithmically beyond a knee, for noisy labels.

    Args:
        knee: The loss in nats from which on it is tempered, above 0.
        **options: See BinaryLoss.
    """

    def __init__(self, *, knee: float = 2.0, **options) -> None:
        super().__init__(**options)
        if knee <= 0:
            raise ValueError(f"`knee` is {knee}; it must be above 0.")
        self.knee = knee

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each element in nats."""
        losses = bce_with_logits(logits, target)
        # Smooth at the knee: value and slope agree there.
        tempered = self.knee * (1 + torch.log(losses.clamp(min=self.knee) / self.knee))
        return torch.where(losses > self.knee, tempered, losses)


def main(max_epochs: int = 5) -> BinaryClassifier:
    """Train with the loss, and load the checkpoint with nothing but its path."""
    data = BreastCancerDataModule(batch_size=64)
    classifier = BinaryClassifier(TabularMLP(data.num_features), CappedBCE(knee=1.0), class_names=data.class_names)
    trainer = pl.Trainer(max_epochs=max_epochs, accelerator="cpu", logger=False, enable_model_summary=False)
    trainer.fit(classifier, data)
    trainer.test(classifier, data, ckpt_path="best")
    return BinaryClassifier.load_from_checkpoint(trainer.checkpoint_callback.best_model_path)


if __name__ == "__main__":
    print(main().loss)
