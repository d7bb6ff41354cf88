"""Losses of binary and multi-label classifiers. One file is one idea: a pure function and its thin module."""

from lightning_bce.losses.base import BinaryLoss as BinaryLoss
from lightning_bce.losses.bce import BCEWithLogitsLoss as BCEWithLogitsLoss
from lightning_bce.losses.bce import bce_with_logits as bce_with_logits
from lightning_bce.losses.focal import FocalLoss as FocalLoss
from lightning_bce.losses.focal import focal_loss as focal_loss
from lightning_bce.losses.probability import BCEFocalLoss as BCEFocalLoss
from lightning_bce.losses.probability import BCELoss as BCELoss
from lightning_bce.losses.probability import WeightedBCELoss as WeightedBCELoss
from lightning_bce.losses.probability import bce as bce
from lightning_bce.losses.probability import bce_focal as bce_focal
from lightning_bce.losses.probability import weighted_bce as weighted_bce
from lightning_bce.losses.sums import LossSums as LossSums
