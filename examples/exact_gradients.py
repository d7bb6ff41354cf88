"""The same rows in batches of 64, in accumulated parts and on two ranks: do they train the same model?

Half of the labels are unknown. Each training is done by an ordinary LightningModule and by BinaryClassifier, and
compared with a plain loop over batches of 64 in float64. The rows of a step are the same in every cut. Then both
validate a model on 37 rows, in one process and on two ranks, with all flags of the trainer as they are, compared with
all rows at once in float64.

python examples/exact_gradients.py
"""

import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MultilabelAveragePrecision

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, TabularMLP

ROWS, FEATURES, LABELS, EPOCHS = 160, 5, 3, 3  # the last step of an epoch has 32 rows
VALIDATED, POS_WEIGHT = 37, 3.0  # an odd number: Lightning's sampler repeats a row on the second rank
MEASURES = {"loss": "val_loss", "log-loss": "val_log_loss", "average precision": "val_AveragePrecision"}

# Accumulated batches, and the rows of each batch on each rank.
CUTS = {
    "batches of 64": (1, [[64, 64, 32]]),
    "4 accumulated of 16": (4, [[16] * 10]),
    "2 accumulated, uneven": (2, [[40, 24, 7, 57, 32]]),
    "2 ranks of 32": (1, [[32, 32, 16], [32, 32, 16]]),
    "2 ranks, 2 accumulated, uneven": (2, [[20, 5, 8, 30, 7], [9, 30, 18, 8, 25]]),
}


class Plain(pl.LightningModule):
    """What one would write: the mean over the known labels of the batch, and metrics of torchmetrics."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.precision = MultilabelAveragePrecision(LABELS, ignore_index=-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        known = ~batch["target"].isnan()
        return F.binary_cross_entropy_with_logits(self.model(batch["inputs"])[known], batch["target"][known])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the measures."""
        logits, target = self.model(batch["inputs"]), batch["target"]
        known, size = ~target.isnan(), len(target)
        weight = torch.tensor(POS_WEIGHT)
        loss = F.binary_cross_entropy_with_logits(logits[known], target[known], pos_weight=weight)
        self.log("val_loss", loss, sync_dist=True, batch_size=size)
        log_loss = F.binary_cross_entropy_with_logits(logits[known], target[known])
        self.log("val_log_loss", log_loss, sync_dist=True, batch_size=size)
        self.precision.update(logits.sigmoid(), target.nan_to_num(-1).long())
        self.log("val_AveragePrecision", self.precision, batch_size=size)

    def configure_optimizers(self) -> Any:
        """Return the optimizer."""
        return sgd(self.parameters())


