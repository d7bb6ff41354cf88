"""BinaryClassifier: a LightningModule for any model and any loss of this package."""

from lightning_bce.classifier.batch import Batch as Batch
from lightning_bce.classifier.module import BinaryClassifier as BinaryClassifier
