"""Where MONAI and segmentation-models are wrong, each with the input that shows it."""

from __future__ import annotations

from functools import partial

import torch
from peers import exact
from peers.fault import INF, NAN, Fault, bits, gradient, logits_of, value

from lightning_bce import (
    BCEWithLogitsLoss,
    DiceLoss,
    FocalLoss,
)

focal = FocalLoss(reduction="none")
MULTI = [[0.0, 3.0], [9.0, 9.0]], [[1.0, -1.0], [0.0, 0.0]]
UNKNOWN = [[0.0], [NAN]], [[1.0], [-1.0]]


monai = partial(Fault, "MONAI")
MONAI_FAULTS = [
    monai(
        "losses.FocalLoss(gamma=2)",
        "logit -20, target 0, float32",
        "loss",
        exact.focal(-20, 0),
        lambda m: value(m.losses.FocalLoss(), [[-20.0]], [[0.0]]),
        lambda: value(focal, [[-20.0]], [[0.0]]),
        "x - x y - log p cancels",
    ),
    monai(
        "losses.FocalLoss()",
        "logit inf, target 1",
        "loss",
        0.0,
        lambda m: value(m.losses.FocalLoss(), [[INF]], [[1.0]]),
        lambda: value(focal, [[INF]], [[1.0]]),
        "0 times inf",
    ),
    monai(
        "losses.FocalLoss(ignore_index=-1, reduction='sum')",
        "logits (0, 3), (9, 9), targets (1, unknown), (0, 0)",
        "loss",
        exact.focal(0, 1) + 2 * exact.focal(9, 0),
        lambda m: value(m.losses.FocalLoss(ignore_index=-1, reduction="sum"), *MULTI),
        lambda: value(FocalLoss(ignore_index=-1, reduction="sum"), *MULTI),
        "with several labels it drops the samples whose targets sum to 0 or less, not what is unknown",
    ),
    monai(
        "losses.FocalLoss(ignore_index=-1)",
        "logits 0 and nan, targets 1 and unknown",
        "loss",
        exact.focal(0, 1),
        lambda m: value(m.losses.FocalLoss(ignore_index=-1), *UNKNOWN),
        lambda: value(FocalLoss(ignore_index=-1), *UNKNOWN),
        "masked by a product: 0 times nan",
    ),
    monai(
        "losses.FocalLoss(reduction='sum')",
        "five positions of logit 0, target 1",
        "loss",
        5 * exact.focal(0, 1),
        lambda m: value(m.losses.FocalLoss(reduction="sum"), [[[0.0] * 5]], [[[1.0] * 5]]),
        lambda: value(FocalLoss(reduction="sum"), [[[0.0] * 5]], [[[1.0] * 5]]),
        "the sum is a mean over positions",
    ),
    monai(
        "losses.FocalLoss()",
        "logits of float64",
        "bits of the loss",
        64,
        lambda m: bits(m.losses.FocalLoss()),
        lambda: bits(focal),
        "cast to float32",
    ),
    monai(
        "losses.DiceLoss(sigmoid=True, batch=True)",
        "probabilities 0.3 and 0.3, targets 0.3 and 0.3",
        "loss",
        0.0,
        lambda m: round(value(m.losses.DiceLoss(sigmoid=True, batch=True), logits_of([0.3, 0.3]), [[0.3], [0.3]]), 3),
        lambda: round(value(DiceLoss(), logits_of([0.3, 0.3]), [[0.3], [0.3]]), 6),
        "documented: products of soft labels, unless soft_label=True",
    ),
    monai(
        "losses.DiceCELoss(sigmoid=True, lambda_dice=0, weight=[3.0])",
        "logit 0, targets 1 and 0, one label",
        "loss",
        3 * exact.bce(0, 1),
        lambda m: value(
            m.losses.DiceCELoss(sigmoid=True, lambda_dice=0, weight=torch.tensor([3.0])), [[0.0]] * 2, [[1.0], [0.0]]
        ),
        lambda: value(BCEWithLogitsLoss(class_weight=[3.0]), [[0.0]] * 2, [[1.0], [0.0]]),
        "documented: the weight of a single label is a pos_weight",
    ),
]

smp = partial(Fault, "segmentation-models")
SEGMENTATION_MODELS_FAULTS = [
    smp(
        "losses.FocalLoss('multilabel', ignore_index=-1, reduction='sum')",
        "logits (0, 3), (9, 9), targets (1, unknown), (0, 0)",
        "loss",
        exact.focal(0, 1) + 2 * exact.focal(9, 0),
        lambda s: value(s.losses.FocalLoss("multilabel", ignore_index=-1, reduction="sum"), *MULTI),
        lambda: value(FocalLoss(ignore_index=-1, reduction="sum"), *MULTI),
        "the mask has one dimension too many",
    ),
    smp(
        "losses.FocalLoss('binary', gamma=0.5)",
        "logit 20, target 1, float32",
        "gradient",
        exact.slope(exact.focal, 20, 1, 0.5),
        lambda s: gradient(s.losses.FocalLoss("binary", gamma=0.5), [[20.0]], [[1.0]]),
        lambda: gradient(FocalLoss(gamma=0.5), [[20.0]], [[1.0]]),
        "a power of a 1 - p that rounds to 0",
    ),
    smp(
        "losses.FocalLoss('binary')",
        "logit 6, target 1, bfloat16",
        "loss",
        exact.focal(6, 1),
        lambda s: value(s.losses.FocalLoss("binary"), [[6.0]], [[1.0]], torch.bfloat16),
        lambda: value(focal, [[6.0]], [[1.0]], torch.bfloat16),
        "1 - p in bfloat16",
    ),
    smp(
        "losses.SoftBCEWithLogitsLoss(ignore_index=-1)",
        "logit 0, one target 1 and three unknown",
        "loss",
        exact.bce(0, 1),
        lambda s: value(s.losses.SoftBCEWithLogitsLoss(ignore_index=-1), [[0.0] * 4], [[1.0, -1.0, -1.0, -1.0]]),
        lambda: value(BCEWithLogitsLoss(ignore_index=-1), [[0.0] * 4], [[1.0, -1.0, -1.0, -1.0]]),
        "the mean counts what is unknown",
    ),
    smp(
        "losses.SoftBCEWithLogitsLoss(ignore_index=-1, reduction='sum')",
        "logits 0 and nan, targets 1 and unknown",
        "loss",
        exact.bce(0, 1),
        lambda s: value(s.losses.SoftBCEWithLogitsLoss(ignore_index=-1, reduction="sum"), *UNKNOWN),
        lambda: value(BCEWithLogitsLoss(ignore_index=-1, reduction="sum"), *UNKNOWN),
        "masked by a product: 0 times nan",
    ),
]
