"""Comparisons as a user makes them: what is the same for every loss, what must win, what must not."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import OWN, quick, write_outliers, write_table

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, DiceLoss, FocalLoss, TabularMLP
from lightning_bce.comparison import compare
from lightning_bce.comparison.candidates import candidates, filled
from lightning_bce.comparison.scores import SCORES
from lightning_bce.data import (
    BinaryDataModule,
    BreastCancerDataModule,
    DigitsDataModule,
    ManyLabelDataModule,
    TableDataModule,
)
from lightning_bce.spec import SpecError

TWIN = f"{OWN}.Twin"


def results(compared, label):
    return [run.result for task in compared.plan.tasks if task.label == label for run in [compared.runs[task.key]]]


def test_data_for_a_head_are_refused(tmp_path):
    (tmp_path / "few.txt").write_text("7 3 2\n" + "0 1:1\n1 2:1\n" * 3 + "0 1:1\n")
    with pytest.raises(ValueError, match=r"SparseTarget; a tensor .* was expected"):
        quick(["FocalLoss"], data=ManyLabelDataModule(tmp_path / "few.txt"), seeds=1)


# -- what is the same for every loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Twin", "Drawing"])  # one that draws random numbers when it is made
def test_bce_by_another_name_gets_the_same_numbers(name):  # so weights, order, dropout and stopping are the same
    compared = quick([f"{OWN}.{name}"], max_epochs=3)
    told = [*SCORES, "thresholds", "calibration", "best_epoch"]
    of_bce, of_twin = (
        [[run[key] for key in told] for run in results(compared, x)] for x in ("BCEWithLogitsLoss", name)
    )
    assert of_bce == of_twin and len(of_bce) == 2


def test_a_comparison_leaves_the_random_state_and_the_threads_alone():
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    quick(["FocalLoss"], seeds=1, max_epochs=1)
    assert torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == threads


def test_seeds_differ_in_split_and_weights():
    first, second = results(quick(["FocalLoss"]), "BCEWithLogitsLoss")
    assert first["test_rows"] != second["test_rows"] and first["brier"] != second["brier"]


def test_folds_test_every_row_once():
    compared = quick(["FocalLoss"], folds=3, max_epochs=1)
    found = results(compared, "BCEWithLogitsLoss")
    assert [run["fold"] for run in found] == [0, 1, 2]
    assert sum(run["rows"]["test"] for run in found) == 257
    assert all(sum(run["rows"].values()) == 257 for run in found)
    labels = [run.arrays["target"].sum() for run in compared.runs.values() if run.result["loss"] == "FocalLoss"]
    assert max(labels) - min(labels) <= 1  # stratified


def test_scores_are_those_of_the_test_rows_by_what_validation_rows_decided():
    compared = quick(["FocalLoss"], seeds=1)
    run = next(iter(compared.runs.values()))
    arrays = run.arrays
    scale, bias = (np.array(run.result["calibration"][name]) for name in ("scale", "bias"))
    probability = 1 / (1 + np.exp(-(arrays["logits"].astype(float) * scale + bias)))
    np.testing.assert_allclose(arrays["probability"], probability, rtol=1e-5)
    np.testing.assert_array_equal(arrays["decision"], probability > np.array(run.result["thresholds"]))
    data = TableDataModule("table.csv", seed=0)
    target = torch.cat([batch["target"] for batch in data.test_dataloader()])
    np.testing.assert_array_equal(arrays["target"], target.numpy())


# -- what wins --------------------------------------------------------------------------------------------------------


def planted(losses, **options):
    write_outliers(Path("outliers.csv"))
    write_outliers(Path("clean.csv"), seed=1, rows=200, share=0.0)
    return quick(
        losses,
        TableDataModule("outliers.csv", test_path="clean.csv", batch_size=8),
        model={"class_path": f"{OWN}.Pretrained"},
        optimizer=functools.partial(torch.optim.AdamW, lr=0.3, weight_decay=0.0),
        seeds=3,
        **options,
    )


def test_a_robust_loss_wins_where_a_fifth_of_the_labels_are_gross_errors():
    compared = planted(["GeneralizedCELoss(q=0.9)"])
    assert compared.better == {"outliers": ["GeneralizedCELoss(q=0.9)"]}
    row = compared.judgements[0].rows[1]
    assert row.interval[0] > 0.3 and row.p_value < 0.001
    assert compared.verdicts["outliers"].startswith("Use GeneralizedCELoss(q=0.9): its average precision is better")
    assert "surely" in compared.verdicts["outliers"] and "3 splits are few" in compared.verdicts["outliers"]


def test_bce_under_two_other_names_does_not_win():
    compared = quick([TWIN, "FocalLoss(gamma=0)"], seeds=3)
    assert [row.state for row in compared.judgements[0].rows[1:]] == ["equal", "equal"]
    assert compared.better == {"table": []}
    assert compared.verdicts["table"].startswith(
        "Stay with BCE and a tuned threshold: no loss here is better by the 0.01"
    )


def test_a_loss_that_learns_the_opposite_is_worse():
    compared = quick([f"{OWN}.Backwards"], BreastCancerDataModule(batch_size=64), seeds=3, stop_by="own_loss")
    assert compared.judgements[0].rows[1].state == "worse"
    assert "Worse than BCEWithLogitsLoss: Backwards." in compared.verdicts["breastcancer"]


def test_a_score_that_is_better_when_lower_is_turned_around():
    by_precision = planted(["GeneralizedCELoss(q=0.9)"])
    by_loss = planted(["GeneralizedCELoss(q=0.9)"], metric="log_loss", stop_by="average_precision", worth=0.001)
    means = [[row.scores["log_loss"][0] for row in one.judgements[0].rows] for one in (by_precision, by_loss)]
    estimate = by_loss.judgements[0].rows[1].estimate
    assert means[0] == means[1] and estimate.mean == pytest.approx(means[1][0] - means[1][1])


def test_one_training_on_one_test_set_says_what_it_cannot_know():
    compared = quick(["FocalLoss"], seeds=1)
    judgement = compared.judgements[0]
    assert judgement.method == "same rows" and judgement.rows[1].estimate.standard_error > 0
    assert "one training of each loss" in compared.verdicts["table"]


# -- several data sets ------------------------------------------------------------------------------------------------


def test_several_data_sets_are_ranked():
    write_table(Path("other.csv"), 1)
    compared = quick(["FocalLoss", "BrierLoss"], [TableDataModule("table.csv"), TableDataModule("other.csv")])
    assert [one.name for one in compared.judgements] == ["table", "other"]
    table = [[row.scores["average_precision"][0] for row in one.rows] for one in compared.judgements]
    assert sum(compared.ranks.mean) == 6 and compared.ranks.least_p == 0.5
    assert (
        min(compared.ranks.mean) == compared.ranks.mean[int(np.argmax(np.mean(np.argsort(np.argsort(table)), axis=0)))]
    )
    assert "So few data sets could not show a difference" in compared.verdict_over_data
    assert str(compared).count("\n") == 2


def test_data_sets_are_named_and_given_once():
    named = quick(["FocalLoss"], {"mine": TableDataModule("table.csv")}, seeds=1, max_epochs=1)
    assert list(named.verdicts) == ["mine"]
    with pytest.raises(ValueError, match="Two data sets hold the same rows"):
        quick(["FocalLoss"], [TableDataModule("table.csv"), TableDataModule("table.csv")])


# -- what is given ----------------------------------------------------------------------------------------------------


def test_losses_are_texts_mappings_and_instances():
    losses = [
        "FocalLoss(gamma=1)",
        {"class_path": "BrierLoss"},
        FocalLoss(gamma=3.0),
        0.5 * BCEWithLogitsLoss() + DiceLoss(),
        "LogitAdjustedLoss",
        "BCEWithLogitsLoss(pos_weight='auto')",
    ]
    compared = quick(losses, seeds=1, max_epochs=1)
    assert not compared.failures
    labels = [candidate.label for candidate in compared.plan.losses]
    assert labels[:4] == ["BCEWithLogitsLoss", "FocalLoss(gamma=1)", "BrierLoss", "FocalLoss(gamma=3.0)"]
    assert labels[4].startswith("CombinedLoss(") and labels[5:] == [
        "LogitAdjustedLoss",
        "BCEWithLogitsLoss(pos_weight='auto')",
    ]


def test_what_a_loss_leaves_to_the_data_is_learnt_from_the_known_training_labels():
    target = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    known = np.array([[True, False], [True, True], [True, True], [True, True]])

    def arguments(text):
        return filled(candidates([text])[1].spec, target, known)["init_args"]

    assert arguments("LogitAdjustedLoss")["prior"] == pytest.approx([1 / 4, 2 / 3])
    assert arguments("MarginBCELoss")["counts"] == [1, 2]
    assert arguments("FocalLoss(alpha='auto')")["alpha"] == pytest.approx([3 / 4, 1 / 3])
    assert arguments("BCEWithLogitsLoss(pos_weight={'rule': 'ratio', 'cap': 2})")["pos_weight"] == [2, 0.5]
    assert arguments("LogitAdjustedLoss(prior=[0.1, 0.2])")["prior"] == [0.1, 0.2]  # given, and kept


def test_a_model_an_optimizer_and_several_labels():
    compared = quick(
        ["FocalLoss"], DigitsDataModule(digit=None), seeds=1, max_epochs=1,
        model=TabularMLP(64, 10, hidden=[7]), optimizer=functools.partial(torch.optim.SGD, lr=0.1),
    )  # fmt: skip
    assert not compared.failures and len(results(compared, "FocalLoss")[0]["thresholds"]) == 10


def test_unknown_labels_are_left_out_everywhere():
    lines = Path("table.csv").read_text().splitlines()
    lines[1::5] = [line.rpartition(",")[0] + ",?" for line in lines[1::5]]
    Path("unknown.csv").write_text("\n".join(lines))
    compared = quick(["FocalLoss", "DiceLoss"], TableDataModule("unknown.csv", missing_targets="ignore"))
    assert not compared.failures
    assert not all(run.arrays["known"].all() for run in compared.runs.values())


class Foreign(BinaryDataModule):
    """A data module of other people's, which keeps no arguments."""

    num_features, num_labels, class_names = 1, 1, ["y"]

    def __init__(self, name):
        super().__init__()
        self.name = name

    def rows(self, part):
        return None


