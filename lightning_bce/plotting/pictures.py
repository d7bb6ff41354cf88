"""All drawings of an evaluation at once, as figures or as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_bce.plotting.calibration import ReliabilityDiagram
from lightning_bce.plotting.decisions import Decisions
from lightning_bce.plotting.drawing import Drawing, NothingToDraw
from lightning_bce.plotting.hardness import GradientByLabel, HardnessShares, LossConcentration
from lightning_bce.plotting.over_epochs import LossOverEpochs, SharesOverEpochs
from lightning_bce.plotting.scores import ScoreHistograms
from lightning_bce.plotting.threshold_curves import ROC, PrecisionRecall
from lightning_bce.record import Evaluation, RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWINGS: tuple[type[Drawing], ...] = (
    LossOverEpochs,
    SharesOverEpochs,
    HardnessShares,
    LossConcentration,
    GradientByLabel,
    PrecisionRecall,
    ROC,
    ScoreHistograms,
    ReliabilityDiagram,
    Decisions,
)


def last_evaluation(record: RunRecord, stage: str | None = None) -> Evaluation:
    """Return the last evaluation of a stage: in full where there is one, else the line of the history.

    Args:
        record: From :func:`lightning_bce.record.read_run`.
        stage: "val" or "test". None takes the test where there is one.

    Raises:
        ValueError: If there is none, with those that there are.
    """
    there = {line.stage: line for line in record.history} | record.evaluations
    for wanted in ("test", "val", "train") if stage is None else (stage,):
        if wanted in there:
            return there[wanted]
    names = ", ".join(sorted(there)) or "none"
    raise ValueError(f"{str(record.path)!r} holds no evaluation of stage {stage or 'val'!r}; there are: {names}.")


def drawings(evaluation: Evaluation, history: Sequence[Evaluation] = ()) -> list[Drawing]:
    """Return everything that can be drawn of an evaluation and its run.

    Args:
        evaluation: What to draw.
        history: All evaluations of the run, for what changes over training; empty leaves that out.
    """
    made: list[Drawing] = []
    history = [line for line in history if line.dataloader in (0, evaluation.dataloader)]
    if evaluation.dataloader:  # of training there is one
        history = [line for line in history if line.stage == "train" or line.dataloader]
    for kind in DRAWINGS:
        try:
            made.append(kind(evaluation, history))
        except NothingToDraw:
            continue
    return made


def pictures(evaluation: Evaluation, history: Sequence[Evaluation] = ()) -> dict[str, Figure]:
    """Return a matplotlib figure of everything that can be drawn of an evaluation and its run.

    Args:
        evaluation: What to draw.
        history: All evaluations of the run, for what changes over training; empty leaves that out.

    Returns:
        Figures by name, such as "loss", "precision_recall" or "reliability"; pyplot knows nothing of them.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return {drawing.name: drawing.figure() for drawing in drawings(evaluation, history)}


def text_pictures(evaluation: Evaluation, history: Sequence[Evaluation] = (), width: int = 78) -> dict[str, str]:
    """Return the same in ASCII, but for the names of labels.

    Args:
        evaluation: What to draw.
        history: All evaluations of the run, for what changes over training; empty leaves that out.
        width: Characters in a line, at least 40.

    Raises:
        ValueError: If the width is too small.
    """
    return {drawing.name: drawing.text(width) for drawing in drawings(evaluation, history)}