class Ours(BinaryClassifier):
    """BinaryClassifier with the same optimizer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, BCEWithLogitsLoss(ignore_index=float("nan")), LABELS, sgd, metrics=[])


class OursWeighted(BinaryClassifier):
    """BinaryClassifier with the loss that is validated."""

    def __init__(self, model: nn.Module) -> None:
        loss = BCEWithLogitsLoss(pos_weight=POS_WEIGHT, ignore_index=float("nan"))
        super().__init__(model, loss, LABELS, metrics=["AveragePrecision"])


class Keep(pl.Callback):
    """Writes the gradient of the first step and the last weights to a file, from whichever process it is in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gradient: Tensor | None = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the first gradient."""
        if self.gradient is None:
            self.gradient = flat([p.grad for p in pl_module.parameters() if p.grad is not None])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        if trainer.is_global_zero:
            torch.save((self.gradient, flat(list(pl_module.parameters()))), self.path)


class Leave(pl.Callback):
    """Leaves the group of ranks before the process ends: threads of its own may abort it otherwise."""

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Cut(pl.LightningDataModule):
    """The rows, cut for this rank."""

    def __init__(self, accumulated: int, ranks: list[list[int]]) -> None:
        super().__init__()
        self.accumulated, self.ranks = accumulated, ranks

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's batches: each step takes its rows from where the one before ended."""
        rank = self.trainer.global_rank if self.trainer is not None else 0
        rows, batches, start = samples(), [], 0
        for first in range(0, len(self.ranks[0]), self.accumulated):
            for other, sizes in enumerate(self.ranks):
                for size in sizes[first : first + self.accumulated]:
                    if other == rank:
                        batches.append({name: part[start : start + size] for name, part in rows.items()})
                    start += size
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class Validated(pl.LightningDataModule):
    """Rows to validate on, which Lightning deals to the ranks."""

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the loader of all rows."""
        rows = samples()
        return DataLoader([{name: part[i] for name, part in rows.items()} for i in range(VALIDATED)], batch_size=8)  # type: ignore[arg-type]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer of all trainings."""
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def samples() -> dict[str, Tensor]:
    """Return inputs and labels, half of which are unknown."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(ROWS, FEATURES, generator=random)
    target = (inputs[:, :LABELS] + torch.randn(ROWS, LABELS, generator=random) > 1).float()
    target[torch.rand(ROWS, LABELS, generator=random) < 0.5] = torch.nan
    return {"inputs": inputs, "target": target}


def a_model() -> nn.Module:
    """Return the model that all trainings begin with."""
    torch.manual_seed(0)
    return TabularMLP(FEATURES, LABELS, hidden=(16,), dropout=0.0)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all numbers in one vector."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def by_a_plain_loop() -> tuple[Tensor, Tensor]:
    """Return the gradient of the first step and the last weights, in float64."""
    model, rows, gradients = a_model().double(), samples(), []
    optimizer = sgd(model.parameters())
    for _ in range(EPOCHS):
        for inputs, target in zip(rows["inputs"].double().split(64), rows["target"].double().split(64), strict=True):
            optimizer.zero_grad()
            known = ~target.isnan()
            F.binary_cross_entropy_with_logits(model(inputs)[known], target[known]).backward()
            gradients.append(flat([p.grad for p in model.parameters() if p.grad is not None]))
            optimizer.step()
    return gradients[0], flat(list(model.parameters()))


def by_lightning(module: pl.LightningModule, name: str) -> tuple[Tensor, Tensor]:
    """Return the same of a training in a cut."""
    accumulated, ranks = CUTS[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=len(ranks),
            strategy="ddp_spawn" if len(ranks) > 1 else "auto",
            accumulate_grad_batches=accumulated,
            max_epochs=EPOCHS,
            callbacks=[Keep(Path(folder) / "kept.pt"), Leave()],
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Cut(accumulated, ranks))
        gradient, weights = torch.load(Path(folder) / "kept.pt", weights_only=True)
    return gradient, weights


def of_all_rows() -> dict[str, float]:
    """Return the measures of all rows at once, in float64."""
    rows = {name: part[:VALIDATED].double() for name, part in samples().items()}
    logits, target = a_model().double().eval()(rows["inputs"]).detach(), rows["target"]
    known = ~target.isnan()
    weight = torch.tensor(POS_WEIGHT).double()
    loss = F.binary_cross_entropy_with_logits(logits[known], target[known], pos_weight=weight)
    log_loss = F.binary_cross_entropy_with_logits(logits[known], target[known])
    precision = MultilabelAveragePrecision(LABELS, ignore_index=-1)(logits.sigmoid(), target.nan_to_num(-1).long())
    return dict(zip(MEASURES.values(), [loss.item(), log_loss.item(), precision.item()], strict=True))


def validated(module: pl.LightningModule, ranks: int) -> dict[str, float]:
    """Return the measures of a module on so many ranks, by the trainer's validation."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp_spawn" if ranks > 1 else "auto",
        callbacks=[Leave()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    (logged,) = trainer.validate(module, Validated(), verbose=False)
    return {name: float(logged[name]) for name in MEASURES.values()}


def errors_of_validation() -> dict[str, list[float]]:
    """Return the relative errors of each measure: plain and ours in one process, plain and ours on two ranks."""
    exact = of_all_rows()
    found = [validated(kind(a_model()), ranks) for ranks in (1, 2) for kind in (Plain, OursWeighted)]
    return {
        title: [abs(values[name] - exact[name]) / exact[name] for values in found] for title, name in MEASURES.items()
    }


def hush() -> None:
    """Leave the table to be seen."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def errors(cuts: Sequence[str] = tuple(CUTS)) -> dict[str, list[float]]:
    """Return the relative errors of each cut: of the gradient, plain and ours, and of the weights, plain and ours."""
    exact = by_a_plain_loop()
    found = {}
    for name in cuts:
        pairs = [by_lightning(kind(a_model()), name) for kind in (Plain, Ours)]
        found[name] = [
            ((value - right).norm() / right.norm()).item()
            for right, values in zip(exact, zip(*pairs, strict=True), strict=True)
            for value in values
        ]
    return found


def main(cuts: Sequence[str] = tuple(CUTS)) -> dict[str, list[float]]:
    """Print the errors of each cut, and of each measure in one process and on two ranks."""
    found, measured = errors(cuts), errors_of_validation()
    table = Table(title=f"Relative error in float32, half of the labels unknown, {EPOCHS} epochs")
    for column in ("training", "gradient: plain", "gradient: ours", "weights: plain", "weights: ours"):
        table.add_column(column, justify="left" if column == "training" else "right")
    add_rows(table, found)
    table.add_section()
    heads = ("1 process: plain", "1 process: ours", "2 ranks: plain", "2 ranks: ours")
    table.add_row(f"validation of {VALIDATED} rows", *heads, style="bold", end_section=True)
    add_rows(table, measured)
    Console(width=120).print(table)
    return found | measured


def add_rows(table: Table, found: dict[str, list[float]]) -> None:
    """Add a row of errors for each name."""
    for name, values in found.items():
        table.add_row(name, *(f"{value:.1e}" for value in values))


if __name__ in ("__main__", "__mp_main__"):  # the second is the name of this file in the process of a rank
    hush()
if __name__ == "__main__":
    main()
