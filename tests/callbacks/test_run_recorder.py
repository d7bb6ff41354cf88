"""RunRecorder writes what the metrics say of the whole set, once an epoch, wherever a run is kept."""

import json
import warnings

import pytest
import torch
import yaml
from foreign_lightning import LABELS, NAMES, Foreign, a_trainer, loader, samples
from lightning.pytorch.loggers import CSVLogger
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier, TabularMLP
from lightning_bce.callbacks import HardExamples, PerClassLossMonitor, RunRecorder, ThresholdTuner
from lightning_bce.decision import Calibration
from lightning_bce.losses import BCEWithLogitsLoss, DiceLoss, FocalLoss
from lightning_bce.metrics import LossProfile, ScoreHistogram
from lightning_bce.record import read_run

pytestmark = pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")


def data(rows=33, size=8, seed=0):
    return DataLoader(TensorDataset(*samples(rows, seed=seed)), batch_size=size)


def a_classifier(loss=None, **options):
    return BinaryClassifier(torch.nn.Linear(5, LABELS), loss, num_labels=LABELS, class_names=NAMES, **options)


def fitted(folder, recorder=None, classifier=None, epochs=2, **options):
    recorder = RunRecorder() if recorder is None else recorder
    classifier = a_classifier() if classifier is None else classifier
    trainer = a_trainer(recorder, max_epochs=epochs, default_root_dir=folder, **options)
    trainer.fit(classifier, data(), data(17, seed=1))
    return recorder, classifier, trainer


def test_an_evaluation_is_that_of_all_elements_at_once(tmp_path):
    inputs, target = samples(33)
    target[::4, 1] = -1  # unknown
    loss = FocalLoss(ignore_index=-1)
    classifier, recorder = a_classifier(loss, threshold=0.4), RunRecorder()
    trainer = a_trainer(recorder, default_root_dir=tmp_path)
    trainer.validate(classifier, DataLoader(TensorDataset(inputs, target), batch_size=8), verbose=False)
    found = read_run(tmp_path).evaluations["val"]

    with torch.no_grad():
        logits = classifier(inputs)
    profile, scores = LossProfile(loss, LABELS), ScoreHistogram(LABELS, threshold=0.4, ignore_index=-1)
    profile.update(logits, target)
    scores.update(logits, target)
    expected, counted = profile.compute(), scores.compute()
    assert_close(found.hardness.count, expected.hardness.count.double())
    assert_close(found.hardness.loss, expected.hardness.loss)
    assert_close(found.distribution.loss, expected.distribution.loss)
    assert_close(found.gradient, expected.gradient)
    assert_close(found.scores.count, counted.scores.count.double())
    assert_close(found.confusion, counted.confusion.double())
    sums = loss.sums(logits, target)
    assert_close(found.loss, sums.loss.double(), rtol=1e-6, atol=0)  # in float32, in another order
    assert_close(found.weight, sums.weight.double())
    known = target != -1
    assert found.reliability.count.sum(1).tolist() == known.sum(0).tolist()
    assert_close(found.reliability.positive.sum(1), (target == 1).sum(0).double())
    assert_close(found.reliability.probability.sum(), logits.sigmoid()[known].sum().double())
    assert found.labels == NAMES and found.loss_name == "FocalLoss" and found.stage == "val"
    assert found.threshold.tolist() == pytest.approx([0.4] * LABELS)
    assert found.metrics["val_loss"] == pytest.approx(trainer.callback_metrics["val_loss"].item())
    assert read_run(tmp_path).history == []  # no point in the time of a training


