"""PictureLogger sends pictures, loss and hard examples of each evaluation that is due to every logger."""

import csv
import importlib.util

import pytest
import torch
from foreign_lightning import LABELS, NAMES, a_trainer, samples
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier
from lightning_bce.callbacks import HardExamples, PictureLogger, RunRecorder
from lightning_bce.losses import BCEWithLogitsLoss

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="needs the extra plot")


class Notes(Logger):
    """Keeps what it is sent, as Comet's experiment takes it."""

    name, version = "notes", 0

    def __init__(self):
        super().__init__()
        self.experiment, self.figures, self.tables = self, [], {}

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    def log_figure(self, figure_name, figure, step):
        assert figure.axes  # it is drawn, and not closed yet
        self.figures.append((figure_name, step))

    def log_table(self, filename, tabular_data, headers):
        self.tables[filename] = [dict(zip(headers, row, strict=True)) for row in tabular_data]


def data(rows=33, seed=0):
    return DataLoader(TensorDataset(*samples(rows, seed=seed)), batch_size=8)


def a_classifier(loss=None):
    return BinaryClassifier(torch.nn.Linear(5, LABELS), loss, num_labels=LABELS, class_names=NAMES)


def test_two_loggers_get_each_validation_that_is_due_and_the_test(tmp_path):
    notes, files = Notes(), CSVLogger(tmp_path, name="")
    # The order does not matter: the recorder tells when an evaluation is complete.
    callbacks = [PictureLogger(every_n_epochs=2), HardExamples(k=3), RunRecorder(folder=str(tmp_path))]
    trainer = a_trainer(*callbacks, max_epochs=3, logger=[notes, files], log_every_n_steps=1)
    classifier = a_classifier(BCEWithLogitsLoss(pos_weight=3.0))
    trainer.fit(classifier, data(), data(17, seed=1))
    trainer.test(classifier, data(), verbose=False)
    steps = {(name.split("/")[0], step) for name, step in notes.figures}
    assert steps == {("val", 10), ("val", 15), ("test", 15)}  # epochs 1 and 2 of 0, 1, 2
    names = {name.split("/")[1] for name, _ in notes.figures}
    assert {"loss", "precision_recall", "reliability"} <= names
    table = notes.tables["test/loss_by_label_step_15.csv"]
    assert {row["label"] for row in table} == set(NAMES)
    assert sum(row["share of loss"] for row in table) == pytest.approx(1)
    assert sum(row["negatives"] + row["positives"] for row in table) == 33 * LABELS
    examples = notes.tables["val/hard_examples_step_15.csv"]
    assert [row["id"] for row in examples] == [row["id"] for row in callbacks[1].summary("val")]
    written = {str(path.relative_to(tmp_path / "version_0")) for path in (tmp_path / "version_0").rglob("*_step_15.*")}
    assert {f"pictures/{name}_step_15.png" for name, step in notes.figures if step == 15} <= written
    with open(tmp_path / "version_0" / "tables" / "test" / "loss_by_label_step_15.csv", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [row["label"] for row in table]


def test_in_tensorboard_pictures_stand_in_groups(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, name="")
    a_trainer(RunRecorder(), PictureLogger(), logger=logger).validate(a_classifier(), data(), verbose=False)
    tags = accumulator.EventAccumulator(logger.log_dir).Reload().Tags()
    assert "val/reliability" in tags["images"] and "val/loss_by_label/text_summary" in tags["tensors"]


def test_without_a_logger_and_in_a_trial_run_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_bce.callbacks.picture_logger.pictures", None)
    for options in ({"logger": False}, {"logger": Notes(), "fast_dev_run": True}):
        trainer = a_trainer(RunRecorder(), PictureLogger(), default_root_dir=tmp_path, **options)
        trainer.fit(a_classifier(), data(), data())


def test_what_it_needs_is_said():
    with pytest.raises(RuntimeError, match=r"callbacks=\[RunRecorder\(\), PictureLogger\(\)\]"):
        a_trainer(PictureLogger()).validate(a_classifier(), data(), verbose=False)
    with pytest.raises(ValueError, match="`every_n_epochs` is 0"):
        PictureLogger(every_n_epochs=0)
