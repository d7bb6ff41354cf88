"""Probabilities and decisions of rows, by a calibration and thresholds that are fitted on validation rows."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy.typing as npt
import torch

from lightning_bce.comparison.rows import Labels
from lightning_bce.decision import Calibration, fit_calibration, fit_thresholds

Array = npt.NDArray[Any]


class Decided(NamedTuple):
    """What was fitted on validation rows.

    Args:
        calibration: Platt's, a scale and a bias for each label.
        thresholds: Of calibrated probabilities, by F1, one for each label.
    """

    calibration: Calibration
    thresholds: torch.Tensor


def decide(logits: Array, labels: Labels) -> Decided:
    """Fit calibration and thresholds.

    Args:
        logits: Scores of the validation rows, (N, C).
        labels: Their labels.
    """
    calibration = calibrate(logits, labels)
    probability = torch.from_numpy(calibrated(logits, calibration)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels without a positive; the plan showed the data's own warning of them
        thresholds = fit_thresholds(probability, labels.target, "fbeta", mask=labels.known)
    return Decided(calibration, thresholds)


def calibrate(logits: Array, labels: Labels) -> Calibration:
    """Fit the calibration alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        return fit_calibration(logits, labels.target, "vector", mask=labels.known)


def calibrated(logits: Array, calibration: Calibration) -> Array:
    """Return probabilities in float64, in which one that is nearly 1 is not 1, as it would be in float32."""
    probability: Array = torch.sigmoid(calibration.logits(torch.from_numpy(logits)).double()).numpy()
    return probability
