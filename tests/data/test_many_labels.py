"""Lists of labels are read as they were written, faults are named by their line, and batches are what the files say."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import polars
import pytest
import torch
from torch.testing import assert_close

from lightning_bce.data import ManyLabelDataModule, extreme_text
from lightning_bce.data.extreme_text import read_extreme_text
from lightning_bce.metrics import propensities

ROWS, FEATURES, LABELS = 33, 17, 257


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dense_rows(seed=0):
    random = np.random.default_rng(seed)
    inputs = np.round(random.normal(size=(ROWS, FEATURES)) * (random.random((ROWS, FEATURES)) < 0.3), 4)
    target = (random.random((ROWS, LABELS)) < 0.01).astype(int)
    inputs[4], target[4], target[5], inputs[6] = 0, 0, 0, 0  # nothing at all, no label, no feature
    return inputs.astype(np.float32), target


def as_text(inputs, target):
    lines = [f"{len(inputs)} {inputs.shape[1]} {target.shape[1]}"]
    for features, labels in zip(inputs, target, strict=True):
        words = [f"{i}:{features[i]:.6g}" for i in np.flatnonzero(features)]
        lines.append(" ".join([",".join(map(str, np.flatnonzero(labels))), *words]))
    return "\n".join(lines) + "\n"


def everything(rows):
    return rows.__getitems__(range(len(rows)))


@pytest.mark.parametrize("block", [7, 64, 2**22], ids=["cut within lines", "some lines", "whole"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "no last newline", "gz"])
def test_what_was_written_is_read(folder, monkeypatch, block, ending):
    monkeypatch.setattr(extreme_text, "_BLOCK", block)
    inputs, target = dense_rows()
    text = as_text(inputs, target)
    data = {"\r\n": text.replace("\n", "\r\n"), "no last newline": text[:-1]}.get(ending, text).encode()
    name = "train.txt.gz" if ending == "gz" else "train.txt"
    (folder / name).write_bytes(gzip.compress(data) if ending == "gz" else data)
    module = ManyLabelDataModule(name)
    batch = everything(module.rows("predict"))
    assert_close(batch["inputs"].to_dense(FEATURES), torch.from_numpy(inputs))
    assert batch["id"].tolist() == list(range(ROWS)) and "target" not in batch
    labels = read_extreme_text(name).labels
    found = torch.zeros(ROWS, LABELS)
    found[labels.row_of_each(), labels.indices.long()] = 1
    assert torch.equal(found, torch.from_numpy(target).float())


def test_the_parts_are_all_rows_once_and_a_batch_is_sorted_by_label(folder):
    inputs, target = dense_rows()
    (folder / "train.txt").write_text(as_text(inputs, target))
    module, again = (ManyLabelDataModule("train.txt", seed=3, batch_size=7) for _ in range(2))
    seen = []
    for part in ("train", "val", "test"):
        batch = everything(module.rows(part))
        rows = batch["id"]
        seen += rows.tolist()
        assert torch.equal(batch["target"].to_dense(), torch.from_numpy(target).float()[rows])
        assert torch.equal(batch["target"].labels, batch["target"].labels.sort().values)
        assert_close(batch["inputs"].to_dense(FEATURES), torch.from_numpy(inputs)[rows])
        assert torch.equal(again.rows(part).rows, rows)
    assert sorted(seen) == list(range(ROWS))
    first, second = (torch.cat([batch["id"] for batch in module.train_dataloader()]) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first.sort().values, module.rows("train").rows)


def test_dense_batches_hold_the_same_features(folder):
    inputs, target = dense_rows()
    (folder / "train.txt").write_text(as_text(inputs, target))
    batch = next(iter(ManyLabelDataModule("train.txt", dense=True, batch_size=ROWS).predict_dataloader()))
    assert_close(batch["inputs"], torch.from_numpy(inputs))


def test_workers_make_the_same_batches(folder):
    (folder / "train.txt").write_text(as_text(*dense_rows()))
    here, there = (ManyLabelDataModule("train.txt", batch_size=11, num_workers=n).val_dataloader() for n in (0, 1))
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one["target"].labels, other["target"].labels)
        assert torch.equal(one["inputs"].value, other["inputs"].value)


def test_counts_and_propensities_are_those_of_the_training_rows(folder):
    inputs, target = dense_rows()
    (folder / "train.txt").write_text(as_text(inputs, target))
    module = ManyLabelDataModule("train.txt")
    rows = module.rows("train").rows
    positives = torch.from_numpy(target)[rows].sum(0)
    counts = module.label_counts()
    assert torch.equal(counts.positives, positives.double()) and set(counts.total.tolist()) == {float(len(rows))}
    occurrences, number = module.occurrences()
    assert torch.equal(occurrences.long(), positives) and number == len(rows)
    assert len(propensities(occurrences, number)) == LABELS


HEADER = "3 5 10\n"


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("1,2 0:1\n3 0:1\n3 9:1\n", 4, "a feature from 0 to 4"),
        ("1,2 0:1\n3 0:1\n10 1:1\n", 4, "a label from 0 to 9"),
        ("1,2 0:1\n-3 0:1\n1 1:1\n", 3, "whole numbers"),
        ("1,2 0:1\n3 0:1\n1.5 1:1\n", 4, "whole numbers"),
        ("1,2 0:1\n3 0:nan\n1 1:1\n", 3, "only digits"),
        ("1,2 0:1\n3 0:inf\n1 1:1\n", 3, "only digits"),
        ("1,2 0:1\n3 0:1e400\n1 1:1\n", 3, "float32 can hold"),
        ("1,2 0:1\n3 0:1e39\n1 1:1\n", 3, "float32 can hold"),
        ("1,2 0:1\n3 0:1-2\n1 1:1\n", 3, "a number was expected"),
        ("1,2 0:1\n3 0:1.2.3\n1 1:1\n", 3, "a number was expected"),
        ("1,2 0:1\n3 0:--\n1 1:1-2\n", 3, "a number was expected"),
        ("1,2 0:1\n3 0:1_000\n1 1:1\n", 3, "only digits"),
        ("1,2 0:1\n3 0:0x1\n1 1:1\n", 3, "only digits"),
        ("1,2 0:1\n3 0\n1 1:1\n", 3, "l1,l2"),
        ("1,2 0:1\n3 0:\n1 1:1\n", 3, "l1,l2"),
        ("1,2 0:1\n3 0:1:2\n1 1:1\n", 3, "l1,l2"),
        ("1,,2 0:1\n3 0:1\n1 1:1\n", 2, "l1,l2"),
        ("1, 2 0:1\n3 0:1\n1 1:1\n", 2, "l1,l2"),
        (",1 0:1\n3 0:1\n1 1:1\n", 2, "l1,l2"),
        ("1,2 0:1\n3 0:1 4,5\n1 1:1\n", 3, "l1,l2"),
        ("1,2 0:1\n3 0:1,5\n1 1:1\n", 3, "l1,l2"),
        ("1,2 0:1\n3 wort:1\n1 1:1\n", 3, "only digits"),
        ("1,2 0:1\n3 0:1\n1 1:1 \0\n", 4, "only digits"),
        ("1,2 0:1\n3 0:1\n1 1:\uff11\n", 4, "only digits"),
        ("1,2 0:1\n99999999999999999999999 0:1\n1 1:1\n", 3, "a label from 0 to 9"),
    ],
)
@pytest.mark.parametrize("block", [5, 2**22])
def test_a_faulty_line_is_named(folder, monkeypatch, text, line, what, block):
    monkeypatch.setattr(extreme_text, "_BLOCK", block)
    (folder / "train.txt").write_text(HEADER + text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"train.txt, line {line} has .*{what}"):
        read_extreme_text("train.txt")


def test_bytes_that_are_no_utf_8_are_named(folder):
    (folder / "train.txt").write_bytes(HEADER.encode() + b"1 0:1\n2 1:1\n3 \xff\xfe:1\n")
    with pytest.raises(ValueError, match=r"line 4 has '\\\\xff\\\\xfe:1'"):
        read_extreme_text("train.txt")


@pytest.mark.parametrize("rows", [2, 4])
def test_counts_that_contradict_the_header_are_refused(folder, rows):
    (folder / "train.txt").write_text(HEADER + "1 0:1\n" * rows)
    with pytest.raises(ValueError, match=f"has {rows} rows below its header, which says 3"):
        read_extreme_text("train.txt")


@pytest.mark.parametrize("line", ["", "3 5", "3 5 10 2", "1,2 0:1", "3 5 x", "3 -5 10", "3 0 10", "3 5 99999999999"])
def test_a_first_line_that_is_no_header_is_refused_before_the_rows_are_read(folder, line):
    (folder / "train.txt").write_text(line + "\n1 0:1\n")
    with pytest.raises(ValueError, match="line 1"):
        _ = ManyLabelDataModule("train.txt").num_labels


def test_a_packed_file_that_was_cut_off_is_named(folder):
    whole = gzip.compress(as_text(*dense_rows()).encode())
    (folder / "train.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read_extreme_text("train.txt.gz")
    (folder / "plain.txt.gz").write_text(HEADER)
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read_extreme_text("plain.txt.gz")


def test_a_label_that_a_row_names_twice_counts_once_and_is_warned_of(folder):
    (folder / "train.txt").write_text(HEADER + "1 0:1\n7,2,7 0:1\n3 1:1\n")
    with pytest.warns(UserWarning, match=r"1 label\(s\) twice in a row, first on line 3"):
        table = read_extreme_text("train.txt")
    assert table.labels.indices.tolist() == [1, 2, 7, 3] and table.labels.start.tolist() == [0, 1, 3, 4]


def test_files_that_are_not_there_or_do_not_fit_are_refused(folder):
    with pytest.raises(FileNotFoundError, match=r"no file none\.txt"):
        _ = ManyLabelDataModule("none.txt").num_labels
    with pytest.raises(IsADirectoryError):
        _ = ManyLabelDataModule(folder).num_labels
    (folder / "train.txt").write_text(HEADER + "1 0:1\n" * 3)
    (folder / "test.txt").write_text("3 6 10\n" + "1 0:1\n" * 3)
    with pytest.raises(ValueError, match="6 features and 10 labels, and the training file 5 and 10"):
        ManyLabelDataModule("train.txt", test_path="test.txt").rows("test")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"test_path": "t.txt", "test_fraction": 0.1}, "no effect"),
        ({"label_column": "tags"}, "no effect"),
        ({"total_labels": 7}, "no effect"),
        ({"predict_path": "p.parquet"}, "one kind"),
        ({"val_fraction": 1.0}, "val_fraction"),
    ],
)
def test_options_without_effect_are_refused(options, what):
    with pytest.raises(ValueError, match=what):
        ManyLabelDataModule("train.txt", **options)
    with pytest.raises(ValueError, match="no effect"):
        ManyLabelDataModule("train.parquet", dense=True)


def test_names_come_from_a_file_with_one_for_each_label(folder):
    (folder / "train.txt").write_text("1 2 3\n0 1:1\n")
    (folder / "names.txt").write_text("a\nb\nc\n")
    assert ManyLabelDataModule("train.txt").class_names == []
    assert ManyLabelDataModule("train.txt", names_path="names.txt").class_names == ["a", "b", "c"]
    (folder / "names.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="has 2 lines and there are 3 labels"):
        _ = ManyLabelDataModule("train.txt", names_path="names.txt").class_names


def test_a_state_brings_sizes_and_occurrences_and_another_file_is_warned_of(folder):
    (folder / "train.txt").write_text(as_text(*dense_rows()))
    module = ManyLabelDataModule("train.txt")
    module.setup("fit")
    state = module.state_dict()
    (folder / "train.txt").unlink()
    again = ManyLabelDataModule("train.txt")
    again.restore(state)
    assert (again.num_features, again.num_labels) == (FEATURES, LABELS)
    assert torch.equal(again.occurrences()[0], module.occurrences()[0])
    (folder / "train.txt").write_text(as_text(*dense_rows(seed=1)))
    with pytest.warns(UserWarning, match="not the file of the checkpoint"):
        again.rows("test")


# -- Parquet ----------------------------------------------------------------------------------------------------------


def frame(**changes):
    columns = {
        "labels": polars.Series([[3, 1], [], [7], [1]], dtype=polars.List(polars.Int32)),
        "says": polars.Series([[0.5, 1.0], [], [None], [0.0]], dtype=polars.List(polars.Float32)).list.eval(
            polars.element().fill_null(float("nan"))
        ),
        "age": [1, 2, 3, 4],
        "vector": polars.Series(np.arange(8.0).reshape(4, 2), dtype=polars.Array(polars.Float64, 2)),
        "who": ["=a", "b", "c", "d"],
        "often": [1.0, 2.0, 0.0, 4.0],
    }
    return polars.DataFrame({**columns, **changes})


OPTIONS = {
    "value_column": "says",
    "id_column": "who",
    "weight_column": "often",
    "val_fraction": 0.0,
    "test_fraction": 0.0,
}


def test_lists_values_vectors_ids_and_weights_of_parquet_are_read(folder):
    frame().write_parquet("train.parquet")
    module = ManyLabelDataModule("train.parquet", **OPTIONS)
    assert (module.num_features, module.num_labels) == (3, 8)
    batch = everything(module.rows("train"))
    assert batch["inputs"].tolist() == [[1, 0, 1], [2, 2, 3], [3, 4, 5], [4, 6, 7]]
    assert batch["id"] == ["=a", "b", "c", "d"] and batch["weight"].tolist() == [1, 2, 0, 4]
    expected = torch.zeros(4, 8)
    expected[0, 1], expected[0, 3], expected[2, 7] = 1.0, 0.5, torch.nan
    assert_close(batch["target"].to_dense(), expected, equal_nan=True)
    assert len(batch["target"].labels) == 3  # what says 0 is not kept
    counts = module.label_counts()
    assert counts.plain()["positives"] == [0, 1, 0, 0.5, 0, 0, 0, 0]
    assert counts.plain()["negatives"] == [7, 6, 7, 6.5, 7, 7, 7, 7] and counts.total.tolist() == [4] * 7 + [3]
    assert module.occurrences()[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]  # half is not above one half


def test_a_file_to_predict_needs_no_labels(folder):
    frame().write_parquet("train.parquet")
    frame().select("age", "vector", "who").write_parquet("new.parquet")
    module = ManyLabelDataModule("train.parquet", predict_path="new.parquet", **OPTIONS)
    batch = next(iter(module.predict_dataloader()))
    assert batch["inputs"].shape == (4, 3) and set(batch) == {"inputs", "id"}


def test_columns_of_features_go_by_their_names_in_every_file(folder):
    frame().write_parquet("train.parquet")
    frame().select("vector", "who", polars.lit(9.0).alias("more"), "age").write_parquet("new.parquet")
    frame().select("vector", "who").write_parquet("less.parquet")
    module = ManyLabelDataModule("train.parquet", predict_path="new.parquet", **OPTIONS)
    expected = everything(module.rows("train"))["inputs"]
    assert torch.equal(next(iter(module.predict_dataloader()))["inputs"], expected)
    again = ManyLabelDataModule("gone.parquet", predict_path="new.parquet", **OPTIONS)
    again.restore(module.state_dict())
    assert torch.equal(next(iter(again.predict_dataloader()))["inputs"], expected)
    with pytest.raises(ValueError, match=r"less.parquet has no column 'age'"):
        ManyLabelDataModule("train.parquet", predict_path="less.parquet", **OPTIONS).predict_dataloader()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": [[1], [2], [-1], [1]]}, "row 2 has -1 in 'labels'"),
        ({"labels": [[1], [2], [8], [1]]}, "row 2 has 8 in 'labels': labels from 0 to 7"),
        ({"labels": [[1], None, [1], [1]]}, "row 1 has no value in 'labels'"),
        ({"labels": [[1], [2], [3, None], [1]]}, "row 2 has a null in a list"),
        ({"labels": ["1", "2", "3", "4"]}, "lists of whole numbers were expected"),
        ({"labels": [[1.5], [2.0], [3.0], [4.0]]}, "lists of whole numbers were expected"),
        ({"says": [[0.5, 1.0], [], [], [0.0]]}, r"row 2 has 1 label\(s\) and 0 value\(s\)"),
        ({"says": [[0.5, 1.0], [], [1.5], [0.0]]}, "row 2 has 1.5 in 'says'"),
        ({"labels": [[3, 3], [], [7], [1]]}, "row 0 names label 3 twice"),
        ({"age": [1.0, 2.0, float("nan"), 4.0]}, "row 2 has NaN or infinity in 'age'"),
        ({"age": [1, None, 3, 4]}, "row 1 has no value in 'age'"),
        ({"age": ["1", "2", "3", "4"]}, "features are numbers"),
        ({"vector": [[1.0], [2.0], [3.0, 4.0], [5.0]]}, "row 2 has 2 numbers in 'vector' and row 0 1"),
        ({"often": [1.0, -2.0, 0.0, 4.0]}, "row 1 has the weight -2"),
    ],
)
def test_a_faulty_row_of_parquet_is_named(folder, changes, what):
    frame(**changes).write_parquet("train.parquet")
    with pytest.raises(ValueError, match=what):
        ManyLabelDataModule("train.parquet", total_labels=8, **OPTIONS).rows("train")


def test_columns_that_are_not_there_are_named(folder):
    frame().write_parquet("train.parquet")
    with pytest.raises(ValueError, match="no column 'tags'; it has 'labels'"):
        ManyLabelDataModule("train.parquet", label_column="tags").rows("train")
    with pytest.raises(ValueError, match="column 'who' has the type String"):
        ManyLabelDataModule("train.parquet", value_column="says").rows("train")
    (folder / "bad.parquet").write_bytes(b"PAR1 and nothing of it")
    with pytest.raises(ValueError, match="not a Parquet file, or is damaged"):
        ManyLabelDataModule("bad.parquet").rows("train")


def test_a_label_of_parquet_that_a_row_names_twice_counts_once(folder):
    frame(labels=[[3, 1, 3], [], [7], [1]]).write_parquet("train.parquet")
    with pytest.warns(UserWarning, match=r"1 label\(s\) twice in a row, first in row 0"):
        rows = ManyLabelDataModule("train.parquet", feature_columns=["age"], **{**OPTIONS, "value_column": None})
        assert everything(rows.rows("train"))["target"].to_dense().sum(1).tolist() == [2, 0, 1, 1]


def test_reading_warns_of_nothing_where_nothing_is_wrong(folder):
    (folder / "train.txt").write_text(HEADER + "1,2 0:1e-3\n 4:-.5\n\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = read_extreme_text("train.txt")
    assert table.labels.start.tolist() == [0, 2, 2, 2] and table.inputs.value.tolist() == pytest.approx([1e-3, -0.5])
