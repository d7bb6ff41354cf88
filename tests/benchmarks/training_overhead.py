"""What the classifier, its loss tracker and the callback add to a training step, in percent.

python tests/benchmarks/training_overhead.py

A multilayer perceptron of a million parameters, batches of 256 samples with 100 labels, AdamW, under the Trainer on the
CPU: a bare LightningModule with torch's loss that logs it, `BinaryClassifier`, and that with a `PerClassLossMonitor`
that watches training. They take turns in short fits; a step is the time between the ends of two batches. The end of an
epoch, at which the monitor logs eight values a label, is shown apart.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import time
import warnings
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier, TabularMLP
from lightning_bce.callbacks import PerClassLossMonitor

SAMPLES, FEATURES, LABELS, HIDDEN = 256, 256, 100, (768, 768, 256)
WARM_UP = 10  # steps that are not counted


class Bare(pl.LightningModule):
    """What one writes without this package."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        loss = F.binary_cross_entropy_with_logits(self.model(inputs), target)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Clock(pl.Callback):
    """Notes when batches end, and how long the end of the epoch takes; last among the callbacks."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.epoch_end = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, *_: Any) -> None:
        self.epoch_end = time.perf_counter() - self.ends[-1]

    def steps(self) -> list[float]:
        """Return the times of the steps."""
        counted = self.ends[WARM_UP:]
        return [after - before for before, after in pairwise(counted)]


def fit(name: str, data: DataLoader[Any], steps: int) -> Clock:
    """Return the clock of a short fit."""
    torch.manual_seed(0)
    model = TabularMLP(FEATURES, LABELS, hidden=HIDDEN)
    clock = Clock()
    module: pl.LightningModule = Bare(model) if name == "bare" else BinaryClassifier(model, num_labels=LABELS)
    monitor = [PerClassLossMonitor(stages=["train"], print_table=False)] if name == "monitor" else []
    trainer = pl.Trainer(
        max_steps=WARM_UP + steps + 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*monitor, clock],
    )
    gc.collect()
    trainer.fit(module, data)
    return clock


def main(arguments: list[str]) -> None:
    """Let the three take turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="of a fit, warm-up apart")
    parser.add_argument("--rounds", type=int, default=15, help="fits of each")
    parser.add_argument("--threads", type=int, help="torch's own number if not given")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)

    batches = WARM_UP + options.steps + 1
    inputs, target = torch.randn(batches * SAMPLES, FEATURES), (torch.rand(batches * SAMPLES, LABELS) < 0.1).float()
    data = DataLoader(TensorDataset(inputs, target), batch_size=None, sampler=_Slices(batches))
    names = {
        "bare": "bare module, torch's loss",
        "classifier": "BinaryClassifier",
        "monitor": "and PerClassLossMonitor",
    }
    clocks: dict[str, list[Clock]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            clocks[name].append(fit(name, data, options.steps))

    parameters = sum(p.numel() for p in TabularMLP(FEATURES, LABELS, hidden=HIDDEN).parameters())
    table = Table(title=f"{parameters:,} parameters, {SAMPLES} x {LABELS} labels, threads: {torch.get_num_threads()}")
    for column in ("", "step, median", "least", "over bare", "by round", "end of the epoch"):
        table.add_column(column, justify="left" if not column else "right")
    bare = [statistics.median(clock.steps()) for clock in clocks["bare"]]
    for name, title in names.items():
        steps = [step for clock in clocks[name] for step in clock.steps()]
        # Each round against its own bare fit, so that a busy spell hits both.
        rounds = [statistics.median(clock.steps()) / b - 1 for clock, b in zip(clocks[name], bare, strict=True)]
        all_bare = [step for clock in clocks["bare"] for step in clock.steps()]
        table.add_row(
            title,
            f"{1e3 * statistics.median(steps):.2f} ms",
            f"{1e3 * min(steps):.2f} ms",
            f"{100 * (statistics.median(steps) / statistics.median(all_bare) - 1):+.1f} %",
            f"{100 * statistics.median(rounds):+.1f} %",
            f"{1e3 * statistics.median(clock.epoch_end for clock in clocks[name]):.1f} ms",
        )
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


class _Slices:
    """The batches as slices: reading a batch costs nothing, so that the step is what is timed."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return (slice(SAMPLES * i, SAMPLES * (i + 1)) for i in range(self.batches))

    def __len__(self) -> int:
        return self.batches


if __name__ == "__main__":
    # Lightning tells of each of the many fits.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main(sys.argv[1:])
