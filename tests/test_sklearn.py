"""BCEClassifier: what scikit-learn expects of an estimator, and what the recipe promises."""

from __future__ import annotations

import functools
import pickle
import random

import numpy as np
import polars
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, make_multilabel_classification
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from lightning_bce import BCEWithLogitsLoss, FocalLoss, Recorded, WeightedBCELoss
from lightning_bce.decision import Objective
from lightning_bce.losses import BinaryLoss
from lightning_bce.sklearn import BCEClassifier

# Weights scale the loss of a row. A row that is there twice falls into other batches, and into other parts.
REPEATED = {"check_sample_weight_equivalence_on_dense_data": "weights are no repetitions where rows are drawn"}
TUNED = {"check_classifiers_train": "a tuned threshold is not 0.5, at which the more probable class would change"}
quick = functools.partial(BCEClassifier, max_epochs=5, learning_rate=0.01, random_state=0)


@pytest.fixture(autouse=True)
def no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def table():
    features, target = load_breast_cancer(return_X_y=True)
    return features[:300], 1 - target[:300]


@pytest.mark.filterwarnings("ignore:No(thing| threshold) can be:UserWarning")  # a check has a single positive
@parametrize_with_checks(
    [quick(), quick(FocalLoss(gamma=1.0), threshold=0.5, calibration="platt")],
    expected_failed_checks=lambda estimator: REPEATED | (TUNED if estimator.threshold is None else {}),
)
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


def test_the_recipe_learns_a_table_and_keeps_the_best_epoch(table):
    features, target = table
    classifier = BCEClassifier(random_state=0).fit(features[:200], target[:200])
    assert roc_auc_score(target[200:], classifier.decision_function(features[200:])) > 0.98
    assert classifier.best_epoch_ == classifier.n_iter_ - 10 < 90, "ten epochs without a better loss end the training"
    assert classifier.module_.label_counts.total.item() == 170, "the bias began at the rate of the training rows"


def test_the_same_seed_gives_the_same_model_and_leaves_the_random_states_alone(table):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, second, other = (quick(random_state=seed).fit(*table).predict_proba(table[0]) for seed in (3, 3, 4))
    assert np.array_equal(first, second) and not np.array_equal(first, other)
    assert torch.equal(before[0], torch.get_rng_state()) and random.getstate() == before[2]
    assert np.random.get_state()[1].tolist() == before[1]
    with_state = quick(random_state=np.random.RandomState(3)).fit(*table).predict_proba(table[0])
    assert np.array_equal(with_state, first)


def test_nothing_is_said(table, capfd, caplog):
    quick().fit(*table).predict(table[0])
    assert capfd.readouterr() == ("", "") and caplog.records == []


def test_a_prediction_is_a_positive_decision_at_the_tuned_threshold(table):
    classifier = quick(threshold=Objective("precision_at_recall", at_least=0.99)).fit(*table)
    (threshold,) = classifier.threshold_
    assert threshold < 0.5
    positive = classifier.predict_proba(table[0])[:, 1] > threshold
    assert np.array_equal(positive, classifier.predict(table[0]) == 1)
    assert np.array_equal(positive, classifier.decision_function(table[0]) > 0)
    assert quick(threshold=0.25).fit(*table).threshold_ == np.float32(0.25)


def test_probabilities_are_those_of_the_module_and_of_the_pickled_classifier(table):
    classifier = quick("FocalLoss(gamma=2)", calibration="platt").fit(*table)
    inputs = torch.from_numpy(classifier.scaler_.transform(table[0])).float()
    with torch.no_grad():
        probability, _ = classifier.module_.exportable()(inputs)
    np.testing.assert_allclose(classifier.predict_proba(table[0])[:, 1], probability, rtol=1e-4)
    content = pickle.dumps(classifier)
    assert len(content) < 200_000, "the rows are not in it"
    again = pickle.loads(content)
    assert np.array_equal(again.predict_proba(table[0]), classifier.predict_proba(table[0]))
    assert np.array_equal(again.fit(*table).predict_proba(table[0]), classifier.predict_proba(table[0]))


@pytest.mark.parametrize(
    "loss",
    [
        "BCEWithLogitsLoss(pos_weight='auto')",
        "WeightedBCELoss",
        {"class_path": "lightning_bce.losses.FocalLoss", "init_args": {"gamma": 1.0}},
        BCEWithLogitsLoss(pos_weight="auto"),
        0.5 * BCEWithLogitsLoss() + WeightedBCELoss(),
    ],
    ids=["text", "probabilities", "spec", "resolved", "combined"],
)
def test_any_loss_trains_and_stays_as_it_was(table, loss):
    classifier = quick(loss)
    before = repr(loss)
    assert clone(classifier).fit(*table).score(*table) > 0.9
    if isinstance(loss, BinaryLoss):
        assert classifier.loss is loss and repr(loss) == before


