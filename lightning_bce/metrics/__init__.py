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
from lightning_bce.metrics.score_curves import Bounded as Bounded
from lightning_bce.metrics.score_curves import ScoreCurve as ScoreCurve
from lightning_bce.metrics.score_curves import score_auroc as score_auroc
from lightning_bce.metrics.score_curves import score_average_precision as score_average_precision
from lightning_bce.metrics.score_curves import score_precision_recall as score_precision_recall
from lightning_bce.metrics.score_curves import score_roc as score_roc
from lightning_bce.metrics.score_histogram import CountedScores as CountedScores
from lightning_bce.metrics.score_histogram import ScoreBins as ScoreBins
from lightning_bce.metrics.score_histogram import ScoreHistogram as ScoreHistogram
