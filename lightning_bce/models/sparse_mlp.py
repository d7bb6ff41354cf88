"""A multilayer perceptron for features of which most are 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_bce.heads import SparseInputs
from lightning_bce.losses.checks import check_number
from lightning_bce.spec import Recorded


class SparseMLP(Recorded, nn.Module):
    """Multilayer perceptron on :class:`SparseInputs`, such as words by TF-IDF; on dense inputs it is the same function.

    The first layer sums the rows of its weights that a sample has features for, so that time and memory of a batch
    follow its entries and not the number of features.

    Args:
        in_features: Number of features F.
        out_features: Number of labels, or the width D of a head.
        hidden: Width of each hidden layer; empty for a linear model.
        dropout: Probability in [0, 1) of leaving out a hidden unit in training.
        entries: About how many features of a row are not 0, at least 1. The first weights begin as those of nn.Linear
            do with so many features.
        sparse_gradient: Whether the first layer's gradient holds the rows of the batch alone, which needs an optimizer
            that takes it, such as SparseAdam for all parameters of one group, SGD or Adagrad.

    Raises:
        ValueError: If a width is not positive or ``dropout`` outside [0, 1).

    Example:
        >>> import torch
        >>> inputs = SparseInputs(torch.tensor([0, 99_999]), torch.ones(2), torch.tensor([0, 1, 2]))
        >>> SparseMLP(100_000, 2, hidden=[8])(inputs).shape  # the third sample has no feature
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.1,
        entries: int = 64,
        sparse_gradient: bool = False,
    ) -> None:
        super().__init__()
        if min(in_features, out_features, entries, *hidden) < 1:
            raise ValueError(
                f"Every number must be at least 1; got in_features={in_features}, out_features={out_features}, "
                f"hidden={list(hidden)}, entries={entries}."
            )
        check_number("dropout", dropout, at_least=0, below=1)
        self.in_features = in_features
        self.sparse_gradient = sparse_gradient
        first, *widths = [*hidden, out_features]
        self.weight = nn.Parameter(torch.empty(in_features, first))
        self.bias = nn.Parameter(torch.empty(first))
        bound = 1 / math.sqrt(min(in_features, entries))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)
        layers: list[nn.Module] = []
        for width, following in pairwise([first, *widths]):
            layers += [nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, following)]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: SparseInputs | Tensor) -> Tensor:
        """Return (N, out_features) of sparse inputs, or of dense ones (N, F)."""
        if isinstance(inputs, Tensor):
            if inputs.ndim != 2 or inputs.shape[1] != self.in_features:
                raise ValueError(
                    f"The batch has inputs of shape {tuple(inputs.shape)}; (N, {self.in_features}) was expected."
                )
            first = inputs @ self.weight
        else:
            indices, value, offsets = inputs
            first = functional.embedding_bag(
                indices,
                self.weight,
                offsets,
                mode="sum",
                per_sample_weights=value.to(self.weight.dtype),
                sparse=self.sparse_gradient,
            )
        out: Tensor = self.layers(first + self.bias)
        return out
