"""Tables as data modules: parts, columns, labels, checkpoints."""

import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch

from lightning_bce.data import TableDataModule
from lightning_bce.data.splits import stratified_split
from lightning_bce.releases import weights_only_option

ROWS = 97


def table(rows=ROWS, seed=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=rows).round(6)
    return polars.DataFrame(
        {
            "name": [f"row {row}" for row in range(rows)],
            "x": x,
            "word": draw.choice(["a", "b", "c"], rows),
            "weight": draw.uniform(0, 2, rows).round(3),
            "y": ["yes" if value > 0.3 else "no" for value in x],
        }
    )


@pytest.fixture
def written(tmp_path):
    def write(frame, name="train.csv", **options):
        frame.write_csv(tmp_path / name, **options)
        return str(tmp_path / name)

    return write


@pytest.fixture
def path(written):
    return written(table())


COMMON = {"positive": "yes", "id_column": "name", "weight_column": "weight"}


class Linear(pl.LightningModule):
    """The smallest model that trains."""

    def __init__(self, num_features, num_labels):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(num_features, num_labels)

    def training_step(self, batch, _):
        return torch.nn.functional.binary_cross_entropy_with_logits(self.layer(batch["inputs"]), batch["target"])

    def validation_step(self, batch, _):
        self.training_step(batch, _)

    def test_step(self, batch, _):
        self.log("test_loss", self.training_step(batch, _), batch_size=len(batch["id"]))

    def predict_step(self, batch, _):
        return {"logits": self.layer(batch["inputs"]), "id": batch["id"]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=False, **quiet, **options)


# Lightning's own: it reads a torch class that torch deprecates, and wishes for more workers.
lightning_noise = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


def noisy(test):
    for mark in lightning_noise:
        test = mark(test)
    return test


def test_a_batch_has_inputs_target_weight_and_id(path):
    data = TableDataModule(path, batch_size=7, **COMMON)
    batch = next(iter(data.train_dataloader()))
    assert data.feature_names[0] == "x" and data.num_features == 5 and data.class_names == ["y"]
    assert batch["inputs"].shape == (7, 5) and batch["target"].shape == (7, 1) and batch["weight"].shape == (7,)
    assert {batch[name].dtype for name in ("inputs", "target", "weight")} == {torch.float32}
    rows = [int(name.split()[1]) for name in batch["id"]]
    frame = table()
    assert batch["target"][:, 0].tolist() == [float(frame["y"][row] == "yes") for row in rows]
    torch.testing.assert_close(batch["weight"], torch.tensor(frame["weight"].to_numpy()[rows]).float())


def test_parts_share_no_row_and_are_all_rows(path):
    data = TableDataModule(path, positive="yes", drop_columns=["name", "weight"])
    ids = [row for part in ("train", "val", "test") for row in data.rows(part).columns["id"].tolist()]
    assert sorted(ids) == list(range(ROWS))
    assert data.rows("predict").columns["id"].tolist() == list(range(ROWS))


def test_test_rows_do_not_touch_the_training_rows(written):
    first = table()
    options = {"positive": "yes", "drop_columns": "name"}
    data = TableDataModule(written(first), **options)
    test = data.rows("test").columns["id"].numpy()
    x = first["x"].to_numpy().copy()
    x[test] = 1e6 * x[test[::-1]]
    word = np.array(first["word"].to_list(), dtype=object)
    word[test] = "never seen"
    other = TableDataModule(written(first.with_columns(x=x, word=polars.Series(word.tolist())), "other.csv"), **options)
    assert data.feature_names == other.feature_names
    for part in ("train", "val"):
        for name, column in data.rows(part).columns.items():
            assert torch.equal(column, other.rows(part).columns[name])
    assert not torch.equal(data.rows("test").columns["inputs"], other.rows("test").columns["inputs"])


def test_same_seed_same_rows_other_seed_other_rows(path):
    first, again, other = (TableDataModule(path, seed=seed, **COMMON).rows("test").columns["id"] for seed in (0, 0, 1))
    assert first == again != other