def test_the_history_has_a_line_for_each_epoch_with_what_was_logged(tmp_path):
    recorder, classifier, trainer = fitted(tmp_path, num_sanity_val_steps=1)
    trainer.test(classifier, data(), verbose=False)
    record = read_run(tmp_path)
    assert [(line.stage, line.epoch, line.step) for line in record.history] == [
        ("val", 0, 5),
        ("train", 0, 5),
        ("val", 1, 10),
        ("train", 1, 10),
    ]
    assert sorted(record.evaluations) == ["test", "val"] and record.evaluations["test"].step == 10
    for line in record.history:
        mean = line.loss.sum() / line.weight.sum()
        assert mean == pytest.approx(line.metrics[f"{line.stage}_loss"], rel=1e-6)
        assert all(name.startswith(line.stage) for name in line.metrics)
    assert record.history[-1].gradient.isnan().all() and record.history[0].gradient.shape == (LABELS, 2)
    assert [line.to_json() for line in recorder.history] == [line.to_json() for line in record.history]


def test_shares_of_the_hard_are_logged_and_values_of_single_labels_not_recorded(tmp_path):
    recorder = RunRecorder()
    trainer = a_trainer(recorder, PerClassLossMonitor(print_table=False), default_root_dir=tmp_path)
    trainer.validate(a_classifier(), data(), verbose=False)
    hardness = recorder.evaluations["val"][0].hardness
    for name, part in (("examples", hardness.count), ("loss", hardness.loss), ("gradient", hardness.gradient)):
        expected = (part[:, :10].sum() / part.sum()).item()
        assert trainer.callback_metrics[f"val_hard_share/{name}"].item() == pytest.approx(expected, rel=1e-6)
    recorded = recorder.evaluations["val"][0].metrics
    assert "val_loss_share/cat" in trainer.callback_metrics
    assert "val_hard_share/loss" in recorded and not any("cat" in name for name in recorded)


def test_the_model_is_run_once_a_batch_and_training_is_the_same_without_it(tmp_path):
    weights = []
    for watching in ([RunRecorder(["train", "val", "test"], folder=str(tmp_path))], []):
        torch.manual_seed(0)
        model, calls = TabularMLP(5, LABELS, dropout=0.5), []
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        classifier = BinaryClassifier(model, num_labels=LABELS)
        a_trainer(*watching, max_epochs=2).fit(classifier, data(), data(17))
        assert len(calls) == 2 * (5 + 3)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)
    assert read_run(tmp_path).evaluations["train"].hardness.count.sum() == 33 * LABELS


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # the same run goes on
def test_a_training_that_goes_on_keeps_its_history_and_a_new_one_begins_its_own(tmp_path):
    def steps():
        return [line.step for line in read_run(tmp_path).history]

    classifier = fitted(tmp_path, epochs=2)[1]
    trainer = a_trainer(RunRecorder(), max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=True)
    trainer.fit(classifier, data(), data(17))
    assert steps() == [5, 5, 10, 10]
    trainer.test(classifier, data(), verbose=False)
    first = trainer.checkpoint_callback.best_model_path
    with open(tmp_path / "record" / "history.jsonl", "a") as file:
        file.write(read_run(tmp_path).history[-1].to_json().replace('"step": 10', '"step": 12') + "\n{cut")
    fitted(tmp_path, classifier=a_classifier(), epochs=1)
    assert steps() == [5, 5] and "test" not in read_run(tmp_path).evaluations
    going_on = a_trainer(RunRecorder(), max_epochs=3, default_root_dir=tmp_path, enable_checkpointing=True)
    going_on.fit(a_classifier(), data(), data(17), ckpt_path=first)
    assert steps() == [5, 5, 15, 15]


def test_a_stopped_training_leaves_what_was_whole(tmp_path):
    class Stops(RunRecorder):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 7:
                raise RuntimeError("a power cut")

    with pytest.raises(RuntimeError, match="a power cut"):
        fitted(tmp_path, Stops())
    assert [(line.stage, line.step) for line in read_run(tmp_path).history] == [("val", 5), ("train", 5)]


