"""A balanced draw: as many positives as are asked for in every epoch, by seed and epoch, shared out among the ranks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_bce.data.tensors import TensorRows

Chances = npt.NDArray[np.float64]


def draw_chances(target: Tensor, positive_share: float) -> Chances:
    r"""Return how likely each row is to be the next one that is drawn.

    A label is chosen at random, then with probability :math:`s` one of its positives and otherwise one of its
    negatives. With :math:`n_c^+` and :math:`n_c^-` of them, and over the :math:`C` labels that have both sides,

    .. math:: q_i = \frac{1}{C} \sum_c \left( \frac{s \, y_{ic}}{n_c^+} + \frac{(1 - s)(1 - y_{ic})}{n_c^-} \right).

    With one label the share of positives is ``positive_share``. With several it is so in the draws of each label;
    another label's draws bring what comes with it.

    Args:
        target: Labels (N, C), positive above one half. NaN is unknown, neither positive nor negative.
        positive_share: s, in (0, 1).

    Returns:
        Probabilities (N,) with the sum 1.

    Raises:
        ValueError: If no label has both sides.

    Example:
        >>> import torch
        >>> draw_chances(torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]]), positive_share=0.5)
        array([0.5  , 0.125, 0.125, 0.125, 0.125])
    """
    labels = target.numpy().astype(np.float64)
    sides = [labels > 0.5, labels <= 0.5]
    both = sides[0].any(axis=0) & sides[1].any(axis=0)
    if not both.any():
        raise ValueError(
            "`positive_share` cannot be had: no label has positives and negatives among the training rows. Bring more "
            "rows, or leave it out."
        )
    shares = [side[:, both] / side[:, both].sum(axis=0) for side in sides]
    mean: Chances = (positive_share * shares[0] + (1 - positive_share) * shares[1]).mean(axis=1)
    return mean


class BalancedDraw(DistributedSampler[int]):
    """Draw rows by their chances, anew in each epoch; every rank gets its own part of one common draw.

    Of N rows, N are drawn, up to a multiple of the ranks. A row with the chance q comes N q times, rounded up or down
    at random (systematic resampling), so that with one label the share of positives is exact in every epoch and no
    positive is left to luck. The order follows from seed and epoch alone: a resumed run sees that of the uninterrupted
    one. Lightning leaves this sampler as it is, since it knows the ranks.

    Args:
        rows: The dataset; only its length is asked for.
        chances: Probabilities (N,) with the sum 1.
        seed: At least 0. The global random state is neither used nor changed.
        rank: This process's number.
        ranks: Number of processes.

    Example:
        >>> rows = TensorRows({"id": list("abcde")})
        >>> sampler = BalancedDraw(rows, np.array([0.4, 0.15, 0.15, 0.15, 0.15]), seed=0)
        >>> sum(index == 0 for index in sampler), len(sampler)
        (2, 5)
    """

    def __init__(self, rows: TensorRows, chances: Chances, seed: int = 0, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(rows, num_replicas=ranks, rank=rank, seed=seed)
        self.chances = chances

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's part of the draw of the epoch, and move on to the next."""
        generator = np.random.default_rng([self.seed, self.epoch])
        order = generator.permutation(len(self.chances))
        order = order[
            np.argsort(self.chances[order], kind="stable")
        ]  # each side on its own, so that its share is exact
        # Equally spaced pointers, from a random start, into the rows laid end to end by their chances.
        ends = np.cumsum(self.chances[order])
        pointers = (generator.random() + np.arange(self.total_size)) / self.total_size * ends[-1]
        drawn = order[np.searchsorted(ends, pointers, side="right").clip(max=len(order) - 1)]
        shuffled = generator.permutation(drawn)
        self.epoch += 1  # a loop of one's own need not call `set_epoch`
        return iter(shuffled[self.rank :: self.num_replicas].tolist())
