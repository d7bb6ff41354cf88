"""One run: train with a loss on a split, decide on its validation rows, judge on its test rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_bce.comparison.candidates import filled
from lightning_bce.comparison.deciding import Decided, calibrated, decide
from lightning_bce.comparison.rows import Array, Labels, SplitRows, split_rows
from lightning_bce.comparison.scores import Judged, scores
from lightning_bce.comparison.searching import Values, search
from lightning_bce.comparison.spaces import LEARNING_RATE, Range
from lightning_bce.comparison.store import Run, Task
from lightning_bce.comparison.training import Trained, train
from lightning_bce.spec import Spec


def make(task: Task, folder: Path) -> Run:
    """Make a run. What goes wrong in it is its result, so that the others go on.

    Args:
        task: What to do.
        folder: Where searches keep their files.
    """
    said = {"loss": task.label, "data": task.data_name, **task.specification["split"]}
    try:
        rows = split_rows(task.place, task.specification["split"])
        run = _run(task, rows, folder / "searches")
    except Exception as error:  # of a loss, model or data module of anyone's
        return Run({**said, "error": f"{type(error).__name__}: {error}"}, {})
    return Run({**said, "error": None, **run.result}, run.arrays)


def _run(task: Task, rows: SplitRows, folder: Path) -> Run:
    specification = task.specification
    seed = specification["split"]["seed"]
    loss = filled(specification["loss"], *rows.train_labels)

    def with_values(values: Values) -> Trained:
        own = {name: value for name, value in values.items() if name != LEARNING_RATE}
        optimizer: Spec = specification["optimizer"]
        if LEARNING_RATE in values:
            arguments = {**optimizer["init_args"], LEARNING_RATE: values[LEARNING_RATE]}
            optimizer = {**optimizer, "init_args": arguments}
        chosen = {**loss, "init_args": {**loss["init_args"], **own}}
        return train(rows, chosen, specification["recipe"], optimizer, seed)

    def tried(values: Values) -> tuple[float, Trained]:
        trained = with_values(values)
        return trained.value, trained

    values: Values = {}
    failed, trained = 0, None
    sought = specification["search"]
    if sought is not None:
        space = {name: Range(*span) for name, span in sought["space"].items()}
        values, trained, failed = search(task.key, space, sought["trials"], sought["start"], tried, folder)
    if trained is None:
        trained = with_values(values)
    decided = decide(trained.val_logits, rows.val_labels)
    judged = _judge(decided, trained.test_logits, rows.test_labels)
    values_by_score = {k: float(v[0]) for k, v in scores(judged, specification["precision"]).items()}
    result = {
        **values_by_score,
        "seconds": trained.seconds,
        "cpu_seconds": trained.cpu_seconds,
        "peak_mib": trained.peak_mib,
        "epochs": trained.epochs,
        "best_epoch": trained.best_epoch,
        "searched": values,
        "failed_trials": failed,
        "thresholds": decided.thresholds.tolist(),
        "calibration": {"scale": decided.calibration.scale.tolist(), "bias": decided.calibration.bias.tolist()},
        "rows": rows.sizes(),
        "test_rows": rows.test_fingerprint(),
    }
    arrays = judged._asdict()
    return Run(_plain(result), {**arrays, "logits": judged.logits.astype(np.float32)})


def _judge(decided: Decided, logits: Array, labels: Labels) -> Judged:
    """Return what a run says of its test rows, by what was fitted on its validation rows."""
    probability = calibrated(logits, decided.calibration)
    decision = torch.from_numpy(probability).float() > decided.thresholds
    return Judged(logits, probability, decision.numpy(), *labels)


def _plain(value: Any) -> Any:
    """Return values for JSON, in which there is no NaN: None says so."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
