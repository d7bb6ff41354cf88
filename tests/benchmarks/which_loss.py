"""Eight losses against BCE with a tuned threshold on five data sets: what docs/howto/choose-a-loss.md shows.

python tests/benchmarks/which_loss.py --data ../shared/data --output docs

Digits and breast cancer come with scikit-learn. The folder of ``--data`` holds mammography.csv and adult.csv (no
header, the label last), yeast-train.arff and yeast-test.arff (the last 14 columns are labels, as published). Five
seeds, each with a stratified split and weights of its own; yeast keeps its published test rows. The runs are kept in
``--folder``, so that what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from lightning_bce import compare
from lightning_bce.comparison.report import write_report
from lightning_bce.comparison.tables import markdown
from lightning_bce.data import BreastCancerDataModule, DigitsDataModule, TableDataModule

LOSSES = [
    "BCEWithLogitsLoss(pos_weight='auto')",
    "FocalLoss(gamma=2)",
    "LogitAdjustedLoss",
    "AsymmetricLoss",
    "PolyLoss",
    "BrierLoss",
    "GeneralizedCELoss",
    "DiceLoss",
]


def main(arguments: list[str]) -> None:
    """Compare, write and print."""
    options = parser().parse_args(arguments)
    quick: dict[str, Any] = {"seeds": 2, "max_epochs": 3} if options.quick else {"seeds": 5, "max_epochs": 300}
    compared = compare(
        LOSSES, data_sets(options.data, options.quick), trials=options.trials, jobs=options.jobs, folder=options.folder,
        **quick,
    )  # fmt: skip
    write_report(compared, options.folder)
    options.output.mkdir(parents=True, exist_ok=True)
    for picture, name in (("differences", "which_loss"), ("critical_difference", "which_loss_ranks")):
        if (options.folder / f"{picture}.png").exists():
            shutil.copyfile(options.folder / f"{picture}.png", options.output / f"{name}.png")
    print(markdown(compared), end="")


def data_sets(folder: Path, quick: bool) -> dict[str, Any]:
    """Return the data modules by name; the two small ones alone if ``quick``."""
    found: dict[str, Any] = {
        "breast cancer": BreastCancerDataModule(batch_size=64),
        "digit 8": DigitsDataModule(digit=8, batch_size=64),
    }
    if not quick:
        yeast = {"target": "-14:", "test_path": folder / "yeast-test.arff", "batch_size": 64}
        found["mammography"] = TableDataModule(folder / "mammography.csv", header=False, positive="1")
        found["adult"] = TableDataModule(folder / "adult.csv", header=False, positive=">50K")
        found["yeast"] = TableDataModule(folder / "yeast-train.arff", **yeast)
    return found


def parser() -> argparse.ArgumentParser:
    """Return what the command line takes."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the three tables")
    made.add_argument("--output", type=Path, default=Path("."), help="folder of the two pictures")
    made.add_argument("--folder", type=Path, default=Path("which_loss"), help="folder of the runs and the report")
    made.add_argument("--trials", type=int, default=0, help="trainings of a search for each loss on each split")
    made.add_argument("--jobs", type=int, help="runs at a time; one for each core if left out")
    made.add_argument("--quick", action="store_true", help="a minute: two seeds, three epochs, two data sets")
    return made


if __name__ == "__main__":
    main(sys.argv[1:])
