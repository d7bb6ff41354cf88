"""A small search of a loss's own hyper-parameters on the validation rows, with the same budget for each loss."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lightning_bce.comparison.spaces import Space

T = TypeVar("T")
Values = dict[str, float]


def search(
    name: str,
    space: Space,
    trials: int,
    start: Values,
    train: Callable[[Values], tuple[float, T]],
    folder: Path,
) -> tuple[Values, T | None, int]:
    """Return the best values that so many trainings found.

    Each search is an Optuna study in an SQLite file of its own: a file that several processes share would be locked,
    and on a network drive damaged. A search that was killed goes on where it stopped, to the same result: what is
    tried next depends on the finished trials alone.

    Args:
        name: The study's name.
        space: What is searched.
        trials: How many trainings, the first with ``start``.
        start: Values as the loss has them without a search.
        train: Trains with some values and returns what is to be large, and anything.
        folder: Where ``<name>.db`` lies.

    Returns:
        The best values, what ``train`` returned with them (None if that was in a process that was killed), and how
        many trials failed.

    Raises:
        ArithmeticError: If every trial ended in something that is no number.
    """
    import optuna

    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / f'{name}.db'}")
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    spans: dict[str, Any] = {key: optuna.distributions.FloatDistribution(*span) for key, span in space.items()}
    kept: dict[int, T] = {}
    try:
        while len(done := study.get_trials(deepcopy=False)) < trials:
            place = len(done)
            values = start if not done else _next(done, spans, trials, zlib.crc32(f"{name}/{place}".encode()))
            found: dict[str, Any]
            try:
                value, kept[place] = train(values)
                found = {"value": value, "state": optuna.trial.TrialState.COMPLETE}
            except (ArithmeticError, ValueError) as error:
                found = {"state": optuna.trial.TrialState.FAIL, "user_attrs": {"error": str(error)}}
            # Added when it is over: one that is killed has never been there.
            study.add_trial(optuna.trial.create_trial(params=values, distributions=spans, **found))
    finally:
        storage.remove_session()
        storage.engine.dispose()
    complete = [place for place, trial in enumerate(done) if trial.value is not None]
    if not complete:
        raise ArithmeticError(f"All {trials} trials failed; the last: {done[-1].user_attrs.get('error')}")
    best = max(complete, key=lambda place: (done[place].value, -place))
    return dict(done[best].params), kept.get(best), len(done) - len(complete)


def _next(done: list[Any], spans: dict[str, Any], trials: int, seed: int) -> Values:
    """Return what is tried after some trials: of them and of a seed, whatever a process that was killed had begun."""
    import optuna

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, trials // 4))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(done)
    return {key: float(value) for key, value in study.ask(spans).params.items()}


def require_optuna() -> None:
    """Raise with what to install where Optuna is missing.

    Raises:
        ImportError: If it is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("optuna") is None:
        raise ImportError("A search of hyper-parameters needs Optuna: pip install 'lightning_bce[compare]'.")
