"""Metrics that torchmetrics lacks: the loss itself, by label and side."""

from lightning_bce.metrics.loss_tracker import LossTracker as LossTracker
