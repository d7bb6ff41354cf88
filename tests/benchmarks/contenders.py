"""Who takes part, each as a function of logits and target that returns a mean; a family computes one number.

The arithmetic of other libraries is written here from its formula, the operations as these libraries order them, so
that it takes part where they are not installed. All compute in float32, as autocast has it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_bce import AsymmetricLoss, BCEWithLogitsLoss, BinaryLoss, FocalLoss

Mean = Callable[[Tensor, Tensor], Tensor]

GAMMA, ALPHA = 2.0, 0.25
GAMMA_NEG, GAMMA_POS, CLIP, FLOOR = 4.0, 1.0, 0.05, 1e-8  # the defaults of the published code


class Contender(NamedTuple):
    """One line of the table.

    Args:
        family: "focal", "bce" or "asl"; "floor" for what no loss can beat.
        name: What it is.
        make: Returns the function. Raises ImportError where its library is not installed.
        labels: Into how many columns the elements are put.
    """

    family: str
    name: str
    make: Callable[[], Mean]
    labels: int = 1

    def of_logits(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return as many elements as fill whole rows, a leaf of the logits."""
        count = max(logits.numel() // self.labels, 1) * self.labels
        shaped = logits.flatten()[:count].view(-1, self.labels), target.flatten()[:count].view(-1, self.labels)
        return shaped[0].detach().requires_grad_(), shaped[1]


# -- ours -------------------------------------------------------------------------------------------------------------


class InChunks(FocalLoss):
    """The way through a batch that is taken where there is no compiler."""

    def _pass(self, batch: Any) -> Any:
        return super()._pass(batch)._replace(kernels=None)


def mean_of_sums(loss: BinaryLoss) -> Mean:
    """Return the mean by way of the sums by label and side, which are there to be logged."""
    return lambda logits, target: loss.sums(logits, target).mean()


def ours() -> list[Contender]:
    """Return the ways of this package."""
    focal = partial(FocalLoss, gamma=GAMMA, alpha=ALPHA)
    asymmetric = partial(AsymmetricLoss, gamma_neg=GAMMA_NEG, gamma_pos=GAMMA_POS, clip=CLIP)
    found = [
        Contender("focal", "FocalLoss, fused", partial(focal, fused=True)),
        Contender("focal", "FocalLoss, formula", partial(focal, fused=False)),
        Contender("focal", "FocalLoss, chunks", partial(InChunks, gamma=GAMMA, alpha=ALPHA, fused=True)),
    ]
    for labels in (1, 16, 1024):
        name = f"FocalLoss.sums, {labels} label{'s' if labels > 1 else ''}"
        found.append(Contender("focal", name, lambda: mean_of_sums(focal(fused=True)), labels))
    return [
        *found,
        Contender("bce", "BCEWithLogitsLoss, fused", partial(BCEWithLogitsLoss, fused=True)),
        Contender("bce", "BCEWithLogitsLoss, formula", partial(BCEWithLogitsLoss, fused=False)),
        Contender("asl", "AsymmetricLoss, fused", partial(asymmetric, fused=True)),
        Contender("asl", "AsymmetricLoss, formula", partial(asymmetric, fused=False)),
    ]


# -- others -----------------------------------------------------------------------------------------------------------


def torchvision_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss as torchvision computes it."""
    logits, target = logits.float(), target.float()
    p = torch.sigmoid(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    losses = cross_entropy * (1 - p_t) ** GAMMA
    return ((ALPHA * target + (1 - ALPHA) * (1 - target)) * losses).mean()


def published_asl(logits: Tensor, target: Tensor) -> Tensor:
    """Return the asymmetric loss as its authors' memory-saving code and timm compute it, with a mean for their sum."""
    logits, target = logits.float(), target.float()
    rest = 1 - target
    p = torch.sigmoid(logits)
    q = (1.0 - p).add_(CLIP).clamp_(max=1)
    losses = target * p.clamp(min=FLOOR).log()
    losses.add_(rest * q.clamp(min=FLOOR).log())
    focus = torch.pow(1 - p * target - q * rest, GAMMA_POS * target + GAMMA_NEG * rest)
    return -(losses * focus).mean()


def torch_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Return torch's cross-entropy."""
    return F.binary_cross_entropy_with_logits(logits.float(), target.float())


def kornia_focal() -> Mean:
    """Return kornia's own function."""
    from kornia.losses import binary_focal_loss_with_logits

    def kornia(logits: Tensor, target: Tensor) -> Tensor:
        found: Tensor = binary_focal_loss_with_logits(
            logits.float(), target.float(), alpha=ALPHA, gamma=GAMMA, reduction="mean", ignore_index=None
        )
        return found

    return kornia


def monai_focal() -> Mean:
    """Return MONAI's own module."""
    from monai.losses import FocalLoss as MonaiFocalLoss

    loss = MonaiFocalLoss(gamma=GAMMA, alpha=ALPHA)

    def monai(logits: Tensor, target: Tensor) -> Tensor:
        found: Tensor = loss(logits.float(), target.float())
        return found

    return monai


def timm_asl() -> Mean:
    """Return timm's own module, its sum made a mean."""
    from timm.loss import AsymmetricLossMultiLabel

    loss = AsymmetricLossMultiLabel(gamma_neg=GAMMA_NEG, gamma_pos=GAMMA_POS, clip=CLIP, eps=FLOOR)

    def timm(logits: Tensor, target: Tensor) -> Tensor:
        found: Tensor = loss(logits.float(), target.float()) / logits.numel()
        return found

    return timm


def others() -> list[Contender]:
    """Return the peers, each in eager mode and compiled for each size."""
    peers: list[tuple[str, str, Callable[[], Mean]]] = [
        ("focal", "torchvision focal", lambda: torchvision_focal),
        ("focal", "kornia focal", kornia_focal),
        ("focal", "MONAI focal", monai_focal),
        ("bce", "torch BCE", lambda: torch_bce),
        ("asl", "published ASL", lambda: published_asl),
        ("asl", "timm ASL", timm_asl),
    ]
    found = []
    for family, name, make in peers:
        found.append(Contender(family, name, make))
        found.append(Contender(family, f"{name}, compiled", partial(compile_, make)))
    return found


def compile_(make: Callable[[], Mean]) -> Mean:
    """Return a peer compiled, to one graph, anew for each size: the fastest that it can get."""
    compiled: Mean = torch.compile(make(), dynamic=False, fullgraph=True)
    return compiled


# -- what they should return ------------------------------------------------------------------------------------------


def exact_losses(family: str, logits: Tensor, target: Tensor) -> Tensor:
    """Return the losses of hard labels by the papers' formulas, for float64."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)
    if family == "bce":
        return -(target * log_p + (1 - target) * log_q)
    if family == "focal":
        positive, negative = log_q.exp() ** GAMMA * log_p, log_p.exp() ** GAMMA * log_q
        return -(ALPHA * target * positive + (1 - ALPHA) * (1 - target) * negative)
    shifted = (log_p.exp() - CLIP).clamp(min=0)
    positive, negative = log_q.exp() ** GAMMA_POS * log_p, shifted**GAMMA_NEG * torch.log1p(-shifted)
    return -(target * positive + (1 - target) * negative)
