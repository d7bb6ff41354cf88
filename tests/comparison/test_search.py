"""The search of hyper-parameters: the same budget for each loss, and the same end after a restart."""

import inspect
from pathlib import Path

import pytest
from comparing import quick

import lightning_bce.losses
from lightning_bce.comparison.spaces import SPACES, Range, space_of
from lightning_bce.losses import BinaryLoss
from lightning_bce.spec import build

optuna = pytest.importorskip("optuna", reason="a search needs Optuna: pip install 'lightning_bce[compare]'")
from lightning_bce.comparison.searching import search  # noqa: E402

SPACE = {"x": Range(-1.0, 1.0), "rate": Range(0.01, 1.0, True)}
START = {"x": 0.9, "rate": 0.5}


class Killed(BaseException):
    pass


def hill(seen, killed_at=None):
    def train(values):
        if len(seen) == killed_at:
            raise Killed
        seen.append(dict(values))
        return -((values["x"] - 0.3) ** 2) - abs(values["rate"] - 0.1), len(seen)

    return train


def test_a_search_begins_at_the_start_and_keeps_within_its_space_and_budget():
    seen = []
    best, kept, failed = search("a", SPACE, 12, START, hill(seen), Path("s"))
    assert len(seen) == 12 and seen[0] == START and failed == 0
    assert all(-1 <= values["x"] <= 1 and 0.01 <= values["rate"] <= 1 for values in seen)
    assert best == seen[kept - 1] == max(seen, key=lambda v: -((v["x"] - 0.3) ** 2) - abs(v["rate"] - 0.1))
    assert optuna.load_study(study_name="a", storage="sqlite:///s/a.db").best_params == pytest.approx(best)


@pytest.mark.parametrize("killed_at", [0, 1, 7])
def test_a_search_that_was_killed_ends_as_it_would_have(killed_at):
    whole, first, second = [], [], []
    expected = search("a", SPACE, 10, START, hill(whole), Path("whole"))
    with pytest.raises(Killed):
        search("a", SPACE, 10, START, hill(first, killed_at), Path("s"))
    best, _, _ = search("a", SPACE, 10, START, hill(second), Path("s"))
    assert first + second == whole and best == expected[0]


def test_a_trial_that_fails_counts_and_a_search_of_failures_fails():
    def half(values):
        if values["x"] > 0:
            raise ArithmeticError("no number")
        return values["x"], None

    _, _, failed = search("a", SPACE, 8, START, half, Path("s"))
    assert 0 < failed < 8
    with pytest.raises(ArithmeticError, match="All 3 trials failed; the last: no number"):
        search("b", {"x": Range(0.5, 1.0)}, 3, {"x": 0.9}, half, Path("s"))


def test_every_loss_gets_the_same_budget_and_bce_its_learning_rate():
    compared = quick(["FocalLoss", "FocalLoss(gamma=1)"], seeds=1, max_epochs=1, trials=3)
    searched = {run.result["loss"]: set(run.result["searched"]) for run in compared.runs.values()}
    assert searched == {"BCEWithLogitsLoss": {"lr"}, "FocalLoss": {"lr", "gamma"}, "FocalLoss(gamma=1)": {"lr"}}
    for task in compared.plan.tasks:
        storage = f"sqlite:///comparison/searches/{task.key}.db"
        assert len(optuna.load_study(study_name=task.key, storage=storage).trials) == 3


def test_a_searched_run_is_the_run_with_what_it_found():
    searched = quick(["FocalLoss"], seeds=1, max_epochs=2, trials=3)
    run = next(run for run in searched.runs.values() if run.result["loss"] == "FocalLoss")
    values = run.result["searched"]
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": values["lr"]}}
    plain = quick([f"FocalLoss(gamma={values['gamma']!r})"], seeds=1, max_epochs=2, optimizer=optimizer)
    again = next(run for run in plain.runs.values() if run.result["loss"].startswith("FocalLoss"))
    assert again.result["brier"] == run.result["brier"]


def test_trials_cannot_be_chosen_by_losses_that_differ():
    with pytest.raises(ValueError, match="cannot choose among the trials"):
        quick(["FocalLoss"], trials=2, stop_by="own_loss")


# -- the spaces -------------------------------------------------------------------------------------------------------


REQUIRED = {
    "DistributionBalancedLoss": {"counts": [3.0], "total": 9},
    "LogitAdjustedLoss": {"prior": 0.1},
    "MarginBCELoss": {"counts": [3.0]},
    "PositiveUnlabeledLoss": {"prior": 0.1},
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("end", ["low", "high"])
def test_every_space_is_of_a_loss_that_takes_its_ends(name, end):
    values = {key: getattr(span, end) for key, span in SPACES[name].items()}
    built = build(
        {"class_path": f"lightning_bce.{name}", "init_args": {**REQUIRED.get(name, {}), **values}}, BinaryLoss
    )
    assert all(getattr(built, key) == value for key, value in values.items() if hasattr(built, key))


@pytest.mark.parametrize("name", SPACES)
def test_every_default_lies_in_its_space(name):
    parameters = inspect.signature(getattr(lightning_bce.losses, name)).parameters
    for key, span in SPACES[name].items():
        assert span.low < span.high and (not span.log or span.low > 0)
        default = parameters[key].default
        assert default is None or span.low <= default <= span.high, key


def test_a_loss_without_a_space_is_searched_by_its_learning_rate():
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    foreign = {"class_path": "some_file.FocalLoss", "init_args": {}}
    assert space_of(foreign, optimizer) == {"lr": Range(0.01, 1.0, True)}
