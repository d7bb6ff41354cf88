"""PredictionWriter: one table in the order of the data, whole or not there, and no file is lost by it."""

import csv
import os
import stat
from pathlib import Path

import lightning.pytorch as pl
import polars
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_bce.callbacks import PredictionWriter
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.files import defused

pytestmark = [
    # Lightning's own call on this torch.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # One module returns nothing.
    pytest.mark.filterwarnings("ignore:predict returned None"),
]

ROWS, SIZE = 33, 8  # the last batch has one row


class Foreign(pl.LightningModule):
    """A module of other people, whose batches are their own predictions."""

    def __init__(self, change=lambda outputs: outputs, **attributes):
        super().__init__()
        self.change, self.steps = change, 0
        for name, value in attributes.items():
            setattr(self, name, value)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.steps += 1
        probability = batch[0] if isinstance(batch, list) else batch
        return self.change({"probability": probability, "decision": probability > 0.5})


class Some(IterableDataset):
    """Batches of a number that Lightning does not know."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def probabilities(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def loader(values, **options):
    return DataLoader(TensorDataset(values), **({"batch_size": SIZE} | options))


def predict(output, loaders, module=None, options=None, **trainer_options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    writer = PredictionWriter(str(output) if isinstance(output, Path) else output, **(options or {}))
    trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], **(quiet | trainer_options))
    return trainer.predict(module or Foreign(), loaders, return_predictions=False)


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# -- what is in the table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1)], ids=str)
def test_one_label_gives_three_columns(tmp_path, shape):
    values = probabilities(*shape)
    predict(tmp_path / "p.csv", loader(values))
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == ["id", "probability", "decision"]
    assert [row["id"] for row in rows] == [str(i) for i in range(ROWS)]
    assert [float(row["probability"]) for row in rows] == values.flatten().tolist()  # to the last bit
    assert [row["decision"] for row in rows] == [str(int(p > 0.5)) for p in values.flatten()]


def test_several_labels_give_two_columns_each(tmp_path):
    values = probabilities(ROWS, 2)
    predict(tmp_path / "p.csv", loader(values), Foreign(class_names=["cat", "dog"]))
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == ["id", "probability_cat", "decision_cat", "probability_dog", "decision_dog"]
    assert [float(row["probability_dog"]) for row in rows] == values[:, 1].tolist()
    predict(tmp_path / "q.csv", loader(values))
    assert list(rows_of(tmp_path / "q.csv")[0])[1] == "probability_label_0"


def test_csv_and_parquet_hold_the_same(tmp_path):
    names = [f"row {i}" for i in range(SIZE)]
    module = Foreign(lambda outputs: {**outputs, "id": names[: len(outputs["probability"])]}, class_names=["a", "b"])
    paths = [str(tmp_path / "p.csv"), str(tmp_path / "deep" / "er" / "p.PARQUET")]
    predict(paths, loader(probabilities(ROWS, 2)), module)
    table, rows = polars.read_parquet(paths[1]), rows_of(paths[0])
    assert table.columns == list(rows[0]) and table["id"].to_list() == [row["id"] for row in rows]
    assert table.schema["probability_a"] == polars.Float32 and table.schema["decision_b"] == polars.UInt8
    for name in table.columns[1:]:
        assert table[name].to_list() == [float(row[name]) for row in rows]


def test_half_precision_and_every_float_survive(tmp_path):
    values = torch.tensor([0.1, 1e-8, 1.1754944e-38, 0.99999994, float("nan")])
    predict([str(tmp_path / "p.csv"), str(tmp_path / "p.parquet")], loader(values))
    read = torch.tensor([float(row["probability"]) for row in rows_of(tmp_path / "p.csv")])
    assert torch.equal(read[:-1], values[:-1]) and read[-1].isnan()
    predict(tmp_path / "half.csv", loader(values[:4].bfloat16()))
    assert float(rows_of(tmp_path / "half.csv")[0]["probability"]) == values[0].bfloat16().item()


@pytest.mark.parametrize(
    ("make", "first", "kind"),
    [
        (lambda n: torch.arange(n) + 2**40, 2**40, polars.Int64),
        (lambda n: [f"a{i}" for i in range(n)], "a0", polars.String),
        (lambda n: ("\udcff", *"x" * (n - 1)), "\\udcff", polars.String),  # from a file with a broken encoding
    ],
    ids=["numbers", "names", "broken names"],
)
def test_ids_are_kept(tmp_path, make, first, kind):
    module = Foreign(lambda outputs: {**outputs, "id": make(len(outputs["probability"]))})
    predict([str(tmp_path / "p.csv"), str(tmp_path / "p.parquet")], loader(probabilities(5)), module)
    ids = polars.read_parquet(tmp_path / "p.parquet")["id"]
    assert (ids[0], ids.dtype) == (first, kind)
    assert rows_of(tmp_path / "p.csv")[0]["id"] == str(first)


def test_rows_come_in_the_order_of_the_data_and_once(tmp_path):
    values = probabilities(ROWS)
    mixed = [*torch.randperm(ROWS).tolist(), 3, 3, 7]
    predict(tmp_path / "p.csv", loader(values, sampler=mixed))
    assert [float(row["probability"]) for row in rows_of(tmp_path / "p.csv")] == values.tolist()


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_without_row_numbers_the_order_is_that_of_arrival(tmp_path):
    parts = [probabilities(7, seed=1), probabilities(2, seed=2)]
    loaders = [loader(probabilities(5)), DataLoader(Some(parts), batch_size=None)]
    predict(tmp_path / "p.csv", loaders)
    rows = rows_of(tmp_path / "p.csv")
    assert [row["dataloader"] for row in rows] == ["0"] * 5 + ["1"] * 9
    assert [float(row["probability"]) for row in rows[5:]] == torch.cat(parts).tolist()
    assert [row["id"] for row in rows[5:]] == [str(i) for i in range(9)]


@pytest.mark.filterwarnings("ignore:Total length of")
@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
@pytest.mark.parametrize("empty", [lambda: DataLoader(Some([]), batch_size=None), lambda: loader(probabilities(0, 2))])
def test_without_rows_the_header_stands_alone(tmp_path, empty):
    paths = [str(tmp_path / "p.csv"), str(tmp_path / "p.parquet")]
    predict(paths, empty(), Foreign(num_labels=2, class_names=["a", "b"]))
    assert Path(paths[0]).read_text() == "id,probability_a,decision_a,probability_b,decision_b\n"
    assert polars.read_parquet(paths[1]).shape == (0, 5)


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_the_classifier_is_read_and_predictions_are_not_kept_twice(tmp_path):
    module = BinaryClassifier(torch.nn.Linear(5, 3), num_labels=3, class_names=["a", "b", "c"])
    inputs = probabilities(ROWS, 5)
    batches = [{"inputs": x, "id": [f"n{len(x)}"] * len(x)} for x in inputs.split(SIZE)]
    writer = PredictionWriter(str(tmp_path / "p.csv"))
    trainer = pl.Trainer(accelerator="cpu", callbacks=[writer], logger=False, enable_progress_bar=False)
    kept = []
    module.on_predict_epoch_end = lambda: kept.extend(trainer.predict_loop.predictions)
    trainer.predict(module, DataLoader(Some(batches), batch_size=None), return_predictions=False)
    with torch.no_grad():
        expected = module(inputs).sigmoid()
    rows = rows_of(tmp_path / "p.csv")
    read = torch.tensor([[float(row[f"probability_{name}"]) for name in "abc"] for row in rows])
    torch.testing.assert_close(read, expected)
    assert rows[-1]["id"] == "n1" and kept == [] and writer._parts == []


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda outputs: outputs["probability"], TypeError, "Foreign.predict_step returns, which was Tensor"),
        (lambda outputs: None, TypeError, "which was NoneType"),
        (lambda outputs: {"probability": outputs["probability"]}, TypeError, r"a dictionary with \['probability'\]"),
        (lambda outputs: {**outputs, "id": ["x"]}, ValueError, "'id' has 1 entries and 'probability' 8"),
        (lambda outputs: {**outputs, "decision": torch.ones(3)}, ValueError, r"'decision' \(3,\)"),
        (
            lambda outputs: {name: v[:5] for name, v in outputs.items()},
            ValueError,
            "8 rows gave 5 predictions",
        ),
        (lambda outputs: {name: v[:, None, None] for name, v in outputs.items()}, ValueError, "dense outputs"),
        (
            lambda outputs: {name: v.expand(2, -1).T if len(v) == 1 else v for name, v in outputs.items()},
            ValueError,
            "Batches have 1 and 2 labels",
        ),
        (
            lambda outputs: {**outputs, "id": ["x"]} if len(outputs["decision"]) == 1 else outputs,
            ValueError,
            "Some batches came with 'id'",
        ),
    ],
)
def test_predictions_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        predict(tmp_path / "p.csv", loader(probabilities(ROWS)), Foreign(change))
    assert list(tmp_path.iterdir()) == []


def test_wrong_outputs_are_refused_when_they_are_named():
    with pytest.raises(ValueError, match=r"`output` is 'p.txt'; a name that ends in .csv or .parquet"):
        PredictionWriter("p.txt")
    with pytest.raises(ValueError, match="names a file twice"):
        PredictionWriter(["p.csv", "./p.csv"])


def test_parquet_without_polars_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    PredictionWriter("p.csv")
    with pytest.raises(ImportError, match=r"pip install 'lightning_bce\[data\]'"):
        PredictionWriter("p.parquet")


def test_without_an_output_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predict(None, loader(probabilities(ROWS, 2, 3, 3)))
    assert list(tmp_path.iterdir()) == []


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_not_overwritten_unasked_and_nothing_is_computed_for_it(tmp_path):
    path, module = tmp_path / "p.csv", Foreign()
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"p\.csv exists.*`overwrite=True`"):
        predict(path, loader(probabilities(5)), module)
    assert (path.read_text(), module.steps) == ("mine", 0)
    predict(path, loader(probabilities(5)), module, {"overwrite": True})
    assert len(rows_of(path)) == 5 and module.steps == 1


def test_places_where_no_file_can_be_are_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe.csv")
    module = Foreign()
    for name, error in (
        ("folder.csv", IsADirectoryError),
        ("file/p.csv", NotADirectoryError),
        ("pipe.csv", FileExistsError),
    ):
        with pytest.raises(error, match=name.split("/")[0]):
            predict(tmp_path / name, loader(probabilities(5)), module, {"overwrite": True})
    assert module.steps == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="no permission"):
        predict(tmp_path / "p.csv", loader(probabilities(5)))
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002], ids=oct)
def test_the_file_gets_the_rights_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try:
        predict([str(tmp_path / "p.csv"), str(tmp_path / "p.parquet")], loader(probabilities(5)))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_failure_while_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"p.{suffix}"
    path.write_text("mine")

    def full(descriptor):
        assert len(list(tmp_path.iterdir())) == 2  # the temporary file is there
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        predict(path, loader(probabilities(5)), options={"overwrite": True})
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]


def test_a_link_keeps_pointing_to_the_file(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "data" / "p.csv")
    predict(tmp_path / "link.csv", loader(probabilities(5)))
    assert (tmp_path / "link.csv").is_symlink() and len(rows_of(tmp_path / "data" / "p.csv")) == 5


def test_formulas_are_defused_in_csv_and_numbers_left_alone(tmp_path):
    ids = ["=1+2", "+cmd|x", "-2+3", "@SUM(A1)", "\tx", "\rx", "-5", "+1.5e3", "a=b", ""]
    module = Foreign(lambda outputs: {**outputs, "id": ids})
    paths = [str(tmp_path / "p.csv"), str(tmp_path / "p.parquet")]
    predict(paths, loader(probabilities(10), batch_size=10), module)
    assert [row["id"] for row in rows_of(paths[0])] == [f"'{i}" for i in ids[:6]] + ids[6:]
    assert polars.read_parquet(paths[1])["id"].to_list() == ids
    predict(tmp_path / "raw.csv", loader(probabilities(10), batch_size=10), module, {"escape_formulas": False})
    assert [row["id"] for row in rows_of(tmp_path / "raw.csv")] == ids


def test_negative_numbers_stay_numbers_and_what_only_begins_like_one_does_not():
    assert [defused(text) for text in ("-0.5", "-.5", "-5.", "+1E-3")] == ["-0.5", "-.5", "-5.", "+1E-3"]
    assert [defused(text)[0] for text in ("-5+1", "--5", "-inf", "+1_0", "\t5", "-\u0665", "\n1")] == ["'"] * 7
