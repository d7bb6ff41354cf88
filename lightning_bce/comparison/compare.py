"""compare: which loss wins on my data?"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_bce.comparison import store
from lightning_bce.comparison.judging import Judgement, failures, judge, over_data
from lightning_bce.comparison.planning import Plan, Settings, model_spec, optimizer_spec, plan
from lightning_bce.comparison.progress import Progress
from lightning_bce.comparison.scheduling import run_all
from lightning_bce.comparison.statistics import Ranks
from lightning_bce.comparison.store import Run, Task
from lightning_bce.comparison.verdict import verdict, verdict_over_data
from lightning_bce.models import TabularMLP

Metric = Literal["average_precision", "auroc", "f1", "log_loss", "brier", "recall_at_precision"]
StopBy = Literal["average_precision", "log_loss", "own_loss"]


@dataclass(frozen=True)
class Comparison:
    """What a comparison came to.

    Args:
        plan: What was run.
        runs: The runs by the keys of their tasks.
        judgements: One for each data set.
        ranks: Over several data sets; None for one.
    """

    plan: Plan
    runs: Mapping[str, Run]
    judgements: list[Judgement]
    ranks: Ranks | None

    @property
    def verdicts(self) -> dict[str, str]:
        """For each data set, in a few plain sentences, which loss to use and how sure that is."""
        return {one.name: verdict(one, self.plan.settings) for one in self.judgements}

    @property
    def verdict_over_data(self) -> str | None:
        """What the ranks over several data sets say; None for one."""
        if self.ranks is None:
            return None
        labels = [candidate.label for candidate in self.plan.losses]
        return verdict_over_data(self.ranks, labels, len(self.judgements), self.plan.settings)

    @property
    def failures(self) -> list[tuple[Task, str]]:
        """The runs that failed, and of what."""
        return failures(self.plan, self.runs)

    @property
    def better(self) -> dict[str, list[str]]:
        """For each data set the losses that are better than the reference."""
        return {one.name: [row.label for row in one.rows if row.state == "better"] for one in self.judgements}

    def __str__(self) -> str:
        """Return the verdicts."""
        lines = [f"{name}: {text}" for name, text in self.verdicts.items()]
        over = self.verdict_over_data
        return "\n".join([*lines, over] if over is not None else lines)


def settings_of(
    model: Any = TabularMLP,
    optimizer: Any = None,
    seeds: int = 5,
    folds: int | None = None,
    repeats: int | None = None,
    metric: Metric = "average_precision",
    worth: float = 0.01,
    alpha: float = 0.05,
    max_epochs: int = 100,
    patience: int = 10,
    stop_by: StopBy | None = None,
    trials: int = 0,
    precision: float = 0.9,
    accelerator: str = "cpu",
) -> Settings:
    """Return what holds for all runs, from the arguments of :func:`compare`."""
    if stop_by is None:
        stop_by = "log_loss" if metric in ("log_loss", "brier") else "average_precision"
    chosen = functools.partial(torch.optim.AdamW, lr=1e-3) if optimizer is None else optimizer
    return Settings(
        model_spec(model), optimizer_spec(chosen), seeds, folds, repeats, metric, worth, alpha, max_epochs, patience,
        stop_by, trials, precision, accelerator,
    )  # fmt: skip


def compare(
    losses: Sequence[Any],
    data: Any,
    *,
    model: Any = TabularMLP,
    optimizer: Any = None,
    seeds: int = 5,
    folds: int | None = None,
    repeats: int | None = None,
    metric: Metric = "average_precision",
    worth: float = 0.01,
    alpha: float = 0.05,
    max_epochs: int = 100,
    patience: int = 10,
    stop_by: StopBy | None = None,
    trials: int = 0,
    precision: float = 0.9,
    accelerator: str = "cpu",
    folder: str | os.PathLike[str] = "comparison",
    jobs: int | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> Comparison:
    r"""Train the same model with several losses on the same splits, and say which one wins, if any.

    Plain BCE is always the first, and what the others are compared with. On a split all losses begin with the same
    weights and see the same batches. The epoch, the threshold of each label (by F1) and the calibration (Platt's) come
    from the validation rows; everything is judged on test rows. A finished run is a file in ``folder``: a comparison
    that was killed goes on where it stopped.

    The difference to BCE is that of the mean over splits. Where each split has test rows of its own, its interval is
    that of the corrected resampled t-test of Nadeau and Bengio; where all have the same (a file for the test, or a data
    module that cannot be split anew) the variance of seeds and that of bootstrapped test rows add up. P-values are
    adjusted by Holm for the number of losses. Sample weights are learnt from, but do not count in the scores.

    On several cores the runs are processes that import the script again: it needs
    ``if __name__ == "__main__":`` around the call, or ``jobs=1``.

    Args:
        losses: Texts such as "FocalLoss(gamma=2)", mappings with class_path and init_args, or instances. Arguments that
            the training rows decide may be left out: counts and priors; ``pos_weight="auto"``.
        data: A data module or a mapping with class_path and init_args, several of them, or a mapping from names to
            them.
        model: The backbone, a class or an instance; ``in_features`` and ``out_features`` are filled in by the data.
        optimizer: As for :class:`BinaryClassifier`.
        seeds: How many random splits, each with its own weights and order. Not with ``folds``.
        folds: Cut each data set into so many stratified folds instead.
        repeats: How often, each time in another way. None is 1.
        metric: What decides: "average_precision", "auroc", "f1", "log_loss", "brier" or "recall_at_precision".
        worth: The smallest difference in it that is worth having.
        alpha: One minus how sure it has to be.
        max_epochs: The most epochs.
        patience: How many epochs without a better one end a training.
        stop_by: What tells the best epoch, on the validation rows: "average_precision", which no loss minimises and no
            calibration changes, with the log-loss where it is equal; "log_loss" after calibration, which is near to
            what BCE minimises; or "own_loss", the loss that is trained. None is "log_loss" where log-loss or Brier
            decide, and else "average_precision".
        trials: Trainings of a search of each loss's own hyper-parameters and the learning rate, for each split anew.
            BCE gets as many for its learning rate. 0 searches nothing.
        precision: The least precision of "recall_at_precision".
        accelerator: What Lightning trains on.
        folder: Where runs and searches are kept, and by the command the report.
        jobs: How many runs at a time, each in a process with one thread. None is one for each core that this process
            may use.
        retry_failed: Whether to make runs again that failed before.
        progress: Whether to show how many runs are finished and how long the others take.

    Raises:
        ValueError: If an argument is out of range or has no effect, or the data cannot be used.
        SpecError: If a loss, model or data module cannot be written down or built.

    Example:
        >>> import tempfile
        >>> from lightning_bce.data import BreastCancerDataModule
        >>> compared = compare(
        ...     ["FocalLoss(gamma=2)"], BreastCancerDataModule(), seeds=2, max_epochs=1, jobs=1, progress=False,
        ...     folder=tempfile.mkdtemp(),
        ... )
        >>> list(compared.verdicts), len(compared.runs), compared.failures
        (['breastcancer'], 4, [])

    References:
        Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003.
        Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """
    if folds is not None and seeds != 5:
        raise ValueError("`seeds` has no effect with `folds`: give `repeats`.")
    settings = settings_of(
        model, optimizer, seeds, folds, repeats, metric, worth, alpha, max_epochs, patience, stop_by, trials, precision,
        accelerator,
    )  # fmt: skip
    planned = plan(losses, data, settings)
    runs = make_missing(planned, Path(folder), jobs=jobs, retry_failed=retry_failed, show=progress)
    return judged(planned, runs)


def judged(planned: Plan, runs: Mapping[str, Run]) -> Comparison:
    """Return the comparison of runs that are all there."""
    judgements = judge(planned, runs)
    return Comparison(planned, runs, judgements, over_data(judgements, planned.settings))


def make_missing(
    planned: Plan,
    folder: Path,
    *,
    jobs: int | None = None,
    retry_failed: bool = False,
    shard: tuple[int, int] | None = None,
    show: bool = True,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Run]:
    """Make the runs of a plan that are not in its folder yet, and return all that are there then.

    Args:
        planned: The plan.
        folder: Where runs lie.
        jobs: How many at a time.
        retry_failed: Whether failed ones count as missing.
        shard: ``(i, n)``: make only every n-th of all runs, from the i-th on, counted from 0.
        show: Whether to show progress.
        announce: Gets a line on what was there already.
    """
    check_jobs(jobs)
    found: dict[str, Run] = {}
    for task in planned.tasks:
        run = store.read(folder / "runs", task)
        if run is not None and not (retry_failed and run.result["error"] is not None):
            found[task.key] = run
    share = planned.tasks if shard is None else planned.tasks[shard[0] :: shard[1]]
    missing = [task for task in share if task.key not in found]
    if announce is not None and found:
        announce(f"{len(found)} of {len(planned.tasks)} runs are in {folder} already.")
    processes = max(1, min(jobs or cores(), len(missing)))
    with Progress(missing, show) as shown:

        def report(task: Task, run: Run) -> None:
            found[task.key] = run
            shown.add(task, run)

        run_all(missing, folder, processes, report)
    return found


def check_jobs(jobs: int | None) -> None:
    """Refuse a number of processes that is none.

    Raises:
        ValueError: If it is below 1.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"`jobs` is {jobs}; at least 1 was expected, or None for all cores.")


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
