"""A stream of row groups: every row once, in a repeatable order and little memory, for any ranks and workers."""

import csv
import itertools
import os
import sys
import warnings
import weakref
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import polars
import pytest
import torch

from lightning_bce import BinaryClassifier
from lightning_bce.callbacks import PredictionWriter
from lightning_bce.data import ParquetStreamDataModule, TableDataModule, TablePreprocessor
from lightning_bce.data.row_groups import ParquetSource
from lightning_bce.data.stream_loader import StreamLoader
from lightning_bce.releases import weights_only_option

pytest.importorskip("pyarrow", reason="streams need pyarrow: pip install 'lightning_bce[stream]'")

pytestmark = pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`")
WHOLE = {"val_fraction": 0.0, "test_fraction": 0.0}
COMMON = {"positive": "yes", "id_column": "name", "weight_column": "weight"}


def table(rows=257, seed=0, first=0):
    draw = np.random.default_rng(seed)
    x = draw.normal(size=rows).round(6)
    return polars.DataFrame(
        {
            "name": [f"row {first + row}" for row in range(rows)],
            "x": x,
            "word": draw.choice(["a", "b", "c"], rows),
            "weight": draw.uniform(0, 2, rows).round(3),
            "y": ["yes" if value > 0.3 else "no" for value in x],
        }
    )


def write(folder, *parts, size=33):
    """Write uneven files: every one ends with a smaller row group."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        part.write_parquet(folder / f"{number}.parquet", row_group_size=size)
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    """257 rows in three files and nine row groups of 33, 33, 33, 1; 33, 33, 24; 33, 33, 1."""
    whole = table()
    return write(tmp_path / "rows", whole[:100], whole[100:190], whole[190:])


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def order(loader):
    return joined(batch["id"] if isinstance(batch["id"], list) else batch["id"].tolist() for batch in loader)


def on_rank(data, part, rank, ranks, **options):
    return StreamLoader(data._reader(part), batch_size=data.batch_size, rank=rank, world_size=ranks, **options)


def a_trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {"max_epochs": 1, "default_root_dir": tmp_path, "enable_checkpointing": False}
    return pl.Trainer(**{**defaults, **quiet, **options})


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_batch_is_that_of_the_table_in_memory(folder, tmp_path):
    table().write_parquet(tmp_path / "whole.parquet")
    stream = ParquetStreamDataModule(folder, batch_size=300, **COMMON, **WHOLE)
    memory = TableDataModule(tmp_path / "whole.parquet", batch_size=300, **COMMON, **WHOLE)
    assert stream.feature_names == memory.feature_names and stream.num_features == memory.num_features
    assert stream.class_names == memory.class_names == ["y"] and stream.num_labels == 1
    streamed, expected = (next(iter(data.train_dataloader())) for data in (stream, memory))
    place = {name: row for row, name in enumerate(streamed["id"])}
    rows = [place[name] for name in expected["id"]]
    for name in ("inputs", "target", "weight"):
        assert streamed[name].dtype == torch.float32
        torch.testing.assert_close(streamed[name][rows], expected[name])
    for name, column in stream.rows("predict").columns.items():
        of_memory = memory.rows("predict").columns[name]
        assert column == of_memory if name == "id" else torch.allclose(column, of_memory, atol=1e-6)


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 7), (2, 64), (3, 7), (20, 2)])
def test_every_row_comes_once_an_epoch_over_all_ranks(folder, ranks, batch_size):
    data = ParquetStreamDataModule(folder, batch_size=batch_size, **COMMON, **WHOLE)
    for rows_in_block in (1, 50, 10_000):
        loaders = [on_rank(data, "train", r, ranks, seed=3, rows_in_block=rows_in_block) for r in range(ranks)]
        seen = [[len(batch["id"]) for batch in loader] for loader in loaders]
        assert [len(loader) for loader in loaders] == [len(sizes) for sizes in seen]
        assert len({len(sizes) for sizes in seen}) == 1 and all(0 < s <= batch_size for z in seen for s in z)
        assert sorted(joined(map(order, loaders))) == sorted(table()["name"])
    loaders = [on_rank(data, "predict", r, ranks) for r in range(ranks)]
    assert joined(map(order, loaders)) == table()["name"].to_list()


def test_order_follows_seed_and_epoch_and_a_resumed_run_has_the_same(folder):
    first, again, other = (
        ParquetStreamDataModule(folder, seed=seed, batch_size=32, **COMMON, **WHOLE).train_dataloader()
        for seed in (0, 0, 1)
    )
    epochs = [order(first), order(first), order(first)]
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != order(other)
    again.batch_sampler.sampler.set_epoch(2)
    assert order(again) == epochs[2]
    assert len(first) == 9


def test_rows_are_shuffled_over_row_groups(folder):
    data = ParquetStreamDataModule(folder, **COMMON, **WHOLE)
    firsts = {int(name.split()[1]) // 33 for name in order(data.train_dataloader())[:20]}
    assert len(firsts) > 3


def test_workers_that_persist_give_the_order_of_the_main_process(folder):
    states = torch.get_rng_state()
    loaders = [
        StreamLoader(
            ParquetStreamDataModule(folder, **COMMON, **WHOLE)._reader("train"),
            batch_size=32,
            num_workers=workers,
            rows_in_block=50,
            seed=0,
        )
        for workers in (0, 2)
    ]
    expected, found = ([order(loader), order(loader)] for loader in loaders)
    assert expected == found and expected[0] != expected[1]
    assert (torch.get_rng_state() == states).all()


def test_parts_share_no_row_and_are_all_rows(folder):
    data = ParquetStreamDataModule(folder, batch_size=32, **COMMON)
    parts = [order(loader) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    assert sorted(joined(parts)) == sorted(table()["name"])
    assert [len(part) for part in parts] == [len(data.rows(name)) for name in ("train", "val", "test")]
    assert parts[1] == sorted(parts[1], key=lambda name: int(name.split()[1]))
    assert ParquetStreamDataModule(folder, seed=1, **COMMON).rows("test").columns["id"] != parts[2]


def test_statistics_are_those_of_the_training_rows(folder):
    data = ParquetStreamDataModule(folder, **COMMON)
    x = table().filter(polars.col("name").is_in(data.rows("train").columns["id"]))["x"].to_numpy()
    expected = (table()["x"].to_numpy() - x.mean()) / x.std()
    torch.testing.assert_close(data.rows("predict").columns["inputs"][:, 0], torch.from_numpy(expected).float())


def test_row_numbers_count_over_all_files(folder):
    data = ParquetStreamDataModule(folder, positive="yes", drop_columns=["name"], **WHOLE)
    assert order(data.predict_dataloader()) == list(range(257))


def test_only_the_row_groups_of_a_block_are_in_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "rows", table(1000).drop("name"), size=10)
    frames, most = [], []
    read = ParquetSource.read

    def counted(*arguments):
        frames[:] = [frame for frame in frames if frame() is not None]
        most.append(len(frames))
        frame = read(*arguments)
        frames.append(weakref.ref(frame))
        return frame

    monkeypatch.setattr(ParquetSource, "read", counted)
    data = ParquetStreamDataModule(path, positive="yes", batch_size=7, **WHOLE)
    loader = StreamLoader(data._reader("train"), batch_size=7, rows_in_block=50, seed=0)
    assert len(most) == 100
    for count, batch in enumerate(loader):
        assert batch["inputs"].untyped_storage().nbytes() <= 4 * data.num_features * 50
        # Nothing is read before it is needed: a block of five row groups, and what it leaves over.
        assert len(most) - 100 <= 5 * (7 * (count + 1) // 50 + 1)
    assert len(most) == 200 and max(most) <= 1


# -- training ---------------------------------------------------------------------------------------------------------


def classifier(data):
    torch.manual_seed(0)
    return BinaryClassifier(torch.nn.Linear(data.num_features, 1), metrics=[])


def test_full_batches_train_as_the_table_in_memory_does(folder, tmp_path):
    table().write_parquet(tmp_path / "whole.parquet")
    results = []
    for data in (
        ParquetStreamDataModule(folder, batch_size=257, **COMMON, **WHOLE),
        TableDataModule(tmp_path / "whole.parquet", batch_size=257, **COMMON, **WHOLE),
    ):
        model, trainer = classifier(data), a_trainer(tmp_path, max_epochs=3, limit_val_batches=0)
        trainer.fit(model, data)
        assert trainer.num_training_batches == 1
        results.append((trainer.callback_metrics["train_loss"], *model.parameters()))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_ends_where_an_uninterrupted_one_ends(folder, tmp_path):
    def run(epochs, ckpt_path=None):
        data = ParquetStreamDataModule(folder, batch_size=32, **COMMON)
        model, trainer = classifier(data), a_trainer(tmp_path, max_epochs=epochs)
        with weights_only_option(True) as read:
            trainer.fit(model, data, ckpt_path=ckpt_path, **read)
        assert trainer.num_training_batches == -(-len(data.rows("train")) // 32)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return list(model.parameters())

    run(2)
    torch.testing.assert_close(run(4, tmp_path / "2.ckpt"), run(4), rtol=0, atol=0)


def test_a_run_that_is_cut_off_within_an_epoch_goes_on_with_its_other_rows(folder, tmp_path):
    """Saved after 13 steps, of which 4 belong to the second epoch."""

    class Seen(BinaryClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch["id"])
            return super().training_step(batch, batch_idx)

    class SaveAfter13(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 13:
                trainer.save_checkpoint(tmp_path / "13.ckpt")

    def run(ckpt_path=None):
        data = ParquetStreamDataModule(folder, batch_size=32, **COMMON, **WHOLE)
        model = Seen(torch.nn.Linear(data.num_features, 1), metrics=[])
        trainer = a_trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[SaveAfter13()])
        with weights_only_option(True) as read:
            trainer.fit(model, data, ckpt_path=ckpt_path, **read)

    seen = []
    run()
    expected, seen = seen, []
    run(tmp_path / "13.ckpt")
    assert len(expected) == 18 and seen == expected[13:]

    data = ParquetStreamDataModule(folder, batch_size=32, **COMMON, **WHOLE)
    one, other = data.train_dataloader(), on_rank(data, "train", 0, 2, seed=0)
    with pytest.raises(ValueError, match=r"made after 4 of 9 batches of an epoch, and an epoch now has 5"):
        other.load_state_dict({"epoch": 1, "done": 4, "batches": 9})
    for done in range(1, 9):
        one.load_state_dict({"epoch": 1, "done": done, "batches": 9})
        one.batch_sampler.sampler.set_epoch(1)
        assert order(one) == joined(expected[9 + done : 18]) and one.state_dict()["done"] == 0


# What was saved in the validation ends its epoch once more, without a batch.
@pytest.mark.filterwarnings("ignore:.*before the ``update`` method")
@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_epochs_that_are_cut_short_on_purpose_begin_at_their_beginning(folder, tmp_path, hook):
    class Seen(BinaryClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch["id"])
            return super().training_step(batch, batch_idx)

    class Save(pl.Callback):
        pass

    def save(self, trainer, *_):
        if trainer.current_epoch == 0 and not trainer.sanity_checking:
            trainer.save_checkpoint(tmp_path / "0.ckpt")

    setattr(Save, hook, save)

    def run(ckpt_path=None):
        data = ParquetStreamDataModule(folder, batch_size=32, **COMMON)
        model = Seen(torch.nn.Linear(data.num_features, 1), metrics=[])
        trainer = a_trainer(tmp_path, max_epochs=3, limit_train_batches=4, callbacks=[Save()])
        with weights_only_option(True) as read:
            trainer.fit(model, data, ckpt_path=ckpt_path, **read)

    seen = []
    run()
    expected, seen = seen, []
    run(tmp_path / "0.ckpt")
    assert len(expected) == 12 and seen == expected[4:]


def test_what_is_overfitted_is_the_same_rows_each_time(folder, tmp_path):
    class Seen(BinaryClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch["id"])
            return super().training_step(batch, batch_idx)

    seen = []
    data = ParquetStreamDataModule(folder, batch_size=32, **COMMON)
    a_trainer(tmp_path, max_epochs=2, overfit_batches=1).fit(Seen(torch.nn.Linear(data.num_features, 1)), data)
    assert len(seen) == 2 and seen[0] == seen[1]


def become(rank):
    """Tell Lightning that this process is one of two, as torchrun does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test"}


def fit_on_this_rank(rank, folder, output):
    """Train, validate and predict; 129 rows on one rank and 128, two full batches, on the other."""
    become(rank)
    warnings.simplefilter("ignore")
    seen = []

    class Seen(BinaryClassifier):
        def training_step(self, batch, batch_idx):
            seen.append(batch["id"])
            return super().training_step(batch, batch_idx)

    data = ParquetStreamDataModule(folder, batch_size=64, val_path=folder, test_fraction=0.0, **COMMON)
    torch.manual_seed(0)
    model = Seen(torch.nn.Linear(data.num_features, 1), metrics=[])
    options = {"strategy": "ddp", "devices": 2}
    trainer = a_trainer(output, max_epochs=2, **options)
    trainer.fit(model, data)
    losses = {name: trainer.callback_metrics[name].item() for name in ("train_loss", "val_loss")}
    a_trainer(output, callbacks=[PredictionWriter(f"{output}/p.csv")], **options).predict(model, data)
    try:
        a_trainer(output, **options).fit(model, ParquetStreamDataModule(folder, batch_size=1, **COMMON, **WHOLE))
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {"seen": seen, "losses": losses, "weight": model.model.weight.detach(), "refused": refused}


def test_two_ranks_train_on_every_row_once_and_predict_in_order(on_two_ranks, folder, tmp_path):
    first, second = on_two_ranks(fit_on_this_rank, folder, str(tmp_path))
    assert len(first["seen"]) == len(second["seen"]) == 2 * 3
    assert [len(batch) for batch in first["seen"][:3]] == [64, 63, 1]
    for epoch in (slice(0, 3), slice(3, 6)):
        rows = joined(first["seen"][epoch] + second["seen"][epoch])
        assert sorted(rows) == sorted(table()["name"])
    assert first["losses"] == second["losses"] and torch.equal(first["weight"], second["weight"])

    data = ParquetStreamDataModule(folder, **COMMON, **WHOLE)
    model = BinaryClassifier(torch.nn.Linear(data.num_features, 1), metrics=[])
    model.model.weight.data = first["weight"]
    assert "257 train rows cannot be dealt to 2 ranks in batches of 1" in first["refused"]
    with open(tmp_path / "p.csv", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == table()["name"].to_list()


# -- prediction and checkpoints ---------------------------------------------------------------------------------------


def test_a_checkpoint_predicts_and_tests_without_the_training_files(folder, tmp_path):
    data = ParquetStreamDataModule(folder, batch_size=32, **COMMON)
    model, trainer = classifier(data), a_trainer(tmp_path)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    new = table(83, seed=1, first=1000)
    labelled, unlabelled = write(tmp_path / "new", new), write(tmp_path / "blank", new.drop("y", "weight"))
    options = {"batch_size": 10, "test_path": labelled, "predict_path": unlabelled, **COMMON}
    late = ParquetStreamDataModule(tmp_path / "gone", **options)
    early = ParquetStreamDataModule(tmp_path / "gone", **options)
    early.restore(torch.load(tmp_path / "last.ckpt", weights_only=True)["ParquetStreamDataModule"])
    assert early.num_features == data.num_features and early.class_names == ["y"]

    writer = PredictionWriter(str(tmp_path / "p.csv"))
    with weights_only_option(True) as read:
        a_trainer(tmp_path, callbacks=[writer]).predict(model, late, ckpt_path=tmp_path / "last.ckpt", **read)
    preprocessor = TablePreprocessor()
    preprocessor.load_state_dict(data.state_dict()["preprocessor"])
    with torch.no_grad():
        expected = model(preprocessor.transform(new.select("x", "word"))).sigmoid().flatten()
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == new["name"].to_list()
    torch.testing.assert_close(torch.tensor([float(row["probability"]) for row in rows]), expected)
    tested = a_trainer(tmp_path).test(model, late, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert tested == a_trainer(tmp_path).test(model, early, verbose=False)


def test_other_training_files_than_those_of_the_checkpoint_are_warned_of(folder, tmp_path):
    data = ParquetStreamDataModule(folder, **COMMON)
    assert data.state_dict() == {} and data.num_features == 5
    state = data.state_dict()
    other = ParquetStreamDataModule(write(tmp_path / "other", table(83)), **COMMON)
    other.restore(state)
    with pytest.warns(UserWarning, match="is not what the checkpoint was trained on"):
        other.train_dataloader()
    again = ParquetStreamDataModule(folder, target="x", drop_columns=["y"], id_column="name")
    again.restore(state)
    with pytest.raises(ValueError, match="The checkpoint knows the labels 'y', and `target` now means 'x'"):
        again.train_dataloader()


def test_a_resumed_run_does_not_learn_again(folder, monkeypatch):
    data = ParquetStreamDataModule(folder, **COMMON)
    assert data.num_features == 5
    again = ParquetStreamDataModule(folder, **COMMON)
    again.restore(data.state_dict())
    monkeypatch.setattr(ParquetSource, "read", lambda *_: pytest.fail("a row group was read"))
    assert len(again.train_dataloader()) == len(data.train_dataloader())


# -- kinds of cells ---------------------------------------------------------------------------------------------------


def test_unknown_labels_become_nan_on_request_and_missing_cells_the_mean(tmp_path):
    frame = table(40).with_columns(
        x=polars.when(polars.int_range(40) % 5 == 0).then(None).otherwise("x"),
        y=polars.when(polars.int_range(40) == 35).then(None).otherwise("y"),
    )
    path = write(tmp_path / "rows", frame)
    with pytest.raises(
        ValueError, match=r"0\.parquet, row group 1: Row 2 \(counted from 0\) has no label .*\"ignore\""
    ):
        ParquetStreamDataModule(path, **COMMON).train_dataloader()
    data = ParquetStreamDataModule(path, missing_targets="ignore", **COMMON, **WHOLE)
    rows = data.rows("predict").columns
    assert data.feature_names[:2] == ["x", "x (missing)"]
    assert rows["inputs"][::5, 0].tolist() == [0.0] * 8 and rows["inputs"][:, 1].sum() == 8
    target = data.rows("train").columns["target"]
    assert target.isnan().sum() == 1 and target[35].isnan()
    with pytest.raises(ValueError, match="Rows cannot be dropped while they stream"):
        ParquetStreamDataModule(path, missing_targets="drop", **COMMON)


def test_columns_that_are_no_feature_are_not_read(tmp_path, monkeypatch):
    wanted = set()
    read = ParquetSource.read
    monkeypatch.setattr(ParquetSource, "read", lambda *given: wanted.update(given[2]) or read(*given))
    frame = table().with_columns(
        when=polars.datetime_range(polars.datetime(2020, 1, 1), polars.datetime(2020, 9, 13), "1d")
    )
    path = write(tmp_path / "rows", frame.select("when", "x", "word", "name", "y"))
    with pytest.raises(
        ValueError, match=r"'when'; the first has the type Datetime.*Leave them out with `drop_columns`"
    ):
        ParquetStreamDataModule(path, positive="yes", drop_columns="name").train_dataloader()
    data = ParquetStreamDataModule(path, positive="yes", drop_columns=["when", "name"])
    order(data.train_dataloader())
    assert wanted == {"x", "word", "y"}


def test_many_labels_and_numbers_as_words(tmp_path):
    frame = table().select("x", code=polars.int_range(257) % 3, a=polars.col("x") > 0, b=polars.col("x") < 0.5)
    data = ParquetStreamDataModule(write(tmp_path / "rows", frame), target="-2:", categorical="code", **WHOLE)
    assert data.feature_names == ["x", "code=0", "code=1", "code=2", "code (other)"]
    assert data.class_names == ["a", "b"] and data.num_labels == 2
    torch.testing.assert_close(
        data.rows("train").columns["target"], torch.from_numpy(frame.select("a", "b").to_numpy()).float()
    )


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (table(50).drop("x"), r"1\.parquet has other columns than the files before it: it lacks 'x'"),
        (table(50).with_columns(z=1), r"1\.parquet has other columns .*'z' are new"),
        (table(50).with_columns(x=polars.col("word")), "Column 'x' of .*1.parquet holds words, and .* numbers"),
    ],
)
def test_files_that_differ_are_refused(tmp_path, second, message):
    with pytest.raises(ValueError, match=message):
        ParquetStreamDataModule(write(tmp_path / "rows", table(50), second), **COMMON).train_dataloader()


def test_what_is_no_parquet_is_refused(tmp_path):
    def read(path, **options):
        return ParquetStreamDataModule(path, **options).train_dataloader()

    with pytest.raises(FileNotFoundError, match="There is no file or folder"):
        read(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet file: it is empty"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "a.csv").write_text("x,y\n1,0\n")
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet file but 'a\.csv'"):
        read(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"ends in '\.csv'.*`TableDataModule` reads"):
        read(tmp_path / "empty" / "a.csv")
    for content, message in ((b"x,y\n1,0\n", "is not a Parquet file, or is damaged"), (b"", "is empty")):
        (tmp_path / "text.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "text.parquet")
    table(0).write_parquet(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="has no rows"):
        read(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"0\.parquet, row group 0: The label column 'y' has .*`positive=VALUE`"),
        ({"positive": "maybe"}, "'maybe' does not occur in 'y' of .*, which has 'no' .* times, 'yes' .* times"),
        ({"positive": "yes", "target": "yy"}, "asks for the column 'yy', which is not there"),
        ({"positive": "yes", "weight_column": "x"}, "row group 0: Row .* has the weight -"),
        ({"positive": "yes", "id_column": "y"}, "`target` and `id_column` both name the column 'y'"),
        ({"positive": "yes", "categorical": "word", "drop_columns": "word"}, "both name the column 'word'"),
    ],
)
def test_options_that_do_not_fit_the_files_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        ParquetStreamDataModule(folder, **options).train_dataloader()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"val_path": "v", "val_fraction": 0.1}, ValueError, r"`val_fraction` is 0\.1 and would have no effect"),
        ({"test_path": "v", "test_fraction": 0.1}, ValueError, r"`test_fraction` is 0\.1 and would have no effect"),
        ({"shuffle_mib": 0}, ValueError, "`shuffle_mib` is 0: it must be at least 1"),
        ({"missing_values": "?"}, TypeError, r"give a list, \['\?'\]"),
        ({"max_categories": 0}, ValueError, "at least 1 word must be kept"),
    ],
)
def test_options_that_fit_nothing_are_refused_at_once(options, error, message):
    with pytest.raises(error, match=message):
        ParquetStreamDataModule("nowhere", **options)


def test_files_to_test_and_predict_must_have_the_columns_of_training(folder, tmp_path):
    def read(part, frame):
        path = write(tmp_path / "other", frame)
        data = ParquetStreamDataModule(folder, **{f"{part}_path": path}, **COMMON)
        return order(getattr(data, f"{part}_dataloader")())

    assert read("predict", table(33).select("y", "word", "x", "weight", "name")) == table(33)["name"].to_list()
    with pytest.raises(ValueError, match="lacks 1 of the columns the model was trained on: 'x'"):
        read("predict", table(33).drop("x"))
    with pytest.raises(ValueError, match="lacks the columns 'y', of labels, weights or ids"):
        read("test", table(33).drop("y"))
    with pytest.raises(ValueError, match=r"row group 0: column 'y' has labels .* has not: 'no\.'"):
        read("val", table(33).with_columns(y=polars.col("y") + "."))
    with pytest.raises(ValueError, match=r"Column 'x' of .* holds words, and in the training files numbers"):
        read("predict", table(33).with_columns(x=polars.col("word")))
    with pytest.warns(UserWarning, match="did not have are not used: 'z'"):
        read("predict", table(33).with_columns(z=1))


def test_a_file_that_changes_under_the_reader_is_refused(folder):
    data = ParquetStreamDataModule(folder, **COMMON)
    loader = data.train_dataloader()
    write(Path(folder), table(50), size=10)
    with pytest.raises(ValueError, match=r"0\.parquet was changed while it was in use"):
        list(loader)


def test_large_row_groups_and_named_folders_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_bce.data.row_groups.LARGE", 1000)
    with pytest.warns(UserWarning, match="A row group is read whole.*row_group_size=65536"):
        ParquetSource(write(tmp_path / "rows", table()))
    monkeypatch.setattr("lightning_bce.data.row_groups.LARGE", 2**30)
    (tmp_path / "hive").mkdir()
    write(tmp_path / "hive" / "year=2024", table(33))
    write(tmp_path / "hive" / "_temporary", table(33))
    with pytest.warns(UserWarning, match="named after a column, such as 'year=2024/0.parquet'"):
        assert ParquetSource(str(tmp_path / "hive")).rows == 33


def test_without_pyarrow_the_message_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs the package 'pyarrow'.*lightning_bce\[stream\]"):
        ParquetSource(folder)
