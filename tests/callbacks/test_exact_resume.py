"""Two epochs and two more are four: weights, optimizer, schedules and every logged number, bit for bit."""

import os
import random
from functools import partial

import lightning
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback, ModelCheckpoint
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from lightning_bce import BinaryClassifier, FocalLoss, TabularMLP
from lightning_bce.callbacks import ExactResume, LossSchedule
from lightning_bce.callbacks.random_state import random_state, set_random_state
from lightning_bce.data import TableDataModule

pytest.importorskip("polars")  # here, because it writes into the environment when it is imported

# The resumed run has a folder of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.*dirpath has changed")

ROWS, FEATURES, SIZE = 77, 5, 11
STEPS = 4 * 5  # 55 rows to train on, in batches of 11, four times


class Noisy(BinaryClassifier):
    """Draws from every generator in each step."""

    def training_step(self, batch, batch_idx):
        inputs, target = (batch["inputs"], batch["target"]) if isinstance(batch, dict) else batch
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return super().training_step((inputs + 0.1 * noise, target), batch_idx)


class Jittered(Dataset):
    """Draws in the process of the loader."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        inputs, target = self.rows[index]
        return inputs + 0.1 * torch.randn(()), target


class Plain(pl.LightningDataModule):
    """Loaders as most write them: a split and a shuffle from the global generator."""

    def __init__(self, workers=0):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        inputs = torch.randn(ROWS, FEATURES, generator=generator)
        self.rows = TensorDataset(inputs, (inputs[:, :1] > 0).float())
        self.workers = workers

    def train_dataloader(self):
        self.split = random_split(self.rows, [55, 22])
        rows = Jittered(self.split[0]) if self.workers else self.split[0]
        return DataLoader(rows, batch_size=SIZE, shuffle=True, num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=SIZE)


class Numbers(pl.Callback):
    """Keeps what was logged, and the order of the rows."""

    def __init__(self):
        self.epochs, self.rows = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        inputs = batch["inputs"] if isinstance(batch, dict) else batch[0]
        self.rows[trainer.current_epoch, batch_idx] = inputs.clone(), outputs["loss"].clone()

    def on_train_epoch_start(self, trainer, pl_module):
        if "train_loss" in trainer.callback_metrics:  # of the epoch before, complete now
            self.epochs[trainer.current_epoch - 1] = dict(trainer.callback_metrics)

    def on_train_end(self, trainer, pl_module):
        self.epochs[trainer.current_epoch - 1] = dict(trainer.callback_metrics)


def run(
    folder, data, epochs=4, path=None, callbacks=(), exact=True, validated=True, checkpoint=None, more=None, **options
):
    pl.seed_everything(3)
    model = Noisy(TabularMLP(FEATURES, hidden=(7,), dropout=0.3), FocalLoss(gamma=1.0), **options)
    numbers = Numbers()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1.0 if validated else 0,
        callbacks=[
            *([ExactResume()] if exact else []),
            *callbacks,
            numbers,
            ModelCheckpoint(folder, save_last=True, **(checkpoint or {})),
        ],
        **(more or {}),
    )
    trainer.fit(model, datamodule=data, ckpt_path=path)
    return trainer, numbers


def two_and_two(tmp_path, data, callbacks=tuple, **options):
    """Return the runs of four epochs, and of two after two."""
    straight = run(tmp_path / "straight", data(), callbacks=callbacks(), **options)
    run(tmp_path / "first", data(), epochs=2, callbacks=callbacks(), **options)
    resumed = run(tmp_path / "then", data(), path=tmp_path / "first" / "last.ckpt", callbacks=callbacks(), **options)
    return straight, resumed


def state_of(trainer):
    configs = trainer.lr_scheduler_configs
    return {
        "model": trainer.lightning_module.state_dict(),
        "optimizer": trainer.optimizers[0].state_dict()["state"],
        "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
        "schedulers": [{k: v for k, v in c.scheduler.state_dict().items() if k[0] != "_"} for c in configs],
    }


def assert_equal_runs(straight, resumed):
    assert set(resumed[1].epochs) == {2, 3}
    exactly = {"rtol": 0, "atol": 0, "equal_nan": True}
    for key, (inputs, loss) in resumed[1].rows.items():
        assert_close(inputs, straight[1].rows[key][0], msg=f"other rows in {key}", **exactly)
        assert_close(loss, straight[1].rows[key][1], msg=f"another loss in {key}", **exactly)
    for epoch, logged in resumed[1].epochs.items():
        assert_close(logged, straight[1].epochs[epoch], **exactly)
    then, at_once = state_of(resumed[0]), state_of(straight[0])
    assert then["rates"] == at_once["rates"] and str(then["schedulers"]) == str(at_once["schedulers"])
    assert_close(then["model"], at_once["model"], **exactly)
    assert_close(then["optimizer"], at_once["optimizer"], **exactly)


@pytest.fixture
def table(tmp_path):
    generator = torch.Generator().manual_seed(6)
    rows = torch.randn(ROWS, FEATURES, generator=generator).tolist()
    lines = [",".join(f"{value:.4f}" for value in row) + f",{int(row[0] > 0)}" for row in rows]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,c,d,e,label", *lines]) + "\n")
    return partial(TableDataModule, tmp_path / "table.csv", batch_size=SIZE, seed=1)


SCHEDULES = {
    "none": {},
    "one cycle by step": {
        "lr_scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=STEPS),
        "lr_scheduler_interval": "step",
    },
    "cosine by epoch": {"lr_scheduler": partial(CosineAnnealingLR, T_max=4)},
    "plateau": {"lr_scheduler": partial(ReduceLROnPlateau, patience=0, threshold=10.0), "monitor": "val_loss"},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_and_two_are_four_with_a_table(schedule, table, tmp_path):
    moving = lambda: [LossSchedule("gamma", start=0.0, end=2.0, over=3)]  # noqa: E731
    assert_equal_runs(*two_and_two(tmp_path, table, moving, **SCHEDULES[schedule]))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_and_two_are_four_with_a_loader_that_shuffles_by_the_global_generator(workers, tmp_path):
    assert_equal_runs(*two_and_two(tmp_path, partial(Plain, workers)))


def test_two_and_two_are_four_without_validation(tmp_path):
    assert_equal_runs(*two_and_two(tmp_path, Plain, validated=False))


def test_without_the_callback_they_are_not(tmp_path):
    with pytest.raises(AssertionError, match="other rows"):
        assert_equal_runs(*two_and_two(tmp_path, Plain, exact=False))


def test_the_split_of_a_resumed_run_is_that_of_the_first(tmp_path):
    data = [Plain(), Plain()]
    run(tmp_path / "a", data[0], epochs=1)
    run(tmp_path / "b", data[1], epochs=2, path=tmp_path / "a" / "last.ckpt")
    assert data[0].split[0].indices == data[1].split[0].indices


def test_what_an_evaluation_has_read_does_not_reach_a_later_fit():
    resume = ExactResume()
    resume.load_state_dict(resume.state_dict())
    resume.setup(None, None, "fit")
    before = random_state()
    resume.on_train_epoch_start(None, None)
    assert torch.equal(before["torch"], random_state()["torch"])


@pytest.mark.skipif(lightning.__version__.startswith("2.4"), reason="Lightning 2.4 draws the rows of the epoch anew")
def test_two_and_two_are_four_from_the_end_of_a_validation(tmp_path):
    options = {"checkpoint": {"save_on_train_epoch_end": False}, **SCHEDULES["plateau"]}
    assert_equal_runs(*two_and_two(tmp_path, Plain, **options))


def stopping(monitor="val_loss"):
    return EarlyStopping(monitor, patience=1, min_delta=9.0)  # never so much better: it stops in epoch 1


def test_a_training_that_had_stopped_stays_stopped(tmp_path):
    # As one that is killed between its last checkpoint and its end: Lightning would train it for one epoch more.
    straight, _ = run(tmp_path / "a", Plain(), callbacks=[stopping()])
    assert straight.current_epoch == 2
    with pytest.warns(UserWarning, match="EarlyStopping on 'val_loss' had stopped this training"):
        resumed, _ = run(tmp_path / "b", Plain(), path=tmp_path / "a" / "last.ckpt", callbacks=[stopping()])
    assert resumed.current_epoch == 2 and resumed.global_step == straight.global_step
    assert_close(state_of(resumed)["model"], state_of(straight)["model"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_a_training_that_had_stopped_goes_on_where_something_else_may_stop_it(tmp_path):
    run(tmp_path / "a", Plain(), callbacks=[stopping()])
    path = tmp_path / "a" / "last.ckpt"
    assert run(tmp_path / "b", Plain(), path=path, callbacks=[stopping("val_log_loss")])[0].current_epoch == 4
    assert run(tmp_path / "c", Plain(), path=path)[0].current_epoch == 4


def test_a_training_that_something_else_had_stopped_goes_on(tmp_path):  # such as a Timer
    def stop(trainer, module):
        trainer.should_stop = trainer.current_epoch == 1

    watched = [EarlyStopping("val_loss", patience=9)]
    first, _ = run(tmp_path / "a", Plain(), callbacks=[*watched, LambdaCallback(on_train_epoch_end=stop)])
    assert first.current_epoch == 2
    assert run(tmp_path / "b", Plain(), path=tmp_path / "a" / "last.ckpt", callbacks=watched)[0].current_epoch == 4


def test_another_number_of_ranks_is_said(tmp_path):
    run(tmp_path, Plain(), epochs=1)
    path = tmp_path / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"]["ExactResume"]
    state["ranks"] = state["ranks"] * 2
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match=r"written by 2 rank\(s\) and is read by 1"):
        run(tmp_path / "then", Plain(), epochs=2, path=path)


def test_each_generator_is_put_back():
    random.gauss(0, 1), np.random.randn()  # leave the second number of a pair behind
    state = random_state()
    draw = lambda: (random.gauss(0, 1), np.random.randn(), np.random.rand(), torch.rand(3).tolist())  # noqa: E731
    first = draw()
    set_random_state(state)
    assert draw() == first


def four_on(rank, folder, table):
    """Return whether two and two are four on this rank, its last weights, and the states in the checkpoint."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    more = {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    seeds = [lambda: [OwnSeed(rank)]]
    straight, resumed = two_and_two(folder, partial(TableDataModule, table, batch_size=SIZE), *seeds, more=more)
    assert_equal_runs(straight, resumed)
    saved = torch.load(folder / "first" / "last.ckpt", weights_only=True)["callbacks"]["ExactResume"]
    return straight[1].rows, saved["ranks"]


class OwnSeed(pl.Callback):
    """Has each rank draw other numbers, as dropout should."""

    def __init__(self, rank):
        self.rank = rank

    def on_train_start(self, trainer, pl_module):
        torch.manual_seed(self.rank)


def test_two_and_two_are_four_on_every_rank(table, on_two_ranks, tmp_path):
    found = on_two_ranks(four_on, tmp_path, table.args[0])
    (first, ranks), (second, same) = found
    assert not any(torch.equal(first[key][0], second[key][0]) for key in first)  # each has rows of its own
    assert len(ranks) == 2 and not torch.equal(ranks[0]["torch"], ranks[1]["torch"])
    assert all(torch.equal(a["torch"], b["torch"]) for a, b in zip(ranks, same, strict=True))


def test_two_and_two_are_four_with_a_table_and_worker_processes(table, tmp_path):
    assert_equal_runs(*two_and_two(tmp_path, partial(table, num_workers=2)))


def test_dropout_is_what_a_restored_state_draws():
    torch.manual_seed(4)
    state, layer, ones = random_state(), nn.Dropout(0.5), torch.ones(33)
    dropped = layer(ones)
    set_random_state(state)
    assert torch.equal(layer(ones), dropped)
