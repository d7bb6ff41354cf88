"""Where timm and keras are wrong, each with the input that shows it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peers import exact
from peers.fault import Fault, bits, gradient, logits_of, value
from torch import Tensor

from lightning_bce import AsymmetricLoss, BinaryLoss, DiceLoss, FocalLoss, PolyLoss, TverskyLoss, ZLPRLoss

focal = FocalLoss(reduction="none")


def timm_asl(library: Any, **options: Any) -> Any:
    return library.loss.AsymmetricLossMultiLabel(reduction="none", **options)


def asl(**options: Any) -> BinaryLoss:
    return AsymmetricLoss(reduction="none", **({"gamma_pos": 1.0} | options))


timm = partial(Fault, "timm")
TIMM_FAULTS = [
    timm(
        "loss.AsymmetricLossMultiLabel()",
        "logit -60, target 1, float32",
        "gradient",
        exact.slope(exact.focal, -60, 1, 1),
        lambda t: gradient(timm_asl(t), [[-60.0]], [[1.0]]),
        lambda: gradient(asl(), [[-60.0]], [[1.0]]),
        "a floor of 1e-8 under the logarithm",
    ),
    timm(
        "loss.AsymmetricLossMultiLabel()",
        "logit -60, target 1, float32",
        "loss",
        exact.focal(-60, 1, 1),
        lambda t: value(timm_asl(t), [[-60.0]], [[1.0]]),
        lambda: value(asl(), [[-60.0]], [[1.0]]),
        "the same",
    ),
    timm(
        "loss.AsymmetricLossMultiLabel(clip=0)",
        "logit 20, target 0, float32",
        "gradient",
        exact.slope(exact.focal, 20, 0, 4),
        lambda t: gradient(timm_asl(t, clip=0), [[20.0]], [[0.0]]),
        lambda: gradient(asl(clip=0.0), [[20.0]], [[0.0]]),
        "the same",
    ),
    timm(
        "loss.AsymmetricLossMultiLabel(gamma_pos=0.5)",
        "logit 20, target 1, float32",
        "gradient",
        exact.slope(exact.focal, 20, 1, 0.5),
        lambda t: gradient(timm_asl(t, gamma_pos=0.5), [[20.0]], [[1.0]]),
        lambda: gradient(asl(gamma_pos=0.5), [[20.0]], [[1.0]]),
        "a power of a 1 - p that rounds to 0",
    ),
    timm(
        "loss.PolyBinaryCrossEntropy(epsilon=-1)",
        "logit 10, target 1, float32",
        "loss",
        exact.bce(10, 1) - exact.miss(10, 1),
        lambda t: value(t.loss.PolyBinaryCrossEntropy(epsilon=-1, reduction="none"), [[10.0]], [[1.0]]),
        lambda: value(PolyLoss(epsilon=-1.0), [[10.0]], [[1.0]]),
        "1 - p, and the first term of the series, cancel",
    ),
    timm(
        "loss.ZlprLoss()",
        "logits 20 and -20, targets 1 and 0, float32",
        "loss",
        2 * exact.bce(20, 1),
        lambda t: value(t.loss.ZlprLoss(), [[20.0, -20.0]], [[1.0, 0.0]]),
        lambda: value(ZLPRLoss(), [[20.0, -20.0]], [[1.0, 0.0]]),
        "log(1 + z) of a small z",
    ),
    timm(
        "loss.ZlprLoss()",
        "logit 0 and 1, targets 0.4 and 0.6",
        "loss",
        "ValueError",
        lambda t: value(t.loss.ZlprLoss(), [[0.0, 1.0]], [[0.4, 0.6]]),
        lambda: value(ZLPRLoss(), [[0.0, 1.0]], [[0.4, 0.6]]),
        "documented: soft targets are rounded",
    ),
    timm(
        "loss.AsymmetricLossMultiLabel()",
        "logits of float64",
        "bits of the loss",
        64,
        lambda t: bits(timm_asl(t)),
        lambda: bits(asl()),
        "cast to float32",
    ),
]


def keras_focal(library: Any, **options: Any) -> Any:
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return library.losses.binary_focal_crossentropy(target, logits, from_logits=True, **options)

    return loss


keras = partial(Fault, "keras")
KERAS_FAULTS = [
    keras(
        "losses.binary_focal_crossentropy(from_logits=True)",
        "logit -200, target 1, float32",
        "loss",
        exact.focal(-200, 1),
        lambda k: value(keras_focal(k), [[-200.0]], [[1.0]]),
        lambda: value(focal, [[-200.0]], [[1.0]]),
        "logits become probabilities, held 1e-7 from 0 and 1",
    ),
    keras(
        "losses.binary_focal_crossentropy(from_logits=True)",
        "logit -20, target 1, float32",
        "gradient",
        exact.slope(exact.focal, -20, 1, 2),
        lambda k: gradient(keras_focal(k), [[-20.0]], [[1.0]]),
        lambda: gradient(focal, [[-20.0]], [[1.0]]),
        "the same",
    ),
    keras(
        "losses.binary_focal_crossentropy(from_logits=True, gamma=0.5)",
        "logit 20, target 1, float32",
        "gradient",
        exact.slope(exact.focal, 20, 1, 0.5),
        lambda k: gradient(keras_focal(k, gamma=0.5), [[20.0]], [[1.0]]),
        lambda: gradient(FocalLoss(gamma=0.5), [[20.0]], [[1.0]]),
        "a power of a 1 - p that rounds to 0",
    ),
    keras(
        "losses.binary_focal_crossentropy(from_logits=True)",
        "logit 12, target 0, float16",
        "loss",
        exact.focal(12, 0),
        lambda k: value(keras_focal(k), [[12.0]], [[0.0]], torch.float16),
        lambda: value(focal, [[12.0]], [[0.0]], torch.float16),
        "in float16, 1 - 1e-7 is 1",
    ),
    keras(
        "losses.tversky(alpha=0.3, beta=0.7)",
        "probabilities 1 and 0.5, targets 1 and 0",
        "loss",
        1 - 1 / (1 + 0.3 * 0.5),
        lambda k: value(lambda p, y: k.losses.tversky(y, p, alpha=0.3, beta=0.7), [1.0, 0.5], [1.0, 0.0]),
        lambda: value(TverskyLoss(fp_weight=0.3, fn_weight=0.7, smooth=0.0), [[60.0], [0.0]], [[1.0], [0.0]]),
        "alpha is said to weigh false positives, and weighs false negatives",
    ),
    keras(
        "losses.dice()",
        "probabilities 0.3 and 0.3, targets 0.3 and 0.3",
        "loss",
        0.0,
        lambda k: value(lambda p, y: k.losses.dice(y, p), [0.3, 0.3], [0.3, 0.3]),
        lambda: round(value(DiceLoss(), logits_of([0.3, 0.3]), [[0.3], [0.3]]), 6),
        "products of soft labels",
    ),
]
