"""Intervals and tests, against scipy, published tables and simulated data in which there is nothing to find."""

import math

import numpy as np
import pytest
import scipy.stats

from lightning_bce.comparison.statistics import holm, ranks, resampled_t, same_rows_t


def test_without_an_overlap_the_corrected_test_is_the_paired_t_test():
    values = np.random.default_rng(0).normal(0.3, 1.0, 7)
    plain = scipy.stats.ttest_1samp(values, 0.0)
    estimate = resampled_t(values, test_share=0.0)
    assert estimate.p_value() == pytest.approx(plain.pvalue)
    assert estimate.interval(0.9) == pytest.approx(tuple(plain.confidence_interval(0.9)))


def test_the_correction_widens_by_the_share_of_test_rows():
    values = [0.1, 0.2, 0.6]
    ratio = resampled_t(values, 0.25).standard_error / resampled_t(values, 0.0).standard_error
    assert ratio == pytest.approx(math.sqrt((1 / 3 + 0.25) / (1 / 3)))


def test_one_difference_has_no_variance():
    with pytest.raises(ValueError, match="at least 2 splits"):
        resampled_t([0.1], 0.25)


def test_no_difference_anywhere_is_no_finding():
    assert resampled_t([0.0, 0.0, 0.0], 0.25).p_value() == 1.0
    assert same_rows_t([0.0, 0.0], 0.0).interval(0.95) == (0.0, 0.0)


def test_seeds_and_test_rows_add_up():
    values = [0.1, 0.2, 0.6]
    assert same_rows_t(values, 0.0) == resampled_t(values, 0.0)
    both = same_rows_t(values, 0.04)
    assert both.standard_error**2 == pytest.approx(np.var(values, ddof=1) / 3 + 0.04)
    assert 2 < both.freedom < math.inf
    assert same_rows_t([0.1], 0.04).interval(0.95) == pytest.approx((0.1 - 1.959964 * 0.2, 0.1 + 1.959964 * 0.2))


def overlapping_splits(generator, splits, rows=200, share=0.2):
    """Return differences of two models that are equally good: means over random test parts of the same rows."""
    of_rows = generator.normal(size=rows)
    size = int(share * rows)
    return [generator.choice(of_rows, size, replace=False).mean() for _ in range(splits)]


def test_where_there_is_nothing_the_corrected_test_finds_it_no_more_often_than_it_says():
    generator, found = np.random.default_rng(0), np.zeros(2)
    for _ in range(600):
        values = overlapping_splits(generator, 10)
        found += [resampled_t(values, 0.25).p_value() < 0.05, resampled_t(values, 0.0).p_value() < 0.05]
    corrected, plain = found / 600
    # Within three standard errors of a share of 0.05; the plain test is far off.
    assert corrected < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)
    assert plain > 0.15


def test_holm_is_that_of_the_paper():
    # The example of Holm's procedure by hand: sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_finding():
    generator = np.random.default_rng(0)
    any_found = [min(holm(generator.random(8))) < 0.05 for _ in range(2000)]
    assert abs(np.mean(any_found) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.parametrize(("losses", "quantile"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_that_of_demsars_table(losses, quantile):
    values = np.random.default_rng(0).random((6, losses))
    expected = quantile * math.sqrt(losses * (losses + 1) / (6 * 6))
    assert ranks(values).critical_difference == pytest.approx(expected, rel=1e-3)


def test_ranks_are_friedmans_and_wilcoxons():
    values = np.random.default_rng(0).random((12, 4)) + np.array([0.0, 0.1, 0.2, 0.8])
    found = ranks(values)
    assert found.p_value == pytest.approx(scipy.stats.friedmanchisquare(*values.T).pvalue)
    against = [scipy.stats.wilcoxon(values[:, k], values[:, 0]).pvalue for k in (1, 2, 3)]
    assert found.wilcoxon == pytest.approx([1.0, *holm(against)])
    assert found.mean == pytest.approx(scipy.stats.rankdata(-values, axis=1).mean(axis=0))
    assert found.least_p == scipy.stats.wilcoxon(np.arange(1.0, 13.0)).pvalue


def test_equal_losses_share_their_rank_and_are_no_finding():
    found = ranks(np.ones((5, 3)))
    assert found.mean == [2.0, 2.0, 2.0] and found.p_value == 1.0 and found.wilcoxon == [1.0, 1.0, 1.0]


def test_two_losses_are_wilcoxons_question():
    values = np.random.default_rng(0).random((9, 2))
    assert ranks(values).p_value == ranks(values).wilcoxon[1]


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_one_loss_or_one_data_set_has_no_ranks(shape):
    with pytest.raises(ValueError, match="at least 2 of both"):
        ranks(np.zeros(shape))
