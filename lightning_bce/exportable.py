"""The trained model as a plain module for `torch.export` and ONNX: inputs in, probabilities and decisions out."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Exportable(nn.Module):
    """What a classifier predicts, without Lightning: in evaluation mode, a copy with the threshold as a buffer.

    Made by ``BinaryClassifier.exportable()``.

    Args:
        network: Returns logits.
        num_labels: Number of labels C.
        threshold: A probability above it is a positive decision.

    Example:
        >>> module = Exportable(nn.Linear(5, 1), num_labels=1, threshold=0.5)
        >>> probability, decision = module(torch.zeros(7, 5))
        >>> probability.shape, decision.dtype
        (torch.Size([7]), torch.bool)
    """

    threshold: Tensor

    def __init__(self, network: nn.Module, *, num_labels: int, threshold: float) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)  # which leaves out what the compiler made of it
        self.num_labels = num_labels
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))
        self.eval()

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """Return the probability in float32 and the decision; one label gives (N,), C labels (N, C, ...)."""
        probability = probability_of(self.network(inputs), self.num_labels)
        return probability, probability > self.threshold


def probability_of(logits: Tensor, num_labels: int) -> Tensor:
    """Return the probability in float32: (N,) for one label, the shape of the logits for C.

    Args:
        logits: (N,), (N, 1) or (N, C, ...).
        num_labels: Number of labels C.

    Example:
        >>> probability_of(torch.zeros(3, 1), num_labels=1)
        tensor([0.5000, 0.5000, 0.5000])
    """
    if num_labels == 1 and logits.ndim == 2:
        logits = logits.squeeze(1)
    return torch.sigmoid(logits.float())
