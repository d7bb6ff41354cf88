"""Weights from counts: their formulas, their limits, labels never seen, and counts that cannot be."""

import math

import pytest
import torch
from mpmath import mp, mpf
from torch.testing import assert_close

from lightning_bce import (
    BCEWithLogitsLoss,
    effective_number_weight,
    inverse_frequency_weight,
    pos_weight_from_counts,
)

COUNTS = [900, 40, 300, 1, 7]


def test_positives_and_negatives_weigh_the_same_in_total():
    target = torch.rand(257, 7) < torch.rand(7)
    target[0], target[1] = False, True  # no label without both sides
    positives = target.sum(0)
    assert_close(pos_weight_from_counts(positives, 257) * positives, 257.0 - positives.double())


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_pos_weight_is_the_power_of_the_odds_and_capped(power):
    expected = torch.tensor([((1000 - n) / n) ** power for n in COUNTS], dtype=torch.float64)
    assert_close(pos_weight_from_counts(COUNTS, 1000, power=power), expected)
    assert_close(pos_weight_from_counts(COUNTS, 1000, power=power, cap=3.0), expected.clamp(max=3.0))
    assert_close(pos_weight_from_counts(COUNTS, 1000, power=power, cap=0.5), expected.clamp(max=0.5))
    each = pos_weight_from_counts(COUNTS, [1000] * 5, power=power)
    assert_close(each, expected)


def test_a_label_never_or_always_seen_counts_half_a_sample():
    assert_close(pos_weight_from_counts([0, 1000], 1000), torch.tensor([1999.0, 1 / 1999.0]).double())
    assert_close(pos_weight_from_counts([0, 1], 1), torch.ones(2).double())
    for weight in (inverse_frequency_weight, effective_number_weight):
        assert_close(weight([0, 10]), weight([0.5, 10]), rtol=0, atol=0)
        assert weight([0, 0]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 50.0])
def test_inverse_frequencies_have_a_mean_of_one(power):
    raw = torch.tensor([n**-power for n in COUNTS], dtype=torch.float64)
    assert_close(inverse_frequency_weight(COUNTS, power=power), raw / raw.mean())


def test_the_most_extreme_power_does_not_overflow():
    assert inverse_frequency_weight([1e300, 1e-300], power=1e3).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 2**-40])
def test_effective_numbers_are_right_to_fifty_digits(beta):
    with mp.workdps(50):
        raw = [(1 - mpf(beta)) / (1 - mpf(beta) ** n) for n in COUNTS]
        expected = torch.tensor([float(w * len(raw) / sum(raw)) for w in raw], dtype=torch.float64)
    assert_close(effective_number_weight(COUNTS, beta=beta), expected, rtol=1e-14, atol=0)


def test_effective_numbers_lie_between_no_weights_and_inverse_frequencies():
    assert_close(effective_number_weight(COUNTS, beta=0.0), torch.ones(5).double())
    near_one = effective_number_weight(COUNTS, beta=1 - 1e-13)
    assert_close(near_one, inverse_frequency_weight(COUNTS), rtol=1e-9, atol=0)


@pytest.mark.parametrize("given", [list, tuple, torch.tensor, lambda c: torch.tensor(c).float()])
def test_lists_and_tensors_give_float64(given):
    for weight in (lambda c: pos_weight_from_counts(c, 1000), inverse_frequency_weight, effective_number_weight):
        assert_close(weight(given(COUNTS)), weight(COUNTS), rtol=0, atol=0)
        assert weight(given(COUNTS)).dtype == torch.float64


def test_a_loss_takes_them():
    logits, target = torch.randn(7, 3).double(), torch.randint(0, 2, (7, 3))
    pos_weight = pos_weight_from_counts([3, 0, 7], 7)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=pos_weight)(logits, target.double())
    assert_close(BCEWithLogitsLoss(pos_weight=pos_weight)(logits, target), theirs)
    assert BCEWithLogitsLoss(class_weight=effective_number_weight([3, 0, 7]))(logits, target).isfinite()


@pytest.mark.parametrize("counts", [[-1, 3], [math.nan], [math.inf], "7", None, [[1], [2, 3]]])
def test_impossible_counts_are_refused(counts):
    for name, weight in (
        ("counts", inverse_frequency_weight),
        ("counts", effective_number_weight),
        ("positives", lambda c: pos_weight_from_counts(c, 1000)),
        ("total", lambda c: pos_weight_from_counts([1, 2], c)),
    ):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            weight(counts)


def test_more_positives_than_labels_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"\[8.0\].*\[7.0\]"):
        pos_weight_from_counts([3, 8], 7)
    with pytest.raises(ValueError, match=r"\[(8\.0, ){7}8\.0\], more than the `total` of \[(7\.0, ){7}7\.0\]\. Count"):
        pos_weight_from_counts([8] * 9, 7)
    with pytest.raises(ValueError, match=r"`total` has shape \(3,\) and .* \(2,\); one .*label, was expected\.$"):
        pos_weight_from_counts([3, 8], [9, 9, 9])
    with pytest.raises(ValueError, match="`total` is 0"):
        pos_weight_from_counts([0], 0)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, "1", True])
def test_impossible_options_are_refused(wrong):
    for name, call in (
        ("power", lambda v: pos_weight_from_counts([1], 2, power=v)),
        ("power", lambda v: inverse_frequency_weight([1], power=v)),
        ("cap", lambda v: pos_weight_from_counts([1], 2, cap=v)),
        ("beta", lambda v: effective_number_weight([1], beta=v)),
    ):
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            call(wrong)
    with pytest.raises(ValueError, match="inverse_frequency_weight"):
        effective_number_weight([1], beta=1.0)
    with pytest.raises(ValueError, match=r"^`cap` is 0, .* give a number above 0, or None\.$"):
        pos_weight_from_counts([1], 2, cap=0)