def test_a_test_file_is_tested_whole_and_under_the_training_scale(written, path):
    data = TableDataModule(path, test_path=written(table(33, seed=1), "test.csv"), **COMMON)
    assert len(data.rows("test")) == 33
    assert len(data.rows("train")) + len(data.rows("val")) == ROWS
    train = data.rows("train").columns["id"]
    x = table().filter(polars.col("name").is_in(train))["x"].to_numpy()
    expected = (table(33, seed=1)["x"].to_numpy() - x.mean()) / x.std()
    torch.testing.assert_close(data.rows("test").columns["inputs"][:, 0], torch.from_numpy(expected).float())
    with pytest.raises(ValueError, match=r"`test_fraction` is 0\.2 and would have no effect"):
        TableDataModule(path, test_path=path, test_fraction=0.2)


def test_other_spellings_in_a_test_file_are_refused(written, path):
    strange = table(33).with_columns(y=polars.col("y") + ".")
    with pytest.raises(ValueError, match=r"'yes\.' .* times.*Spell the labels of both tables alike"):
        TableDataModule(path, test_path=written(strange, "test.csv"), **COMMON).test_dataloader()
    with pytest.raises(ValueError, match="lacks the label columns 'y'"):
        TableDataModule(path, test_path=written(table().drop("y"), "test.csv"), **COMMON).test_dataloader()


def test_predict_takes_columns_by_name_and_needs_no_labels(written, path):
    new = table(33, seed=2)
    expected = TableDataModule(path, predict_path=written(new, "new.csv"), **COMMON).rows("predict")
    fewer = written(new.select("word", "x", "name"), "fewer.csv")
    found = TableDataModule(path, predict_path=fewer, **COMMON).rows("predict")
    assert torch.equal(found.columns["inputs"], expected.columns["inputs"])
    assert found.columns["id"] == new["name"].to_list()
    assert set(found.columns) == {"inputs", "id"}
    with pytest.raises(ValueError, match=r"lacks the column 'name', the `id_column`"):
        TableDataModule(path, predict_path=written(new.drop("name"), "bad.csv"), **COMMON).predict_dataloader()


def test_without_names_columns_go_by_position_with_or_without_labels(written):
    train = written(table(), include_header=False)
    options = {"header": False, "positive": "yes", "target": 4, "id_column": 0, "weight_column": 3}
    full, short, wrong = (
        written(table(33, seed=2).select(names), f"{len(names)}.csv", include_header=False)
        for names in (["name", "x", "word", "weight", "y"], ["name", "x", "word", "weight"], ["x", "word"])
    )
    found = [TableDataModule(train, predict_path=new, **options).rows("predict") for new in (full, short)]
    assert torch.equal(found[0].columns["inputs"], found[1].columns["inputs"])
    assert found[1].columns["id"][0] == "row 0"
    with pytest.raises(ValueError, match=r"has 2 columns without names: there must be 5, .* or 4"):
        TableDataModule(train, predict_path=wrong, **options).predict_dataloader()


def test_many_labels_and_unknown_ones(written):
    draw = np.random.default_rng(0)
    cells = {f"y{c}": draw.choice(["0", "1", ""], ROWS, p=[0.5, 0.4, 0.1]) for c in range(3)}
    path = written(polars.DataFrame({"x": draw.normal(size=ROWS), **cells}))
    data = TableDataModule(path, target="-3:", missing_targets="ignore", batch_size=ROWS)
    batch = next(iter(data.train_dataloader()))
    assert data.class_names == ["y0", "y1", "y2"] and batch["target"].shape[1] == 3
    for c in range(3):
        wanted = [float(cells[f"y{c}"][row] or "nan") for row in batch["id"].tolist()]
        np.testing.assert_array_equal(batch["target"][:, c], wanted)
    kept = TableDataModule(path, target="-3:", missing_targets="drop")
    ids = torch.cat([kept.rows(part).columns["id"] for part in ("train", "val", "test")])
    assert sorted(ids.tolist()) == [row for row in range(ROWS) if all(cells[name][row] for name in cells)]
    assert len(kept.rows("predict")) == ROWS
    with pytest.raises(ValueError, match="has no label in column"):
        TableDataModule(path, target="-3:").setup("fit")


def test_one_class_only_is_warned_of(written):
    path = written(polars.DataFrame({"x": range(ROWS, 0, -1), "y": [0] * ROWS}))
    with pytest.warns(UserWarning, match="one class only .* 'y'.*train 0 positive and 63 negative"):
        TableDataModule(path).setup("fit")


