"""Laws of the split: everything once, every label its share, the same for the same seed."""

import numpy as np
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch

from lightning_bce.data import BreastCancerDataModule
from lightning_bce.data.splits import fold_split, stratified_split, warn_about_labels

FRACTIONS = {"train": 0.65, "val": 0.15, "test": 0.2}


def random_labels(rows=257, labels=7, seed=3):
    rates = np.linspace(0.02, 0.6, labels)
    return (np.random.default_rng(seed).random((rows, labels)) < rates).astype(np.float32)


@pytest.mark.parametrize("labels", [1, 7])
def test_every_row_is_in_one_part(labels):
    parts = stratified_split(random_labels(labels=labels), FRACTIONS, seed=1)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(257))
    assert all((np.diff(rows) > 0).all() for rows in parts.values())


def test_one_label_keeps_its_share_to_one_row():
    target = random_labels(rows=1001, labels=1)
    for name, rows in stratified_split(target, FRACTIONS).items():
        assert abs(len(rows) - FRACTIONS[name] * 1001) <= 1
        assert abs(target[rows].sum() - FRACTIONS[name] * target.sum()) <= 1


def test_many_labels_keep_their_shares_nearly():
    target = random_labels(rows=1001)
    for name, rows in stratified_split(target, FRACTIONS).items():
        assert abs(len(rows) - FRACTIONS[name] * 1001) <= 0.03 * 1001
        wanted = FRACTIONS[name] * target.sum(axis=0)
        assert (abs(target[rows].sum(axis=0) - wanted) <= 2 + 0.1 * wanted).all()


@pytest.mark.parametrize("labels", [1, 7])
def test_as_many_positives_as_parts_give_one_to_each(labels):
    target = np.zeros((257, labels), dtype=np.float32)
    for label in range(labels):
        target[[label, 100 + label, 200 + label], label] = 1
    for rows in stratified_split(target, {"train": 0.98, "val": 0.01, "test": 0.01}).values():
        assert (target[rows].sum(axis=0) == 1).all()


def test_same_seed_same_split_other_seed_other_split():
    target = random_labels()
    first, again, other = (stratified_split(target, FRACTIONS, seed=seed) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in FRACTIONS)
    assert any(len(first[name]) != len(other[name]) or (first[name] != other[name]).any() for name in FRACTIONS)


def test_split_leaves_the_global_random_states_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    stratified_split(random_labels(), FRACTIONS)
    assert (torch.get_rng_state() == torch_state).all()
    assert (np.random.get_state()[1] == numpy_state).all()


def test_unknown_labels_count_as_not_positive():
    target = random_labels(labels=2)
    known = stratified_split(target, FRACTIONS)
    unknown = stratified_split(np.where(target == 0, np.nan, target), FRACTIONS)
    assert all((known[name] == unknown[name]).all() for name in FRACTIONS)


def test_fraction_zero_is_no_row():
    parts = stratified_split(random_labels(), {"train": 0.8, "val": 0.0, "test": 0.2})
    assert len(parts["val"]) == 0
    assert len(parts["train"]) + len(parts["test"]) == 257


def test_a_part_that_would_be_empty_is_refused():
    with pytest.raises(ValueError, match=r"'val' is to hold 0.01 of 7 rows, which is no row"):
        stratified_split(np.zeros(7), {"train": 0.99, "val": 0.01})


@pytest.mark.parametrize("fractions", [{"train": 0.5, "val": 0.6}, {"train": 1.1, "val": -0.1}, {"train": 0.9}])
def test_fractions_that_are_no_whole_are_refused(fractions):
    with pytest.raises(ValueError, match="their sum must be 1"):
        stratified_split(np.ones(7), fractions)


def test_one_class_only_is_warned_of_with_counts():
    with pytest.warns(UserWarning, match=r"1 of 2 labels .* 'b'.* train 0 positive and 3 negative"):
        warn_about_labels({"train": [[0, 0], [1, 0], [1, np.nan], [1, 0]], "val": []}, ["a", "b"])


def test_both_classes_everywhere_is_no_warning():
    warn_about_labels({"train": random_labels(), "val": random_labels()}, [f"label {c}" for c in range(7)])


@pytest.mark.parametrize("labels", [1, 7])
def test_every_row_is_a_test_row_in_one_fold_and_labels_keep_their_share(labels):
    target = random_labels(labels=labels)
    folds = [fold_split(target, fold, 4, 0.15, seed=2) for fold in range(4)]
    assert sorted(np.concatenate([parts["test"] for parts in folds]).tolist()) == list(range(257))
    for parts in folds:
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(257))
        assert abs(len(parts["val"]) - 0.15 * 257) < 0.05 * 257
        assert np.abs(target[parts["test"]].sum(axis=0) - target.sum(axis=0) / 4).max() < 2 + 0.1 * target.sum() / 4


@pytest.mark.parametrize(("fold", "folds", "val"), [(0, 1, 0.1), (3, 3, 0.1), (-1, 3, 0.1), (0, 2, 0.5)])
def test_folds_that_are_none_are_refused(fold, folds, val):
    with pytest.raises(ValueError, match=r"is none|something is left to train on"):
        fold_split(random_labels(), fold, folds, val)


def test_a_data_module_uses_the_fold_it_is_told_before_it_is_read():
    seen = []
    for fold in range(3):
        data = BreastCancerDataModule(val_fraction=0.1)
        data.use_fold(fold, 3)
        seen += data.rows("test").columns["id"].tolist()
        with pytest.raises(RuntimeError, match="read and cut already"):
            data.use_fold(fold, 3)
    assert sorted(seen) == list(range(569))
    with pytest.raises(ValueError, match="none to cut"):
        BreastCancerDataModule(test_fraction=0).use_fold(0, 3)
    with pytest.raises(ValueError, match="Fold 3 of 3 is none"):
        BreastCancerDataModule().use_fold(3, 3)
