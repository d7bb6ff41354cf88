"""All faults of other libraries that were found, in one list."""

from __future__ import annotations

from peers.fault import Fault
from peers.faults_of_segmentation import MONAI_FAULTS, SEGMENTATION_MODELS_FAULTS
from peers.faults_of_timm_and_keras import KERAS_FAULTS, TIMM_FAULTS
from peers.faults_of_torch import KORNIA_FAULTS, TORCH_FAULTS, TORCHVISION_FAULTS

FAULTS: list[Fault] = [
    *TORCH_FAULTS,
    *TORCHVISION_FAULTS,
    *KORNIA_FAULTS,
    *MONAI_FAULTS,
    *SEGMENTATION_MODELS_FAULTS,
    *TIMM_FAULTS,
    *KERAS_FAULTS,
]
