"""SparseInputs: features of which most are 0, as an EmbeddingBag takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SparseInputs(NamedTuple):
    """Features (N, F) of which only those that are not 0 are kept, row after row.

    What ``torch.nn.functional.embedding_bag`` takes: its sum over a row is the product of the dense row with a matrix.
    A named tuple of tensors, which Lightning and DataLoaders move and pin by themselves.

    Args:
        indices: Feature of each entry, (P,), int64. One that a row names twice counts twice: its values add up.
        value: Value of each entry, (P,), floating point.
        offsets: At which entry each row begins, (N,), int64.

    Example:
        >>> inputs = SparseInputs(torch.tensor([0, 2, 1]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2]))
        >>> inputs.to_dense(3)
        tensor([[1., 0., 2.],
                [0., 0., 0.],
                [0., 3., 0.]])
    """

    indices: Tensor
    value: Tensor
    offsets: Tensor

    def to_dense(self, num_features: int) -> Tensor:
        """Return (N, F).

        Args:
            num_features: The number of features F.
        """
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([len(self.indices)])])
        number = torch.arange(len(self.offsets), device=self.indices.device)
        rows = torch.repeat_interleave(number, ends - self.offsets, output_size=len(self.indices))
        dense = self.value.new_zeros(len(self.offsets), num_features)
        return dense.index_put_((rows, self.indices), self.value, accumulate=True)
