"""The page: what stands on it, in the order of a reader's questions. The looks are in page.html."""

from __future__ import annotations

import base64
import csv
import math
import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_bce.plotting import drawing as looks
from lightning_bce.plotting import drawings, last_evaluation
from lightning_bce.plotting.calibration import ReliabilityDiagram
from lightning_bce.plotting.decisions import Decisions
from lightning_bce.plotting.drawing import Array, Drawing, array, number, percent, ratio, stage_name
from lightning_bce.plotting.files import rendered
from lightning_bce.plotting.hardness import LossConcentration
from lightning_bce.plotting.threshold_curves import ROC, PrecisionRecall
from lightning_bce.provenance import read_provenance
from lightning_bce.record import Evaluation, RunRecord, read_run
from lightning_bce.visible import visible

_MOST_LABELS, _MOST_EPOCHS, _MOST_EXAMPLES, _MOST_COLUMNS = 200, 200, 50, 12
_LONGEST_CONFIGURATION = 100_000
_DARK = {
    looks.INK: "#e6edf3",
    looks.FAINT: "#9198a1",
    looks.GRID: "#3d444d",
    looks.UNKNOWN: "#262c36",
    looks.NEGATIVE: "#4aa3e0",
    looks.POSITIVE: "#f0803c",
    looks.OTHERS[0]: "#2bc49a",
}
_SECRET = re.compile(r"(?i)([\w.-]*(?:token|secret|password|passwd|api_?key|credential)[\w-]*)(\s*[=:]\s*)(\S.*)")


