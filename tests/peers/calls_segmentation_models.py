"""The functions of segmentation-models, and ours of the same definitions.

Where it divides by another count than we do, an entry compares sums.
"""

from __future__ import annotations

from functools import partial

from peers.function import PER_LABEL, Function, elements

from lightning_bce import (
    BCEWithLogitsLoss,
    DiceLoss,
    FocalLoss,
    JaccardLoss,
    MCCLoss,
    SmoothedBCELoss,
    TverskyLoss,
)

bce = partial(Function, "segmentation-models", "losses.SoftBCEWithLogitsLoss", "BCEWithLogitsLoss")
smoothed = partial(Function, "segmentation-models", "losses.SoftBCEWithLogitsLoss", "SmoothedBCELoss")
focal = partial(Function, "segmentation-models", "losses.FocalLoss", "FocalLoss")
dice = partial(Function, "segmentation-models", "losses.DiceLoss", "DiceLoss", rows=True)
jaccard = partial(Function, "segmentation-models", "losses.JaccardLoss", "JaccardLoss", rows=True)
tversky = partial(Function, "segmentation-models", "losses.TverskyLoss", "TverskyLoss", rows=True)
MULTI = "multilabel"
# A weighted mean over labels is divided by the sum of weights there, and not by the number of labels.
SHARES = [weight * len(PER_LABEL) / sum(PER_LABEL) for weight in PER_LABEL]
SEGMENTATION_MODELS = [
    bce(lambda s, x, y: s.losses.SoftBCEWithLogitsLoss(reduction="none")(x, y), elements(BCEWithLogitsLoss), soft=True),
    bce(
        lambda s, x, y: s.losses.SoftBCEWithLogitsLoss(weight=x.new_tensor(PER_LABEL), pos_weight=x.new_tensor(3))(
            x, y
        ),
        BCEWithLogitsLoss(class_weight=PER_LABEL, pos_weight=3.0),
        "weight, pos_weight",
        soft=True,
        shows="weights",
    ),
    bce(
        lambda s, x, y: s.losses.SoftBCEWithLogitsLoss(ignore_index=-1, reduction="sum")(x, y),
        BCEWithLogitsLoss(ignore_index=-1, reduction="sum"),
        "ignore_index, sum",
        shows="mask",
    ),
    smoothed(
        lambda s, x, y: s.losses.SoftBCEWithLogitsLoss(smooth_factor=0.1, reduction="none")(x, y),
        elements(SmoothedBCELoss, smoothing=0.2),
        soft=True,
    ),
    smoothed(
        lambda s, x, y: s.losses.SoftBCEWithLogitsLoss(smooth_factor=0.1, weight=x.new_tensor(PER_LABEL))(x, y),
        SmoothedBCELoss(smoothing=0.2, class_weight=PER_LABEL),
        "weight",
        soft=True,
        shows="weights",
    ),
    focal(lambda s, x, y: s.losses.FocalLoss("binary", reduction="none")(x, y), elements(FocalLoss)),
    focal(
        lambda s, x, y: s.losses.FocalLoss(MULTI, alpha=0.25, gamma=1.5)(x, y),
        FocalLoss(alpha=0.25, gamma=1.5),
        "alpha",
    ),
    focal(
        lambda s, x, y: s.losses.FocalLoss(MULTI, class_weights=PER_LABEL)(x, y),
        FocalLoss(class_weight=SHARES),
        "class_weights",
        shows="weights",
    ),
    focal(
        lambda s, x, y: s.losses.FocalLoss("binary", ignore_index=-1)(x, y),
        FocalLoss(ignore_index=-1),
        "binary, ignore_index",
        shows="mask",
    ),
    dice(lambda s, x, y: s.losses.DiceLoss(MULTI, smooth=1.0)(x, y), DiceLoss(smooth=2.0), soft=True),
    dice(
        lambda s, x, y: s.losses.DiceLoss(MULTI, smooth=1.0, class_weights=PER_LABEL)(x, y),
        DiceLoss(smooth=2.0, class_weight=SHARES),
        "class_weights",
        soft=True,
        shows="weights",
    ),
    dice(
        lambda s, x, y: s.losses.DiceLoss(MULTI, smooth=1.0, ignore_index=-1)(x, y),
        DiceLoss(smooth=2.0, ignore_index=-1),
        "ignore_index",
        shows="mask",
    ),
    jaccard(lambda s, x, y: s.losses.JaccardLoss(MULTI, smooth=1.0)(x, y), JaccardLoss(), soft=True),
    jaccard(
        lambda s, x, y: s.losses.JaccardLoss(MULTI, smooth=1.0, class_weights=PER_LABEL)(x, y),
        JaccardLoss(class_weight=SHARES),
        "class_weights",
        soft=True,
        shows="weights",
    ),
    jaccard(
        lambda s, x, y: s.losses.JaccardLoss(MULTI, smooth=1.0, ignore_index=-1)(x, y),
        JaccardLoss(ignore_index=-1),
        "ignore_index",
        shows="mask",
    ),
    tversky(
        lambda s, x, y: s.losses.TverskyLoss(MULTI, smooth=1.0, alpha=0.3, beta=0.7)(x, y),
        TverskyLoss(fp_weight=0.3, fn_weight=0.7),
        soft=True,
    ),
    tversky(
        lambda s, x, y: s.losses.TverskyLoss(MULTI, smooth=1.0, alpha=0.3, beta=0.7, class_weights=PER_LABEL)(x, y),
        TverskyLoss(fp_weight=0.3, fn_weight=0.7, class_weight=SHARES),
        "class_weights",
        soft=True,
        shows="weights",
    ),
    tversky(
        lambda s, x, y: s.losses.TverskyLoss(MULTI, smooth=1.0, alpha=0.3, beta=0.7, ignore_index=-1)(x, y),
        TverskyLoss(fp_weight=0.3, fn_weight=0.7, ignore_index=-1),
        "ignore_index",
        shows="mask",
    ),
    tversky(
        lambda s, x, y: s.losses.TverskyLoss("binary", smooth=1.0, alpha=0.3, beta=0.7, gamma=0.75)(x, y),
        TverskyLoss(fp_weight=0.3, fn_weight=0.7, gamma=0.75),
        "gamma",
        soft=True,
        labels=1,
    ),
    Function(
        "segmentation-models",
        "losses.MCCLoss",
        "MCCLoss",
        lambda s, x, y: s.losses.MCCLoss(eps=0)(x.sigmoid(), y),
        MCCLoss(smooth=1e-12),
        rows=True,
        labels=1,
    ),
]