def test_a_column_that_counts_the_rows_is_warned_of(written):
    path = written(table().with_columns(name=polars.Series(range(ROWS))))
    with pytest.warns(UserWarning, match="'name', counts the rows"):
        TableDataModule(path, positive="yes").setup("fit")


@pytest.mark.parametrize("cell", ["-1", "inf", "", "heavy"])
def test_weights_that_cannot_be_are_refused(written, cell):
    frame = table().with_columns(polars.col("weight").cast(polars.String))
    frame[5, "weight"] = cell
    data = TableDataModule(written(frame), val_fraction=0.0, test_fraction=0.0, **COMMON)
    with pytest.raises(ValueError, match=r"Row 5 .*weights must be finite numbers of at least 0"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "Y"}, "Did you mean 'y'"),
        ({"target": []}, "empty list"),
        ({"id_column": "y"}, "`target` and `id_column` both name the column 'y'"),
        ({"drop_columns": [0], "categorical": ["name"]}, "both name the column 'name'"),
        ({"drop_columns": "0:4"}, "no column left to learn from"),
        ({"positive": None}, r"'no' .* times, 'yes' .* times"),
    ],
)
def test_options_that_do_not_fit_the_table_are_refused(path, options, message):
    with pytest.raises(ValueError, match=message):
        TableDataModule(path, **{"positive": "yes", **options}).setup("fit")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"missing_targets": "keep"}, ValueError, '"error", "ignore" or "drop"'),
        ({"missing_values": "?"}, TypeError, "give a list"),
        ({"max_categories": 0}, ValueError, "at least 1 word"),
        ({"path": "a.parquet", "header": False}, ValueError, "would have no effect on 'a.parquet'"),
    ],
)
def test_options_that_fit_no_table_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        TableDataModule(**{"path": "a.csv", **options})


def test_hyper_parameters_are_all_arguments_as_plain_values(path):
    data = TableDataModule(Path(path), positive=["yes"], missing_values=("?",))
    assert data.hparams["path"] == path and data.hparams["missing_values"] == ["?"]
    assert set(data.hparams) == set(TableDataModule.__init__.__annotations__) - {"return"}


@noisy
def test_a_checkpoint_predicts_without_the_training_file(tmp_path, written, path):
    new = written(table(33, seed=2).drop("y"), "new.csv")
    data = TableDataModule(path, predict_path=new, batch_size=32, **COMMON)
    model = Linear(data.num_features, data.num_labels)
    training = trainer(tmp_path)
    training.fit(model, data)
    training.save_checkpoint(tmp_path / "last.ckpt")
    expected = trainer(tmp_path).predict(model, data)
    Path(path).unlink()

    # As Lightning does it: set up, then restored from the checkpoint.
    late = TableDataModule(path, predict_path=new, batch_size=32, **COMMON)
    blank = Linear(data.num_features, data.num_labels)
    with weights_only_option(True) as read:
        found = trainer(tmp_path).predict(blank, late, ckpt_path=tmp_path / "last.ckpt", **read)
    # As a command line may do it: from the checkpoint alone, before anything is read.
    with weights_only_option(True) as read:
        alone = TableDataModule.load_from_checkpoint(tmp_path / "last.ckpt", **read)
    early = TableDataModule(path, predict_path=new, batch_size=32)
    early.restore(torch.load(tmp_path / "last.ckpt", weights_only=True)["TableDataModule"])
    assert alone.num_features == early.num_features == data.num_features
    assert alone.class_names == early.class_names == ["y"]
    for batches in (found, trainer(tmp_path).predict(model, alone), trainer(tmp_path).predict(model, early)):
        for batch, wanted in zip(batches, expected, strict=True):
            assert torch.equal(batch["logits"], wanted["logits"]) and batch["id"] == wanted["id"]
    with pytest.raises(FileNotFoundError, match=r"no file .*train\.csv"):
        _ = TableDataModule(path).num_features


@noisy
def test_a_checkpoint_tests_on_a_file_without_the_training_file(tmp_path, written, path):
    options = {"test_path": written(table(33, seed=1), "test.csv"), **COMMON}
    data = TableDataModule(path, **options)
    model = Linear(data.num_features, 1)
    training = trainer(tmp_path)
    training.fit(model, data)
    training.save_checkpoint(tmp_path / "last.ckpt")
    expected = training.test(model, data, verbose=False)
    Path(path).unlink()
    late = TableDataModule(path, **options)
    assert trainer(tmp_path).test(model, late, ckpt_path=tmp_path / "last.ckpt", verbose=False) == expected