class Table(NamedTuple):
    """A table of the page.

    Args:
        caption: What it shows.
        header: A name for each column.
        rows: Cells as text; the first of a row names it.
        note: What was left out.
        bars: For each row the length of a bar in its last cell, at most 1, or nothing.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    bars: list[float] | None = None


def report_html(folder: str | Path, stage: str | None = None) -> str:
    """Return a run as one HTML page that loads nothing from anywhere.

    Args:
        folder: The run folder, with the record that RunRecorder writes.
        stage: Which evaluation, "val" or "test". None takes the test where there is one.

    Raises:
        FileNotFoundError: If there is no record.
        ValueError: If it is damaged, or has no evaluation of the stage.
        ImportError: If matplotlib or jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("A report needs jinja2 and matplotlib: pip install 'lightning_bce[report]'.") from error
    record = read_run(folder)
    evaluation = last_evaluation(record, stage)
    provenance = read_provenance(folder)
    drawn = {drawing.name: drawing for drawing in drawings(evaluation, record.history)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lightning_bce.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = Path(folder)
    configuration = _configuration(path)
    page: str = environment.get_template("page.html").render(
        run=visible(path.resolve().name),
        subject=f"{visible(evaluation.loss_name)}, {_count_of(evaluation)}",
        stage=stage_name(evaluation.stage),
        epoch=None if evaluation.stage == "test" else evaluation.epoch,
        started=visible(provenance.started.replace("T", " ").replace("+00:00", " UTC")) if provenance else "",
        tiles=_tiles(evaluation, drawn),
        findings=[
            drawing.finding() for drawing in drawn.values() if drawing.name in ("shares", "confusion", "hardness")
        ],
        pictures=[_picture(drawing) for drawing in drawn.values()],
        tables=[_metrics(record), *_labels(evaluation, drawn), *_examples(path, evaluation.stage), *_epochs(record)],
        grids=_grids(path, evaluation.stage),
        configuration=configuration,
        command=_command(provenance.command) if provenance else "",
        again=f"lightning-bce fit --config {shlex.quote(str(folder) + '/config.yaml')}" if configuration else "",
        seed=None if provenance is None else provenance.seed,
        versions=provenance.versions if provenance else {},
    )
    return page


# -- what stands on top -----------------------------------------------------------------------------------------------


def _count_of(evaluation: Evaluation) -> str:
    count = len(evaluation.labels)
    return f"label {visible(evaluation.labels[0])}" if count == 1 else f"{count} labels"


def _tiles(evaluation: Evaluation, drawn: dict[str, Drawing]) -> list[tuple[str, str, str]]:
    """Return name, value and what it is of, for the numbers that a reader looks for first."""
    loss, weight = array(evaluation.loss).sum(0), float(evaluation.weight.sum())
    tiles = [
        ("mean loss", number(float(ratio(loss.sum(), weight)), 4), "nats"),
        ("from positives", percent(float(ratio(loss[1], loss.sum()))), "share of the loss"),
    ]
    concentration = drawn.get("distribution")
    if isinstance(concentration, LossConcentration):
        name, share = next(iter(concentration.carried().items()))
        tiles.append(("hardest tenth", percent(share), f"of the loss of {name}"))
    log_loss = evaluation.metrics.get(f"{evaluation.stage}_log_loss")
    if log_loss is not None:
        tiles.append(("log loss", number(log_loss, 4), "cross-entropy, nats"))
    curve = drawn.get("precision_recall")
    if isinstance(curve, PrecisionRecall):
        tiles.append(("average precision", number(curve.together.area), f"guessing: {number(curve.prevalence)}"))
    decisions = drawn.get("confusion")
    if isinstance(decisions, Decisions):
        (_, false), (missed, true) = decisions.together
        of = decisions.threshold
        tiles.append(("recall", percent(float(ratio(true, true + missed))), f"at {of}"))
        tiles.append(("precision", percent(float(ratio(true, true + false))), f"at {of}"))
    reliability = drawn.get("reliability")
    if isinstance(reliability, ReliabilityDiagram):
        tiles.append(("calibration error", number(reliability.error), "expected, 0 is best"))
    return tiles


def _metrics(record: RunRecord) -> Table:
    evaluations = [last_evaluation(record, stage) for stage in ("val", "test") if stage in _stages(record)]
    columns = [{_unstaged(name, e.stage): value for name, value in _single(e).items()} for e in evaluations]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [[visible(name), *(_cell(column.get(name, math.nan), 4) for column in columns)] for name in names]
    header = ["metric", *(stage_name(e.stage) for e in evaluations)]
    return Table("What was logged, after the last evaluation of each set", header, rows)


def _stages(record: RunRecord) -> set[str]:
    return {line.stage for line in record.history} | set(record.evaluations)


def _single(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics that are of no single label."""
    return {name: value for name, value in evaluation.metrics.items() if "/" not in name}


def _unstaged(name: str, stage: str) -> str:
    return name.removeprefix(f"{stage}_")


def _cell(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}g}"


# -- pictures ---------------------------------------------------------------------------------------------------------


def _picture(drawing: Drawing) -> dict[str, Any]:
    figure = drawing.figure(titled=False)
    figure.set_facecolor("none")
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    svg = _in_both_lights(rendered(figure, "svg", text_as_text=True).decode("utf-8"))
    return {
        "name": drawing.name,
        "title": drawing.title,
        "finding": drawing.finding(),
        "reading": drawing.reading,
        "source": _data_url(svg.encode("utf-8"), "svg+xml"),
        "width": width,
        "height": height,
    }


def _in_both_lights(svg: str) -> str:
    """Return a picture whose colours follow the reader's choice of a light or a dark screen."""
    names = {light: f"--c{index}" for index, light in enumerate(_DARK)}
    for light, name in names.items():
        svg = svg.replace(light, f"var({name})")
    light = ";".join(f"{name}:{colour}" for colour, name in names.items())
    dark = ";".join(f"{names[colour]}:{dark}" for colour, dark in _DARK.items())
    # Paper is white, whatever the screen was.
    style = f"svg{{{light}}}@media screen and (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    start = svg.index(">", svg.index("<svg")) + 1
    return f"{svg[:start]}<style>{style}</style>{svg[start:]}"


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _grids(folder: Path, stage: str) -> list[dict[str, str]]:
    path = folder / f"hard_examples_{stage}.png"
    if not path.is_file():
        return []
    alt = f"The inputs of the {stage_name(stage)} examples with the largest loss, as images, the largest first."
    return [{"source": _data_url(path.read_bytes(), "png"), "alt": alt}]


# -- tables -----------------------------------------------------------------------------------------------------------


def _labels(evaluation: Evaluation, drawn: dict[str, Drawing]) -> list[Table]:
    """Return the table of labels, the largest share of the loss first."""
    count = len(evaluation.labels)
    columns: dict[str, tuple[Array, Any]] = {}

    def whole(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:,.0f}"

    def share(value: float) -> str:
        return "-" if math.isnan(value) else f"{100 * value:.1f} %"

    if evaluation.confusion is not None:
        sides = array(evaluation.confusion).sum(-1)
        columns |= {"negatives": (sides[:, 0], whole), "positives": (sides[:, 1], whole)}
    losses, weights = array(evaluation.loss), array(evaluation.weight)
    shares = np.full(count, math.nan)
    if len(losses) == count:
        shares = ratio(losses.sum(1), losses.sum())
        columns["loss, nats"] = (ratio(losses.sum(1), weights.sum(1)), _cell)
        columns["of negatives"] = (ratio(losses[:, 0], weights[:, 0]), _cell)
        columns["of positives"] = (ratio(losses[:, 1], weights[:, 1]), _cell)
    for name, title in (("precision_recall", "AP"), ("roc", "AUROC")):
        curve = drawn.get(name)
        if isinstance(curve, (PrecisionRecall, ROC)):
            columns[title] = (curve.areas if count > 1 else np.asarray([curve.together.area]), _cell)
    decisions = drawn.get("confusion")
    if isinstance(decisions, Decisions):
        columns |= {name: (decisions.by_label[:, i], share) for i, name in enumerate(decisions.rates) if i != 2}
    reliability = drawn.get("reliability")
    if isinstance(reliability, ReliabilityDiagram):
        columns["ECE"] = (reliability.errors, _cell)
    if len(losses) == count:
        columns["share of loss"] = (shares, share)
    if not columns:
        return []
    order = np.argsort(-np.nan_to_num(shares, nan=-1.0), kind="stable")[:_MOST_LABELS]
    rows = [
        [visible(evaluation.labels[i]), *(say(float(values[i])) for values, say in columns.values())] for i in order
    ]
    note = f"The {count - len(rows)} labels with the smallest shares are left out." if count > len(rows) else ""
    most = max(float(np.nan_to_num(shares).max()), 1e-12)
    bars = [max(0.0, float(np.nan_to_num(shares[i])) / most) for i in order] if len(losses) == count else None
    caption = f"Labels of the {stage_name(evaluation.stage)} set, the largest share of the loss first"
    return [Table(caption, ["label", *columns], rows, note, bars)]


def _examples(folder: Path, stage: str) -> list[Table]:
    path = folder / f"hard_examples_{stage}.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        read = list(islice(csv.reader(file), _MOST_EXAMPLES + 2))
    if len(read) < 2:
        return []
    left_out = []
    if len(read) > _MOST_EXAMPLES + 1:
        left_out.append(f"the rows after the first {_MOST_EXAMPLES}")
    if len(read[0]) > _MOST_COLUMNS:
        left_out.append(f"{len(read[0]) - _MOST_COLUMNS} columns")
    note = f"Left out are {' and '.join(left_out)}; all are in {path.name}." if left_out else ""
    cells = [[_rounded(visible(cell)) for cell in row[:_MOST_COLUMNS]] for row in read[: _MOST_EXAMPLES + 1]]
    caption = f"Hard {stage_name(stage)} examples, the largest loss first: wrong labels are found here"
    return [Table(caption, cells[0], cells[1:], note)]


def _rounded(cell: str) -> str:
    return f"{float(cell):.4g}" if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", cell) else cell


def _epochs(record: RunRecord) -> list[Table]:
    lines = [line for line in record.history if line.stage in ("train", "val")]
    together: dict[tuple[int, int], dict[str, float]] = {}
    for line in lines:
        together.setdefault((line.epoch, line.step), {}).update(_single(line))
    logged = dict.fromkeys(name for values in together.values() for name in values)
    first = [name for name in ("train_loss", "val_loss") if name in logged]
    names = [*first, *(name for name in logged if name not in first and not name.endswith("_step"))][:_MOST_COLUMNS]
    if not names:
        return []
    every = math.ceil(len(together) / _MOST_EPOCHS)
    rows = [
        [f"{epoch}", f"{step}", *(_cell(values.get(name, math.nan), 4) for name in names)]
        for epoch, step, values in ((*time, values) for time, values in list(together.items())[::every])
    ]
    note = f"Every {every}th evaluation is shown." if every > 1 else ""
    return [Table("Metrics by epoch", ["epoch", "step", *map(visible, names)], rows, note)]


# -- how to get it again ----------------------------------------------------------------------------------------------


def _configuration(folder: Path) -> str:
    """Return the configuration without what opens doors: a report is handed around."""
    path = folder / "config.yaml"
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    if len(text) > _LONGEST_CONFIGURATION:
        text = text[:_LONGEST_CONFIGURATION] + "\n... (the rest is in config.yaml)"
    return "\n".join(_SECRET.sub(r"\1\2***", visible(line)) for line in text.splitlines())


def _command(arguments: Sequence[str]) -> str:
    said: list[str] = []
    hide = False
    for argument in arguments:
        if hide:
            said.append("***")
        else:
            said.append(_SECRET.sub(r"\1\2***", visible(argument)))
        hide = bool(argument.startswith("-") and "=" not in argument and _SECRET.match(f"{argument}=x"))
    return shlex.join(said)
