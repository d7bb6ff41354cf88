"""Small ready backbones. Anything else is the user's own ``nn.Module`` by class path."""

from lightning_bce.models.backbone import Backbone as Backbone
from lightning_bce.models.conv_net import SmallConvNet as SmallConvNet
from lightning_bce.models.sparse_mlp import SparseMLP as SparseMLP
from lightning_bce.models.tabular_mlp import TabularMLP as TabularMLP
from lightning_bce.models.text_encoder import TextEncoder as TextEncoder
