"""A classifier decides by its stored calibration and thresholds, wherever it decides, and its checkpoints hold them."""

import warnings
from functools import partial

import pytest
import sklearn.isotonic  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from foreign_lightning import a_trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.functional.classification import multilabel_accuracy, multilabel_f1_score

from lightning_bce import BinaryClassifier
from lightning_bce.decision import Decision, fit_calibration
from lightning_bce.losses import BCEWithLogitsLoss

ROWS, FEATURES, LABELS = 66, 5, 3
THRESHOLDS = [0.2, 0.5, 0.7]
METHODS = ["temperature", "platt", "vector", "isotonic"]
METRICS = ["Accuracy", "AUROC", "F1Score"]


def samples():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(ROWS, FEATURES, generator=generator)
    chance = torch.sigmoid(inputs[:, :LABELS] * 2 - 1)
    return inputs, (torch.rand(ROWS, LABELS, generator=generator) < chance).float()


def loader(size=22):
    return DataLoader(TensorDataset(*samples()), size)


def a_classifier(**options):
    torch.manual_seed(2)
    still = partial(torch.optim.SGD, lr=0.0)
    defaults = {"num_labels": LABELS, "optimizer": still, "metrics": METRICS, "threshold": THRESHOLDS}
    return BinaryClassifier(nn.Linear(FEATURES, LABELS), **(defaults | options))


def decided(method="isotonic", threshold=(0.1, 0.3, 0.4), **options):
    """Return a classifier with a calibration and thresholds that nobody gave to its constructor."""
    classifier = a_classifier(**options)
    inputs, target = samples()
    classifier.decision.calibration.set(fit_calibration(classifier(inputs), target, method))
    classifier.decision.set_threshold(threshold)
    return classifier


def expected_of(classifier):
    logits = classifier(samples()[0]).detach()
    probability = classifier.decision.calibration(logits)
    return logits, probability, probability > classifier.threshold


def run(what, classifier, **options):
    trainer = a_trainer()
    getattr(trainer, what)(classifier, loader(), **options)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


# -- where decisions are made -----------------------------------------------------------------------------------------


def test_each_label_has_its_own_threshold():
    classifier = a_classifier()
    probability = torch.sigmoid(classifier(samples()[0]))
    found = classifier.predict_step(samples()[0], 0)
    assert torch.equal(found["decision"], probability > torch.tensor(THRESHOLDS))
    assert classifier.threshold.tolist() == pytest.approx(THRESHOLDS)


def test_a_decision_is_above_its_threshold_not_at_it():
    assert Decision(threshold=0.5)(torch.tensor([0.0, 1e-6]))[1].tolist() == [False, True]
    assert Decision(threshold=[1.0])(torch.tensor([99.0]))[1].tolist() == [False]


def test_dense_outputs_are_decided_by_label():
    decision = Decision(2, [0.2, 0.8])
    probability, decided = decision(torch.zeros(5, 2, 3, 4))
    assert probability.shape == decided.shape == (5, 2, 3, 4)
    assert decided[:, 0].all() and not decided[:, 1].any()


@pytest.mark.parametrize("method", METHODS)
def test_prediction_is_calibrated(method):
    classifier = decided(method)
    (found,) = a_trainer().predict(classifier, DataLoader(samples()[0], ROWS))
    _, probability, decision = expected_of(classifier)
    assert_close(found["probability"], probability)
    assert torch.equal(found["decision"], decision)
    assert not torch.allclose(probability, torch.sigmoid(classifier(samples()[0])), atol=1e-3)


@pytest.mark.parametrize(("what", "stage"), [("test", "test"), ("validate", "val")])
def test_an_evaluation_takes_what_is_stored(what, stage):
    classifier = decided()
    logits, _, decision = expected_of(classifier)
    target = samples()[1].int()
    logged = run(what, classifier, verbose=False)
    assert logged[f"{stage}_F1Score"] == pytest.approx(multilabel_f1_score(decision.int(), target, LABELS).item())
    assert logged[f"{stage}_Accuracy"] == pytest.approx(multilabel_accuracy(decision.int(), target, LABELS).item())
    bce = BCEWithLogitsLoss()
    calibrated = classifier.decision.calibration.logits(logits)
    assert logged[f"{stage}_log_loss_calibrated"] == pytest.approx(bce(calibrated, target.float()).item())
    for name in ("loss", "log_loss"):
        assert logged[f"{stage}_{name}"] == pytest.approx(bce(logits, target.float()).item())


