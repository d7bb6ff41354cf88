"""Positive-unlabeled loss: the risk over positives and negatives where no negative was ever labelled."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from lightning_bce.losses.checks import Factor, check_flag, check_number
from lightning_bce.losses.logit_adjusted import check_prior
from lightning_bce.losses.rows import RowLoss, Rows, known_rows, mean_where
from lightning_bce.losses.stable import folded

Surrogate = Literal["sigmoid", "logistic"]


def positive_unlabeled_loss(
    logits: Tensor,
    target: Tensor,
    *,
    prior: Factor,
    non_negative: bool = True,
    beta: float = 0.0,
    gamma: float = 1.0,
    surrogate: Surrogate = "sigmoid",
    mask: Tensor | None = None,
) -> Tensor:
    r"""Return the positive-unlabeled risk of each row, non-negative (nnPU) or unbiased (uPU).

    .. math::
        \text{uPU} = \pi R_p^+ + R, \quad \text{nnPU} = \pi R_p^+ + \max(-\beta, R), \quad R = R_u^- - \pi R_p^-

    with means over the positives :math:`R_p^\pm = E_p[\ell(\pm x)]` and over the unlabelled
    :math:`R_u^- = E_u[\ell(-x)]` of the row, and :math:`\ell(z) = \sigma(-z)` (sigmoid) or :math:`\log(1 + e^{-z})`
    (logistic). R estimates the risk of the negatives, which is no less than 0. A flexible model drives it below by
    learning the positives by heart. Where R is below :math:`-\beta`, the gradient of nnPU is therefore not that of its
    value but that of :math:`-\gamma R`: a step back.

    For labels that were only ever ticked: some positives are known, and the rest is a mixture. The positives have to
    be a random pick of all, and ``prior`` has to be known or estimated elsewhere: nothing here can tell. The minimum
    is that of the risk over all true labels. With logistic it lies at x* = logit P(y = 1), with sigmoid, which outliers
    move less, at plus or minus infinity by the sign of that; 0 is the threshold of both. Not where negatives are
    known, which binary cross-entropy uses better, and not in small batches: R is then mostly noise, and a row with one
    side only is no estimate and does not count.

    Args:
        logits: Scores before the sigmoid, (..., E), a row in the last dimension; for a row of each label of (N, C)
            pass ``logits.T``.
        target: 1 where positive, 0 where unlabelled, the shape of ``logits``; positive above one half.
        prior: Share of positives among the unlabelled in (0, 1), one number or one for each row. The values of a
            tensor are not checked here, which would wait for the device.
        non_negative: Whether R is held above -``beta``. Else it is uPU, which with logistic has no lower bound.
        beta: How far below 0 R may fall, at least 0. With sigmoid below ``prior``, as R is never below -``prior``.
        gamma: Size of the step back in [0, 1]; at 0 the row waits.
        surrogate: One of "sigmoid" (the paper's in its experiments) and "logistic".
        mask: True where it is known whether the element is positive or unlabelled, the shape of ``logits``. None means
            everywhere.

    Returns:
        Losses, (...,), in float32 or better; 0 for a row that does not count.

    Raises:
        ValueError: If the shapes differ, an option is out of range, or one would have no effect.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[2.0, -1.0, 0.5, -3.0]]), torch.tensor([[1, 0, 0, 0]])
        >>> positive_unlabeled_loss(logits, target, prior=0.3)
        tensor([0.0845])
        >>> positive_unlabeled_loss(logits, target, prior=0.7)  # R is below 0 and left out
        tensor([0.0834])

    References:
        Kiryo et al., Positive-Unlabeled Learning with Non-Negative Risk Estimator, NeurIPS 2017.
        https://arxiv.org/abs/1703.00593. uPU: du Plessis et al., Analysis of Learning from Positive and Unlabeled Data,
        NeurIPS 2014 (sigmoid), and Convex Formulation for Learning from Positive and Unlabeled Data, ICML 2015.
    """
    _check(non_negative, beta, gamma, surrogate)
    if not isinstance(prior, Tensor):
        check_prior(prior)
        prior = torch.as_tensor(prior, dtype=torch.float64)
        _check_effect(prior, beta, surrogate)
    parts, counts = _rows(logits, target, mask, prior, non_negative, beta, gamma, surrogate)
    return torch.where(counts, parts.sum(-1), 0.0)


class PositiveUnlabeledLoss(RowLoss):
    """Positive-unlabeled risk of each label over the batch, nnPU or uPU. See :func:`positive_unlabeled_loss`.

    Target 1 is a positive, 0 an unlabelled element; what is ignored is neither. A label counts that has both in the
    batch. Its loss stands in two parts: R as that of the negatives, the rest as that of the positives. Under ranks the
    risk is that of each rank's batch. Metrics and ``val_log_loss`` know of no unlabelled elements and take them for
    negatives. Targets between 0 and 1 are refused.

    Args:
        prior: Share of positives among the unlabelled in (0, 1), one number or one for each label.
        non_negative: Whether the risk of the negatives is held above -``beta`` (nnPU). Else it is uPU.
        beta: How far below 0 that risk may fall, at least 0. With sigmoid below ``prior``.
        gamma: Size of the step back when it has, in [0, 1].
        surrogate: One of "sigmoid" and "logistic".
        **options: ``reduction`` ("mean", "sum", "none"), ``ignore_index``, ``class_weight``, ``validate``: see
            :class:`RowLoss`.

    Raises:
        ValueError: If an option is out of range or would have no effect.

    Example:
        >>> import torch
        >>> loss = PositiveUnlabeledLoss(prior=0.3)
        >>> loss(torch.tensor([2.0, -1.0, 0.5, -3.0]), torch.tensor([1, 0, 0, 0]))
        tensor(0.0845)
    """

    rows: Rows = "label"
    hard_targets: ClassVar[bool] = True
    prior: Tensor

    def __init__(
        self,
        *,
        prior: Factor,
        non_negative: bool = True,
        beta: float = 0.0,
        gamma: float = 1.0,
        surrogate: Surrogate = "sigmoid",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_prior(prior)
        _check(non_negative, beta, gamma, surrogate)
        self._constant("prior", prior)
        _check_effect(self.prior, beta, surrogate)
        self.non_negative = non_negative
        self.beta = beta
        self.gamma = gamma
        self.surrogate: Surrogate = surrogate

    def rowwise(self, logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two parts of :func:`positive_unlabeled_loss`; rows count that have both sides."""
        return _rows(logits, target, valid, self.prior, self.non_negative, self.beta, self.gamma, self.surrogate)


