"""The functions of torch, torchvision and kornia, and ours of the same definitions.

Where a library divides by another count than we do, an entry compares sums.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from peers.function import PER_LABEL, PER_SAMPLE, Function, elements

from lightning_bce import BCELoss, BCEWithLogitsLoss, FocalLoss

logits = partial(Function, "torch", "nn.functional.binary_cross_entropy_with_logits", "BCEWithLogitsLoss")
probabilities = partial(Function, "torch", "nn.functional.binary_cross_entropy", "BCELoss")
TORCH = [
    logits(
        lambda _, x, y: F.binary_cross_entropy_with_logits(x, y, reduction="none"),
        elements(BCEWithLogitsLoss),
        soft=True,
    ),
    logits(
        lambda _, x, y: F.binary_cross_entropy_with_logits(
            x, y, weight=PER_SAMPLE.to(x)[:, None], pos_weight=x.new_tensor(PER_LABEL)
        ),
        BCEWithLogitsLoss(pos_weight=PER_LABEL, weight=PER_SAMPLE[:, None]),
        "weight, pos_weight",
        soft=True,
        shows="weights",
    ),
    Function(
        "torch",
        "nn.functional.multilabel_soft_margin_loss",
        "BCEWithLogitsLoss",
        lambda _, x, y: F.multilabel_soft_margin_loss(x, y, weight=x.new_tensor(PER_LABEL)),
        BCEWithLogitsLoss(class_weight=PER_LABEL),
        "weight",
        soft=True,
    ),
    Function(
        "torch",
        "nn.functional.soft_margin_loss",
        "BCEWithLogitsLoss",
        lambda _, x, y: F.soft_margin_loss(x, 2 * y - 1, reduction="none"),
        elements(BCEWithLogitsLoss),
    ),
    probabilities(
        lambda _, x, y: F.binary_cross_entropy(x.sigmoid(), y, reduction="none"),
        lambda x, y: elements(BCELoss)(x.sigmoid(), y),
        soft=True,
    ),
    probabilities(
        lambda _, x, y: F.binary_cross_entropy(x.sigmoid(), y, weight=PER_SAMPLE.to(x)[:, None]),
        lambda x, y: BCELoss(weight=PER_SAMPLE[:, None])(x.sigmoid(), y),
        "weight",
        soft=True,
        shows="weights",
    ),
]

focal = partial(Function, "torchvision", "ops.sigmoid_focal_loss", "FocalLoss")
TORCHVISION = [
    focal(lambda tv, x, y: tv.ops.sigmoid_focal_loss(x, y, alpha=-1), elements(FocalLoss), soft=True),
    focal(
        lambda tv, x, y: tv.ops.sigmoid_focal_loss(x, y, alpha=0.25, gamma=1.5),
        elements(FocalLoss, alpha=0.25, gamma=1.5),
        "alpha",
        soft=True,
    ),
]

two_term = partial(elements, FocalLoss, soft_targets="two_term")
focal = partial(Function, "kornia", "losses.binary_focal_loss_with_logits", "FocalLoss")
KORNIA = [
    focal(lambda k, x, y: k.losses.binary_focal_loss_with_logits(x, y, alpha=None), two_term(), soft=True),
    focal(
        lambda k, x, y: k.losses.binary_focal_loss_with_logits(x, y, alpha=0.25, gamma=0.5),
        two_term(alpha=0.25, gamma=0.5),
        "alpha",
        soft=True,
    ),
    focal(
        lambda k, x, y: k.losses.binary_focal_loss_with_logits(
            x, y, alpha=None, weight=x.new_tensor(PER_LABEL), reduction="mean"
        ),
        two_term(class_weight=PER_LABEL, reduction="mean"),
        "weight",
        soft=True,
        shows="weights",
    ),
    focal(
        lambda k, x, y: k.losses.binary_focal_loss_with_logits(x, y, alpha=None, ignore_index=-1, reduction="sum"),
        FocalLoss(ignore_index=-1, reduction="sum"),
        "ignore_index, sum",
        shows="mask",
    ),
]
