"""What the classifier, its loss tracker and the callbacks add to a training step, in percent.

python tests/benchmarks/training_overhead.py

A multilayer perceptron of a million parameters, batches of 256 samples with 100 labels, AdamW, under the Trainer on the
CPU: a bare LightningModule that logs torch's loss, the same with the loss of this package, `BinaryClassifier`, and that
with one callback each: a `PerClassLossMonitor` that watches training, a `RunRecorder` as it is, which in training adds
sums up, one that looks at training as closely as at validation, and `HardExamples` of training. The percentages are of
a step with our loss in the bare module, so that they show the tracker and the callback. All take turns in short fits; a
step lasts from the end of one batch to the end of the next. On a busy machine the time on the processor tells more than
that on the clock. The end of an epoch, at which the monitor logs eight values a label and the recorder writes its
files, is shown apart.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, TabularMLP
from lightning_bce.callbacks import HardExamples, PerClassLossMonitor, RunRecorder

SAMPLES, FEATURES, LABELS, HIDDEN = 256, 256, 100, (768, 768, 256)
WARM_UP = 10  # steps that are not counted
_CALLBACKS: dict[str, Callable[[], pl.Callback]] = {
    "monitor": lambda: PerClassLossMonitor(stages=["train"], print_table=False),
    "recorder": lambda: RunRecorder(folder=tempfile.gettempdir()),
    "all": lambda: RunRecorder(["train"], folder=tempfile.gettempdir()),
    "hard": lambda: HardExamples(stages=["train"], folder=tempfile.gettempdir()),
}


class Bare(pl.LightningModule):
    """What one writes without this package."""

    def __init__(self, model: torch.nn.Module, loss: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        loss: Tensor = self.loss(self.model(inputs), target)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Clock(pl.Callback):
    """Notes when batches end, on the clock and on the processor; last among the callbacks."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.epoch_end = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def on_train_end(self, *_: Any) -> None:
        self.epoch_end = time.perf_counter() - self.ends[-1][0]

    def steps(self, processor: bool = False) -> list[float]:
        """Return the times of the steps."""
        return [after[processor] - before[processor] for before, after in pairwise(self.ends[WARM_UP:])]


def fit(name: str, data: DataLoader[Any], steps: int) -> Clock:
    """Return the clock of a short fit."""
    torch.manual_seed(0)
    model = TabularMLP(FEATURES, LABELS, hidden=HIDDEN)
    clock = Clock()
    bare = {"torch": torch.nn.BCEWithLogitsLoss, "ours": BCEWithLogitsLoss}.get(name)
    module = BinaryClassifier(model, num_labels=LABELS) if bare is None else Bare(model, bare())
    watching = _CALLBACKS.get(name)
    trainer = pl.Trainer(
        max_steps=WARM_UP + steps + 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock] if watching is None else [watching(), clock],
    )
    gc.collect()
    trainer.fit(module, data)
    return clock


def main(arguments: list[str]) -> None:
    """Let all take turns and print the table."""
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
        "torch": "bare module, torch's loss",
        "ours": "bare module, our loss",
        "classifier": "BinaryClassifier",
        "monitor": "and PerClassLossMonitor",
        "recorder": "or RunRecorder",
        "all": "or RunRecorder of training",
        "hard": "or HardExamples",
    }
    clocks: dict[str, list[Clock]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            clocks[name].append(fit(name, data, options.steps))

    parameters = sum(p.numel() for p in TabularMLP(FEATURES, LABELS, hidden=HIDDEN).parameters())
    table = Table(title=f"{parameters:,} parameters, {SAMPLES} x {LABELS} labels, threads: {torch.get_num_threads()}")
    for column in ("", "step", "", "on the processor", "", "end of the epoch"):
        table.add_column(column, justify="right" if table.columns else "left")
    medians = {
        (name, processor): statistics.median(step for clock in clocks[name] for step in clock.steps(processor))
        for name in names
        for processor in (False, True)
    }
    for name, title in names.items():
        cells = []
        for processor in (False, True):
            step, bare = medians[name, processor], medians["ours", processor]
            cells += [f"{1e3 * step:.2f} ms", f"{100 * (step / bare - 1):+.1f} %"]
        table.add_row(title, *cells, f"{1e3 * statistics.median(clock.epoch_end for clock in clocks[name]):.1f} ms")
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
