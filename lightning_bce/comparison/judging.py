"""From runs to differences: each loss against the reference on every data set, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lightning_bce.comparison.planning import Plan, Settings
from lightning_bce.comparison.scores import SCORES, Judged, score_of
from lightning_bce.comparison.statistics import Estimate, Ranks, holm, ranks, resampled_t, same_rows_t
from lightning_bce.comparison.store import Run, Task

Array = npt.NDArray[Any]
State = Literal["better", "worse", "equal", "open", "failed"]
Method = Literal["resampled", "same rows"]

COSTS = {"cpu_seconds": "CPU s", "seconds": "s", "peak_mib": "MiB", "epochs": "epochs"}
"""What a run took, by the names of its result, with the heads of their columns."""

DRAWS = 1000
"""Bootstrap draws of the test rows."""

_CELLS = 2**21  # weights in memory at a time


@dataclass(frozen=True)
class Row:
    """A loss on a data set.

    Args:
        label: The loss.
        scores: Mean and standard deviation over the splits of each score, and cost.
        failed: How many of its runs failed.
        errors: What they failed of, each once.
        estimate: Its mean difference to the reference in the metric, above 0 where it is better. None for the
            reference, and where there is no split on which both have a score.
        splits: On how many splits that is.
        interval: The interval of the difference.
        p_value: Of no difference, adjusted by Holm for the number of losses.
        state: "better" or "worse" than the reference; "equal" if the difference is surely not worth having; "open".
    """

    label: str
    scores: dict[str, tuple[float, float]]
    failed: int
    errors: list[str]
    estimate: Estimate | None = None
    splits: int = 0
    interval: tuple[float, float] = (math.nan, math.nan)
    p_value: float = math.nan
    state: State = "open"


@dataclass(frozen=True)
class Judgement:
    """All losses on a data set; the reference is the first.

    Args:
        name: The data set.
        rows: One for each loss.
        method: Whether each split had test rows of its own, or all were judged on the same.
        splits: How many there were.
        enough: How many splits would bring every interval below what is worth it, as far as that can be told; None
            where more splits would not.
    """

    name: str
    rows: list[Row]
    method: Method
    splits: int
    enough: int | None


def judge(plan: Plan, runs: Mapping[str, Run]) -> list[Judgement]:
    """Return the judgement of each data set.

    Args:
        plan: What was run.
        runs: The runs by the keys of their tasks, all of them.
    """
    return [_judge(one.name, plan, runs) for one in plan.data]


def over_data(judgements: Sequence[Judgement], settings: Settings) -> Ranks | None:
    """Return the ranks of the losses over several data sets; None for one, or if a loss has no score somewhere."""
    sign = 1 if SCORES[settings.metric].higher_is_better else -1
    table = np.array([[sign * row.scores[settings.metric][0] for row in one.rows] for one in judgements])
    if len(judgements) < 2 or np.isnan(table).any():
        return None
    return ranks(table, settings.alpha)


def _judge(name: str, plan: Plan, runs: Mapping[str, Run]) -> Judgement:
    settings = plan.settings
    grid: dict[str, list[Run]] = {}
    for task in plan.tasks:
        if task.data_name == name:
            grid.setdefault(task.label, []).append(runs[task.key])
    reference, *others = (candidate.label for candidate in plan.losses)
    tested = {run.result["test_rows"] for made in grid.values() for run in made if run.result["error"] is None}
    method: Method = "same rows" if len(tested) == 1 else "resampled"
    draws = _bootstrap(grid, settings) if method == "same rows" else {}
    rows = [_row(reference, grid[reference])]
    for label in others:
        rows.append(_compared(label, grid, reference, method, draws, settings))
    adjusted = holm([row.estimate.p_value() for row in rows if row.estimate is not None])
    rows = [rows[0], *_with_states(rows[1:], adjusted, settings)]
    return Judgement(name, rows, method, len(grid[reference]), _enough(rows, grid, reference, method, draws, settings))


def _row(label: str, made: Sequence[Run], **compared: Any) -> Row:
    told = [run.result for run in made]
    fine = [result for result in told if result["error"] is None]
    scores = {name: _mean_and_deviation([r[name] for r in fine]) for name in (*SCORES, *COSTS)}
    errors = list(dict.fromkeys(result["error"] for result in told if result["error"] is not None))
    return Row(label, scores, len(told) - len(fine), errors, **compared)


def _mean_and_deviation(values: Sequence[float | None]) -> tuple[float, float]:
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return math.nan, math.nan
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else 0.0


def _differences(label: str, grid: Mapping[str, Sequence[Run]], reference: str, metric: str) -> dict[int, float]:
    """Return by how much a loss is better on each split on which both have a score."""
    sign = 1 if SCORES[metric].higher_is_better else -1
    pairs = enumerate(zip(grid[label], grid[reference], strict=True))
    found = {place: (own.result.get(metric), other.result.get(metric)) for place, (own, other) in pairs}
    return {p: sign * (own - other) for p, (own, other) in found.items() if own is not None and other is not None}


def _estimate(
    differences: dict[int, float],
    label: str,
    grid: Mapping[str, Sequence[Run]],
    reference: str,
    method: Method,
    draws: Mapping[str, dict[int, Array]],
) -> Estimate:
    values = list(differences.values())
    if method == "resampled":
        if len(values) < 2:
            return Estimate(values[0], math.inf, 1.0)  # nothing is known of how it varies
        return resampled_t(values, _test_share(grid[reference]))
    return same_rows_t(values, _row_variance(differences, label, reference, draws))


def _test_share(made: Sequence[Run]) -> float:
    sizes = next(run.result["rows"] for run in made if run.result["error"] is None)
    # Validation rows are learnt from too: the epoch, the threshold and the calibration are chosen on them.
    return float(sizes["test"] / (sizes["train"] + sizes["val"]))


def _row_variance(
    differences: dict[int, float], label: str, reference: str, draws: Mapping[str, dict[int, Array]]
) -> float:
    of_draws = np.mean([draws[label][place] - draws[reference][place] for place in differences], axis=0)
    return float(np.nanvar(of_draws, ddof=1))


def _compared(
    label: str,
    grid: Mapping[str, Sequence[Run]],
    reference: str,
    method: Method,
    draws: Mapping[str, dict[int, Array]],
    settings: Settings,
) -> Row:
    differences = _differences(label, grid, reference, settings.metric)
    if not differences:
        return _row(label, grid[label], state="failed")
    estimate = _estimate(differences, label, grid, reference, method, draws)
    interval = estimate.interval(1 - settings.alpha)
    return _row(label, grid[label], estimate=estimate, splits=len(differences), interval=interval)


def _with_states(rows: Sequence[Row], adjusted: Sequence[float], settings: Settings) -> list[Row]:
    left = iter(adjusted)
    found = []
    for row in rows:
        if row.estimate is None:
            found.append(row)
            continue
        p_value = next(left)
        # Two one-sided tests: the interval of twice the level lies within what is not worth it.
        low, high = row.estimate.interval(1 - 2 * settings.alpha)
        state: State = "open"
        if -settings.worth < low and high < settings.worth:
            state = "equal"
        elif p_value < settings.alpha:
            state = "better" if row.estimate.mean > 0 else "worse"
        found.append(Row(**{**vars(row), "p_value": p_value, "state": state}))
    return found


def _enough(
    rows: Sequence[Row],
    grid: Mapping[str, Sequence[Run]],
    reference: str,
    method: Method,
    draws: Mapping[str, dict[int, Array]],
    settings: Settings,
) -> int | None:
    """Return the smallest number of splits that would tell for every open loss, if they vary as these do."""
    wanted = 0
    for row in rows:
        if row.state != "open" or row.estimate is None:
            continue
        differences = _differences(row.label, grid, reference, settings.metric)
        if len(differences) < 2:
            return None
        for splits in range(len(differences) + 1, 101):
            # As many differences with the same variance, for the one formula to be used.
            again = list(differences.values())
            centre, deviation = float(np.mean(again)), float(np.std(again, ddof=1))
            made = centre + deviation * _unit(splits)
            if method == "resampled":
                estimate = resampled_t(list(made), _test_share(grid[reference]))
            else:
                estimate = same_rows_t(list(made), _row_variance(differences, row.label, reference, draws))
            low, high = estimate.interval(1 - settings.alpha)
            if high - low < 2 * settings.worth:
                wanted = max(wanted, splits)
                break
        else:
            return None
    return wanted or None


def _unit(count: int) -> Array:
    """Return so many numbers with the mean 0 and the standard deviation 1."""
    values = np.arange(count, dtype=float)
    values = values - values.mean()
    unit: Array = values / values.std(ddof=1)
    return unit


def _bootstrap(grid: Mapping[str, Sequence[Run]], settings: Settings) -> dict[str, dict[int, Array]]:
    """Return the metric of every run on test rows that are drawn again; the draws are the same for all runs."""
    made = {
        (label, place): run
        for label, row in grid.items()
        for place, run in enumerate(row)
        if run.result["error"] is None
    }
    found: dict[str, dict[int, Array]] = {}
    sign = 1 if SCORES[settings.metric].higher_is_better else -1
    count = len(next(iter(made.values())).arrays["target"])
    generator = np.random.default_rng(0)
    parts: dict[tuple[str, int], list[Array]] = {key: [] for key in made}
    at_once = max(1, min(DRAWS, _CELLS // count))
    for start in range(0, DRAWS, at_once):
        size = min(at_once, DRAWS - start)
        weight = generator.multinomial(count, np.full(count, 1 / count), size=size).astype(float)
        for key, run in made.items():
            judged = Judged(**run.arrays)
            parts[key].append(sign * score_of(settings.metric, judged, settings.precision, weight))
    for (label, place), values in parts.items():
        found.setdefault(label, {})[place] = np.concatenate(values)
    return found


def failures(plan: Plan, runs: Mapping[str, Run]) -> list[tuple[Task, str]]:
    """Return the runs that failed, and of what."""
    return [(task, error) for task in plan.tasks if (error := runs[task.key].result["error"]) is not None]
