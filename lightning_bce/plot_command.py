"""lightning-bce plot: pictures without a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_bce.plotting import loss_from_text, plot_losses, text_losses
from lightning_bce.spec import SpecError
from lightning_bce.suggest import nearest_name

_DEFAULT = ["BCEWithLogitsLoss", "FocalLoss(gamma=2)"]


def plot(args: Sequence[str]) -> None:
    """Run ``lightning-bce plot losses ...``.

    Args:
        args: What stands after ``plot``.

    Raises:
        SystemExit: With status 2 if the arguments are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-bce plot", description="Draw losses and their gradients against the logit, for both sides."
    )
    what = parser.add_subparsers(required=True, metavar="losses")
    losses = what.add_parser("losses", help="loss and gradient against the logit", description=parser.description)
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
    given = parser.parse_args(args)
    try:
        if given.output is not None and given.output.exists() and not given.overwrite:
            raise FileExistsError(f"{str(given.output)!r} exists. Choose another --output, or add --overwrite.")
        drawn = {text: loss_from_text(text) for text in given.losses}
        print(text_losses(drawn, given.limit))
        if given.output is not None:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            plot_losses(drawn, given.limit).savefig(given.output, dpi=120)
            print(f"\npicture: {given.output}")
    except (ValueError, TypeError, OSError, ImportError, SpecError) as error:
        wrong = next((text for text in given.losses if text.split("(")[0] in str(error)), "")
        hint = nearest_name(f"Given value: {wrong.split('(')[0]}") if wrong else None
        sys.stderr.write(f"error: {error}\n" + (f"Did you mean {hint}?\n" if hint and hint not in wrong else ""))
        raise SystemExit(2) from None
