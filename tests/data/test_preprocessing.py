"""Features are made by what the training rows were like, and by nothing else."""

import io
import warnings

import numpy as np
import polars
import pytest
import torch

from lightning_bce.data import TablePreprocessor


def text(**columns):
    return polars.DataFrame({name: [str(cell) for cell in cells] for name, cells in columns.items()})


def test_numbers_are_standardised_by_the_formula():
    train, new = np.random.default_rng(0).normal(5, 3, (2, 33))
    features = TablePreprocessor().fit(text(x=train)).transform(text(x=new))
    expected = torch.from_numpy((new - train.mean()) / train.std())[:, None]
    torch.testing.assert_close(features, expected.float())


def test_missing_numbers_are_the_mean_and_say_so():
    preprocessor = TablePreprocessor().fit(text(x=[1, "?", 3]))
    assert preprocessor.feature_names == ["x", "x (missing)"]
    assert preprocessor.transform(text(x=["", 3])).tolist() == [[0, 1], [1, 0]]


def test_without_missing_training_numbers_there_is_no_indicator():
    preprocessor = TablePreprocessor().fit(text(x=[1, 3]))
    assert preprocessor.transform(text(x=["?"])).tolist() == [[0]]


def test_words_have_a_slot_each_and_strangers_share_one():
    preprocessor = TablePreprocessor().fit(text(s=["b", "a", "b", "?"]))
    assert preprocessor.feature_names == ["s=b", "s=a", "s (other)", "s (missing)"]
    torch.testing.assert_close(preprocessor.transform(text(s=["b", " a", "c", "?"])), torch.eye(4))


def test_only_the_most_frequent_words_are_kept():
    with pytest.warns(UserWarning, match=r"more than `max_categories=2` different words.*'s'"):
        preprocessor = TablePreprocessor(max_categories=2).fit(text(s=list("cccbbad")))
    assert preprocessor.feature_names == ["s=c", "s=b", "s (other)"]
    assert preprocessor.transform(text(s=["a"])).tolist() == [[0, 0, 1]]


def test_numbers_may_be_taken_as_words():
    preprocessor = TablePreprocessor(categorical=["zip"]).fit(text(zip=["10115", "80331"]))
    assert preprocessor.feature_names == ["zip=10115", "zip=80331", "zip (other)"]
    with pytest.raises(ValueError, match="`categorical` names 'zap'"):
        TablePreprocessor(categorical=["zap"]).fit(text(zip=["1"]))


@pytest.mark.parametrize("value", [0.1, 1e9, 0.0, -3.7e-12])
def test_a_constant_column_is_centred_and_warned_of(value):
    with pytest.warns(UserWarning, match="1 columns are constant.*'x'"):
        preprocessor = TablePreprocessor().fit(text(x=[value] * 33, y=range(33)))
    assert preprocessor.transform(text(x=[value], y=[16]))[0, 0].abs() < 1e-6


def test_an_empty_column_is_left_out():
    with pytest.warns(UserWarning, match="empty in the training rows.*'x'"):
        preprocessor = TablePreprocessor().fit(text(x=["", "?"], y=[1, 2]))
    assert preprocessor.feature_names == ["y"]
    preprocessor.transform(text(x=["7"], y=[1]))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="No column is left"):
        TablePreprocessor().fit(text(x=["", "?"]))


def test_a_few_words_among_numbers_are_refused_with_their_place():
    cells = [*range(32), "n/a"]
    with pytest.raises(ValueError, match=r"Row 107 .*column 'x': 'n/a' is not .*1 of 33.*missing_values.*categorical"):
        TablePreprocessor().fit(text(x=cells), rows=range(75, 108))
    assert TablePreprocessor(missing_values=["n/a"]).fit(text(x=cells)).num_features == 2
    assert TablePreprocessor(categorical=["x"]).fit(text(x=cells)).num_features == 34


@pytest.mark.parametrize("cell", ["inf", "1e400", "1_000", "\uff11\uff12"])
def test_cells_that_python_would_take_for_numbers_are_refused(cell):
    with pytest.raises(ValueError, match=r"Row 32 .* is not a finite number"):
        TablePreprocessor().fit(text(x=[*range(32), cell]))


@pytest.mark.parametrize("cells", [["1,5", "2,25"], ["1,000", "2,500,000"], ["1.000,5", "2,5"]])
def test_commas_in_all_numbers_are_refused(cells):
    with pytest.raises(ValueError, match="decimal commas or commas between thousands"):
        TablePreprocessor().fit(text(x=cells))


def test_a_word_where_training_had_numbers_is_refused_with_its_place():
    preprocessor = TablePreprocessor().fit(text(x=[1, 2, 3]))
    with pytest.raises(ValueError, match=r"Row 41 .*column 'x': 'many'"):
        preprocessor.transform(text(x=[1, "many"]), rows=[40, 41])


def test_features_are_finite_or_refused():
    with pytest.raises(ValueError, match="too large to take a standard deviation"):
        TablePreprocessor().fit(text(x=[1e300, -1e300]))
    preprocessor = TablePreprocessor().fit(text(x=[1, 2]))
    with pytest.raises(ValueError, match=r"Row 1 .*too large for float32"):
        preprocessor.transform(text(x=[1, 1e39]))


def test_columns_go_by_name_in_any_order():
    train = text(a=[1, 2, 3], b=["u", "v", "u"])
    preprocessor = TablePreprocessor().fit(train)
    assert torch.equal(preprocessor.transform(train), preprocessor.transform(train.select("b", "a")))


def test_a_missing_column_is_refused_and_an_extra_one_warned_of_once():
    preprocessor = TablePreprocessor().fit(text(a=[1, 2], b=[2, 4]))
    with pytest.raises(ValueError, match="lacks 1 of the columns the model was trained on: 'b'"):
        preprocessor.transform(text(a=[1]))
    new = text(a=[1], b=[2], c=[3])
    with pytest.warns(UserWarning, match="not used: 'c'"):
        preprocessor.transform(new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocessor.transform(new)


def test_numbers_of_parquet_and_of_text_give_the_same_features():
    cells = [1.5, 2.25, 7.0]
    preprocessor = TablePreprocessor().fit(text(x=cells))
    typed = polars.DataFrame({"x": cells})
    assert torch.equal(preprocessor.transform(typed), preprocessor.transform(text(x=cells)))
    assert TablePreprocessor().fit(typed).state_dict() == preprocessor.state_dict()


def test_the_state_survives_a_safe_load():
    train = text(x=[1, "?", 3], s=["a", "b", "ü"])
    preprocessor, copy, file = TablePreprocessor().fit(train), TablePreprocessor(), io.BytesIO()
    torch.save(preprocessor.state_dict(), file)
    file.seek(0)
    copy.load_state_dict(torch.load(file, weights_only=True))
    assert copy.state_dict() == preprocessor.state_dict() and copy.feature_names == preprocessor.feature_names
    assert torch.equal(copy.transform(train), preprocessor.transform(train))


def test_an_unfitted_preprocessor_says_so():
    with pytest.raises(RuntimeError, match="call `fit`"):
        TablePreprocessor().transform(text(x=[1]))
    with pytest.raises(ValueError, match="no training rows"):
        TablePreprocessor().fit(text(x=[]))


@pytest.mark.parametrize("most", [0, -1, True])
def test_keeping_no_word_is_refused(most):
    with pytest.raises(ValueError, match="at least 1 word"):
        TablePreprocessor(max_categories=most)
