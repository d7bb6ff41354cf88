"""GHM-C: examples as hard as many others count less, the easy ones and the hopeless ones alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from lightning_bce.engine import sum_dtype
from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.bce import bce_with_logits
from lightning_bce.losses.checks import check_number, check_shapes, check_whole, may_look
from lightning_bce.losses.stable import full_precision, residual


def ghm_c(
    logits: Tensor,
    target: Tensor,
    known: Tensor | None = None,
    counts: Tensor | None = None,
    *,
    bins: int = 30,
) -> Tensor:
    r"""Return cross-entropy, each element divided by the density of elements with a gradient like its own.

    .. math:: \frac{N}{\mathrm{GD}(g)} \, \mathrm{BCE}(x, y), \quad g = |p - y|, \quad
              \mathrm{GD}(g) = M R_{\mathrm{bin}(g)}, \quad N = \sum_j R_j

    with the counts R of M equal bins over [0, 1]; the last one includes 1. Over the batch that was counted, the mean of
    the factors is the share of bins that are not empty, at most 1, as in the paper: all bins with an element weigh the
    same together, and an empty one weighs nothing. (The paper's code divides by the number of bins that are not
    empty, so that the mean is 1.)

    For many easy examples, as the focal loss, and for outliers too: where labels are wrong the hardest bin is full as
    well, and counts less. The factor has no gradient. With a share c of positives the minimum is where p / (1 - p) is
    c / (1 - c) times the factor at g = 1 - p over the one at g = p: where easy examples are many, probabilities are
    pulled towards one half. Not for calibrated probabilities, nor for small batches, in which a count is chance.

    Args:
        logits: Scores before the sigmoid, any shape, floating point. One histogram for all elements.
        target: Labels in [0, 1], the shape of ``logits``.
        known: True where the label is known, bool, broadcastable to ``logits``; other elements are not counted. None
            means everywhere.
        counts: Elements in each bin, (``bins``,), at least 0 and not all 0. A bin that an element finds with less than
            1 counts as 1. None counts this batch. The values are not checked, which would wait for the device.
        bins: The paper's M, at least 1. At 1 this is binary cross-entropy. The paper takes 30, its code 10.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better, 0 where unknown.

    Raises:
        ValueError: If the shapes differ, ``bins`` is below 1, or ``counts`` has another shape than (``bins``,).

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([-3.0, -3.0, -3.0, 3.0]), torch.zeros(4)
        >>> ghm_c(logits, target, bins=2)
        tensor([0.0324, 0.0324, 0.0324, 6.0972])

    References:
        Li et al., Gradient Harmonized Single-stage Detector, AAAI 2019. https://arxiv.org/abs/1811.05181
    """
    check_shapes(logits, target)
    check_whole("bins", bins, at_least=1)
    if counts is not None and tuple(counts.shape) != (bins,):
        raise ValueError(
            f"`counts` has shape {tuple(counts.shape)} and `bins` is {bins}; ({bins},) was expected, one count for "
            "each bin."
        )
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    if known is not None:
        scores, labels = torch.where(known, scores, 0.0), torch.where(known, labels, 0.0)
    place, counted = _places(scores.detach(), labels.detach(), known, bins)
    factor = _factor(place, _histogram(place, counted, bins) if counts is None else counts)
    losses = bce_with_logits(scores, labels) * factor.to(scores.dtype)
    return losses if known is None else torch.where(known, losses, 0.0)


def _places(logits: Tensor, target: Tensor, known: Tensor | None, bins: int) -> tuple[Tensor, Tensor]:
    """Return the bin of each element, and which elements are counted."""
    norm = residual(logits, target).abs()
    counted = ~norm.isnan()  # what stands for NaN among the whole numbers is not said
    place = torch.where(counted, norm * bins, 0.0).long().clamp(max=bins - 1)
    return place, counted if known is None else counted & known


def _histogram(place: Tensor, counted: Tensor, bins: int) -> Tensor:
    """Return how many elements are in each bin, (bins,), as whole numbers."""
    # Not `bincount`, whose output has a size that depends on the data: it waits for the device and cannot be mapped.
    empty = torch.zeros(bins, dtype=torch.long, device=place.device)
    return empty.scatter_add(0, place.flatten(), counted.flatten().long())


def _factor(place: Tensor, counts: Tensor) -> Tensor:
    """Return N / GD of each element."""
    wide = sum_dtype(counts)
    counts = counts.to(wide)
    factors = counts.sum() / (counts.clamp(min=1) * counts.shape[0])
    return factors.gather(0, place.flatten()).reshape(place.shape)


class GHMCLoss(BinaryLoss):
    r"""Cross-entropy divided by the density of gradients. See :func:`ghm_c`.

    The histogram is remembered from batch to batch: each call in training mode, of ``forward`` or of ``sums``, makes it
    :math:`S \leftarrow \mu S + R` with the counts R of the batch, on several ranks those of all of them. N is the sum
    of S, so that batches may differ in size. (The paper's average is 1 - :math:`\mu` times S, with N of the batch. It
    begins at 0, so that its factors are too large at first: after t batches of one size, ours are 1 - :math:`\mu^t`
    times them.) In evaluation the histogram is used and stays as it is; before any training it is the batch's own.

    It is in the ``state_dict``, and so in checkpoints, because a resumed run would begin anew without it, and keeps its
    precision when the model is cast. Elements count alike whatever their weight, and ignored ones not at all. In an
    accumulation window each batch is a call. Ranks may have batches of different sizes, but need equally many.

    Args:
        bins: Bins of the histogram, at least 1.
        momentum: The paper's alpha, :math:`\mu` above, in [0, 1). At 0 nothing is remembered, nor saved, and each batch
            has its own histogram, in evaluation too. The default is the paper's; its code has 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If an option is out of range.
        RuntimeError: If the loss is mapped or differentiated by torch.func in training mode with ``momentum``.

    Example:
        >>> import torch
        >>> loss = GHMCLoss(bins=2, reduction="none")
        >>> logits, target = torch.tensor([-3.0, -3.0, -3.0, 3.0]), torch.zeros(4)
        >>> loss(logits, target)
        tensor([0.0324, 0.0324, 0.0324, 6.0972])
        >>> loss.histogram
        tensor([3., 1.], dtype=torch.float64)
        >>> loss(logits[:2], target[:2])
        tensor([0.0286, 0.0286])
        >>> loss.histogram
        tensor([4.2500, 0.7500], dtype=torch.float64)
    """

    histogram: Tensor | None

    def __init__(self, *, bins: int = 30, momentum: float = 0.75, **options: Any) -> None:
        super().__init__(**options)
        check_whole("bins", bins, at_least=1)
        check_number("momentum", momentum, at_least=0, below=1)
        self.bins = bins
        self.momentum = momentum
        # In float64: a bin that is rarely met and halved between keeps its digits beside one of millions.
        self.register_buffer("histogram", torch.zeros(bins, dtype=torch.float64) if momentum else None)

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return :func:`bce_with_logits`; its factor comes from :meth:`context`."""
        return bce_with_logits(logits, target)

    def context(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the target and N / GD of each element; in training, remember the batch."""
        place, counted = _places(logits, target.detach(), valid, self.bins)
        counts = _histogram(place, counted, self.bins)
        if self.training:
            counts = _over_ranks(counts)
        if self.histogram is not None:
            counts = self._remembered(self.histogram, counts)
        return target, _factor(place, counts)

    def _remembered(self, histogram: Tensor, counts: Tensor) -> Tensor:
        """Return the histogram, in training with the batch added."""
        if not self.training:
            return torch.where(histogram.sum() > 0, histogram, counts.to(histogram.dtype))
        if not torch.compiler.is_compiling() and not may_look():
            raise RuntimeError(
                "torch.func runs GHMCLoss in training mode, in which it would remember the batch; a function that is "
                "mapped or differentiated must not. Use `momentum=0`, or `loss.eval()`."
            )
        return histogram.mul_(self.momentum).add_(counts)


def _over_ranks(counts: Tensor) -> Tensor:
    """Return the sum over all ranks."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(counts)
    return counts
