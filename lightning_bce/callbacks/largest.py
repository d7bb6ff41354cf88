"""The largest of many values, with what belongs to them, in memory of the size of what is kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Largest:
    """Keeps the ``k`` largest values of all that are offered, on their device and without waiting for it.

    A NaN counts as larger than any number, and minus infinity is never kept.

    Args:
        k: How many.

    Example:
        >>> import torch
        >>> largest = Largest(2)
        >>> largest.offer(torch.tensor([1.0, 5.0, 3.0]), {"name": torch.tensor([10, 50, 30])})
        >>> largest.offer(torch.tensor([4.0]), {"name": torch.tensor([40])})
        >>> largest.kept()
        (tensor([5., 4.]), {'name': tensor([50, 40])})
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._values: Tensor | None = None
        self._parts: dict[str, Tensor] = {}

    def offer(self, values: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Add values with what belongs to them.

        Args:
            values: (N,), floating point.
            parts: Tensors (N, ...), each time with the same names and the same shapes but for N.
        """
        if not len(values):
            return
        if self._values is None:
            self._values = values.new_full((self.k,), -torch.inf)
            self._parts = {name: part.new_zeros((self.k, *part.shape[1:])) for name, part in parts.items()}
        self._values, index = torch.cat([self._values, values.to(self._values)]).topk(self.k)
        old, new = index.clamp(max=self.k - 1), (index - self.k).clamp(min=0)
        for name, part in parts.items():
            # Two gathers of k rows each and not one of all: a batch of pictures is never copied.
            was_kept = (index < self.k).reshape(-1, *[1] * (part.ndim - 1))
            self._parts[name] = torch.where(was_kept, self._parts[name][old], part[new])

    def kept(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the values on the CPU, the largest first, and their parts. This waits for the device."""
        if self._values is None:
            return torch.empty(0), {}
        values = self._values.cpu()
        some = values != -torch.inf
        return values[some], {name: part.cpu()[some] for name, part in self._parts.items()}

    def part(self, name: str) -> Tensor | None:
        """Return a part of what is kept as it lies on the device, (k, ...), or None if nothing was offered."""
        return self._parts.get(name)
