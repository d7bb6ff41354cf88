"""Distribution-balanced loss: for long tails in which rare labels come together with common ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_bce.losses.base import BinaryLoss
from lightning_bce.losses.checks import Factor, check_number, check_shapes
from lightning_bce.losses.class_counts import SMALLEST, check_positives
from lightning_bce.losses.count_rules import Rule, is_rule, positives_rule, total_rule
from lightning_bce.losses.shapes import per_label
from lightning_bce.losses.stable import by_target, full_precision, power_of_probability, sides, softplus


def distribution_balanced_bce(
    logits: Tensor,
    target: Tensor,
    *,
    counts: Factor,
    total: Factor,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    lam: float = 2.0,
    kappa: float = 0.05,
    gamma: float = 0.0,
) -> Tensor:
    r"""Return the distribution-balanced loss of each element.

    .. math:: w \left( y \, \sigma(-z)^\gamma s(-z)
              + \frac{1 - y}{\lambda} \, \sigma(\lambda z)^\gamma s(\lambda z) \right), \quad s(z) = \log(1 + e^z)

    .. math:: z = x - \frac{\kappa}{\lambda} \log\left(\frac{N}{n_c} - 1\right), \quad
              w = \alpha + \sigma(\beta (r - \mu)), \quad r = \frac{1 / n_c}{\sum_j y_j / n_j}

    Two ideas. Sampling that balances one label draws the others along; r is how much of a sample's draws label c alone
    would have caused, and w brings the others back. And a negative that is already clear is let go of sooner, by the
    scale lambda and by a threshold that is higher for rare labels. For multi-label data with a long tail, best with
    class-balanced sampling; with one label alone it is no more than cross-entropy with other scales.

    For a single soft label at lambda 1 and gamma 0 the minimiser is x* = logit(y) + kappa log(N / n - 1): the sigmoid
    is no probability of these data.

    The factor 2 of the official code's focal variant is left out. A sample without positives, at which r has no
    value, gets its limit, w = alpha + 1. Labels between 0 and 1 mix both sides linearly and count as much in r.

    Args:
        logits: Scores before the sigmoid, (N,), (N, C) or (N, C, ...), floating point. At each further position the
            labels are a sample of their own.
        target: Labels in [0, 1], the shape of ``logits``.
        counts: Positives of each label (dimension 1) in the training data, at most ``total``; they count as at least
            1/2 and at most ``total`` - 1/2. The values of a tensor are not checked here, which would wait for the
            device.
        total: Samples in the training data, at least 1.
        alpha: Smallest weight, in [0, 1].
        beta: Steepness of the rebalancing, above 0.
        mu: The r at which a weight is halfway, at least 0.
        lam: The paper's lambda, how much sooner than positives negatives are let go of, above 0.
        kappa: Strength of the threshold, at least 0.
        gamma: Focus, at least 0. At 0 there is none; the paper takes 2.

    Returns:
        Losses in nats, the shape of ``logits``, in float32 or better.

    Raises:
        ValueError: If the shapes differ, a count is impossible or their number wrong, or an option is out of range.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 3), torch.tensor([[1, 0, 1]])
        >>> distribution_balanced_bce(logits, target, counts=[900, 40, 300], total=1000)
        tensor([[0.4812, 0.3393, 0.7713]])

    References:
        Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets, ECCV 2020.
        https://arxiv.org/abs/2007.09654
    """
    check_shapes(logits, target)
    _check_options(alpha=alpha, beta=beta, mu=mu, lam=lam, kappa=kappa, gamma=gamma)
    seen, known = _label_counts(counts, total)
    scores = full_precision(logits)
    labels = target.to(scores.dtype)
    weight = _rebalancing(labels, seen, alpha, beta, mu)
    return weight * _tolerant(scores, labels, seen, known, lam, kappa, gamma)


def _rebalancing(target: Tensor, counts: Tensor, alpha: float, beta: float, mu: float) -> Tensor:
    """Return the weight of each element by what its sample's positives had drawn along."""
    # From the rarest label, so that no sum of inverse counts is too small for float32.
    rarity = per_label("counts", counts.min() / counts, target).to(target)
    drawn = target * rarity
    drawn = drawn.sum(1, keepdim=True) if drawn.ndim > 1 else drawn
    share = rarity / torch.where(drawn > 0, drawn, 1.0)
    return alpha + torch.where(drawn > 0, torch.sigmoid(beta * (share - mu)), 1.0)