def test_several_dataloaders_have_files_of_their_own(tmp_path):
    recorder = RunRecorder()
    trainer = a_trainer(recorder, default_root_dir=tmp_path)
    trainer.validate(a_classifier(), [data(), data(17, seed=1)], verbose=False)
    found = read_run(tmp_path).evaluations
    assert sorted(found) == ["val", "val_1"] and [found[name].dataloader for name in sorted(found)] == [0, 1]
    assert found["val"].weight.sum() == 33 * LABELS and found["val_1"].weight.sum() == 17 * LABELS
    for index, name in enumerate(("val", "val_1")):
        logged = trainer.callback_metrics[f"val_loss/dataloader_idx_{index}"].item()
        assert found[name].metrics["val_loss"] == pytest.approx(logged)
    assert f"val_hard_share/loss{'/dataloader_idx_1'}" in trainer.callback_metrics


def test_the_folder_is_the_loggers_and_what_the_loss_resolved_is_logged(tmp_path):
    loss = BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.5]))
    logger = CSVLogger(tmp_path, name="")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fitted(tmp_path / "elsewhere", classifier=a_classifier(loss, threshold=0.3), logger=logger)
    assert not any("not empty" in str(w.message) for w in warned)
    assert sorted(read_run(tmp_path / "version_0").evaluations) == ["val"]
    assert not (tmp_path / "elsewhere").exists()
    values = yaml.safe_load((tmp_path / "version_0" / "hparams.yaml").read_text())
    assert values["resolved/loss/pos_weight"] == [1.0, 2.0, 3.5]
    assert values["resolved/class_names"] == NAMES and values["resolved/threshold"] == pytest.approx([0.3] * LABELS)


def test_a_foreign_module_is_recorded_with_the_loss_that_is_asked_for(tmp_path):
    recorder = RunRecorder(loss=FocalLoss(), class_names=NAMES, threshold=0.25)
    trainer = a_trainer(recorder, default_root_dir=tmp_path)
    trainer.fit(Foreign(), loader(samples()), loader(samples()))
    line = read_run(tmp_path).history[0]
    assert (
        line.labels == NAMES
        and line.stage == "val"
        and line.metrics.keys() == {f"val_hard_share/{name}" for name in ("examples", "loss", "gradient")}
    )
    assert [line.stage for line in recorder.history] == ["val"]  # training has no sums to add up
    with pytest.raises(TypeError, match=r"RunRecorder\(loss=lightning_bce.BCEWithLogitsLoss\(\)\)"):
        a_trainer(RunRecorder(), default_root_dir=tmp_path).validate(Foreign(), loader(samples()), verbose=False)


def test_a_loss_of_rows_has_no_distribution_and_the_rest(tmp_path):
    a_trainer(RunRecorder(), default_root_dir=tmp_path).validate(a_classifier(DiceLoss()), data(), verbose=False)
    found = read_run(tmp_path).evaluations["val"]
    assert found.distribution is None and found.hardness.loss.isnan().all()
    assert found.hardness.gradient.sum() > 0 and "val_hard_share/loss" not in found.metrics


def test_one_label_without_a_dimension_of_its_own_is_recorded(tmp_path):
    inputs, target = samples(labels=1)
    batches = DataLoader(TensorDataset(inputs, target[:, 0]), batch_size=8)
    classifier = BinaryClassifier(torch.nn.Sequential(torch.nn.Linear(5, 1), torch.nn.Flatten(0)))
    a_trainer(RunRecorder(), default_root_dir=tmp_path).validate(classifier, batches, verbose=False)
    found = read_run(tmp_path).evaluations["val"]
    assert found.scores.count.sum() == 33 and found.reliability.count.shape[0] == 1


def test_dense_outputs_are_recorded_by_label(tmp_path):
    target = (torch.rand(9, 2, 4, 4) > 0.5).float()
    rows = DataLoader(TensorDataset(torch.randn(9, 2, 4, 4), target), batch_size=4)
    classifier = BinaryClassifier(torch.nn.Conv2d(2, 2, 1), num_labels=2, metrics=[])
    a_trainer(RunRecorder(), default_root_dir=tmp_path).validate(classifier, rows, verbose=False)
    found = read_run(tmp_path).evaluations["val"]
    assert_close(found.scores.count.sum(2)[:, 1], target.sum((0, 2, 3)).double())
    assert_close(found.reliability.positive.sum(1), target.sum((0, 2, 3)).double())


