"""lightning-bce report: a run as one HTML file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_bce.files import whole_file
from lightning_bce.report.page import report_html


def report(args: Sequence[str]) -> None:
    """Run ``lightning-bce report ...``.

    Args:
        args: What stands after ``report``.

    Raises:
        SystemExit: With status 2 if the arguments are wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-bce report",
        description="Write a run that RunRecorder recorded, as `lightning-bce fit` does, as one HTML file that needs "
        "nothing else: numbers, pictures, tables, configuration, versions, and the command that repeats it.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the folder of the run, such as runs/version_0")
    parser.add_argument("--output", type=Path, help="the file to write (default: RUN_DIR/report.html)")
    parser.add_argument("--stage", choices=("val", "test"), help="which evaluation (default: test, if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    given = parser.parse_args(args)
    path = given.output or given.run / "report.html"
    try:
        if path.is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder. Give a file, such as {str(path / 'report.html')!r}.")
        if path.exists() and not given.overwrite:
            raise FileExistsError(f"{str(path)!r} exists. Choose another --output, or add --overwrite.")
        page = report_html(given.run, given.stage)
        with whole_file(path) as file:
            file.write(page.encode())
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    print(f"report: {path}")
