"""A million labels on a laptop: a head that never holds logits or targets of all labels, on synthetic Zipf data.

python examples/million_labels.py

Each sample belongs to a topic; its labels are drawn from the topic's own, the frequent ones far more often. The peak
memory of the process is printed, and what logits, dense target and their gradient would have taken at once.
"""

import argparse
import resource
import sys

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_bce import BinaryClassifier, MultiLabelHead, SparseTarget
from lightning_bce.heads import ChunkSGD

FEATURES, WIDTH, POSITIVES = 32, 64, 5


class Topics(Dataset[dict[str, Tensor]]):
    """Samples drawn anew from their number: nothing is kept."""

    def __init__(self, samples: int, labels: int, seed: int = 0) -> None:
        self.samples, self.labels, self.seed = samples, labels, seed
        self.topics = max(4, labels // 10_000)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return inputs and labels of a sample."""
        random = torch.Generator().manual_seed(self.seed + index)
        topic = int(self.topics * torch.rand((), generator=random).square())  # some are frequent
        centre = torch.randn(FEATURES, generator=torch.Generator().manual_seed(topic))
        inputs = centre + 0.3 * torch.randn(FEATURES, generator=random)
        size = self.labels // self.topics
        rank = (size ** torch.rand(POSITIVES, generator=random)).long() - 1  # Zipf's law: uniform in the logarithm
        return {"inputs": inputs, "labels": topic * size + rank}


class Collate:
    """Puts samples together and sorts their labels, in the process that loads them."""

    def __init__(self, labels: int) -> None:
        self.labels = labels

    def __call__(self, samples: list[dict[str, Tensor]]) -> dict[str, object]:
        """Return a batch."""
        lists = torch.stack([sample["labels"] for sample in samples])
        return {
            "inputs": torch.stack([sample["inputs"] for sample in samples]),
            "target": SparseTarget.from_lists(lists, self.labels),
        }


def peak() -> float:
    """Return the most memory that the process has held, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def main(labels: int = 1_000_000, samples: int = 4096, batch: int = 256, epochs: int = 2) -> dict[str, float]:
    """Train, validate and say how much memory it took."""
    torch.manual_seed(0)
    before = peak()
    head = MultiLabelHead(WIDTH, labels, prior=POSITIVES / labels, update=ChunkSGD(lr=2.0 * labels))
    classifier = BinaryClassifier(nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU()), head=head)

    def loader(size: int, seed: int) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(Topics(size, labels, seed), batch_size=batch, collate_fn=Collate(labels))

    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(classifier, loader(samples, 0), loader(batch, samples))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = sum(p.numel() * p.element_size() for p in head.parameters()) / 2**20
    print(f"{labels:,} labels: precision at 1 {logged['val_PrecisionAt1']:.3f}, log-loss {logged['val_log_loss']:.3g}")
    print(f"peak memory {peak():,.0f} MiB, {before:,.0f} before; the head's weights alone are {weights:,.0f}")
    print(f"logits, dense target and gradient of one batch would be {3 * batch * labels * 4 / 2**20:,.0f} MiB")
    return {**logged, "peak": peak(), "before": before, "weights": weights}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    main(options.labels, options.samples, epochs=options.epochs)