def test_trial_runs_and_the_sanity_check_write_nothing(tmp_path):
    recorder, _, _ = fitted(tmp_path, fast_dev_run=True)
    assert recorder.evaluations["val"][0].weight.sum() == 8 * LABELS
    barebones = {"barebones": True, "num_sanity_val_steps": 0, "enable_checkpointing": None, "logger": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning tells the classifier that it does not log
        fitted(tmp_path, **barebones)
    with pytest.raises(RuntimeError):
        fitted(tmp_path, Refuses(), num_sanity_val_steps=2)
    assert not (tmp_path / "record").exists()


class Refuses(RunRecorder):
    """Ends the run before its first epoch."""

    def on_sanity_check_end(self, *_):
        raise RuntimeError


def test_listeners_get_each_evaluation_when_it_is_complete(tmp_path):
    recorder, heard = RunRecorder(), []

    def listener(trainer, pl_module, evaluation):
        last = json.loads((tmp_path / "record" / "history.jsonl").read_text().splitlines()[-1])
        heard.append((evaluation.stage, last["stage"], f"{evaluation.stage}_loss" in evaluation.metrics))

    recorder.subscribe(listener)
    recorder.subscribe(listener)
    fitted(tmp_path, recorder, epochs=1)
    assert heard == [("val", "val", True), ("train", "train", True)]


@pytest.mark.parametrize(
    ("options", "kind", "error"),
    [
        ({"stages": ["fit"]}, ValueError, "`stages` is"),
        ({"threshold": 2}, ValueError, "`threshold` is 2"),
        ({"loss": torch.nn.BCEWithLogitsLoss()}, TypeError, "a BinaryLoss was expected"),
        ({"class_names": "cat"}, TypeError, "a list of names was expected"),
    ],
)
def test_wrong_options_are_refused(options, kind, error):
    with pytest.raises(kind, match=error):
        RunRecorder(**options)


def test_within_fit_nothing_is_judged_by_what_was_tuned_for_calibrated_probabilities(tmp_path):
    classifier, recorder = a_classifier(threshold=0.25), RunRecorder()
    trainer = a_trainer(ThresholdTuner(), recorder, default_root_dir=tmp_path, max_epochs=2)
    trainer.fit(classifier, data(), data())
    assert classifier.decision.is_tuned
    found = recorder.evaluations["val"][0]
    assert found.threshold.tolist() == [0.25] * LABELS
    trainer.validate(classifier, data(), verbose=False)
    assert recorder.evaluations["val"][0].threshold.tolist() == pytest.approx(classifier.threshold.tolist())


def test_outside_of_fit_probabilities_and_thresholds_are_those_of_the_decision(tmp_path):
    classifier = a_classifier(threshold=[0.25, 0.5, 0.75])
    recorder, hard = RunRecorder(), HardExamples(k=3)
    trainer = a_trainer(recorder, hard, default_root_dir=tmp_path)
    trainer.fit(classifier, data(), data())
    raw = recorder.evaluations["val"][0]
    everybody_is_a_positive = Calibration(LABELS)
    everybody_is_a_positive.bias += 20
    everybody_is_a_positive.method = "platt"
    classifier.decision.calibration.set(everybody_is_a_positive)
    trainer.test(classifier, data(), verbose=False)
    calibrated = recorder.evaluations["test"][0]
    assert raw.threshold.tolist() == calibrated.threshold.tolist() == [0.25, 0.5, 0.75]
    assert raw.confusion[:, :, 1].sum() < 33 * LABELS == calibrated.confusion[:, :, 1].sum()
    assert raw.reliability.probability.sum() < 33 * LABELS * 0.999 < calibrated.reliability.probability.sum()
    assert min(hard.summary("test")[0]["probability"].values()) > 0.999 > min(hard.summary()[0]["probability"].values())
    assert_close(calibrated.loss.sum() / calibrated.weight.sum(), trainer.callback_metrics["test_loss"].double())
