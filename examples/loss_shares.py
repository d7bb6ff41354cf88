"""Where the loss comes from, by label and side, under two losses: the README's picture.

python examples/loss_shares.py docs/loss_shares.png
"""

import sys
from typing import Any

import lightning.pytorch as pl
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, BinaryLoss, FocalLoss, TabularMLP
from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.data import DigitsDataModule


def shares(loss: BinaryLoss, max_epochs: int) -> list[dict[str, Any]]:
    """Train ten labels, one for each digit, and return the rows of the monitor's table of the validation set."""
    pl.seed_everything(0, verbose=False)
    data = DigitsDataModule(digit=None, batch_size=64)
    monitor = PerClassLossMonitor(print_table=False)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    model = TabularMLP(data.num_features, data.num_labels, hidden=[64])
    classifier = BinaryClassifier(model, loss, num_labels=data.num_labels, class_names=data.class_names)
    trainer.fit(classifier, data)
    return sorted(monitor.summary("val"), key=lambda row: row["label"])


def main(path: str = "loss_shares.png", max_epochs: int = 10) -> None:
    """Draw the shares as bars."""
    losses = {"BCEWithLogitsLoss()": BCEWithLogitsLoss(), "FocalLoss(gamma=2)": FocalLoss(gamma=2.0)}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.8), sharex=True, sharey=True, layout="constrained")
    for axis, (name, loss) in zip(axes, losses.items(), strict=True):
        rows = shares(loss, max_epochs)
        labels = [row["label"] for row in rows]
        negative = [100 * row["negative_share"] for row in rows]
        positive = [100 * row["positive_share"] for row in rows]
        axis.barh(labels, negative, color="#4477aa", label="from negatives")
        axis.barh(labels, positive, left=negative, color="#cc6677", label="from positives")
        axis.set(
            title=f"{name}: {sum(positive):.0f} % from the positives",
            xlabel="share of the validation loss, %",
            xlim=(0, 20),
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
