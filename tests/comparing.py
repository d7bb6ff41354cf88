"""Small tables, losses of a user's own and quick comparisons, for the tests of comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_bce.comparison import Comparison, compare
from lightning_bce.data import TableDataModule

LOSSES = """
import os
import torch
from lightning_bce import BCEWithLogitsLoss, BinaryLoss

class Twin(BCEWithLogitsLoss):
    pass

class Drawing(BCEWithLogitsLoss):
    def __init__(self):
        super().__init__()
        torch.rand(7)

class Backwards(BinaryLoss):
    def elementwise(self, logits, target):
        return torch.nn.functional.softplus((2 * target - 1) * logits)

class NotANumber(BinaryLoss):
    def elementwise(self, logits, target):
        return logits * float("nan")

class Deadly(BinaryLoss):
    def elementwise(self, logits, target):
        os._exit(7)

class Pretrained(torch.nn.Linear):
    def __init__(self, in_features: int, out_features: int = 1):
        super().__init__(in_features, out_features)
        torch.nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.weight.copy_(torch.tensor([[4.0, 0.0]]))
"""
OWN = "losses_of_the_comparison_test"


def write_table(path: Path, seed: int, rows: int = 257) -> None:
    """Write two numbers and a label that one of them tells about."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, 2))
    label = x[:, 0] + generator.normal(size=rows) > 0.7
    np.savetxt(path, np.column_stack([x, label]), "%.4f", ",", header="a,b,label", comments="")


def write_outliers(path: Path, seed: int = 0, rows: int = 400, share: float = 0.2) -> None:
    """Write a label that one number tells, but for a share of the rows, which lie far out on the wrong side.

    A linear model that is right to begin with is pulled over by them under cross-entropy, and not under a loss with a
    bound.
    """
    generator = np.random.default_rng(seed)
    label = generator.random(rows) < 0.5
    side = np.where(label, 1.0, -1.0)
    x = np.where(generator.random(rows) < share, -8.0 * side, side) + 0.3 * generator.normal(size=rows)
    table = np.column_stack([x, generator.normal(size=rows), label])
    np.savetxt(path, table, "%.4f", ",", header="a,b,label", comments="")


def quick(losses: Any, data: Any = None, **options: Any) -> Comparison:
    """Compare in this process, in a second or two."""
    data = TableDataModule("table.csv", batch_size=64) if data is None else data
    defaults = {"max_epochs": 2, "jobs": 1, "progress": False, **({} if "folds" in options else {"seeds": 2})}
    return compare(losses, data, **{**defaults, **options})
