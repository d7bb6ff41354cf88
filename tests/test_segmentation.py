"""Masks: logits (N, C, H, W) through the classifier, its metrics and callbacks, with pixels that are unknown."""

from __future__ import annotations

import copy
import importlib

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, CombinedLoss, DiceLoss, FocalLoss, LossTracker
from lightning_bce.callbacks import (
    FiniteGuard,
    HardExamples,
    PerClassLossMonitor,
    PredictionWriter,
    ProbabilityCalibrator,
    RunRecorder,
    ThresholdTuner,
)
from lightning_bce.models import Backbone

UNKNOWN = 255.0
ROWS, HEIGHT, WIDTH = 33, 9, 11


def masks(labels, flat=False, by_mask=False, seed=0):
    """Return a loader of images whose masks follow the first channel, and their upper two rows are unknown."""
    images = torch.randn(ROWS, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))
    noise = torch.randn(ROWS, labels, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    target = (images[:, :1] + 0.5 * noise > 0.5).float()
    known = torch.ones_like(target, dtype=torch.bool)
    known[:, :, :2] = False
    if not by_mask:
        target = target.where(known, UNKNOWN)
    shape = (ROWS, HEIGHT, WIDTH) if flat else target.shape
    rows = [
        {"inputs": x, "target": t, **({"mask": m} if by_mask else {})}
        for x, t, m in zip(images, target.reshape(shape), known.reshape(shape), strict=True)
    ]
    return DataLoader(rows, batch_size=7)


def trainer(*callbacks, logger=False):
    return pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
    )


def classifier_of(labels, loss):
    torch.manual_seed(0)
    model = nn.Conv2d(3, labels, 3, padding=1)
    return BinaryClassifier(model, loss, num_labels=labels, prior_bias=True, metrics=["F1Score", "AUROC"])


