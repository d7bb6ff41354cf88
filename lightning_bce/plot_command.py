"""lightning-bce plot: pictures of losses, and of a run that is finished or under way."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_bce.files import whole_file
from lightning_bce.plotting import drawings, last_evaluation, loss_from_text, plot_losses, text_losses
from lightning_bce.plotting.files import FORMATS, rendered
from lightning_bce.record import read_run
from lightning_bce.spec import SpecError
from lightning_bce.suggest import nearest_name

_DEFAULT = ["BCEWithLogitsLoss", "FocalLoss(gamma=2)"]


def plot(args: Sequence[str]) -> None:
    """Run ``lightning-bce plot losses ...`` or ``lightning-bce plot run ...``.

    Args:
        args: What stands after ``plot``.

    Raises:
        SystemExit: With status 2 if the arguments are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-bce plot", description="Draw losses, or what the loss of a run did."
    )
    what = parser.add_subparsers(required=True, metavar="{losses,run}")
    losses = what.add_parser(
        "losses",
        help="loss and gradient against the logit",
        description="Draw losses and their gradients against the logit, for both sides.",
    )
    losses.add_argument(
        "losses",
        nargs="*",
        default=_DEFAULT,
        metavar="LOSS",
        help="a class with or without arguments, such as FocalLoss or 'FocalLoss(gamma=0.5)'; of your own by its path "
        f"(default: {' '.join(_DEFAULT)})",
    )
    losses.add_argument("--output", type=Path, help="a picture to write, such as losses.png, .svg or .pdf")
    losses.add_argument("--overwrite", action="store_true", help="replace the picture if it exists")
    losses.add_argument("--limit", type=float, default=8.0, help="the largest logit (default: 8)")
    losses.set_defaults(draw=_plot_losses)
    run = what.add_parser(
        "run",
        help="where the loss of a run comes from, its curves, decisions and calibration",
        description="Draw all of a run that RunRecorder recorded, as `lightning-bce fit` does.",
    )
    run.add_argument("run", type=Path, metavar="RUN_DIR", help="the folder of the run, such as runs/version_0")
    run.add_argument("--output", type=Path, help="the folder for the pictures (default: RUN_DIR/pictures)")
    run.add_argument("--stage", choices=("val", "test"), help="which evaluation (default: test, if there is one)")
    run.add_argument("--format", choices=FORMATS, help="of the pictures (default: png)")
    run.add_argument("--overwrite", action="store_true", help="replace pictures that exist")
    run.add_argument("--text", action="store_true", help="draw in the terminal instead, as without matplotlib")
    run.set_defaults(draw=_plot_run)
    given = parser.parse_args(args)
    try:
        given.draw(given)
    except (ValueError, TypeError, OSError, ImportError, SpecError) as error:
        texts = getattr(given, "losses", [])
        wrong = next((text for text in texts if text.split("(")[0] in str(error)), "")
        hint = nearest_name(f"Given value: {wrong.split('(')[0]}") if wrong else None
        sys.stderr.write(f"error: {error}\n" + (f"Did you mean {hint}?\n" if hint and hint not in wrong else ""))
        raise SystemExit(2) from None


def _plot_losses(given: argparse.Namespace) -> None:
    if given.output is not None and given.output.exists() and not given.overwrite:
        raise FileExistsError(f"{str(given.output)!r} exists. Choose another --output, or add --overwrite.")
    drawn = {text: loss_from_text(text) for text in given.losses}
    print(text_losses(drawn, given.limit))
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        plot_losses(drawn, given.limit).savefig(given.output, dpi=120)
        print(f"\npicture: {given.output}")


def _plot_run(given: argparse.Namespace) -> None:
    record = read_run(given.run)
    evaluation = last_evaluation(record, given.stage)
    drawn = drawings(evaluation, record.history)
    for_files = [flag for flag in ("output", "format", "overwrite") if getattr(given, flag)]
    if given.text or importlib.util.find_spec("matplotlib") is None:
        if for_files:
            reason = "--text writes none" if given.text else "they need matplotlib: pip install 'lightning_bce[plot]'"
            raise ValueError(f"--{for_files[0]} is about pictures, and {reason}.")
        _say("\n\n\n".join(drawing.text() for drawing in drawn))
        if not given.text:
            _say("\nAs pictures: pip install 'lightning_bce[plot]'")
        return
    folder = given.output or given.run / "pictures"
    kind = given.format or "png"
    paths = [folder / f"{evaluation.stage}_{drawing.name}.{kind}" for drawing in drawn]
    there = [path for path in paths if path.exists()]
    if there and not given.overwrite:
        raise FileExistsError(f"{str(there[0])!r} exists. Choose another --output, or add --overwrite.")
    files = [rendered(drawing.figure(), kind) for drawing in drawn]  # before the first is written
    for path, content in zip(paths, files, strict=True):
        with whole_file(path) as file:
            file.write(content)
    for drawing, path in zip(drawn, paths, strict=True):  # when all are there, should nobody read on
        _say(f"{path}\n    {drawing.finding()}")


def _say(text: str) -> None:
    """Print text that may hold letters which the terminal's encoding does not have."""
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