def test_labels_of_a_matrix_have_thresholds_of_their_own():
    features, target = make_multilabel_classification(200, n_features=6, n_classes=3, random_state=0)
    classifier = quick(max_epochs=20).fit(features, target)
    assert classifier.threshold_.shape == (3,) and classifier.classes_.tolist() == [0, 1, 2]
    probability = classifier.predict_proba(features)
    assert probability.shape == (200, 3)
    assert np.array_equal(classifier.predict(features), (probability > classifier.threshold_).astype(int))
    assert roc_auc_score(target, probability) > 0.8


def test_classes_keep_their_names_and_columns_theirs(table):
    names = [f"column {i}" for i in range(30)]
    frame = polars.DataFrame(table[0], schema=names)
    classifier = quick().fit(frame, np.where(table[1] == 1, "sick", "healthy"))
    assert classifier.classes_.tolist() == ["healthy", "sick"] and list(classifier.feature_names_in_) == names
    assert (classifier.predict(frame) == "sick").sum() == (quick().fit(*table).predict(table[0]) == 1).sum()


def test_a_row_of_weight_zero_is_not_there_and_weights_move_the_model(table):
    features, target = table
    weight = np.ones(300)
    weight[::7] = 0
    kept = quick().fit(features[weight > 0], target[weight > 0], np.ones((weight > 0).sum()))
    assert np.array_equal(quick().fit(features, target, weight).predict_proba(features), kept.predict_proba(features))
    heavy = quick().fit(features, target, np.where(target == 1, 10.0, 1.0)).predict_proba(features)
    assert heavy[:, 1].mean() > quick().fit(features, target).predict_proba(features)[:, 1].mean()


def test_it_works_in_pipelines_searches_and_calibration(table):
    pipeline = make_pipeline(QuantileTransformer(n_quantiles=50), quick(max_epochs=3))
    grid = {"bceclassifier__loss": [None, "FocalLoss(gamma=2)"], "bceclassifier__hidden": [(8,), (32, 16)]}
    search = GridSearchCV(pipeline, grid, scoring="average_precision", cv=2).fit(*table)
    assert search.best_score_ > 0.9 and len({*search.cv_results_["mean_test_score"]}) > 1
    calibrated = CalibratedClassifierCV(quick("FocalLoss(gamma=4)"), cv=2).fit(*table)
    assert calibrated.predict_proba(table[0]).shape == (300, 2)
    three = table[1] + (table[0][:, 0] > 15)
    assert OneVsRestClassifier(quick()).fit(table[0], three).predict(table[0]).max() == 2


def test_processes_of_a_search_find_the_same_as_one(table):
    one, two = (
        GridSearchCV(quick(max_epochs=2), {"hidden": [(4,), (8,)]}, cv=2, n_jobs=jobs).fit(*table) for jobs in (1, 2)
    )
    get_reusable_executor().shutdown(wait=True)
    assert np.array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


class Halves(Recorded, torch.nn.Module):
    def __init__(self, features, labels):
        super().__init__()
        self.layer = torch.nn.Linear(features, labels)

    def forward(self, inputs):
        return self.layer(inputs / 2)


def test_a_model_of_ones_own_is_built_for_the_table(table):
    assert isinstance(quick(model=Halves).fit(*table).module_.model, Halves)


def test_without_rows_held_out_all_epochs_are_trained(table):
    classifier = quick(validation_fraction=0).fit(*table)
    assert (classifier.n_iter_, classifier.best_epoch_, classifier.threshold_.tolist()) == (5, 5, [0.5])
    assert classifier.module_.label_counts.total.item() == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 3}, "`loss` is 3; a text"),
        ({"loss": "NoLoss"}, "NoLoss"),
        ({"threshold": 1.0}, "`threshold` is 1.0"),
        ({"threshold": "best"}, "best"),
        ({"calibration": "plat"}, "platt"),
        ({"model": Halves, "hidden": (3,)}, "no effect on a `model`"),
        ({"model": lambda features, labels: None}, "`model` returned NoneType"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5"),
        ({"validation_fraction": 1.5}, "`validation_fraction` is 1.5"),
        ({"validation_fraction": 0, "threshold": "mcc"}, "nothing is held out"),
        ({"validation_fraction": 0, "calibration": "platt"}, "nothing is held out"),
        ({"validation_fraction": 0, "patience": 3}, "nothing is held out"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_wrong_option_is_refused_by_its_name(table, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quick(**options).fit(*table)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.arange(300) % 3, "Only binary classification is supported. The type of the target is multiclass"),
        (np.ones(300), "one class"),
        (np.eye(2)[np.arange(300) % 2] + 1, "zeros and ones"),
        (np.linspace(0, 1, 300), "continuous"),
    ],
    ids=["three classes", "one class", "ones and twos", "numbers"],
)
def test_a_target_that_is_not_binary_is_refused(table, target, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(table[0], target)


def test_a_single_row_of_several_labels_is_refused_with_the_way_out(table):
    with pytest.raises(ValueError, match=r"n_samples=1 .* or give 0 to do without"):
        quick().fit(table[0][:1], [[0, 1]])
