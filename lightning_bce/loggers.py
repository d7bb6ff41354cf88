"""Figures, tables and hyper-parameters for the logger that a run has, whichever it is."""

from __future__ import annotations

import csv
import importlib
import inspect
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import Logger
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_bce.files import defused, whole_file, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WARNED: set[tuple[str, str]] = set()


@rank_zero_only
def log_figure(logger: Logger | None, name: str, figure: Figure, step: int) -> None:
    """Send a matplotlib figure to a logger; it stays open.

    TensorBoard shows it among its images, W&B among its media; MLflow keeps it as the artifact
    ``<name>/step_<step>.png`` and Comet as a figure. Beside the ``metrics.csv`` of a CSVLogger it is the file
    ``pictures/<name>_step_<step>.png``. No logger, and that of ``fast_dev_run``, take nothing. A logger of another kind
    is told of once, and left out.

    Args:
        logger: One of Lightning's. None does nothing.
        name: With slashes for groups, such as "val/reliability".
        figure: What to send.
        step: Of the optimizer.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, global_step=step, close=False)
    elif isinstance(logger, CSVLogger):
        with whole_file(_file(logger, "pictures", name, step, "png")) as file:
            figure.savefig(file, format="png", dpi=100)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_figure(logger.run_id, figure, f"{_safe(name)}/step_{step}.png")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [_wandb().Image(figure)], step=step)
    elif callable(send := _method(logger, "log_figure", "figure_name")):  # Comet's, and what is like it
        send(figure_name=name, figure=figure, step=step)
    else:
        _leave_out(logger, "figures")


@rank_zero_only
def log_table(
    logger: Logger | None, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Send a table to a logger.

    W&B and Comet have tables of their own. TensorBoard shows it as text, MLflow keeps it as the artifact
    ``<name>/step_<step>.csv``, which it shows as a table. Beside the ``metrics.csv`` of a CSVLogger it is the file
    ``tables/<name>_step_<step>.csv``. In CSV, text that a spreadsheet would take for a formula gets a ' in front.
    Otherwise as :func:`log_figure`.

    Args:
        logger: One of Lightning's. None does nothing.
        name: With slashes for groups, such as "val/loss_by_label".
        columns: Names.
        rows: A value for each column: text, numbers or None.
        step: Of the optimizer.

    Raises:
        ValueError: If a row has not as many values as there are columns.
    """
    wrong = next((len(row) for row in rows if len(row) != len(columns)), None)
    if wrong is not None:
        raise ValueError(f"A row of the table {name!r} has {wrong} values and there are {len(columns)} columns.")
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(name, _markdown(columns, rows), global_step=step)
    elif isinstance(logger, CSVLogger):
        table = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
        write_table(table, _file(logger, "tables", name, step, "csv"), overwrite=True, escape_formulas=True)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, _csv(columns, rows), f"{_safe(name)}/step_{step}.csv")
    elif isinstance(logger, WandbLogger):
        # Not `logger.log_table`, which refuses a column of numbers in which one is missing.
        cells = [[None if cell == "" else cell for cell in row] for row in rows]
        logger.log_metrics({name: _wandb().Table(columns=list(columns), data=cells, allow_mixed_types=True)}, step)
    elif callable(send := _method(logger, "log_table", "tabular_data")):
        send(f"{_safe(name)}_step_{step}.csv", tabular_data=[list(row) for row in rows], headers=list(columns))
    else:
        _leave_out(logger, "tables")


@rank_zero_only
def log_hyperparameters(logger: Logger | None, values: Mapping[str, Any]) -> None:
    """Send hyper-parameters that were found out after the start, beside those that Lightning has sent.

    They are called ``resolved/<name>``, apart from what was given; in TensorBoard as text, because it shows no
    hyper-parameters that are sent later, and in its ``hparams.yaml``. MLflow takes one value for a name: a later one is
    told of and left out.

    Args:
        logger: One of Lightning's, of any kind. None does nothing.
        values: Plain Python values by name.
    """
    if logger is None or isinstance(logger, DummyLogger):
        return
    named = {f"resolved/{name}": value for name, value in values.items()}
    if isinstance(logger, MLFlowLogger):
        known = logger.experiment.get_run(logger.run_id).data.params
        for name in [name for name, value in named.items() if known.get(name, str(value)) != str(value)]:
            rank_zero_warn(f"MLflow keeps the first value of {name}, and does not take {named.pop(name)!r}.")
    if isinstance(logger, TensorBoardLogger):
        # Of hyper-parameters that are sent a second time it shows nothing, and it writes hparams.yaml only once.
        logger.hparams.update(named)
        log_table(logger, "resolved", ["hyper-parameter", "value"], [[k, str(v)] for k, v in values.items()], 0)
        path = os.path.join(logger.log_dir, logger.NAME_HPARAMS_FILE)
        if os.path.isfile(path):
            save_hparams_to_yaml(path, logger.hparams)
    else:
        logger.log_hyperparams(named)


def _wandb() -> Any:
    return importlib.import_module("wandb")


def _method(logger: Logger | None, name: str, argument: str) -> Any:
    """Return a method of what the logger wraps that takes an argument of this name, or None."""
    if logger is None or isinstance(logger, DummyLogger):
        return None
    method = getattr(getattr(logger, "experiment", None), name, None)
    return method if callable(method) and argument in inspect.signature(method).parameters else None


def _leave_out(logger: Logger | None, what: str) -> None:
    """Warn once of a logger that takes no figures, or no tables."""
    if logger is None or isinstance(logger, DummyLogger):
        return
    name = f"{type(logger).__module__}.{type(logger).__qualname__}"
    if (name, what) not in _WARNED:
        _WARNED.add((name, what))
        rank_zero_warn(
            f"{name} gets no {what}: what it wraps has no `log_{what[:-1]}` as Comet has. TensorBoard, CSV, MLflow, "
            "Weights & Biases and Comet get them, also beside it: `Trainer(logger=[yours, CSVLogger(...)])`."
        )


def _file(logger: CSVLogger, folder: str, name: str, step: int, suffix: str) -> Path:
    _ = logger.experiment  # which warns of a folder that it did not make itself
    return Path(logger.log_dir) / folder / f"{_safe(name)}_step_{step}.{suffix}"


def _safe(name: str) -> str:
    """Return a name as the path of a file: slashes make folders, and whatever could lead elsewhere is an underscore."""
    parts = (re.sub(r"[^\w .,=+-]", "_", part).strip(". ") for part in name.split("/"))
    return "/".join(part or "_" for part in parts)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    cells = [[defused(cell) if isinstance(cell, str) else cell for cell in row] for row in (columns, *rows)]
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in which no text is taken for markup."""

    def line(cells: Sequence[Any]) -> str:
        return f"| {' | '.join(_escaped(cell) for cell in cells)} |"

    return "\n".join([line(columns), line(["---"] * len(columns)).replace("\\", ""), *map(line, rows)])


def _escaped(cell: Any) -> str:
    if cell is None:
        return ""
    text = f"{cell:.6g}" if isinstance(cell, float) else " ".join(str(cell).split())
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return re.sub(r"([\\`*_{}\[\]#+|!~-])", r"\\\1", text) if isinstance(cell, str) else text
