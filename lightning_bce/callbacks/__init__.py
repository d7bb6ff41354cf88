"""Callbacks for the Trainer: what the loss is made of, calibration and thresholds, and predictions as a table.

They work with any LightningModule whose steps return what they read: ``{"loss", "logits", "target"}`` and, in
prediction, ``{"probability", "decision"}``.
"""

from lightning_bce.callbacks.exact_resume import ExactResume as ExactResume
from lightning_bce.callbacks.finite_guard import FiniteGuard as FiniteGuard
from lightning_bce.callbacks.finite_guard import NotFiniteError as NotFiniteError
from lightning_bce.callbacks.hard_examples import HardExamples as HardExamples
from lightning_bce.callbacks.live_loss_table import LiveLossTable as LiveLossTable
from lightning_bce.callbacks.loss_schedule import LossSchedule as LossSchedule
from lightning_bce.callbacks.per_class_loss_monitor import PerClassLossMonitor as PerClassLossMonitor
from lightning_bce.callbacks.picture_logger import PictureLogger as PictureLogger
from lightning_bce.callbacks.prediction_writer import PredictionWriter as PredictionWriter
from lightning_bce.callbacks.probability_calibrator import ProbabilityCalibrator as ProbabilityCalibrator
from lightning_bce.callbacks.run_recorder import RunRecorder as RunRecorder
from lightning_bce.callbacks.threshold_tuner import ThresholdTuner as ThresholdTuner