@pytest.mark.parametrize(
    ("losses", "data", "options", "answer"),
    [
        ([], None, {}, "There is no loss to compare"),
        (["BCEWithLogitsLoss"], None, {}, "There is no loss to compare"),
        (["FocalLoss", "FocalLoss()"], None, {}, "given twice"),
        (["FocalLos"], None, {}, "no such class"),
        (["FocalLoss(gamma=-1)"], None, {}, "`gamma` is -1"),
        (["PositiveUnlabeledLoss"], None, {}, "prior"),
        ([3], None, {}, "is no loss"),
        (["FocalLoss"], 3, {}, "is no data module"),
        (["FocalLoss"], [], {}, "There are no data"),
        (["FocalLoss"], Foreign("a"), {}, "save_hyperparameters"),
        (["FocalLoss"], TableDataModule("nowhere.csv"), {}, "There is no file"),
        (["FocalLoss"], BreastCancerDataModule(test_fraction=0), {}, "`test_fraction` above 0"),
        (["FocalLoss"], BreastCancerDataModule(val_fraction=0), {}, "`val_fraction` above 0"),
        (["FocalLoss"], TableDataModule("table.csv", test_path="table.csv"), {"folds": 3}, "Folds cut test rows"),
        (["FocalLoss"], None, {"seeds": 0}, "`seeds` is 0"),
        (["FocalLoss"], None, {"repeats": 2}, "`repeats` has no effect"),
        (["FocalLoss"], None, {"folds": 3, "seeds": 3}, "`seeds` has no effect"),
        (["FocalLoss"], None, {"folds": 1}, "`folds` is 1"),
        (["FocalLoss"], None, {"metric": "accuracy"}, "`metric` is 'accuracy'"),
        (["FocalLoss"], None, {"stop_by": "luck"}, "`stop_by` is 'luck'"),
        (["FocalLoss"], None, {"worth": -1.0}, "`worth` is -1"),
        (["FocalLoss"], None, {"alpha": 0.0}, "`alpha` is 0"),
        (["FocalLoss"], None, {"jobs": 0}, "`jobs` is 0"),
        (["FocalLoss"], None, {"model": 3}, "`model` is 3"),
        (["FocalLoss"], None, {"model": {"class_path": "TabularMLP", "init_args": {"hidden": [0]}}}, "width"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(losses, data, options, answer, monkeypatch):
    monkeypatch.setattr(BinaryClassifier, "training_step", None)
    with pytest.raises((ValueError, TypeError, SpecError), match=answer):
        quick(losses, data, **options)


def test_a_warning_of_the_data_is_kept_for_the_report():
    Path("constant.csv").write_text("a,b,y\n" + "".join(f"{i},7,{i % 2}\n" for i in range(60)))
    compared = compare(["FocalLoss"], TableDataModule("constant.csv"), seeds=1, max_epochs=1, jobs=1, progress=False)
    assert any("constant" in remark for remark in compared.plan.data[0].remarks)