def _check(non_negative: bool, beta: float, gamma: float, surrogate: Surrogate) -> None:
    check_flag("non_negative", non_negative)
    check_number("beta", beta, at_least=0)
    check_number("gamma", gamma, at_least=0, at_most=1)
    if surrogate not in get_args(Surrogate):
        raise ValueError(f"`surrogate` is {surrogate!r}; expected one of {', '.join(get_args(Surrogate))}.")
    for name, value, default in (("beta", beta, 0), ("gamma", gamma, 1)):
        if not non_negative and value != default:
            raise ValueError(
                f"`{name}` is {value} and has no effect with `non_negative=False`, under which nothing holds the risk "
                f"of the negatives. Leave `{name}` out, or use `non_negative=True`."
            )


def _check_effect(prior: Tensor, beta: float, surrogate: Surrogate) -> None:
    if surrogate == "sigmoid" and prior.device.type != "meta" and bool((beta >= prior).all()):
        raise ValueError(
            f"`beta` is {beta} and `prior` at most {prior.max().item():g}: with the sigmoid surrogate the risk of the "
            "negatives is never below -`prior`, so that nothing would be held. Use a smaller `beta`, or "
            "`non_negative=False`."
        )


def _rows(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    prior: Tensor,
    non_negative: bool,
    beta: float,
    gamma: float,
    surrogate: Surrogate,
) -> tuple[Tensor, Tensor]:
    """Return R and the positives' part of each row, (..., 2), and which rows count."""
    scores, labels, valid = known_rows(logits, target, mask)
    if prior.ndim and prior.shape != scores.shape[:-1]:
        raise ValueError(
            f"`prior` has shape {tuple(prior.shape)} and there are rows of shape {tuple(scores.shape[:-1])}; one "
            "number, or one for each label, was expected."
        )
    share = prior.to(scores)
    positive, unlabeled = valid & (labels > 0.5), valid & (labels <= 0.5)
    pieces = folded(scores)
    sigmoid = surrogate == "sigmoid"
    as_positive = pieces.q if sigmoid else pieces.softplus_of_minus()
    as_negative = pieces.p if sigmoid else pieces.softplus()
    of_positives = share * mean_where(positive, as_positive)
    of_negatives = mean_where(unlabeled, as_negative) - share * mean_where(positive, as_negative)
    if non_negative:
        # Below -beta the value and the gradient are of two functions: the paper's Algorithm 1 steps along -gamma R,
        # and the objective that it reports is the bounded one.
        low = of_negatives < -beta
        back = -gamma * of_negatives
        of_negatives = torch.where(low, (back - back.detach()) - beta, of_negatives)
        of_positives = torch.where(low, of_positives.detach(), of_positives)
    counts = positive.any(-1) & unlabeled.any(-1)
    return torch.stack([of_negatives, of_positives], -1), counts
