"""Metrics: the loss itself by label and side, and torchmetrics' metrics beside it."""

from lightning_bce.metrics.evaluation import EvaluationMetrics as EvaluationMetrics
from lightning_bce.metrics.evaluation import evaluation_metrics as evaluation_metrics
from lightning_bce.metrics.loss_tracker import LossTracker as LossTracker