@noisy
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # Lightning asks if it is meant
def test_without_validation_and_test_rows_a_model_trains(tmp_path, path):
    data = TableDataModule(path, val_fraction=0.0, test_fraction=0.0, **COMMON)
    assert data.val_dataloader() == [] and data.test_dataloader() == []
    trainer(tmp_path).fit(Linear(data.num_features, 1), data)
    assert len(data.rows("train")) == ROWS


def test_a_changed_training_file_is_warned_of_whichever_comes_first(written, path):
    data = TableDataModule(path, **COMMON)
    data.setup("fit")
    state = data.state_dict()
    same, changed = TableDataModule(path, **COMMON), TableDataModule(written(table(seed=5)), **COMMON)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path_before = table()
        written(path_before)
        same.setup("fit")
        same.load_state_dict(state)
    written(table(seed=5))
    changed.setup("fit")
    with pytest.warns(UserWarning, match="is not what the checkpoint was trained on"):
        changed.load_state_dict(state)
    later = TableDataModule(path, **COMMON)
    later.load_state_dict(state)
    with pytest.warns(UserWarning, match="is not what the checkpoint was trained on"):
        later.setup("fit")
    assert later.state_dict() == state


def test_a_restored_state_scales_the_rows_not_this_file(written, path):
    data = TableDataModule(path, **COMMON)
    data.setup("fit")
    shifted = TableDataModule(written(table().with_columns(polars.col("x") + 100), "shifted.csv"), **COMMON)
    shifted.setup("fit")
    shifted.train_dataloader()  # what was made before the restoring must not stay
    with pytest.warns(UserWarning, match="is not what the checkpoint"):
        shifted.load_state_dict(data.state_dict())
    train = stratified_split((table()["y"] == "yes").to_numpy(), data.fractions, 0)["train"]
    deviation = table()["x"].to_numpy()[train].std()
    moved = shifted.rows("train").columns["inputs"] - data.rows("train").columns["inputs"]
    torch.testing.assert_close(moved[:, 0], torch.full((len(train),), 100 / deviation).float())


def test_a_checkpoint_of_other_labels_is_refused(path):
    data = TableDataModule(path, **COMMON)
    data.setup("fit")
    other = TableDataModule(path, target="word", positive="a", drop_columns=["name"])
    other.setup("fit")
    with pytest.raises(ValueError, match="checkpoint knows the labels 'y', and `target` now means 'word'"):
        other.load_state_dict(data.state_dict())


@noisy
def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(tmp_path, path):
    def run(epochs, checkpoint=None):
        torch.manual_seed(0)
        data = TableDataModule(path, batch_size=16, **COMMON)
        model = Linear(data.num_features, 1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        training = pl.Trainer(max_epochs=epochs, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
        training.fit(model, data, ckpt_path=checkpoint)
        return training, model

    _, uninterrupted = run(4)
    half, _ = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = run(4, tmp_path / "half.ckpt")
    for wanted, found in zip(uninterrupted.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(wanted, found)


def each_rank_its_own_table(rank, folder):
    """Return what a rank is told when its file, or its seed, is not that of the others."""
    told = []
    for options in ({}, {"seed": rank}, {"path": f"{folder}/{rank}.csv"}):
        try:
            TableDataModule(**{"path": f"{folder}/0.csv", **options}).setup("fit")
            told.append(None)
        except ValueError as error:
            told.append(str(error))
    return told


def test_ranks_that_read_different_tables_are_stopped_on_every_rank(on_two_ranks, tmp_path):
    for rank in range(2):
        rows = "".join(f"{i / 7:.3f},{int(i % (3 + rank) == 0)}\n" for i in range(33))
        (tmp_path / f"{rank}.csv").write_text("a,y\n" + rows)
    for same, seeds, files in on_two_ranks(each_rank_its_own_table, str(tmp_path)):
        assert same is None
        assert "training table (rank 0: seed 0; rank 1: seed 1)" in seeds
        assert "rank 0: file {'size'" in files and "Give every machine the same files" in files
