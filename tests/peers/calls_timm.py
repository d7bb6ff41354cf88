"""The functions of timm, and ours of the same definitions."""

from __future__ import annotations

from functools import partial

import torch
from peers.function import COUNTS, PER_LABEL, Function, elements

from lightning_bce import (
    AsymmetricLoss,
    BCEWithLogitsLoss,
    DistributionBalancedLoss,
    PolyLoss,
    SmoothedBCELoss,
    TwoWayLoss,
    ZLPRLoss,
)

bce = partial(Function, "timm", "loss.BinaryCrossEntropy", "BCEWithLogitsLoss")
smoothed = partial(Function, "timm", "loss.BinaryCrossEntropy", "SmoothedBCELoss")
asl = partial(Function, "timm", "loss.AsymmetricLossMultiLabel", "AsymmetricLoss")
poly = partial(Function, "timm", "loss.PolyBinaryCrossEntropy", "PolyLoss")
TIMM = [
    bce(
        lambda t, x, y: t.loss.BinaryCrossEntropy(smoothing=0, reduction="none")(x, y),
        elements(BCEWithLogitsLoss),
        soft=True,
    ),
    bce(
        lambda t, x, y: t.loss.BinaryCrossEntropy(
            smoothing=0, weight=x.new_tensor(PER_LABEL), pos_weight=x.new_tensor(PER_LABEL)
        )(x, y),
        BCEWithLogitsLoss(class_weight=PER_LABEL, pos_weight=PER_LABEL),
        "weight, pos_weight",
        soft=True,
        shows="weights",
    ),
    bce(
        lambda t, x, y: t.loss.BinaryCrossEntropy(smoothing=0, sum_classes=True)(x, y),
        BCEWithLogitsLoss(reduction="batchmean"),
        "sum_classes",
        soft=True,
    ),
    smoothed(
        lambda t, x, y: t.loss.BinaryCrossEntropy(smoothing=0.1, smooth_dense=True, reduction="none")(x, y),
        elements(SmoothedBCELoss, smoothing=0.1),
        soft=True,
    ),
    smoothed(
        lambda t, x, y: t.loss.BinaryCrossEntropy(smoothing=0.1, smooth_dense=True, weight=x.new_tensor(PER_LABEL))(
            x, y
        ),
        SmoothedBCELoss(smoothing=0.1, class_weight=PER_LABEL),
        "weight",
        soft=True,
        shows="weights",
    ),
    asl(
        lambda t, x, y: t.loss.AsymmetricLossMultiLabel(reduction="none")(x, y), elements(AsymmetricLoss, gamma_pos=1.0)
    ),
    asl(
        lambda t, x, y: t.loss.AsymmetricLossMultiLabel(weight=torch.tensor(PER_LABEL))(x, y),
        AsymmetricLoss(gamma_pos=1.0, class_weight=PER_LABEL, reduction="batchmean"),
        "weight",
        shows="weights",
    ),
    asl(
        lambda t, x, y: t.loss.AsymmetricLossMultiLabel(disable_torch_grad_focal_loss=True, reduction="none")(x, y),
        elements(AsymmetricLoss, gamma_pos=1.0, detach_focus=True),
        "disable_torch_grad_focal_loss",
    ),
    poly(
        lambda t, x, y: t.loss.PolyBinaryCrossEntropy(reduction="none")(x, y),
        elements(PolyLoss, epsilon=2.0),
        soft=True,
    ),
    poly(
        lambda t, x, y: t.loss.PolyBinaryCrossEntropy(epsilon=-1, gamma=2, alpha=0.25, reduction="none")(x, y),
        elements(PolyLoss, epsilon=-1.0, gamma=2.0, alpha=0.25),
        "epsilon -1, gamma, alpha",
        soft=True,
    ),
    Function("timm", "loss.ZlprLoss", "ZLPRLoss", lambda t, x, y: t.loss.ZlprLoss()(x, y), ZLPRLoss(), rows=True),
    Function(
        "timm", "loss.TwoWayLoss", "TwoWayLoss", lambda t, x, y: t.loss.TwoWayLoss()(x, y), TwoWayLoss(), rows=True
    ),
    Function(
        "timm",
        "loss.DistributionBalancedLoss",
        "DistributionBalancedLoss",
        lambda t, x, y: t.loss.DistributionBalancedLoss(COUNTS, 1000, focal_balance=1, reduction="none")(x, y),
        elements(DistributionBalancedLoss, counts=COUNTS, total=1000, gamma=2.0),
        soft=True,
        rows=True,
    ),
]
