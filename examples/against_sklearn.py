"""The recipe of the command against scikit-learn, on the same test rows of a table.

    python examples/against_sklearn.py --data.path fraud.csv --data.target label

Flags are those of ``lightning-bce fit``; without a path it is the breast cancer table of scikit-learn. For each of
several splits the recipe is trained on the training rows, with the validation rows to know when to stop; scikit-learn's
two models need none of that kind, and are trained on both. The difference of the average precisions on the test rows,
with a 95 % interval by a paired bootstrap of the rows of every split, says who is ahead.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from lightning_bce import BinaryClassifier
from lightning_bce.cli import main as lightning_bce
from lightning_bce.data import TableDataModule

Scores = dict[str, npt.NDArray[np.float64]]
OURS = "the recipe"


def compare(flags: Sequence[str], seed: int) -> Scores:
    """Train all three on one split and return their scores of its test rows, and under "target" the labels."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        here = ["--test_after_fit=false", f"--trainer.default_root_dir={folder}", f"--seed_everything={seed}"]
        with contextlib.redirect_stdout(sys.stderr):  # what the recipe decided; the table goes to the output
            lightning_bce(["fit", *flags, f"--data.seed={seed}", *here, *quiet])
        (path,) = Path(folder).glob("**/best.ckpt")
        content = torch.load(path, weights_only=True)
        classifier = BinaryClassifier.load_from_checkpoint(path, map_location="cpu").eval()
    arguments = {k: v for k, v in content["datamodule_hyper_parameters"].items() if not k.startswith("_")}
    data = TableDataModule(**arguments)
    inputs, target = {}, {}
    for part in ("train", "val", "test"):
        rows = data.rows(part)
        assert rows is not None, f"there are no {part} rows"
        inputs[part], target[part] = rows.columns["inputs"], rows.columns["target"][:, 0]
    with torch.no_grad():
        scores: Scores = {OURS: classifier(inputs["test"]).flatten().double().numpy()}
    both = [torch.cat([parts["train"], parts["val"]]).numpy() for parts in (inputs, target)]
    for model in (HistGradientBoostingClassifier(random_state=seed), LogisticRegression(max_iter=1000)):
        scores[type(model).__name__] = model.fit(*both).predict_proba(inputs["test"].numpy())[:, 1]
    return {**scores, "target": target["test"].numpy().astype(np.float64)}


def difference(splits: Sequence[Scores], other: str, draws: int, seed: int = 0) -> tuple[float, float, float]:
    """Return by how much the recipe's average precision is higher, mean over splits, with the ends of the interval."""
    generator = np.random.default_rng(seed)

    def mean(rows: Sequence[npt.NDArray[np.int64]]) -> float:
        ahead = [
            average_precision_score(split["target"][chosen], split[OURS][chosen])
            - average_precision_score(split["target"][chosen], split[other][chosen])
            for split, chosen in zip(splits, rows, strict=True)
        ]
        return float(np.mean(ahead))

    sizes = [len(split["target"]) for split in splits]
    drawn = [mean([generator.integers(size, size=size) for size in sizes]) for _ in range(draws)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return mean([np.arange(size) for size in sizes]), float(low), float(high)


def main(flags: Sequence[str], splits: int = 5, draws: int = 1000) -> dict[str, tuple[float, float, float]]:
    """Print the table and return the differences."""
    with tempfile.TemporaryDirectory() as folder:
        if not any(flag.startswith("--data.path") for flag in flags):
            found_in = load_breast_cancer()
            table = polars.DataFrame(found_in.data, schema=[str(name) for name in found_in.feature_names])
            labels = polars.Series("malignant", 1 - found_in.target)
            table.with_columns(labels).write_csv(f"{folder}/breast_cancer.csv")
            flags = [f"--data.path={folder}/breast_cancer.csv", *flags]
        scores = [compare(flags, seed) for seed in range(splits)]
    others = [name for name in scores[0] if name not in (OURS, "target")]
    found = {name: difference(scores, name, draws) for name in others}
    rows, positives = len(scores[0]["target"]), int(scores[0]["target"].sum())
    print(f"average precision on {rows:,} test rows, {positives} of them positive, mean of {splits} splits")
    for name in (OURS, *others):
        mean = np.mean([average_precision_score(split["target"], split[name]) for split in scores])
        ahead = "" if name == OURS else "the recipe is ahead by {:+.4f} (95 %: {:+.4f} to {:+.4f})".format(*found[name])
        print(f"{name:<32}{mean:.4f}   {ahead}".rstrip())
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
