"""The functions of keras on torch, and ours of the same definitions.

Its losses are averages over the last dimension, which is one here, so that it has a loss for each element.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from peers.function import PER_SAMPLE, Function, elements
from torch import Tensor

from lightning_bce import BCEFocalLoss, BCELoss, BCEWithLogitsLoss, DiceLoss, FocalLoss, SmoothedBCELoss, TverskyLoss


def call(loss: Any, outputs: Tensor, target: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
    """Return a loss of elements in the dtype of the outputs; without a `reduction` that of each."""
    given = outputs[..., None]
    if mask is not None:
        given._keras_mask = mask  # how its layers say what is known; the target itself has to be a label everywhere
        target = target.where(mask, 0)
    weight = options.pop("sample_weight", None)
    options = {"reduction": "none", "dtype": str(outputs.dtype).removeprefix("torch.")} | options
    return loss(**options)(target[..., None], given, sample_weight=weight)


bce = partial(Function, "keras", "losses.BinaryCrossentropy", "BCEWithLogitsLoss")
smoothed = partial(Function, "keras", "losses.BinaryCrossentropy", "SmoothedBCELoss")
probabilities = partial(Function, "keras", "losses.BinaryCrossentropy", "BCELoss")
focal = partial(Function, "keras", "losses.BinaryFocalCrossentropy", "FocalLoss")
on_probabilities = partial(Function, "keras", "losses.BinaryFocalCrossentropy", "BCEFocalLoss")
dice = partial(Function, "keras", "losses.Dice", "DiceLoss", rows=True, slack=1e-7)
tversky = partial(Function, "keras", "losses.Tversky", "TverskyLoss", rows=True, slack=1e-7)
WEIGHTED = {"reduction": "mean_with_sample_weight"}
MEAN = {"reduction": "sum_over_batch_size"}
KERAS = [
    bce(
        lambda k, x, y: call(k.losses.BinaryCrossentropy, x, y, from_logits=True),
        elements(BCEWithLogitsLoss),
        soft=True,
    ),
    bce(
        lambda k, x, y: call(
            k.losses.BinaryCrossentropy,
            x,
            y,
            from_logits=True,
            sample_weight=PER_SAMPLE.to(x)[:, None].expand(x.shape),
            **WEIGHTED,
        ),
        lambda x, y: BCEWithLogitsLoss(reduction="weighted_mean")(x, y, PER_SAMPLE),
        "sample_weight",
        soft=True,
        shows="weights",
    ),
    bce(
        lambda k, x, y: call(k.losses.BinaryCrossentropy, x, y, from_logits=True, mask=y != -1, **MEAN),
        BCEWithLogitsLoss(ignore_index=-1),
        "mask",
        shows="mask",
    ),
    smoothed(
        lambda k, x, y: call(k.losses.BinaryCrossentropy, x, y, from_logits=True, label_smoothing=0.1),
        elements(SmoothedBCELoss, smoothing=0.1),
        soft=True,
    ),
    smoothed(
        lambda k, x, y: call(
            k.losses.BinaryCrossentropy,
            x,
            y,
            from_logits=True,
            label_smoothing=0.1,
            sample_weight=PER_SAMPLE.to(x)[:, None].expand(x.shape),
            **WEIGHTED,
        ),
        lambda x, y: SmoothedBCELoss(smoothing=0.1, reduction="weighted_mean")(x, y, PER_SAMPLE),
        "sample_weight",
        soft=True,
        shows="weights",
    ),
    smoothed(
        lambda k, x, y: call(
            k.losses.BinaryCrossentropy, x, y, from_logits=True, label_smoothing=0.1, mask=y != -1, **MEAN
        ),
        SmoothedBCELoss(smoothing=0.1, ignore_index=-1),
        "mask",
        shows="mask",
    ),
    probabilities(
        lambda k, x, y: call(k.losses.BinaryCrossentropy, x.sigmoid(), y),
        lambda x, y: elements(BCELoss)(x.sigmoid(), y),
        soft=True,
    ),
    probabilities(
        lambda k, x, y: call(
            k.losses.BinaryCrossentropy,
            x.sigmoid(),
            y,
            sample_weight=PER_SAMPLE.to(x)[:, None].expand(x.shape),
            **WEIGHTED,
        ),
        lambda x, y: BCELoss(reduction="weighted_mean")(x.sigmoid(), y, PER_SAMPLE),
        "sample_weight",
        soft=True,
        shows="weights",
    ),
    probabilities(
        lambda k, x, y: call(k.losses.BinaryCrossentropy, x.sigmoid(), y, mask=y != -1, **MEAN),
        lambda x, y: BCELoss(ignore_index=-1)(x.sigmoid(), y),
        "mask",
        shows="mask",
    ),
    focal(
        lambda k, x, y: call(k.losses.BinaryFocalCrossentropy, x, y, from_logits=True), elements(FocalLoss), soft=True
    ),
    focal(
        lambda k, x, y: call(
            k.losses.BinaryFocalCrossentropy,
            x,
            y,
            from_logits=True,
            apply_class_balancing=True,
            alpha=0.25,
            gamma=1.5,
        ),
        elements(FocalLoss, alpha=0.25, gamma=1.5),
        "alpha",
        soft=True,
    ),
    focal(
        lambda k, x, y: call(
            k.losses.BinaryFocalCrossentropy,
            x,
            y,
            from_logits=True,
            sample_weight=PER_SAMPLE.to(x)[:, None].expand(x.shape),
            **WEIGHTED,
        ),
        lambda x, y: FocalLoss(reduction="weighted_mean")(x, y, PER_SAMPLE),
        "sample_weight",
        soft=True,
        shows="weights",
    ),
    focal(
        lambda k, x, y: call(k.losses.BinaryFocalCrossentropy, x, y, from_logits=True, mask=y != -1, **MEAN),
        FocalLoss(ignore_index=-1),
        "mask",
        shows="mask",
    ),
    on_probabilities(
        lambda k, x, y: call(
            k.losses.BinaryFocalCrossentropy, x.sigmoid(), y, apply_class_balancing=True, alpha=0.25, gamma=2.0
        ),
        lambda x, y: elements(BCEFocalLoss, alpha=0.75, eps=0.0)(x.sigmoid(), y),  # its alpha is for the negatives
    ),
    on_probabilities(
        lambda k, x, y: call(
            k.losses.BinaryFocalCrossentropy, x.sigmoid(), y, apply_class_balancing=True, mask=y != -1, **MEAN
        ),
        lambda x, y: BCEFocalLoss(alpha=0.75, eps=0.0, ignore_index=-1)(x.sigmoid(), y),
        "mask",
        shows="mask",
    ),
    on_probabilities(
        lambda k, x, y: call(
            k.losses.BinaryFocalCrossentropy,
            x.sigmoid(),
            y,
            apply_class_balancing=True,
            sample_weight=PER_SAMPLE.to(x)[:, None].expand(x.shape),
            **WEIGHTED,
        ),
        lambda x, y: BCEFocalLoss(alpha=0.75, eps=0.0, reduction="weighted_mean")(x.sigmoid(), y, PER_SAMPLE),
        "sample_weight",
        shows="weights",
    ),
    dice(lambda k, x, y: k.losses.dice(y, x.sigmoid(), axis=0), elements(DiceLoss, smooth=0.0)),
    tversky(
        # Its documentation has alpha for the false alarms; its formula gives it to the misses.
        lambda k, x, y: k.losses.tversky(y, x.sigmoid(), alpha=0.7, beta=0.3, axis=0),
        elements(TverskyLoss, fp_weight=0.3, fn_weight=0.7, smooth=0.0),
    ),
]
