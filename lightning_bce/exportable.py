"""The trained model as a plain module for `torch.export` and ONNX: inputs in, probabilities and decisions out."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from lightning_bce.outputs import logits_of


class Exportable(nn.Module):
    """What a classifier predicts, without Lightning: in evaluation mode, a copy with calibration and thresholds.

    Made by ``BinaryClassifier.exportable()``.

    Args:
        network: Returns logits, as :func:`~lightning_bce.outputs.logits_of` finds them.
        decision: Takes logits and returns probabilities and decisions.

    Example:
        >>> from lightning_bce.decision import Decision
        >>> import torch
        >>> module = Exportable(nn.Linear(5, 1), Decision(threshold=0.3))
        >>> probability, decision = module(torch.zeros(7, 5))
        >>> probability.shape, decision.dtype
        (torch.Size([7]), torch.bool)
    """

    def __init__(self, network: nn.Module, decision: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)  # which leaves out what the compiler made of it
        self.decision = copy.deepcopy(decision)
        self.eval()

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Return the probability in float32 and the decision; one label gives (N,), C labels (N, C, ...)."""
        probability, decision = self.decision(logits_of(self.network(inputs)))
        return probability, decision
