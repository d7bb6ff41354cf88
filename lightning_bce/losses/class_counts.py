"""Weights from label counts, for ``pos_weight`` and ``class_weight``: plain tensors, computed once before training."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_bce.losses.checks import Factor, check_factor, check_number

SMALLEST = 0.5
"""What a count is raised to at least: half a sample is the usual stand-in for an event that was never seen."""


def pos_weight_from_counts(positives: Factor, total: Factor, *, power: float = 1.0, cap: float | None = None) -> Tensor:
    r"""Return the ``pos_weight`` that balances the two sides of each label.

    .. math:: w_c = \min\left(\mathrm{cap}, \left(\frac{N_c - n_c}{n_c}\right)^{\mathrm{power}}\right)

    At power 1, positives and negatives weigh the same in total; at 1/2 the correction is milder, at 0 there is none.
    The counts are first brought into [1/2, N - 1/2], so that a label that never or always occurs gets a finite factor
    above 0. Weighting moves the minimiser from logit(y) to logit(y) + log(w): the probabilities are no longer
    calibrated.

    Args:
        positives: Positives of each label, between 0 and ``total``; fractions, from soft labels, too.
        total: Known labels, one number or one for each label, at least 1.
        power: Strength of the correction, at least 0.
        cap: The largest factor, above 0. None sets no limit.

    Returns:
        Factors in float64, the shape of ``positives``.

    Raises:
        ValueError: If a count is negative, not finite or above ``total``, or an option outside its range.

    Example:
        >>> pos_weight_from_counts([500, 100, 0], 1000, cap=50.0)
        tensor([ 1.,  9., 50.], dtype=torch.float64)
    """
    check_number("power", power, at_least=0)
    check_cap(cap)
    seen, known = check_positives("positives", positives, total)
    odds = (known - seen) / seen
    return (odds**power).clamp(max=cap) if cap is not None else odds**power


def check_cap(cap: float | None) -> None:
    """Refuse a largest factor that is no number above 0; None passes."""
    if cap is not None:
        check_number("cap", cap, at_least=0)
        if cap == 0:
            raise ValueError("`cap` is 0, which would silence every positive; give a number above 0, or None.")


def inverse_frequency_weight(counts: Factor, *, power: float = 1.0) -> Tensor:
    r"""Return weights of the labels that fall with their frequency, with a mean of 1.

    .. math:: w_c \propto n_c^{-\mathrm{power}}, \quad \sum_c w_c = C

    For ``class_weight``: a whole label gets more, positives and negatives alike. To lift the positives only use
    :func:`pos_weight_from_counts`. Counts below 1/2 count as 1/2.

    Args:
        counts: Positives of each label, at least 0.
        power: Strength, at least 0. At 1/2 it is the usual square-root compromise, at 0 all weights are 1.

    Returns:
        Weights in float64, the shape of ``counts``.

    Raises:
        ValueError: If a count is negative or not finite, or ``power`` is.

    Example:
        >>> inverse_frequency_weight([100, 300])
        tensor([1.5000, 0.5000], dtype=torch.float64)
    """
    check_number("power", power, at_least=0)
    return _with_mean_one(-power * check_counts("counts", counts).log())


def effective_number_weight(counts: Factor, *, beta: float = 0.999) -> Tensor:
    r"""Return class-balanced weights by the effective number of samples, with a mean of 1.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \quad \sum_c w_c = C

    Labels with far more than 1 / (1 - beta) samples get one weight, those with far fewer the inverse frequency. For
    ``class_weight``. The paper's code gives each sample the sum of its positive labels' weights, which is 0 for a
    sample without positives; here the weight belongs to the label. Counts below 1/2 count as 1/2.

    Args:
        counts: Positives of each label, at least 0.
        beta: In [0, 1). At 0 all weights are 1; towards 1 they become the inverse frequency. The paper takes 0.9,
            0.99, 0.999 and 0.9999.

    Returns:
        Weights in float64, the shape of ``counts``.

    Raises:
        ValueError: If a count is negative or not finite, or ``beta`` outside [0, 1).

    Example:
        >>> effective_number_weight([10, 1000, 100000], beta=0.99)
        tensor([2.5184, 0.2408, 0.2408], dtype=torch.float64)

    References:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019.
        https://arxiv.org/abs/1901.05555
    """
    check_number("beta", beta, at_least=0)
    if beta >= 1:
        raise ValueError(
            f"`beta` is {beta}; it must lie in [0, 1). Its limit at 1 is `inverse_frequency_weight(counts)`."
        )
    seen = check_counts("counts", counts)
    # 1 - beta^n as a difference would lose the digits of small counts at a beta near 1.
    log_beta = seen.new_tensor(beta).log()
    return _with_mean_one(-(-torch.expm1(seen * log_beta)).log())


def check_counts(name: str, counts: Factor) -> Tensor:
    """Return counts in float64 and at least 1/2.

    Raises:
        ValueError: If one is negative or not finite.
        TypeError: If they are no numbers.
    """
    return _numbers(name, counts).clamp(min=SMALLEST)


def check_positives(name: str, positives: Factor, total: Factor) -> tuple[Tensor, Tensor]:
    """Return positives between 1/2 and ``total`` - 1/2, and ``total``, both in float64.

    Raises:
        ValueError: If a count is negative or not finite, above its total, or of another number of labels.
        TypeError: If they are no numbers.
    """
    seen, known = _numbers(name, positives), _numbers("total", total)
    if known.ndim and known.shape != seen.shape:
        raise ValueError(
            f"`total` has shape {tuple(known.shape)} and `{name}` {tuple(seen.shape)}; one number, or one for each "
            "label, was expected."
        )
    if bool((known < 1).any()):
        raise ValueError(f"`total` is {known.min().item():g}; at least 1 was expected: how many labels are known.")
    wrong = seen > known
    if bool(wrong.any()):
        raise ValueError(
            f"`{name}` has {seen[wrong].flatten()[:8].tolist()}, more than the `total` of "
            f"{known.expand_as(seen)[wrong].flatten()[:8].tolist()}. Count positives over the same samples as `total`."
        )
    return seen.clamp(min=SMALLEST).minimum(known - SMALLEST), known


def _numbers(name: str, counts: Factor) -> Tensor:
    if counts is None:
        raise TypeError(f"`{name}` is None; a number, a list of numbers or a tensor was expected.")
    check_factor(name, counts)
    return torch.as_tensor(counts, dtype=torch.float64).detach()


def _with_mean_one(log_weight: Tensor) -> Tensor:
    # A softmax over all labels: no power overflows, whatever the counts.
    return (log_weight.flatten().softmax(0) * log_weight.numel()).reshape(log_weight.shape)