@pytest.mark.parametrize(
    ("labels", "flat", "by_mask"),
    [(1, False, False), (1, True, False), (1, True, True), (3, False, False), (3, False, True)],
    ids=["(N, 1, H, W)", "masks (N, H, W)", "(N, H, W) and a mask", "(N, C, H, W)", "(N, C, H, W) and a mask"],
)
def test_losses_metrics_and_thresholds_count_each_known_pixel_once(tmp_path, labels, flat, by_mask):
    ignored = None if by_mask else UNKNOWN
    classifier = classifier_of(labels, FocalLoss(gamma=1.0, ignore_index=ignored))
    monitor, tuner = PerClassLossMonitor(print_table=False), ThresholdTuner(bootstrap=0, print_table=False)
    calibrator = ProbabilityCalibrator(print_table=False)
    callbacks = [FiniteGuard(), HardExamples(), RunRecorder(), monitor, tuner, calibrator]
    loader = masks(labels, flat, by_mask)
    run = trainer(*callbacks, logger=pl.loggers.CSVLogger(tmp_path))
    run.fit(classifier, masks(labels, flat, by_mask, seed=7), loader)
    (found,) = trainer().test(copy.deepcopy(classifier), loader, verbose=False)

    dense = list(masks(labels))  # the same rows in their plainest form
    inputs, target = (torch.cat([batch[name] for batch in dense]) for name in ("inputs", "target"))
    with torch.no_grad():
        logits = classifier(inputs).movedim(1, -1)[:, 2:].reshape(-1, labels)
    labels_of = target.movedim(1, -1)[:, 2:].reshape(-1, labels)
    loss = FocalLoss(gamma=1.0)(logits.double(), labels_of.double())
    assert found["test_loss"] == pytest.approx(loss.item(), rel=1e-5)
    probability = logits.double().sigmoid().numpy()
    losses = [log_loss(labels_of[:, c], probability[:, c]) for c in range(labels)]
    assert found["test_log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    calibrated = classifier.decision.calibration(logits)
    areas = [roc_auc_score(labels_of[:, c], calibrated[:, c]) for c in range(labels)]
    assert found["test_AUROC"] == pytest.approx(np.mean(areas), rel=1e-4)
    decided = (calibrated > tuner.threshold).int()
    scores = [f1_score(labels_of[:, c], decided[:, c]) for c in range(labels)]
    assert found["test_F1Score"] == pytest.approx(np.mean(scores), rel=1e-4)
    counts, trained = classifier.label_counts, torch.cat([batch["target"] for batch in masks(labels, seed=7)])
    assert counts.total.tolist() == [ROWS * (HEIGHT - 2) * WIDTH] * labels
    assert counts.positives.tolist() == trained[:, :, 2:].sum((0, 2, 3)).tolist()
    shares = [run.logged_metrics[f"val_loss_share/{name}"] for name in classifier.class_names]
    assert sum(shares).item() == pytest.approx(1)
    predicted = trainer().predict(classifier, loader)[0]
    assert predicted["probability"].shape == predicted["decision"].shape == (7, labels, HEIGHT, WIDTH)


@pytest.mark.parametrize("loss", [DiceLoss, CombinedLoss], ids=["overlap", "both"])
def test_losses_of_overlap_train_with_unknown_pixels(loss):
    dice = DiceLoss(ignore_index=UNKNOWN)
    chosen = dice if loss is DiceLoss else 0.5 * BCEWithLogitsLoss(ignore_index=UNKNOWN) + dice
    classifier = classifier_of(1, chosen)
    before = copy.deepcopy(classifier.model.state_dict())
    run = trainer(FiniteGuard(), PerClassLossMonitor(print_table=False))
    run.fit(classifier, masks(1, flat=True), masks(1, flat=True))
    assert run.callback_metrics["val_loss"].isfinite()
    assert any(not torch.equal(before[name], value) for name, value in classifier.model.state_dict().items())


def test_what_stands_in_unknown_pixels_changes_nothing():
    loss = FocalLoss(ignore_index=UNKNOWN)
    batch = next(iter(masks(3)))
    target, logits = batch["target"], torch.randn(7, 3, HEIGHT, WIDTH)
    wild = logits.where(target != UNKNOWN, torch.nan).requires_grad_()
    tracker = LossTracker(loss, num_labels=3)
    tracker.update(wild.detach(), target)
    plain = loss(logits, target)
    torch.testing.assert_close(tracker.compute()["loss"].float(), plain)
    loss(wild, target).backward()
    assert wild.grad.isfinite().all()


def test_a_table_of_masks_is_refused_with_the_way_out(tmp_path):
    writer = PredictionWriter(str(tmp_path / "predictions.csv"))
    with pytest.raises(ValueError, match="write dense outputs, such as masks of images, with a BasePredictionWriter"):
        trainer(writer).predict(classifier_of(1, None), masks(1), return_predictions=False)
    assert list(tmp_path.iterdir()) == []


def test_masks_of_another_size_are_refused_by_their_shapes():
    rows = [{"inputs": torch.zeros(3, 9, 11), "target": torch.zeros(9, 10)}] * 7
    with pytest.raises(ValueError, match=r"\(7, 1, 9, 10\).*\(7, 1, 9, 11\)"):
        trainer().test(classifier_of(1, None), DataLoader(rows, batch_size=7))


def test_a_net_of_segmentation_models_trains_and_is_built_again():
    try:
        importlib.import_module("segmentation_models_pytorch")
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        pytest.skip(f"segmentation_models_pytorch cannot be imported: {error}")
    arguments = {"encoder_name": "resnet18", "encoder_weights": None, "classes": 1}
    model = Backbone("segmentation_models_pytorch.Unet", arguments)
    rows = [{"inputs": torch.randn(3, 32, 32), "target": torch.ones(32, 32)} for _ in range(2)]
    classifier = BinaryClassifier(model, prior_bias=True)
    trainer().fit(classifier, DataLoader(rows, batch_size=2), DataLoader(rows, batch_size=2))
    assert Backbone(**model.spec()["init_args"])(torch.zeros(2, 3, 32, 32)).shape == (2, 1, 32, 32)
