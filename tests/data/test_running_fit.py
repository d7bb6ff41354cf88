"""A preprocessor fitted in pieces is the one that is fitted to all rows at once."""

import contextlib

import numpy as np
import polars
import pytest
import torch

from lightning_bce.data import TablePreprocessor
from lightning_bce.data.running_fit import RunningFit


def frame(rows=257):
    draw = np.random.default_rng(0)
    return polars.DataFrame(
        {
            "far": (draw.normal(size=rows) + 1e8).astype(np.float64),  # where sums of squares would cancel
            "near": draw.normal(size=rows).astype(np.float32),
            "whole": draw.integers(0, 9, rows),
            "flag": draw.integers(0, 2, rows).astype(bool),
            "gaps": [None if i % 5 == 0 else float(v) for i, v in enumerate(draw.normal(size=rows))],
            "nan": np.where(np.arange(rows) % 7 == 0, np.nan, draw.normal(size=rows)),
            "word": [None if i % 11 == 0 else word for i, word in enumerate(draw.choice(list("abcde"), rows))],
            "code": draw.choice([3, 5, 8], rows),
        }
    )


KINDS = {name: "numbers" for name in frame().columns} | {"word": "words"}


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("missing_values", [(), ("5", "a")])
def test_pieces_give_the_features_of_the_whole(size, missing_values):
    options = {"categorical": ["code"], "max_categories": 4, "missing_values": missing_values}
    table = frame()
    with pytest.warns(UserWarning, match="max_categories=4") if not missing_values else contextlib.nullcontext():
        whole = TablePreprocessor(**options).fit(table)
    fit = RunningFit(KINDS, **options)
    for start in range(0, table.height, size):
        fit.add(table[start : start + size])
    with pytest.warns(UserWarning, match="max_categories=4") if not missing_values else contextlib.nullcontext():
        pieces = fit.preprocessor()
    assert pieces.feature_names == whole.feature_names and pieces.input_names == whole.input_names
    torch.testing.assert_close(pieces.transform(table), whole.transform(table), rtol=1e-6, atol=1e-6)


def test_constant_and_empty_columns_are_warned_of():
    fit = RunningFit({"same": "numbers", "none": "numbers", "null": "nothing", "x": "numbers"})
    for _ in range(3):
        fit.add(polars.DataFrame({"same": [0.1] * 7, "none": [None] * 7, "null": [None] * 7, "x": range(7)}))
    with (
        pytest.warns(UserWarning, match=r"1 columns are constant.*'same'"),
        pytest.warns(UserWarning, match=r"2 columns are empty.*'none', 'null'"),
    ):
        preprocessor = fit.preprocessor()
    features = preprocessor.transform(polars.DataFrame({"same": [0.1], "none": [1.0], "null": [1], "x": [3]}))
    torch.testing.assert_close(features, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("cells", "kind", "message"),
    [
        ([1.0, float("inf")], "numbers", r"Row 1 \(counted from 0\), column 'x': inf is not a finite number"),
        ([1e300, -1e300], "numbers", "too large to take a standard deviation"),
        (["1", "2.5"], "words", r"is text, and all its words are numbers, such as '1', '2\.5'"),
        ([None, None], "numbers", "No column is left"),
    ],
)
def test_columns_that_cannot_be_learnt_are_refused(cells, kind, message):
    fit = RunningFit({"x": kind})
    warned = pytest.warns(UserWarning, match="are empty") if cells[0] is None else contextlib.nullcontext()
    with warned, pytest.raises(ValueError, match=message):
        fit.add(polars.DataFrame({"x": cells}))
        fit.preprocessor()


def test_a_column_of_names_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr("lightning_bce.data.running_fit.MOST_WORDS", 10)
    fit = RunningFit({"name": "words"})
    with pytest.raises(ValueError, match="more than 10 different words"):
        fit.add(polars.DataFrame({"name": [f"row {i}" for i in range(11)]}))