def _tolerant(
    logits: Tensor, target: Tensor, counts: Tensor, total: Tensor, lam: float, kappa: float, gamma: float
) -> Tensor:
    """Return the negative-tolerant, focused cross-entropy of each element."""
    threshold = per_label("counts", kappa / lam * ((total - counts) / counts).log(), logits)
    of_positive, of_negative = sides(logits - threshold.to(logits), target)
    of_negative = lam * of_negative
    positive, negative = softplus(-of_positive), softplus(of_negative) / lam
    if gamma > 0:
        positive = power_of_probability(-of_positive, gamma) * positive
        negative = power_of_probability(of_negative, gamma) * negative
    return by_target(target, positive, negative)


class DistributionBalancedLoss(BinaryLoss):
    """Distribution-balanced loss. See :func:`distribution_balanced_bce`.

    What ``ignore_index`` or the mask marks counts as no positive where the sample's draws are summed.

    Args:
        counts: Positives of each label in the training data, or one number for all; "auto" counts them.
        total: Samples in the training data, at least 1. To be left out where ``counts`` is "auto", and only there.
        alpha: Smallest weight, in [0, 1].
        beta: Steepness of the rebalancing, above 0.
        mu: The share of a sample's draws at which a weight is halfway, at least 0.
        lam: The paper's lambda, how much sooner than positives negatives are let go of, above 0.
        kappa: Strength of the threshold, at least 0.
        gamma: Focus, at least 0. At 0 there is none.
        **options: ``reduction``, ``ignore_index``, ``class_weight``, ``validate``, ``fused``: see :class:`BinaryLoss`.

    Raises:
        ValueError: If a count is impossible or an option is out of range.

    Example:
        >>> import torch
        >>> loss = DistributionBalancedLoss(counts=[900, 40, 300], total=1000)
        >>> loss(torch.zeros(1, 3), torch.tensor([[1, 0, 1]]))
        tensor(0.5306)
    """

    counts: Tensor
    total: Tensor

    def __init__(
        self,
        *,
        counts: Factor | Rule,
        total: Factor | Rule | None = None,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        lam: float = 2.0,
        kappa: float = 0.05,
        gamma: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _check_options(alpha=alpha, beta=beta, mu=mu, lam=lam, kappa=kappa, gamma=gamma)
        if is_rule(counts):
            if total is not None and not is_rule(total):
                raise ValueError(f"`counts` is {counts!r} and `total` {total}: both are counted, so leave `total` out.")
            total = counts if total is None else total
        elif total is None or is_rule(total):
            raise ValueError(
                f"`total` is {total} and `counts` is given: say over how many samples the positives were counted, or "
                "give counts='auto'."
            )
        else:
            _check_label_counts(counts, total)  # type: ignore[arg-type]
        self._constant("counts", counts, positives_rule)
        self._constant("total", total, total_rule)
        self.alpha, self.beta, self.mu = alpha, beta, mu
        self.lam, self.kappa, self.gamma = lam, kappa, gamma

    def elementwise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss without the weight of the sample, which :meth:`context` gives."""
        return _tolerant(logits, target, *_label_counts(self.counts, self.total), self.lam, self.kappa, self.gamma)

    @property
    def couples_samples(self) -> bool:
        """Return False: a weight is of a sample's own labels."""
        return False

    def context(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the target and the weights."""
        seen, _ = _label_counts(self.counts, self.total)
        return target, _rebalancing(target, seen, self.alpha, self.beta, self.mu)


def _check_options(*, alpha: float, **others: float) -> None:
    check_number("alpha", alpha, at_least=0)
    if alpha > 1:
        raise ValueError(
            f"`alpha` is {alpha}; it must lie in [0, 1]: it is added to a weight in [0, 1], which it would drown. The "
            "steepness is `beta`."
        )
    for name, value in others.items():
        check_number(name, value, at_least=0)
    for name, effect in (("beta", "all weights would be the same"), ("lam", "negatives would never be let go of")):
        if others[name] == 0:
            raise ValueError(f"`{name}` is 0, at which {effect}; it must be above 0.")


def _check_label_counts(counts: Factor, total: Factor) -> tuple[Tensor, Tensor]:
    seen, known = check_positives("counts", counts, total)
    if seen.ndim > 1 or seen.numel() == 0:
        raise ValueError(f"`counts` has shape {tuple(seen.shape)}; one number, or one for each label, was expected.")
    return seen, known


def _label_counts(counts: Factor, total: Factor) -> tuple[Tensor, Tensor]:
    if not isinstance(counts, Tensor):
        return _check_label_counts(counts, total)
    seen = full_precision(counts if counts.is_floating_point() else counts.float())
    known = torch.as_tensor(total, dtype=seen.dtype, device=seen.device)
    return torch.minimum(seen.clamp(min=SMALLEST), known - SMALLEST), known
