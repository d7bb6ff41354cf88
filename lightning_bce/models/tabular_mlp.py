"""A multilayer perceptron for tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_bce.losses.checks import check_number
from lightning_bce.spec import Recorded


class TabularMLP(Recorded, nn.Module):
    """Multilayer perceptron on numeric features: linear layers with ReLU and dropout between.

    Args:
        in_features: Number of features; inputs of more dimensions are flattened to it.
        out_features: Number of labels.
        hidden: Width of each hidden layer; empty for a linear model.
        dropout: Probability in [0, 1) of leaving out a hidden unit in training.

    Raises:
        ValueError: If a width is not positive or ``dropout`` outside [0, 1).

    Example:
        >>> import torch
        >>> TabularMLP(5, 2)(torch.zeros(7, 5)).shape
        torch.Size([7, 2])
    """

    def __init__(
        self, in_features: int, out_features: int = 1, hidden: Sequence[int] = (128, 64), dropout: float = 0.1
    ) -> None:
        super().__init__()
        if min(in_features, out_features, *hidden) < 1:
            raise ValueError(
                f"Every width must be at least 1; got in_features={in_features}, out_features={out_features}, "
                f"hidden={list(hidden)}."
            )
        check_number("dropout", dropout, at_least=0, below=1)
        self.in_features = in_features
        widths = [in_features, *hidden]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU(), nn.Dropout(dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_features))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (N, out_features)."""
        features = inputs.flatten(1)
        if features.shape[1] != self.in_features:
            raise ValueError(
                f"The batch has {features.shape[1]} features a sample and the model takes {self.in_features}."
            )
        logits: Tensor = self.layers(features)
        return logits
