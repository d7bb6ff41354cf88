"""What a user should hear of a model or a loss that trains, and not as it was meant."""

from __future__ import annotations

import warnings

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_bce.losses import BinaryLoss, CombinedLoss

_ENOUGH_TO_JUDGE = 64  # outputs


def warn_of_cuts(loss: BinaryLoss) -> None:
    """Warn of a loss that takes statistics of its batch, of which accumulation and ranks cut pieces."""
    parts = loss.terms.values() if isinstance(loss, CombinedLoss) else [loss]
    names = sorted({type(part).__name__ for part in parts if isinstance(part, BinaryLoss) and part.couples_samples})
    rank_zero_warn(
        f"{', '.join(names)} looks at all samples of a batch together. Accumulated batches and several ranks give the "
        "mean of their gradients, each weighed by what it counts, and not the gradient of one large batch. Where that "
        "matters, enlarge `batch_size` instead.",
        stacklevel=2,
    )


def warn_of_probabilities(logits: Tensor) -> None:
    """Warn of outputs that all lie between 0 and 1, as no logits of a trained model do, of a batch large enough."""
    if logits.numel() < _ENOUGH_TO_JUDGE:
        return
    least, most = logits.aminmax()
    if 0 < least and least < most and most < 1:
        warnings.warn(
            f"After an epoch all {logits.numel()} outputs of a batch lie between 0 and 1 ({least.item():.3g} to "
            f"{most.item():.3g}). If they are probabilities, return logits instead: the sigmoid is applied to them "
            "once more, and the loss of a positive cannot fall below 0.31.",
            stacklevel=3,
        )


def warn_of_double_sigmoid(model: nn.Module) -> None:
    """Warn of a model whose last layer makes probabilities."""
    leaves = [module for module in model.modules() if not list(module.children())]
    if leaves and isinstance(leaves[-1], (nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.LogSigmoid)):
        warnings.warn(
            f"The model ends in {type(leaves[-1]).__name__} and should return logits: the sigmoid would be applied "
            "twice, and the loss of a positive could not fall below 0.31. Remove the last layer.",
            stacklevel=3,
        )
