"""SPLC: from some epoch on, a negative that the model takes for a positive is one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import check_flag, check_number, check_shapes, check_whole
from lightning_bce.losses.hill import focal_margin
from lightning_bce.losses.stable import by_target, full_precision, power_of_probability, sides, softplus


def splc_loss(
    logits: Tensor,
    target: Tensor,
    correct: bool,
    *,
    threshold: float = 0.6,
    margin: float = 1.0,
    gamma: float = 2.0,
) -> Tensor:
    r"""Return the loss of self-paced loss correction of each element.

    .. math:: \mathrm{SPLC} = y \, \ell_+ + (1 - y) \, \ell_-, \quad
              \ell_+ = -(1 - p_m)^\gamma \log p_m, \quad \ell_- = -p^\gamma \log(1 - p), \quad p_m = \sigma(x - m)

    where, with ``correct``, y is 1 instead of 0 for a negative of :math:`p > \tau`.

    For many labels of which positives are missing, once the model has learned enough to tell: what it is sure of is
    more often a missing label than its mistake. Where it is a mistake, the correction confirms it: above the threshold
    no negative pulls down, and p = 1 is a minimum whatever the labels say. Not where negatives are right, nor for
    calibrated probabilities: below the threshold, too, the focus pulls them towards one half, and the margin up.

    Only labels of exactly 0 are corrected; a soft label says itself how sure it is, and mixes the two terms. A
    corrected label costs what a positive costs, margin included, which is the paper's formula; its code leaves the
    margin out there.

    Args:
        logits: Scores before the sigmoid, any shape, floating point.
        target: Labels in [0, 1], the shape of ``logits``.
        correct: Whether negatives above the threshold are taken for positives.
        threshold: The paper's tau, the probability above which a negative is taken for a missing positive, in (0, 1).
            The paper takes 0.6, and 0.65 where a quarter of the positives is missing.
        margin: What a positive has to be surer by, in logits, at least 0.
        gamma: Focus of both sides, at least 0.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ or an option is out of range.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([0.0, 2.0]), torch.tensor([0.0, 0.0])
        >>> splc_loss(logits, target, correct=False)
        tensor([0.1733, 1.6501])
        >>> splc_loss(logits, target, correct=True)
        tensor([0.1733, 0.0227])

    References:
        Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing Labels, 2021.
        https://arxiv.org/abs/2112.07368
    """
    check_shapes(logits, target)
    check_flag("correct", correct)
    _check(threshold, margin, gamma)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    return _focal(scores, _corrected(scores, labels, threshold) if correct else labels, margin, gamma)


def _corrected(logits: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Return the target with a 1 for each 0 of which the model is surer than the threshold."""
    # By the logit: next to a threshold near 1 the sigmoid has no digits left.
    missing = (target == 0) & (logits > math.log(threshold) - math.log1p(-threshold))
    return torch.where(missing, 1.0, target)


def _focal(logits: Tensor, target: Tensor, margin: float, gamma: float) -> Tensor:
    of_positives, of_negatives = sides(logits, target)
    negative = power_of_probability(of_negatives, gamma) * softplus(of_negatives)
    return by_target(target, focal_margin(of_positives, margin, gamma), negative)


class SPLCLoss(BinaryLoss):
    """Self-paced loss correction. See :func:`splc_loss`.

    The epoch comes by :meth:`start_epoch`, which :class:`BinaryClassifier` calls, in a resumed run too. Only in
    training mode are labels corrected: in evaluation they are taken as they are, so that ``val_loss`` compares epochs
    before and after the change. In :class:`LossSums` a corrected label stays on the side of the label that came.

    Args:
        threshold: The probability above which a negative is taken for a missing positive, in (0, 1).
        change_epoch: The first epoch of correction, at least 0; epochs count from 0, so that at 1, the paper's, the
            labels are believed for one epoch.
        margin: What a positive has to be surer by, in logits, at least 0.
        gamma: Focus of both sides, at least 0.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.
            The paper's code sums.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> import torch
        >>> loss = SPLCLoss()
        >>> logits, target = torch.tensor([0.0, 2.0]), torch.tensor([0, 0])
        >>> loss(logits, target)
        tensor(0.9117)
        >>> loss.start_epoch(1)
        >>> loss(logits, target)
        tensor(0.0980)
    """

    def __init__(
        self,
        *,
        threshold: float = 0.6,
        change_epoch: int = 1,
        margin: float = 1.0,
        gamma: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check(threshold, margin, gamma)
        check_whole("change_epoch", change_epoch, at_least=0)
        self.threshold = threshold
        self.change_epoch = change_epoch
        self.margin = margin
        self.gamma = gamma
        self._corrects = change_epoch == 0

    def start_epoch(self, epoch: int) -> None:
        """Correct labels from ``change_epoch`` on."""
        # A flag that turns once, and not the epoch: compiled code is made anew for each value that it has read.
        self._corrects = epoch >= self.change_epoch

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the labels as they are; :meth:`context` corrects them."""
        return _focal(logits, target, self.margin, self.gamma)

    @property
    def couples_samples(self) -> bool:
        """Return False: a label is corrected by its own logit."""
        return False

    def context(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the target, corrected in training from ``change_epoch`` on."""
        if not (self.training and self._corrects):
            return target, None
        return _corrected(logits, target, self.threshold), None


def _check(threshold: float, margin: float, gamma: float) -> None:
    check_number("threshold", threshold, above=0, below=1)
    check_number("margin", margin, at_least=0)
    check_number("gamma", gamma, at_least=0)