def test_validation_within_a_fit_does_not():
    classifier = decided()
    with pytest.warns(UserWarning, match="threshold and the calibration that came with the weights"):
        trainer = a_trainer()
        trainer.fit(classifier, loader(), loader(11))
    logged = trainer.callback_metrics
    decision = torch.sigmoid(classifier(samples()[0])) > torch.tensor(THRESHOLDS)
    assert logged["val_F1Score"].item() == pytest.approx(
        multilabel_f1_score(decision.int(), samples()[1].int(), LABELS).item()
    )
    assert "val_log_loss_calibrated" not in logged


def test_nothing_more_is_logged_without_a_calibration():
    assert not any("calibrated" in name for name in run("test", a_classifier(), verbose=False))


def test_training_what_was_not_fitted_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*came with the weights")
        a_trainer().fit(a_classifier(), loader(), loader(11))


def test_a_metric_object_keeps_its_own_threshold():
    classifier = decided(metrics=[MultilabelF1Score(LABELS, threshold=0.9)])
    probability = expected_of(classifier)[1]
    found = run("test", classifier, verbose=False)["test_F1Score"]
    assert found == pytest.approx(multilabel_f1_score(probability, samples()[1].int(), LABELS, threshold=0.9).item())


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_half_precision_leaves_thresholds_and_maps_as_they_are(precision):
    classifier = decided(threshold=[0.499, 0.501, 0.5003])
    before = {name: value.clone() for name, value in classifier.decision.state_dict().items()}
    a_trainer(precision=precision).predict(classifier, DataLoader(samples()[0], ROWS))
    assert classifier.model.weight.dtype != torch.float32
    assert_close(classifier.decision.state_dict(), before, rtol=0, atol=0)


# -- checkpoints ------------------------------------------------------------------------------------------------------


def saved(classifier, path):
    trainer = a_trainer()
    trainer.strategy.connect(classifier)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_and_one_of_it_again_hold_what_was_fitted(method, tmp_path):
    classifier = decided(method)
    expected = expected_of(classifier)
    path = saved(classifier, tmp_path / "first.ckpt")
    assert torch.load(path, weights_only=True)["hyper_parameters"]["threshold"] == THRESHOLDS
    for name in ("second.ckpt", "third.ckpt"):
        again = BinaryClassifier.load_from_checkpoint(path)
        assert again.decision.calibration.method == method
        for found, value in zip(expected_of(again), expected, strict=True):
            assert torch.equal(found, value)
        assert again.decision.given.tolist() == pytest.approx(THRESHOLDS)
        path = saved(again, tmp_path / name)


def test_a_trainer_restores_them_too(tmp_path):
    path = saved(decided(), tmp_path / "first.ckpt")
    expected = run("test", decided(), verbose=False)
    assert run("test", a_classifier(), ckpt_path=path, verbose=False) == expected


def test_a_checkpoint_from_before_there_were_any_loads(tmp_path):
    path = saved(decided(), tmp_path / "new.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("decision.")}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    found = BinaryClassifier.load_from_checkpoint(tmp_path / "old.ckpt")
    assert found.threshold.tolist() == pytest.approx(THRESHOLDS) and found.decision.calibration.method is None
    a_trainer().test(a_classifier(), loader(), ckpt_path=tmp_path / "old.ckpt", verbose=False)


def test_a_threshold_that_is_asked_for_goes_before_the_stored_one(tmp_path):
    path = saved(decided(), tmp_path / "first.ckpt")
    found = BinaryClassifier.load_from_checkpoint(path, threshold=0.9)
    a_trainer().test(found, loader(), ckpt_path=path, verbose=False)  # which restores the file once more
    assert found.threshold.tolist() == pytest.approx([0.9] * LABELS)
    assert found.decision.calibration.method == "isotonic"
    found.decision.set_threshold(0.1)  # fitted later: that is what the next checkpoint holds
    again = saved(found, tmp_path / "again.ckpt")
    a_trainer().test(found, loader(), ckpt_path=path, verbose=False)
    assert found.threshold.tolist() == pytest.approx([0.1, 0.3, 0.4])
    assert BinaryClassifier.load_from_checkpoint(again).threshold.tolist() == pytest.approx([0.1] * LABELS)


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (1.5, "`threshold` is 1.5"),
        ([0.5, 0.5], "there are 3 label"),
        ([0.1, 0.2, -0.3], "a probability in"),
        ("x", "a number"),
    ],
)
def test_wrong_thresholds_are_refused(threshold, message):
    with pytest.raises(ValueError, match=message):
        a_classifier(threshold=threshold)
