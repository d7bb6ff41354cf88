"""How sure a difference is: corrected intervals of one data set, ranks over several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Estimate(NamedTuple):
    """A mean difference and how far it may be off.

    Args:
        mean: The mean difference, above 0 where the loss is better than the reference.
        standard_error: Its standard error.
        freedom: Degrees of freedom of Student's t; infinite for a normal distribution.

    Example:
        >>> [round(end, 4) for end in Estimate(0.02, 0.01, 4.0).interval(0.95)]
        [-0.0078, 0.0478]
    """

    mean: float
    standard_error: float
    freedom: float

    def interval(self, level: float) -> tuple[float, float]:
        """Return the interval that covers the true difference with the probability ``level``."""
        import scipy.stats  # [scipy]: only within functions, because the package is imported without its extras too

        half = scipy.stats.t.ppf((1 + level) / 2, self.freedom) * self.standard_error if self.standard_error else 0.0
        return float(self.mean - half), float(self.mean + half)

    def p_value(self) -> float:
        """Return the two-sided p-value of no difference."""
        import scipy.stats  # [scipy]

        if self.standard_error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * scipy.stats.t.sf(abs(self.mean) / self.standard_error, self.freedom))


def resampled_t(differences: Sequence[float], test_share: float) -> Estimate:
    r"""Return the mean of differences over splits of the same rows, with the variance corrected for their overlap.

    .. math:: \widehat{\mathrm{Var}}(\bar d) = \left(\frac1J + \frac{n_\text{test}}{n_\text{train}}\right) s_d^2

    The training rows of two splits overlap, so that the differences are not independent: without the second term a
    difference that is not there is found far too often. It holds for random splits and for repeated folds.

    Args:
        differences: One for each of J splits, at least 2.
        test_share: Test rows over all others, :math:`n_\text{test} / n_\text{train}`.

    Returns:
        The estimate with J - 1 degrees of freedom.

    Raises:
        ValueError: If there are fewer than two differences.

    Example:
        >>> resampled_t([0.01, 0.03], test_share=0.25)
        Estimate(mean=0.02, standard_error=0.01224744871391589, freedom=1.0)

    References:
        Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003.
        Bouckaert and Frank, Evaluating the Replicability of Significance Tests, PAKDD 2004.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        raise ValueError(f"{len(values)} difference(s) have no variance: at least 2 splits are needed.")
    variance = values.var(ddof=1) * (1 / len(values) + test_share)
    return Estimate(float(values.mean()), math.sqrt(variance), float(len(values) - 1))


def same_rows_t(differences: Sequence[float], row_variance: float) -> Estimate:
    r"""Return the mean of differences over seeds that were all judged on the same test rows.

    .. math:: \widehat{\mathrm{Var}}(\bar d) = \frac{s_d^2}{J} + v

    The seeds say nothing of how other test rows would have turned out: that is :math:`v`, from a bootstrap. With a
    single seed the interval is that of the test rows alone. Degrees of freedom by Welch and Satterthwaite.

    Args:
        differences: One for each seed, at least 1.
        row_variance: The variance of the mean difference over bootstrapped test rows.

    Example:
        >>> same_rows_t([0.02], row_variance=0.0001)
        Estimate(mean=0.02, standard_error=0.01, freedom=inf)
    """
    values = np.asarray(differences, dtype=float)
    of_seeds = values.var(ddof=1) / len(values) if len(values) > 1 else 0.0
    variance = of_seeds + row_variance
    freedom = variance**2 / (of_seeds**2 / (len(values) - 1)) if of_seeds > 0 else math.inf
    return Estimate(float(values.mean()), math.sqrt(variance), float(freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are, by Holm's step-down method.

    Example:
        >>> holm([0.04, 0.01, 0.03])
        [0.06, 0.03, 0.06]
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


class Ranks(NamedTuple):
    """Losses ranked over data sets.

    Args:
        mean: The mean rank of each loss, 1 the best.
        p_value: Friedman's test of all losses being equal; of two losses Wilcoxon's.
        critical_difference: Mean ranks that differ by less are not told apart, by Nemenyi.
        wilcoxon: For each loss the p-value against the first, by Wilcoxon's signed ranks, adjusted by Holm; that of
            the first is 1.
        least_p: The smallest p-value that Wilcoxon's test can give for so many data sets, before Holm's adjustment.
    """

    mean: list[float]
    p_value: float
    critical_difference: float
    wilcoxon: list[float]
    least_p: float


def ranks(values: npt.ArrayLike, alpha: float = 0.05) -> Ranks:
    r"""Compare K losses over N data sets by their ranks.

    .. math:: \mathrm{CD} = q_\alpha \sqrt{\frac{K (K + 1)}{6 N}}

    Args:
        values: Scores (N, K), higher is better; the first column is the reference.
        alpha: Level of the critical difference.

    Raises:
        ValueError: If there are fewer than two losses or two data sets.

    Example:
        >>> compared = ranks([[0.9, 0.8, 0.7], [0.9, 0.7, 0.8], [0.6, 0.5, 0.4]])
        >>> [round(value, 2) for value in compared.mean], round(compared.critical_difference, 3)
        ([1.0, 2.33, 2.67], 1.914)

    References:
        Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006.
    """
    import scipy.stats  # [scipy]

    table = np.asarray(values, dtype=float)
    sets, losses = table.shape
    if sets < 2 or losses < 2:
        raise ValueError(f"{losses} loss(es) on {sets} data set(s) cannot be ranked: at least 2 of both are needed.")
    ranked = scipy.stats.rankdata(-table, axis=1)
    quantile = scipy.stats.studentized_range.ppf(1 - alpha, losses, np.inf) / math.sqrt(2)
    against = [_wilcoxon(table[:, column] - table[:, 0]) for column in range(1, losses)]
    return Ranks(
        [float(value) for value in ranked.mean(axis=0)],
        _friedman(table),
        float(quantile * math.sqrt(losses * (losses + 1) / (6 * sets))),
        [1.0, *holm(against)],
        2.0 ** (1 - sets),
    )


def _friedman(table: Array) -> float:
    import scipy.stats  # [scipy]

    # The form by chi-squared, not Iman and Davenport's, which is sure of everything where few data sets agree.
    if not np.any(table != table[:, :1]):
        return 1.0
    if table.shape[1] == 2:
        return _wilcoxon(table[:, 1] - table[:, 0])  # the same question, and scipy asks for three
    return float(scipy.stats.friedmanchisquare(*table.T).pvalue)


def _wilcoxon(differences: Array) -> float:
    import scipy.stats  # [scipy]

    if not np.any(differences):
        return 1.0
    return float(scipy.stats.wilcoxon(differences[differences != 0]).pvalue)
