"""PredictionWriter: predictions as one CSV or Parquet table, in the order of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from lightning_bce.callbacks.label_names import label_names
from lightning_bce.callbacks.prediction_table import Part, columns_of
from lightning_bce.callbacks.steps import gathered, on_first_rank
from lightning_bce.data.own_rows import own_rows
from lightning_bce.files import check_place, checked_paths, write_table


class PredictionWriter(BasePredictionWriter):
    """Writes what ``predict_step`` returns into one table, with a row for each row of the data, in the data's order.

    ``predict_step`` returns ``{"probability", "decision"}``, both (N,), (N, 1) or (N, C), and optionally ``"id"``, N
    names or numbers; ``BinaryClassifier`` does. The columns are ``id`` (without one the row's number, from 0) and
    ``probability`` and ``decision``, with several labels ``probability_<label>`` and ``decision_<label>``. With several
    dataloaders a column ``dataloader`` goes before. A decision is 0 or 1; a probability has all digits of float32.

    With a head it returns ``{"probability", "label"}`` of the most probable labels, both (N, K), and the columns are
    ``label_1`` (a number), ``name_1`` where the module has ``class_names``, ``probability_1``, ``label_2`` and so on.

    Batches are kept on the CPU and gathered by the first rank, which leaves out rows that a sampler repeated. A run
    without a row writes the header alone. The file appears when it is complete.

    Args:
        output: The file, whose suffix ``.csv`` or ``.parquet`` decides the format, or a list of files. Missing
            directories are created. None writes nothing.
        overwrite: Whether a file that exists is replaced. If not, the run is refused before it predicts anything.
        escape_formulas: Whether text in CSV that a spreadsheet would take for a formula (it starts with =, +, -, @ or
            a control character and is no number) gets a ' in front.

    Raises:
        ValueError: If the suffix is another one, or predictions do not fit into a table.
        ImportError: If Parquet is asked for without polars.
        FileExistsError: If the file exists and ``overwrite`` is False.

    Example:
        >>> import lightning.pytorch as pl
        >>> writer = PredictionWriter("predictions.csv")
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[writer])
    """

    def __init__(
        self, output: str | list[str] | None = None, overwrite: bool = False, escape_formulas: bool = True
    ) -> None:
        # Not at the end of the epoch: for that Lightning keeps all predictions, and here they would be kept twice.
        super().__init__(write_interval="batch")
        self.paths = checked_paths(output)
        self.overwrite = overwrite
        self.escape_formulas = escape_formulas
        self._parts: list[Part] = []
        self._indices: object = None
        self._written = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a file that cannot be written, before anything is computed."""
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        self._parts, self._written, self._indices = [], False, trainer.predict_loop.current_batch_indices
        problem: OSError | None = None
        if trainer.is_global_zero:
            try:
                for path in self.paths:
                    check_place(path, self.overwrite)
            except OSError as error:
                problem = error
        problem = trainer.strategy.broadcast(problem)  # the first rank's disk decides for all
        if problem is not None:
            raise problem

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keep a batch on the CPU."""
        if not self.paths:
            return
        # Where Lightning does not know the rows, it leaves those of the batch before in place.
        known = (batch_indices if batch_indices is not self._indices else None) or None
        self._indices = batch_indices
        own = None if known is None else own_rows(trainer, "predict", batch_idx, dataloader_idx, len(known))
        part = _part(prediction, known, own, dataloader_idx, type(pl_module).__name__)
        if part.rows is None and trainer.world_size > 1:
            raise ValueError(
                "Lightning does not know which rows of the data a batch holds, so predictions of several ranks cannot "
                "be put in order. Use a DataLoader over a dataset with a length, with `batch_size` or a batch sampler, "
                "or predict with devices=1."
            )
        self._parts.append(part)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the batches of all ranks and write the table."""
        if not self.paths:
            return
        parts, self._parts, self._written = gathered(self._parts), [], True
        on_first_rank(trainer, "write the predictions", lambda: self._write(parts, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the header where there was no batch, for which Lightning does not even begin an epoch."""
        if stage == "predict" and not self._written and trainer.is_global_zero:
            self._write([], pl_module)

    def _write(self, parts: list[Part], pl_module: pl.LightningModule) -> None:
        labels = getattr(pl_module, "num_labels", None)
        if parts[0].label is not None if parts else getattr(pl_module, "head", None) is not None:
            best = parts[0].probability.shape[1] if parts else int(getattr(pl_module, "top_k", 1))
            names = list(getattr(pl_module, "class_names", None) or [])
            columns = columns_of(parts, names if len(names) == labels else [], best)
        else:
            width = parts[0].probability.shape[1] if parts else labels if isinstance(labels, int) else 1
            columns = columns_of(parts, label_names(None, pl_module, width))
        for path in self.paths:
            write_table(columns, path, overwrite=self.overwrite, escape_formulas=self.escape_formulas)


def _part(prediction: Any, indices: Sequence[int] | None, own: int | None, dataloader: int, module: str) -> Part:
    """Return a batch as it is kept, or say what is wrong with it."""
    found: Mapping[str, Any] = prediction if isinstance(prediction, Mapping) else {}
    probability, decision, label = (found.get(name) for name in ("probability", "decision", "label"))
    of_best = decision is None and isinstance(label, Tensor)  # of a head
    said = label if of_best else decision
    if not isinstance(probability, Tensor) or not isinstance(said, Tensor):
        came = f"a dictionary with {list(map(str, found))}" if found else type(prediction).__name__
        raise TypeError(
            f"PredictionWriter reads what {module}.predict_step returns, which was {came}. A dictionary with the "
            "tensors 'probability' and 'decision' was expected: `return {\"probability\": p, \"decision\": p > 0.5}`."
        )
    if probability.ndim not in (1, 2) or said.shape != probability.shape:
        name = "label" if of_best else "decision"
        raise ValueError(
            f"'probability' has shape {tuple(probability.shape)} and {name!r} {tuple(said.shape)}. A table holds "
            "(N,), (N, 1) or (N, C), the same for both; write dense outputs, such as masks of images, with a "
            "BasePredictionWriter of your own."
        )
    size = len(probability)
    # BinaryClassifier leaves out a row that a sampler repeated; one of another module is left out of the table.
    if indices is not None and size == own:
        indices = indices[:own]
    if indices is not None and len(indices) != size:
        raise ValueError(
            f"A batch of {len(indices)} rows gave {size} predictions. One for each row was expected, because they are "
            "put in the order of the data."
        )
    identity = found.get("id")
    if identity is not None:
        identity = identity.detach().cpu().flatten().tolist() if isinstance(identity, Tensor) else list(identity)
        if len(identity) != size:
            raise ValueError(f"'id' has {len(identity)} entries and 'probability' {size}; one for each was expected.")
    return Part(
        dataloader,
        None if indices is None else torch.tensor([int(i) for i in indices], dtype=torch.int64),
        _two_dimensional(probability.detach().float().cpu()),
        None if of_best else _two_dimensional(said.detach().bool().cpu()),
        identity,
        _two_dimensional(said.detach().long().cpu()) if of_best else None,
    )


def _two_dimensional(values: Tensor) -> Tensor:
    return values[:, None] if values.ndim == 1 else values
