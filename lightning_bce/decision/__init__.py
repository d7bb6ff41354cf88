"""From logits to decisions: calibrated probabilities, and thresholds that are best for what a decision costs."""

from lightning_bce.decision.calibration import Calibration as Calibration
from lightning_bce.decision.calibration import fit_calibration as fit_calibration
from lightning_bce.decision.module import Decision as Decision
from lightning_bce.decision.module import prior_shift as prior_shift
from lightning_bce.decision.objective import Objective as Objective
from lightning_bce.decision.thresholds import TunedThresholds as TunedThresholds
from lightning_bce.decision.thresholds import fit_thresholds as fit_thresholds
from lightning_bce.decision.thresholds import tune_thresholds as tune_thresholds
