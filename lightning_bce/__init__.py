"""The loss of a binary or multi-label classifier, for PyTorch Lightning."""

from lightning_bce._version import __version__ as __version__
from lightning_bce.classifier import Batch as Batch
from lightning_bce.classifier import BinaryClassifier as BinaryClassifier
from lightning_bce.losses import BCEFocalLoss as BCEFocalLoss
from lightning_bce.losses import BCELoss as BCELoss
from lightning_bce.losses import BCEWithLogitsLoss as BCEWithLogitsLoss
from lightning_bce.losses import BinaryLoss as BinaryLoss
from lightning_bce.losses import FocalLoss as FocalLoss
from lightning_bce.losses import LossSums as LossSums
from lightning_bce.losses import WeightedBCELoss as WeightedBCELoss
from lightning_bce.losses import bce as bce
from lightning_bce.losses import bce_focal as bce_focal
from lightning_bce.losses import bce_with_logits as bce_with_logits
from lightning_bce.losses import focal_loss as focal_loss
from lightning_bce.losses import weighted_bce as weighted_bce
from lightning_bce.metrics import LossTracker as LossTracker
from lightning_bce.models import SmallConvNet as SmallConvNet
from lightning_bce.models import TabularMLP as TabularMLP
from lightning_bce.spec import Recorded as Recorded
