"""All functions of other libraries that are compared, in one list.

The first entry of a library and a loss is its plain form, which the probes of the table ask.
"""

from __future__ import annotations

from peers.calls_keras import KERAS
from peers.calls_monai import MONAI
from peers.calls_segmentation_models import SEGMENTATION_MODELS
from peers.calls_timm import TIMM
from peers.calls_torch import KORNIA, TORCH, TORCHVISION
from peers.function import Function

FUNCTIONS: list[Function] = [*TORCH, *TORCHVISION, *KORNIA, *MONAI, *SEGMENTATION_MODELS, *TIMM, *KERAS]
