"""A head by the command: a file in the extreme classification format, written here, then fit, test and predict.

python examples/extreme_labels.py

Files of the repository itself (http://manikvarma.org/downloads/XC/XMLRepository.html) take the same flags, with their
paths in place of these.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from lightning_bce.cli import main as command

YAML = """\
data:
  class_path: ManyLabelDataModule
  init_args: {path: train.txt, test_path: test.txt, batch_size: 128}
model:
  head: {class_path: MultiLabelHead, init_args: {in_features: 64, prior: 0.001}}
  metrics:
  - {class_path: lightning_bce.metrics.PrecisionAtK, init_args: {k: 1}}
  - {class_path: lightning_bce.metrics.PropensityScoredPrecisionAtK, init_args: {k: 3}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.01}}
trainer: {accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def write(path: str, rows: int, labels: int, seed: int) -> None:
    """Write documents: each has a topic, eight of its words by TF-IDF, and up to three of its labels, by Zipf's law."""
    random = np.random.default_rng(seed)
    topics, words, size = labels // 100, labels // 5, 100
    lines = [f"{rows} {words} {labels}"]
    for _ in range(rows):
        topic = int(topics * random.random() ** 2)
        found = np.unique(topic * size + (size ** random.random(3)).astype(int) - 1)
        some = np.sort(random.choice(words // topics, 8, replace=False)) + topic * (words // topics)
        weights = random.random(8) + 0.5
        pairs = zip(some, weights / np.linalg.norm(weights), strict=True)
        lines.append(" ".join([",".join(map(str, found)), *(f"{word}:{weight:.4f}" for word, weight in pairs)]))
    Path(path).write_text("\n".join(lines) + "\n")


def main(labels: int = 5_000, rows: int = 4_000, epochs: int = 10) -> Path:
    """Train, test and predict, and return the table of predictions."""
    write("train.txt", rows, labels, seed=0)
    write("test.txt", rows // 10, labels, seed=1)
    Path("run.yaml").write_text(YAML)
    command(["fit", "--config=run.yaml", f"--trainer.max_epochs={epochs}"])
    newest = max(Path("runs").glob("**/best.ckpt"), key=lambda path: path.stat().st_mtime)
    # The checkpoint knows its data, head and metrics: nothing else has to be said.
    flags = ["--data.predict_path=test.txt", "--model.top_k=3", "--trainer.enable_progress_bar=false"]
    command(["predict", f"--ckpt_path={newest}", *flags])
    print(*Path("predictions.csv").read_text().splitlines()[:3], sep="\n")
    return Path("predictions.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=5_000)
    parser.add_argument("--rows", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    main(options.labels, options.rows, options.epochs)
