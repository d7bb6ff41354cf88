"""Heads: the last linear layer and its loss in one, for label counts where logits must not exist."""

from lightning_bce.heads.backward import HeadBackwardError as HeadBackwardError
from lightning_bce.heads.head import MultiLabelHead as MultiLabelHead
from lightning_bce.heads.inputs import SparseInputs as SparseInputs
from lightning_bce.heads.targets import SparseTarget as SparseTarget
from lightning_bce.heads.updates import ChunkAdafactor as ChunkAdafactor
from lightning_bce.heads.updates import ChunkAdamW as ChunkAdamW
from lightning_bce.heads.updates import ChunkSGD as ChunkSGD
from lightning_bce.heads.updates import ChunkUpdate as ChunkUpdate
