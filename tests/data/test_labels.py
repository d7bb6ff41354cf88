"""Labels are never guessed."""

import numpy as np
import polars
import pytest

from lightning_bce.data.labels import parse_labels, without_unknown


def parsed(values, **options):
    return parse_labels(polars.DataFrame({"y": values}), ["y"], **options)[0][:, 0].tolist()


@pytest.mark.parametrize(
    ("values", "target"),
    [
        (["0", "1"], [0, 1]),
        ([" 0.0", "1.0 "], [0, 1]),
        (["true", "FALSE"], [1, 0]),
        ([True, False], [1, 0]),
        ([0, 1], [0, 1]),
        (["0.25", "1"], [0.25, 1]),
        ([0.25, 1.0], [0.25, 1]),
        (["1", "1"], [1, 1]),
    ],
)
def test_labels_that_need_no_word_are_taken_as_they_are(values, target):
    assert parsed(values) == target


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["-1", "1", "1"], "'1' 2 times, '-1' 1 times.*`positive=1`"),
        (["'-1'", "'1'"], "`positive=1`"),
        (["yes", "no"], "'no' 1 times, 'yes' 1 times.*`positive=VALUE`"),
        (["0", "1", "2"], "'2' 1 times"),
        (["0", "1", "true"], "'true' 1 times"),
        (["0.5", "1.5"], "'1.5' 1 times"),
        (["inf", "0"], "'inf' 1 times"),
        ([str(value) for value in range(33)], "and 23 other values"),
    ],
)
def test_labels_that_need_a_word_are_refused_with_their_counts(values, message):
    with pytest.raises(ValueError, match=message):
        parsed(values)


@pytest.mark.parametrize(
    ("values", "positive"),
    [
        (["'-1'", "'1'"], 1),
        (["'-1'", "'1'"], "1"),
        (["'-1'", "'1'"], "'1'"),
        (["-1", "1"], 1.0),
        ([-1.0, 1.0], 1),
        (["0", "1.0"], "1"),
        ([" <=50K", ' ">50K"'], ">50K"),
        (["false", "true"], True),
        ([False, True], True),
        (["a", "b"], ["b", "c"][:1]),
    ],
)
def test_positive_finds_its_value_through_quotes_blanks_and_spellings(values, positive):
    assert parsed(values, positive=positive) == [0, 1]


def test_positive_is_one_against_the_rest():
    assert parsed(["a", "b", "c", "b"], positive="b") == [0, 1, 0, 1]
    assert parsed(["a", "b", "c", "b"], positive=["b", "c"]) == [0, 1, 1, 1]


def test_positive_that_does_not_occur_is_refused_with_what_occurs():
    with pytest.raises(ValueError, match=r"'Yes' does not occur in column 'y', which has 'no' 2 times, 'yes' 1 times"):
        parsed(["yes", "no", "no"], positive="Yes")
    with pytest.raises(ValueError, match="empty list"):
        parsed(["yes", "no"], positive=[])


def test_labels_the_training_table_had_not_are_refused():
    _, known = parse_labels(polars.DataFrame({"y": ["<=50K", ">50K"]}), ["y"], positive=">50K")
    assert parsed(["<=50K"], positive=">50K", known=known) == [0]
    with pytest.raises(ValueError, match=r"'>50K\.' 1 times; there it was '<=50K', '>50K'"):
        parsed(["<=50K", ">50K."], positive=">50K", known=known)


def test_missing_labels_are_nan_and_then_go_as_asked():
    target, _ = parse_labels(polars.DataFrame({"a": ["1", "?", "0"], "b": ["0", "1", ""]}), ["a", "b"])
    np.testing.assert_array_equal(target, [[1, 0], [np.nan, 1], [0, np.nan]])
    assert without_unknown(target, ["a", "b"], "ignore").tolist() == [0, 1, 2]
    assert without_unknown(target, ["a", "b"], "drop").tolist() == [0]
    with pytest.raises(ValueError, match=r"Row 1 .* column 'a', one of 2 missing labels.*missing_targets=\"drop\""):
        without_unknown(target, ["a", "b"], "error")
    with pytest.raises(ValueError, match="Every row lacks a label"):
        without_unknown(target[1:], ["a", "b"], "drop")
