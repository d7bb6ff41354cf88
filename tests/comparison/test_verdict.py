"""The sentence: what it recommends, how sure it says it is, and what it admits."""

import math

import pytest

from lightning_bce.comparison.compare import settings_of
from lightning_bce.comparison.judging import Judgement, Row
from lightning_bce.comparison.statistics import Estimate, Ranks
from lightning_bce.comparison.verdict import verdict, verdict_over_data

SETTINGS = settings_of()


def row(label, mean=None, error=0.001, state="open", p_value=0.5, failed=0, score=0.8):
    scores = {"average_precision": (score, 0.0)}
    if mean is None:
        return Row(label, scores, failed, [])
    estimate = Estimate(mean, error, 9.0)
    return Row(label, scores, failed, [], estimate, 10, estimate.interval(0.95), p_value, state)


def said(*rows, splits=10, method="resampled", enough=None):
    return verdict(Judgement("d", [row("BCE"), *rows], method, splits, enough), SETTINGS)


def test_the_best_of_those_that_are_better_is_recommended_with_its_interval():
    text = said(
        row("A", 0.03, state="better", p_value=0.002), row("B", 0.05, state="better", p_value=0.0001), row("C", 0.0)
    )
    assert text.startswith(
        "Use B: its average precision is better than that of tuned BCE by 0.050 (95 % interval 0.048 to"
    )
    assert (
        "p < 0.001 after Holm over 3 losses" in text and "surely" in text and "not told apart from it here: A." in text
    )


def test_better_is_not_more_than_is_worth_it():
    text = said(row("A", 0.02, 0.006, state="better", p_value=0.02))
    assert "Use A" in text and "whether by the 0.01 that is worth it, is not sure" in text


def test_no_difference_worth_having_is_said_only_where_every_loss_is_bounded():
    assert said(row("A", 0.001), row("B", -0.2, state="worse")).startswith("Stay with BCE and a tuned threshold")
    text = said(row("A", 0.001), row("B", 0.005, 0.01), enough=31)
    assert (
        text.startswith("No loss is shown to be better")
        and "B may be better by up to 0.023. 31 splits would tell" in text
    )


@pytest.mark.parametrize(("splits", "answer"), [(10, "more rows would"), (2, "Give more splits")])
def test_what_would_tell_more_is_said(splits, answer):
    assert answer in said(row("A", 0.005, 0.01), splits=splits)


def test_one_split_excludes_nothing():
    text = said(row("A", 0.3, math.inf), splits=1)
    assert "nothing can be excluded" in text and "One split tells nothing of how its numbers vary." in text


def test_what_is_few_the_same_or_failed_is_admitted():
    assert "3 splits are few" in said(row("A", 0.0), splits=3)
    assert "few" not in said(row("A", 0.0), splits=5)
    assert "the same test rows" in said(row("A", 0.0), method="same rows")
    assert "one training of each loss" in said(row("A", 0.0), method="same rows", splits=1)
    assert "Runs failed: A (2 of 10)" in said(row("A", 0.0, failed=2), row("B", 0.0))
    assert "Worse than BCE: A." in said(row("A", -0.2, state="worse"))


def test_without_scores_there_is_no_verdict():
    assert said(row("A", None)).startswith("There is no verdict: no other loss")
    nothing = Judgement("d", [row("BCE", score=math.nan), row("A", None)], "resampled", 5, None)
    assert verdict(nothing, SETTINGS).startswith("There is no verdict: BCE has no average precision")


def test_several_data_sets_find_only_what_their_number_can():
    few = verdict_over_data(Ranks([2.0, 1.0], 0.06, 0.9, [1.0, 0.06], 0.0625), ["BCE", "A"], 5, SETTINGS)
    assert "A has the best mean rank, 1.00 of 2; BCE has 2.00" in few and "not shown" in few
    assert "None is told apart from BCE" in few and "least p-value is 0.0625" in few
    many = verdict_over_data(Ranks([2.0, 1.0], 0.001, 0.5, [1.0, 0.001], 0.0001), ["BCE", "A"], 20, SETTINGS)
    assert "sure enough" in many and "from BCE: A." in many and "So few" not in many
