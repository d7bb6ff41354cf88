"""The functions of MONAI, and ours of the same definitions. Its overlaps are of a label over the batch here.

Its `ignore_index` marks elements where there is one label only: where there are several it drops other ones.
"""

from __future__ import annotations

from functools import partial

from peers.function import PER_LABEL, Function, elements

from lightning_bce import BCEWithLogitsLoss, DiceLoss, FocalLoss, JaccardLoss, MCCLoss, TverskyLoss

focal = partial(Function, "MONAI", "losses.FocalLoss", "FocalLoss")
OVER_BATCH = {"sigmoid": True, "batch": True, "soft_label": True}
ONE = {"smooth_nr": 1.0, "smooth_dr": 1.0}
dice = partial(Function, "MONAI", "losses.DiceLoss", "DiceLoss", rows=True)
jaccard = partial(Function, "MONAI", "losses.DiceLoss(jaccard=True)", "JaccardLoss", rows=True)
tversky = partial(Function, "MONAI", "losses.TverskyLoss", "TverskyLoss", rows=True)
MONAI = [
    focal(lambda m, x, y: m.losses.FocalLoss(reduction="none")(x, y), elements(FocalLoss)),
    focal(
        lambda m, x, y: m.losses.FocalLoss(alpha=0.25, gamma=0.5, reduction="none")(x, y),
        elements(FocalLoss, alpha=0.25, gamma=0.5),
        "alpha",
    ),
    focal(
        lambda m, x, y: m.losses.FocalLoss(weight=PER_LABEL)(x, y),
        FocalLoss(class_weight=PER_LABEL),
        "weight",
        shows="weights",
    ),
    focal(
        lambda m, x, y: m.losses.FocalLoss(ignore_index=-1)(x, y),
        FocalLoss(ignore_index=-1),
        "ignore_index",
        shows="mask",
        labels=1,
    ),
    dice(lambda m, x, y: m.losses.DiceLoss(**OVER_BATCH, **ONE)(x, y), DiceLoss(), soft=True),
    dice(
        lambda m, x, y: m.losses.DiceLoss(**OVER_BATCH, **ONE, weight=PER_LABEL)(x, y),
        DiceLoss(class_weight=PER_LABEL),
        "weight",
        soft=True,
        shows="weights",
    ),
    dice(
        lambda m, x, y: m.losses.DiceLoss(**OVER_BATCH, **ONE, ignore_index=-1)(x, y),
        DiceLoss(ignore_index=-1),
        "ignore_index",
        shows="mask",
        labels=1,
    ),
    jaccard(
        lambda m, x, y: m.losses.DiceLoss(jaccard=True, **OVER_BATCH, **ONE)(x, y), JaccardLoss(smooth=0.5), soft=True
    ),
    jaccard(
        lambda m, x, y: m.losses.DiceLoss(jaccard=True, **OVER_BATCH, **ONE, weight=PER_LABEL)(x, y),
        JaccardLoss(smooth=0.5, class_weight=PER_LABEL),
        "weight",
        soft=True,
        shows="weights",
    ),
    jaccard(
        lambda m, x, y: m.losses.DiceLoss(jaccard=True, **OVER_BATCH, **ONE, ignore_index=-1)(x, y),
        JaccardLoss(smooth=0.5, ignore_index=-1),
        "ignore_index",
        shows="mask",
        labels=1,
    ),
    tversky(
        lambda m, x, y: m.losses.TverskyLoss(alpha=0.3, beta=0.7, **OVER_BATCH, **ONE)(x, y),
        TverskyLoss(fp_weight=0.3, fn_weight=0.7),
        soft=True,
    ),
    tversky(
        lambda m, x, y: m.losses.TverskyLoss(alpha=0.3, beta=0.7, **OVER_BATCH, **ONE, ignore_index=-1)(x, y),
        TverskyLoss(fp_weight=0.3, fn_weight=0.7, ignore_index=-1),
        "ignore_index",
        shows="mask",
        labels=1,
    ),
    Function(
        "MONAI",
        "losses.MCCLoss",
        "MCCLoss",
        lambda m, x, y: m.losses.MCCLoss(sigmoid=True, batch=True, smooth_dr=0)(x, y),
        MCCLoss(smooth=1e-12),
        rows=True,
    ),
    Function(
        "MONAI",
        "losses.DiceCELoss",
        "CombinedLoss",
        lambda m, x, y: m.losses.DiceCELoss(**{k: v for k, v in OVER_BATCH.items() if k != "soft_label"}, **ONE)(x, y),
        DiceLoss() + BCEWithLogitsLoss(),
        rows=True,
        labels=1,
    ),
]
