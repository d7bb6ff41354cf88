"""Where torch, torchvision and kornia are wrong, each with the input that shows it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peers import exact
from peers.fault import INF, NAN, Fault, gradient, value
from torch import Tensor

from lightning_bce import BCEWithLogitsLoss, FocalLoss

bce = BCEWithLogitsLoss(reduction="none")
focal = FocalLoss(reduction="none")


def torch_bce(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


torch_fault = partial(Fault, "torch", "nn.functional.binary_cross_entropy_with_logits")
TORCH_FAULTS = [
    torch_fault(
        "logit -20, target 0, float32",
        "loss",
        exact.bce(-20, 0),
        lambda _: value(torch_bce, [-20.0], [0.0]),
        lambda: value(bce, [-20.0], [0.0]),
        "(1 - y) x - log p cancels",
    ),
    torch_fault(
        "logit -6, target 0, bfloat16",
        "loss",
        exact.bce(-6, 0),
        lambda _: value(torch_bce, [-6.0], [0.0], torch.bfloat16),
        lambda: value(bce, [-6.0], [0.0], torch.bfloat16),
        "the same in half precision",
    ),
    torch_fault(
        "logit 20, target 1, float32",
        "gradient",
        exact.slope(exact.bce, 20, 1),
        lambda _: gradient(torch_bce, [20.0], [1.0]),
        lambda: gradient(bce, [20.0], [1.0]),
        "p - y, where p rounds to 1",
    ),
    torch_fault(
        "logit inf, target 1",
        "loss",
        0.0,
        lambda _: value(torch_bce, [INF], [1.0]),
        lambda: value(bce, [INF], [1.0]),
        "0 times inf",
    ),
    torch_fault(
        "logit 3, target 2",
        "loss",
        "ValueError",
        lambda _: value(torch_bce, [3.0], [2.0]),
        lambda: value(BCEWithLogitsLoss(validate="always"), [3.0], [2.0]),
        "targets are not looked at",
    ),
    torch_fault(
        "no element, mean",
        "loss",
        0.0,
        lambda _: value(F.binary_cross_entropy_with_logits, [], []),
        lambda: value(BCEWithLogitsLoss(), [], []),
        "0 / 0",
    ),
]

vision_fault = partial(Fault, "torchvision")


def vision(library: Any, gamma: float) -> Any:
    return partial(library.ops.sigmoid_focal_loss, alpha=-1, gamma=gamma)


TORCHVISION_FAULTS = [
    vision_fault(
        "ops.sigmoid_focal_loss(gamma=0.5)",
        "logit 20, target 1, float32",
        "gradient",
        exact.slope(exact.focal, 20, 1, 0.5),
        lambda tv: gradient(vision(tv, 0.5), [20.0], [1.0]),
        lambda: gradient(FocalLoss(gamma=0.5), [20.0], [1.0]),
        "a power of a 1 - p that rounds to 0",
    ),
    vision_fault(
        "ops.sigmoid_focal_loss(gamma=2)",
        "logit -20, target 0, float32",
        "loss",
        exact.focal(-20, 0),
        lambda tv: value(vision(tv, 2), [-20.0], [0.0]),
        lambda: value(focal, [-20.0], [0.0]),
        "torch's cross-entropy is 0",
    ),
    vision_fault(
        "ops.sigmoid_focal_loss(gamma=2)",
        "logit 6, target 1, bfloat16",
        "loss",
        exact.focal(6, 1),
        lambda tv: value(vision(tv, 2), [6.0], [1.0], torch.bfloat16),
        lambda: value(focal, [6.0], [1.0], torch.bfloat16),
        "1 - p in bfloat16",
    ),
    vision_fault(
        "ops.sigmoid_focal_loss(gamma=2)",
        "logit inf, target 1",
        "loss",
        0.0,
        lambda tv: value(vision(tv, 2), [INF], [1.0]),
        lambda: value(focal, [INF], [1.0]),
        "0 times inf",
    ),
]


def kornia(library: Any, **options: Any) -> Any:
    return partial(library.losses.binary_focal_loss_with_logits, alpha=None, **options)


kornia_fault = partial(Fault, "kornia")
KORNIA_FAULTS = [
    kornia_fault(
        "losses.binary_focal_loss_with_logits",
        "logit inf, target 1",
        "loss",
        0.0,
        lambda k: value(kornia(k), [[INF]], [[1.0]]),
        lambda: value(focal, [[INF]], [[1.0]]),
        "0 times inf",
    ),
    kornia_fault(
        "losses.binary_focal_loss_with_logits(reduction='mean', ignore_index=-1)",
        "logit 0, one target 1 and three unknown",
        "loss",
        exact.focal(0, 1),
        lambda k: value(kornia(k, reduction="mean", ignore_index=-1), [[0.0] * 4], [[1.0, -1.0, -1.0, -1.0]]),
        lambda: value(FocalLoss(ignore_index=-1), [[0.0] * 4], [[1.0, -1.0, -1.0, -1.0]]),
        "documented: the mean counts what is unknown",
    ),
    kornia_fault(
        "losses.binary_focal_loss_with_logits(reduction='sum', ignore_index=-1)",
        "logits 0 and nan, targets 1 and unknown",
        "loss",
        exact.focal(0, 1),
        lambda k: value(kornia(k, reduction="sum", ignore_index=-1), [[0.0, NAN]], [[1.0, -1.0]]),
        lambda: value(FocalLoss(reduction="sum", ignore_index=-1), [[0.0, NAN]], [[1.0, -1.0]]),
        "masked by a product: 0 times nan",
    ),
]
