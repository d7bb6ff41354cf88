"""The record of a run: what its evaluations looked like, in files that pictures and reports are made from.

A run folder holds ``record/history.jsonl``, a line for each epoch of training and validation, and ``record/val.json``
and ``record/test.json``, the last evaluation of each stage in full; of further dataloaders ``record/val_1.json`` and so
on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from lightning_bce.files import append_line, whole_file

FOLDER = "record"
_FORMAT = 1

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class Hardness:
    """Examples, loss and gradient in bins of the probability of the true side, p_t.

    Args:
        edges: Of the bins, (B + 1,), from 0 to 1.
        count: Elements, (2, B): negatives, positives.
        loss: Sum of their losses in nats, (2, B). NaN for a loss without a form by element.
        gradient: Sum of the absolute derivatives of the loss by the logit, (2, B).
    """

    edges: Tensor
    count: Tensor
    loss: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class LossDistribution:
    """How many elements have a loss of which size.

    Args:
        edges: Of the bins in nats, (D + 1,), the first 0, the last infinite.
        count: Elements, (2, D): negatives, positives.
        loss: Sum of their losses in nats, (2, D).
    """

    edges: Tensor
    count: Tensor
    loss: Tensor


@dataclass(frozen=True)
class Scores:
    """Elements in fine bins of the logit, from which curves over all thresholds are drawn.

    Args:
        edges: Of the bins, (S + 1,), from minus to plus infinity.
        count: Elements of each label, (C, 2, S): negatives, positives.
    """

    edges: Tensor
    count: Tensor


@dataclass(frozen=True)
class Reliability:
    """Probabilities in bins, and how often they came true.

    Args:
        edges: Of the bins, (R + 1,), from 0 to 1.
        count: Elements, (C, R).
        probability: Sum of their probabilities, (C, R).
        positive: How many are positives, (C, R).
    """

    edges: Tensor
    count: Tensor
    probability: Tensor
    positive: Tensor


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a model on a whole set.

    Args:
        stage: "train", "val" or "test".
        epoch: Of training, from 0.
        step: Steps of the optimizer so far.
        loss_name: The loss that was looked at.
        labels: Names, C of them.
        loss: Sums of the loss by label and side, (C, 2), or (1, 2) for a loss without a form by label.
        weight: What they count, in the shape of ``loss``.
        gradient: Sums of the derivative of the loss by the logit, (C, 2): how each side of a label pulls at the last
            layer.
        metrics: What was logged, by name.
        hardness: By p_t. None where it was not recorded, as in the lines of the history are the following.
        distribution: Of the loss over elements.
        scores: Of each label.
        reliability: Of each label.
        threshold: A probability above it is a positive decision, (C,).
        confusion: Elements by truth and decision, (C, 2, 2): ``confusion[c, truth, decision]``.
        dataloader: Which one, from 0, where an evaluation has several.
    """

    stage: str
    epoch: int
    step: int
    loss_name: str
    labels: list[str]
    loss: Tensor
    weight: Tensor
    gradient: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    hardness: Hardness | None = None
    distribution: LossDistribution | None = None
    scores: Scores | None = None
    reliability: Reliability | None = None
    threshold: Tensor | None = None
    confusion: Tensor | None = None
    dataloader: int = 0

    @property
    def name(self) -> str:
        """The stage and, of a dataloader behind the first, its number: "val", "val_1"."""
        return f"{self.stage}_{self.dataloader}" if self.dataloader else self.stage

    def without_curves(self) -> Evaluation:
        """Return it as a line of the history: without what grows with fine bins."""
        return dataclasses.replace(self, scores=None, reliability=None, distribution=None)

    def to_json(self) -> str:
        """Return the evaluation as one line of JSON; numbers that are not finite are the strings NaN and Infinity."""
        return json.dumps({"format": _FORMAT, **_plain(self)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Evaluation:
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is something else.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
                raise ValueError(f"it is not of format {_FORMAT}")
            return _made(cls, values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"This is no evaluation that lightning_bce recorded: {error}.") from error


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds.

    Args:
        path: The run folder.
        history: A line for each epoch and stage, in the order of time, without curves by label.
        evaluations: The last evaluations in full, by :attr:`Evaluation.name`: "val", "test", "val_1", ...
    """

    path: Path
    history: list[Evaluation]
    evaluations: dict[str, Evaluation]


def begin_record(folder: str | os.PathLike[str], step: int) -> None:
    """Make the record of a run ready for a training that starts, or goes on, at a step of the optimizer.

    A training from its start begins a new record; one that goes on keeps the lines up to where it does.

    Args:
        folder: The run folder.
        step: At which the training starts.
    """
    place = Path(folder) / FOLDER
    history = place / "history.jsonl"
    if step == 0:
        for path in (history, *_evaluations_in(place)):
            path.unlink(missing_ok=True)
    elif history.is_file():
        lines = history.read_text(encoding="utf-8").split("\n")[:-1]  # what a crash cut short is no line
        kept = [line for line in lines if line and not _is_after(line, step)]
        with whole_file(history) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())


def write_evaluation(folder: str | os.PathLike[str], evaluation: Evaluation, *, history: bool = True) -> None:
    """Add an evaluation to the record of a run: the full file, where it holds curves, and a line of its history.

    The full file appears whole or not at all.

    Args:
        folder: The run folder.
        evaluation: What to write.
        history: Whether it is a point in the time of a training.
    """
    place = Path(folder) / FOLDER
    if evaluation.scores is not None:
        with whole_file(place / f"{evaluation.name}.json") as file:
            file.write(f"{evaluation.to_json()}\n".encode())
    if history:
        place.mkdir(parents=True, exist_ok=True)
        append_line(place / "history.jsonl", evaluation.without_curves().to_json())


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Return the record of a run.

    A last line that a crash cut short is left out.

    Args:
        folder: The run folder, such as runs/version_0.

    Raises:
        FileNotFoundError: If the folder has no record, with what to do.
        ValueError: If a file of it is damaged, with its name.
    """
    path = Path(folder)
    place = path / FOLDER
    found = [path for path in (place / "history.jsonl", *_evaluations_in(place)) if path.is_file()]
    if not found:
        beside = sorted(str(p.parent) for p in path.glob(f"*/{FOLDER}"))
        hint = f" Did you mean {beside[-1]}?" if beside else ""
        raise FileNotFoundError(
            f"{str(path)!r} holds no record of a run ({FOLDER}/history.jsonl).{hint} Train with `lightning-bce fit`, "
            "or add the callback RunRecorder to the trainer."
        )
    history: list[Evaluation] = []
    evaluations: dict[str, Evaluation] = {}
    for file in found:
        lines = file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            if not line or (file.suffix == ".jsonl" and number == len(lines)):  # without its end, it is cut short
                continue
            try:
                evaluation = Evaluation.from_json(line)
            except ValueError as error:
                raise ValueError(f"{str(file)!r}, line {number}: {error}") from error
            if file.suffix == ".jsonl":
                history.append(evaluation)
            else:
                evaluations[file.stem] = evaluation
    return RunRecord(path, history, evaluations)


def _is_after(line: str, step: int) -> bool:
    try:
        return Evaluation.from_json(line).step > step
    except ValueError:  # damaged: no reason not to train, and whoever reads it is told
        return False


def _evaluations_in(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("*.json") if re.fullmatch(r"(train|val|test)(_[1-9]\d*)?", path.stem))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        if not value.isfinite().all():
            return _plain(value.tolist())
        # Counts as whole numbers, most of which are 0: half of the file, and of the time.
        whole = torch.equal(value, value.round()) and bool((value.abs() < 2**53).all())
        return (value.long() if whole else value).tolist()
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _made(kind: type[_Part], values: Mapping[str, Any]) -> _Part:
    hints = get_type_hints(kind)
    return kind(**{name: _value(str(hints[name]), hints[name], value) for name, value in values.items()})


def _value(hint: str, kind: Any, value: Any) -> Any:
    if value is None:
        return None
    if "Tensor" in hint:
        return torch.tensor(_numbers(value), dtype=torch.float64)
    if isinstance(value, dict) and hint.startswith("dict"):
        return {name: _numbers(item) for name, item in value.items()}
    for part in (Hardness, LossDistribution, Scores, Reliability):
        if part.__name__ in hint:
            return _made(part, value)
    return value


def _numbers(value: Any) -> Any:
    return [_numbers(item) for item in value] if isinstance(value, list) else float(value)
