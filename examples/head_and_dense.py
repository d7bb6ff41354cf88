"""A head and a dense last layer on one table: do they train to the same numbers?

python examples/head_and_dense.py yeast-train.arff --target=-14:

The table is any that TableDataModule reads, with its labels in the columns that --target names.
"""

import argparse
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_bce import BinaryClassifier, FocalLoss, MultiLabelHead, SparseTarget
from lightning_bce.classifier import Batch
from lightning_bce.data import TableDataModule

WIDTH = 32


class OfTables(BinaryClassifier):
    """Takes the dense targets of a table, in which NaN is unknown, for a head."""

    def unpack_batch(self, batch: Any) -> Batch:
        """Return the batch with a sparse target."""
        inputs, target, *rest = super().unpack_batch(batch)
        return Batch(inputs, None if target is None else SparseTarget.from_sparse(target.to_sparse()), *rest)


def main(path: str, target: str, epochs: int = 5) -> dict[str, tuple[float, float]]:
    """Train both and return what each logged, the head's first."""
    data = TableDataModule(path=path, target=target, batch_size=64)
    data.setup("fit")
    assert data.num_features is not None
    torch.manual_seed(0)
    head = MultiLabelHead(WIDTH, data.num_labels, FocalLoss(ignore_index=float("nan")), chunk_labels=4)
    backbone = nn.Sequential(nn.Linear(data.num_features, WIDTH), nn.ReLU())
    last = nn.Linear(WIDTH, data.num_labels)
    last.load_state_dict({name: value.clone() for name, value in head.state_dict().items()})
    copied = nn.Linear(data.num_features, WIDTH)
    copied.load_state_dict(backbone[0].state_dict())
    dense = nn.Sequential(copied, nn.ReLU(), last)
    loss = FocalLoss(ignore_index=float("nan"))
    both = [OfTables(backbone, head=head), BinaryClassifier(dense, loss, num_labels=data.num_labels)]
    logged = []
    for classifier in both:
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision="64-true",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(classifier, data)
        logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    names = ("train_loss", "val_loss", "val_log_loss")
    found = {name: (logged[0][name], logged[1][name]) for name in names}
    found["largest weight"] = (float(head.weight.detach().abs().max()), float(last.weight.detach().abs().max()))
    for name, (ours, others) in found.items():
        print(f"{name}: head {ours:.9g}, dense {others:.9g}")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path")
    parser.add_argument("--target", required=True, help="the columns of the labels, such as -14:")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    main(options.path, options.target, options.epochs)
