"""ThresholdTuner and ProbabilityCalibrator: what they collect, what they fit, and where it goes."""

import copy
import math
import re
from functools import partial

import lightning.pytorch as pl
import pytest
import sklearn.isotonic  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from foreign_lightning import FEATURES, LABELS, Foreign, a_trainer, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_bce import BinaryClassifier, FocalLoss
from lightning_bce.callbacks import ProbabilityCalibrator, ThresholdTuner
from lightning_bce.decision import Objective, fit_calibration, tune_thresholds

ROWS = 101
NAMES = ["cat", "dog", "a/b"]
NAN = math.nan


def samples(rows=ROWS, seed=0):
    """Return inputs, labels of which some are unknown, and weights of rows."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, FEATURES, generator=generator)
    target = (torch.rand(rows, LABELS, generator=generator) < torch.sigmoid(inputs[:, :LABELS] * 2 - 1)).float()
    target[torch.rand(rows, LABELS, generator=generator) > 0.8] = NAN
    return inputs, target, torch.rand(rows, generator=generator) + 0.5


def a_loader(rows=ROWS, seed=0, size=8):
    return DataLoader(TensorDataset(*samples(rows, seed)), size)


def a_classifier(lr=0.1, **options):
    torch.manual_seed(3)
    loss = FocalLoss(ignore_index=NAN)
    return BinaryClassifier(
        nn.Linear(FEATURES, LABELS),
        loss,
        num_labels=LABELS,
        class_names=NAMES,
        optimizer=partial(torch.optim.SGD, lr=lr),
        metrics=[],
        **options,
    )


def quiet(*callbacks):
    for callback in callbacks:
        callback.print_table = False
    return callbacks


def logits_of(classifier, seed=0):
    with torch.no_grad():
        return classifier(samples(seed=seed)[0])


# -- what is fitted ---------------------------------------------------------------------------------------------------


def test_a_fit_ends_with_the_thresholds_of_its_validation_set():
    classifier, (tuner,) = a_classifier(), quiet(ThresholdTuner("mcc", bootstrap=7))
    trainer = a_trainer(tuner, max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(classifier, a_loader(seed=1), a_loader())
    _, target, weight = samples()
    expected = tune_thresholds(torch.sigmoid(logits_of(classifier)), target, "mcc", weight=weight, bootstrap=7)
    assert_close(tuner.result, expected)
    assert torch.equal(classifier.threshold, expected.threshold) and torch.equal(tuner.threshold, expected.threshold)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    for index, name in enumerate(NAMES):
        assert logged[f"val_threshold/{name}"] == pytest.approx(expected.threshold[index].item())
        assert logged[f"val_threshold_low/{name}"] == pytest.approx(expected.threshold_low[index].item())
        assert logged[f"val_mcc_tuned/{name}"] == pytest.approx(expected.value[index].item())
        assert logged[f"val_mcc_tuned_high/{name}"] == pytest.approx(expected.value_high[index].item())
    assert logged["val_mcc_tuned"] == pytest.approx(expected.value.mean().item())


@pytest.mark.parametrize("first", ["tuner", "calibrator"])
def test_thresholds_are_of_calibrated_probabilities_whatever_the_order(first):
    classifier = a_classifier()
    tuner, calibrator = quiet(ThresholdTuner(bootstrap=0), ProbabilityCalibrator("vector"))
    callbacks = (tuner, calibrator) if first == "tuner" else (calibrator, tuner)
    a_trainer(*callbacks).fit(classifier, a_loader(seed=1), a_loader())
    logits, (_, target, weight) = logits_of(classifier), samples()
    calibration = fit_calibration(logits, target, "vector", weight=weight)
    assert_close(classifier.decision.calibration(logits), calibration(logits))
    expected = tune_thresholds(calibration(logits), target, weight=weight)
    assert_close(classifier.threshold, expected.threshold)


def test_what_is_logged_of_a_calibration_is_measured_on_rows_apart():
    classifier, (calibrator,) = a_classifier(), quiet(ProbabilityCalibrator("isotonic", folds=3))
    trainer = a_trainer(calibrator)
    trainer.fit(classifier, a_loader(seed=1), a_loader())
    logged = trainer.callback_metrics
    assert calibrator.after.error.mean() > 0.01  # on its own rows a curve has none
    for name, key in (("log_loss", "log_loss"), ("brier", "brier"), ("error", "calibration_error")):
        assert logged[f"val_{key}_calibrated"].item() == pytest.approx(calibrator.after.mean(name))
        if name != "log_loss":
            assert logged[f"val_{key}"].item() == pytest.approx(calibrator.before.mean(name))


@pytest.mark.parametrize("method", ["temperature", "platt", "vector", "isotonic"])
def test_a_focal_loss_is_put_right_on_other_rows(method):
    """Focal losses make probabilities timid: on other rows the calibrated ones have the smaller log-loss."""
    classifier = a_classifier(lr=2.0)
    (calibrator,) = quiet(ProbabilityCalibrator(method))
    trainer = a_trainer(calibrator, max_epochs=10)
    trainer.fit(classifier, a_loader(800, 1, 64), a_loader(800, 2, 64))
    trainer.test(classifier, a_loader(800, 3, 64), verbose=False)
    logged = trainer.callback_metrics
    assert logged["test_log_loss_calibrated"] < logged["test_log_loss"]
    assert calibrator.after.mean("log_loss") < calibrator.before.mean("log_loss")


def test_each_checkpoint_holds_what_was_fitted_for_its_weights(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    callbacks = quiet(ThresholdTuner(bootstrap=0), ProbabilityCalibrator("isotonic"))
    classifier = a_classifier(lr=1.0)
    a_trainer(saving, *callbacks, max_epochs=3, enable_checkpointing=True).fit(classifier, a_loader(seed=1), a_loader())
    found = []
    for epoch in range(3):
        held = BinaryClassifier.load_from_checkpoint(tmp_path / f"epoch={epoch}.ckpt")
        logits, (_, target, weight) = logits_of(held), samples()
        calibration = fit_calibration(logits, target, "isotonic", weight=weight)
        assert_close(held.decision.calibration(logits), calibration(logits))
        assert_close(held.threshold, tune_thresholds(calibration(logits), target, weight=weight).threshold)
        found.append(held.threshold)
    assert not torch.equal(found[0], found[2])


def test_a_loaded_model_trains_on_and_is_fitted_anew(tmp_path):
    callbacks = quiet(ThresholdTuner(bootstrap=0), ProbabilityCalibrator("isotonic"))
    trainer = a_trainer(*callbacks)
    trainer.fit(a_classifier(), a_loader(seed=1), a_loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    second = a_trainer(*copy.deepcopy(callbacks))
    second.fit(again, a_loader(seed=1), a_loader())
    second.save_checkpoint(tmp_path / "b.ckpt")
    assert_close(BinaryClassifier.load_from_checkpoint(tmp_path / "b.ckpt").threshold, again.threshold)


def test_the_sanity_check_and_a_test_fit_nothing():
    tuner, calibrator = quiet(ThresholdTuner(), ProbabilityCalibrator())
    trainer = a_trainer(tuner, calibrator, num_sanity_val_steps=2, limit_train_batches=1, check_val_every_n_epoch=2)
    classifier = a_classifier()
    trainer.fit(classifier, a_loader(seed=1), a_loader())
    trainer.test(classifier, a_loader(), verbose=False)
    assert tuner.result is None and calibrator.calibration is None
    assert classifier.decision.calibration.method is None and not classifier.decision.is_tuned
    with pytest.raises(LookupError, match="no thresholds yet"):
        tuner.table()
    with pytest.raises(LookupError, match="calibrated yet"):
        calibrator.table()


def test_one_threshold_for_all_labels_has_one_value():
    (tuner,) = quiet(ThresholdTuner(per_label=False, bootstrap=7))
    trainer = a_trainer(tuner)
    trainer.fit(a_classifier(), a_loader(seed=1), a_loader())
    assert "val_threshold" in trainer.callback_metrics and "val_threshold_low" in trainer.callback_metrics
    assert not any(name.startswith("val_threshold/") for name in trainer.callback_metrics)


def test_a_label_without_positives_keeps_the_constructors_threshold():
    inputs, target, weight = samples()
    target[:, 1] = 0.0
    classifier, (tuner,) = a_classifier(threshold=[0.1, 0.2, 0.3]), quiet(ThresholdTuner(bootstrap=7))
    trainer = a_trainer(tuner)
    with pytest.warns(UserWarning, match="No threshold can be found for dog"):
        trainer.validate(classifier, DataLoader(TensorDataset(inputs, target, weight), 8), verbose=False)
    assert classifier.threshold[1].item() == pytest.approx(0.2)
    assert "val_fbeta_tuned/dog" not in trainer.callback_metrics
    assert "as given" in _text(tuner.table(plain=True))


def test_a_histogram_gives_the_thresholds_and_the_map_of_all_rows():
    exact = quiet(ThresholdTuner(bootstrap=0), ProbabilityCalibrator("vector", folds=0))
    binned = quiet(ThresholdTuner(bins=4096), ProbabilityCalibrator("vector", bins=4096))
    found = []
    for callbacks in (exact, binned):
        classifier = a_classifier(lr=0.0)
        a_trainer(*callbacks).validate(classifier, a_loader(), verbose=False)
        found.append(classifier)
    logits, (_, target, weight) = logits_of(found[0]), samples()
    maps = [classifier.decision.calibration for classifier in found]
    assert_close(maps[1](logits), maps[0](logits), rtol=0, atol=1e-3)
    # As good as the best, but for what lies within a bin.
    probability = maps[1](logits)
    values = [
        tune_thresholds(torch.where(probability > t, 0.9, 0.1), target, weight=weight).value
        for t in (found[1].threshold, tune_thresholds(probability, target, weight=weight).threshold)
    ]
    assert_close(values[0], values[1], rtol=0, atol=0.02)
    assert_close(exact[1].before.log_loss, binned[1].before.log_loss, rtol=1e-3, atol=0)


def test_a_second_dataloader_can_be_the_one():
    classifier, (tuner,) = a_classifier(lr=0.0), quiet(ThresholdTuner(dataloader_idx=1, bootstrap=0))
    a_trainer(tuner).validate(classifier, [a_loader(), a_loader(seed=5)], verbose=False)
    _, target, weight = samples(seed=5)
    expected = tune_thresholds(torch.sigmoid(logits_of(classifier, 5)), target, weight=weight)
    assert_close(tuner.threshold, expected.threshold)


# -- a module of other people -----------------------------------------------------------------------------------------


def test_a_foreign_module_gets_attributes():
    inputs, target, _ = samples()
    target = target.nan_to_num(0.0)
    tuner, calibrator = quiet(ThresholdTuner(bootstrap=0), ProbabilityCalibrator())
    module = Foreign()
    other = [part.nan_to_num(0.0) for part in samples(seed=1)[:2]]
    a_trainer(tuner, calibrator).fit(module, loader(other), loader((inputs, target)))
    logits = module.net(inputs).detach()
    assert_close(calibrator.calibration(logits), fit_calibration(logits, target, "platt")(logits))
    assert_close(tuner.threshold, tune_thresholds(calibrator.calibration(logits), target).threshold)
    assert tuner.labels == ["label_0", "label_1", "label_2"]


class Masked(Foreign):
    """Its step returns a mask and weights."""

    def step(self, batch):
        inputs, target, weight = batch
        return {
            "loss": self.net(inputs).mean(),
            "logits": self.net(inputs),
            "target": target.nan_to_num(-1.0),
            "mask": ~target.isnan(),
            "weight": weight,
        }


def test_mask_and_weight_may_come_from_the_step():
    (tuner,) = quiet(ThresholdTuner(bootstrap=0))
    module = Masked()
    a_trainer(tuner).validate(module, loader(samples()), verbose=False)
    inputs, target, weight = samples()
    expected = tune_thresholds(torch.sigmoid(module.net(inputs)), target, weight=weight)
    assert_close(tuner.threshold, expected.threshold)


# -- a trained model fitted anew --------------------------------------------------------------------------------------


def test_validate_fits_a_trained_model_anew_and_writes_it(tmp_path):
    trainer = a_trainer()
    classifier = a_classifier()
    trainer.fit(classifier, a_loader(seed=1), a_loader())
    trainer.save_checkpoint(tmp_path / "best.ckpt")
    before = (tmp_path / "best.ckpt").read_bytes()
    callbacks = quiet(ThresholdTuner("youden", output=str(tmp_path / "tuned.ckpt")), ProbabilityCalibrator("isotonic"))
    a_trainer(*callbacks).validate(a_classifier(), a_loader(), ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert (tmp_path / "best.ckpt").read_bytes() == before
    tuned = BinaryClassifier.load_from_checkpoint(tmp_path / "tuned.ckpt")
    assert_close(tuned.threshold, callbacks[0].threshold)
    assert tuned.decision.calibration.method == "isotonic"
    assert torch.equal(tuned.model.weight, classifier.model.weight)
    assert "optimizer_states" in torch.load(tmp_path / "tuned.ckpt", weights_only=True)
    with pytest.raises(FileExistsError, match=re.escape("tuned.ckpt")):
        a_trainer(*callbacks).validate(classifier, a_loader(), verbose=False)


def test_a_model_in_memory_is_written_too(tmp_path):
    (tuner,) = quiet(ThresholdTuner(output=str(tmp_path / "tuned.ckpt"), bootstrap=0))
    a_trainer(tuner).validate(a_classifier(), a_loader(), verbose=False)
    assert_close(BinaryClassifier.load_from_checkpoint(tmp_path / "tuned.ckpt").threshold, tuner.threshold)


def test_a_new_fit_of_a_calibrated_model_logs_the_new_calibration_only():
    classifier = a_classifier(lr=0.0)
    (calibrator,) = quiet(ProbabilityCalibrator("platt", folds=0))
    for _ in range(2):
        trainer = a_trainer(calibrator)
        trainer.validate(classifier, a_loader(), verbose=False)
        found = trainer.callback_metrics["val_log_loss_calibrated"].item()
        assert found == pytest.approx(calibrator.after.mean("log_loss"))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ThresholdTuner, ProbabilityCalibrator])
def test_training_rows_are_refused(kind):
    rows = TensorDataset(*samples())
    same = {
        "the dataset": (rows, rows),
        "its tensors": (rows, TensorDataset(*rows.tensors)),
        "subsets": (Subset(rows, range(50)), Subset(rows, range(49, 101))),
        "a subset of a subset": (Subset(rows, range(50)), Subset(Subset(rows, range(40, 101)), [0, 60])),
        "a part of it": (rows, Subset(rows, range(9))),
    }
    for train, val in same.values():
        with pytest.raises(ValueError, match="are rows that the model is trained on"):
            a_trainer(*quiet(kind())).fit(a_classifier(), DataLoader(train, 8), DataLoader(val, 8))
    apart = Subset(rows, range(50)), Subset(rows, range(50, 101))
    a_trainer(*quiet(kind())).fit(a_classifier(), *(DataLoader(part, 8) for part in apart))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ThresholdTuner("f1"), "F1 is 'fbeta'"),
        (lambda: ThresholdTuner("mcc", beta=2.0), "`beta` has no effect"),
        (lambda: ThresholdTuner(bins=100, bootstrap=5), "`bootstrap` has no effect with `bins`"),
        (lambda: ThresholdTuner(bins=1), "`bins` is 1"),
        (lambda: ThresholdTuner(bootstrap=-1), "`bootstrap` is -1"),
        (lambda: ThresholdTuner(confidence=95), "`confidence` is 95"),
        (lambda: ThresholdTuner(max_rows=0), "`max_rows` is 0"),
        (lambda: ProbabilityCalibrator("sigmoid"), "expected one of temperature"),
        (lambda: ProbabilityCalibrator("vector", per_label=False), "is 'platt'"),
        (lambda: ProbabilityCalibrator(folds=1), "`folds` is 1"),
        (lambda: ProbabilityCalibrator(bins=99, folds=5), "`folds` has no effect with `bins`"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_runs_that_could_not_be_as_asked_are_refused(tmp_path):
    two = quiet(ThresholdTuner(), ThresholdTuner("mcc"))
    with pytest.raises(ValueError, match="There are two ThresholdTuner"):
        a_trainer(*two).validate(a_classifier(), a_loader(), verbose=False)
    output = str(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="`output` has no effect in `fit`"):
        a_trainer(ThresholdTuner(output=output)).fit(a_classifier(), a_loader(seed=1), a_loader())
    with pytest.raises(ValueError, match="Foreign has no `decision`"):
        a_trainer(ThresholdTuner(output=output)).validate(Foreign(), loader(samples()), verbose=False)
    with pytest.raises(ValueError, match="`class_names` has 2 name"):
        a_trainer(ThresholdTuner(class_names=["a", "b"])).validate(a_classifier(), a_loader(), verbose=False)
    with pytest.raises(ValueError, match="`dataloader_idx` is 3"):
        a_trainer(ThresholdTuner(dataloader_idx=3)).fit(a_classifier(), a_loader(seed=1), a_loader())
    with pytest.raises(ValueError, match="found no row in validation dataloader 3"):
        a_trainer(ThresholdTuner(dataloader_idx=3)).validate(a_classifier(), a_loader(), verbose=False)


class WithoutLogits(Foreign):
    """Its step returns the loss alone."""

    def step(self, batch):
        return {"loss": super().step(batch)["loss"]}


def test_a_step_that_returns_nothing_to_fit_on_says_what_is_needed():
    with pytest.raises(
        TypeError, match=re.escape("WithoutLogits.validation_step returns, which was a dictionary with")
    ):
        a_trainer(ThresholdTuner()).validate(WithoutLogits(), loader((samples()[0], samples()[1])), verbose=False)


# -- tables -----------------------------------------------------------------------------------------------------------


def _text(table):
    from rich.console import Console

    console = Console(width=120, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_tables_are_printed_after_the_run(capsys):
    tuner, calibrator = ThresholdTuner("precision_at_recall", at_least=0.5, max_rows=2), ProbabilityCalibrator("vector")
    a_trainer(tuner, calibrator).fit(a_classifier(), a_loader(seed=1), a_loader())
    shown = capsys.readouterr().out
    assert "val thresholds: best precision_at_recall (at least 0.5)" in shown and "1 more" in shown
    assert "val probabilities: vector calibration (after: on 5 folds apart)" in shown
    for index in range(2):
        assert f"{tuner.threshold[index].item():.4g}" in shown
        for part in (calibrator.before, calibrator.after):
            assert all(f"{value[index].item():.4f}" in shown for value in part[:3])
    assert f"{calibrator.after.mean('brier'):.4f}" in shown
    narrow = _text(tuner.table(narrow=True)), _text(calibrator.table(narrow=True))
    assert "95 %" not in narrow[0] and "Brier" not in narrow[1]
    assert tuner.objective == Objective("precision_at_recall", at_least=0.5)


def test_barebones_turns_them_off():
    tuner, calibrator = ThresholdTuner(), ProbabilityCalibrator()
    options = {"barebones": True, "max_epochs": 1, "accelerator": "cpu"}
    batch = [part.nan_to_num(0.0) for part in samples()[:2]]
    pl.Trainer(callbacks=[tuner, calibrator], **options).fit(Foreign(), loader(batch), loader(batch))
    assert tuner.result is None and calibrator.calibration is None
