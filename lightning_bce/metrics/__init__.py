"""Metrics: the loss itself, where it comes from, and what torchmetrics lacks, with torchmetrics' metrics beside it."""

from lightning_bce.metrics.evaluation import EvaluationMetrics as EvaluationMetrics
from lightning_bce.metrics.evaluation import evaluation_metrics as evaluation_metrics
from lightning_bce.metrics.loss_profile import HardnessBins as HardnessBins
from lightning_bce.metrics.loss_profile import LossBins as LossBins
from lightning_bce.metrics.loss_profile import LossProfile as LossProfile
from lightning_bce.metrics.loss_profile import ProfiledLoss as ProfiledLoss
from lightning_bce.metrics.loss_profile import hard_shares as hard_shares
from lightning_bce.metrics.loss_profile import losses_and_gradients as losses_and_gradients
from lightning_bce.metrics.loss_tracker import LossTracker as LossTracker
