"""A clock that jumps by hours, forwards and backwards, changes nothing that a run trains, keeps or says."""

from __future__ import annotations

import datetime
import io
import re
import time
from pathlib import Path

import lightning.pytorch as pl
import polars
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar

from lightning_bce import BinaryClassifier, TabularMLP
from lightning_bce.callbacks import LiveLossTable
from lightning_bce.cli import main
from lightning_bce.data import BreastCancerDataModule
from lightning_bce.record import read_run

HOURS = 3600.0
FIT = ["fit", "--data=BreastCancerDataModule", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def jumping(monkeypatch):
    """Clocks of which every reading is hours before or after the one before it, and how often they were read."""
    readings = []

    def jump(clock):
        def read():
            readings.append((0.0, 5.0, -7.0, 30.0, 2.0)[len(readings) % 5] * HOURS)
            return clock() + readings[-1]

        return read

    def begin():
        for name in ("time", "perf_counter", "monotonic"):
            monkeypatch.setattr(time, name, jump(getattr(time, name)))
        return readings

    return begin


def trained(root):
    """Return what a training of two epochs, and of two more, leaves: both checkpoints, and the losses on record."""
    main([*FIT, f"--trainer.default_root_dir={root}", "--trainer.max_epochs=2"])
    path = f"{root}/version_0/checkpoints/last.ckpt"
    main(["fit", f"--ckpt_path={path}", f"--trainer.default_root_dir={root}", "--trainer.max_epochs=4", *FIT[2:]])
    assert sorted(path.name for path in Path(root).iterdir()) == ["version_0", "version_1"]
    kept = [torch.load(path, weights_only=True) for path in sorted(Path(root).rglob("*.ckpt"))]
    lines = [line for number in (0, 1) for line in read_run(f"{root}/version_{number}").history]
    return [(c["epoch"], c["state_dict"]) for c in kept], {f"{line.stage} {line.epoch}": line.loss for line in lines}


def test_a_run_under_a_clock_that_jumps_is_the_run_under_one_that_does_not(jumping):
    straight = trained("straight")
    readings = jumping()
    torch.testing.assert_close(trained("jumping"), straight, rtol=0, atol=0)
    assert len(readings) > 20  # or nothing was put to the test


def test_a_table_and_a_bar_stay_while_the_clock_jumps(jumping):
    jumping()
    screen = io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 110, "height": 40})
    data, minute = BreastCancerDataModule(), datetime.timedelta(minutes=1)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_model_summary=False,
        # Asks the clock whether it is time to save: never more than once a step, however often it says so.
        callbacks=[bar, table := LiveLossTable(), ModelCheckpoint("kept", train_time_interval=minute)],
    )
    trainer.fit(BinaryClassifier(TabularMLP(data.num_features, hidden=(7,))), data)
    assert [epoch.number for epoch in table.epochs] == [0, 1, 2]
    assert "BCEWithLogitsLoss by epoch" in screen.getvalue()
    assert not re.search(r"-\d+:\d\d", screen.getvalue()), "a time of the bar is negative"


def compared(capsys, *losses):
    options = ["--data=BreastCancerDataModule", "--seeds=2", "--max_epochs=2", "--jobs=1"]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--losses", *losses, *options])
    assert stopped.value.code == 0
    return capsys.readouterr().err


def test_a_comparison_under_a_clock_that_jumps_goes_on_and_takes_no_time_that_is_negative(jumping, capsys):
    jumping()
    first = compared(capsys, "FocalLoss")
    assert "4/4" in first and "about -" not in first
    again = compared(capsys, "FocalLoss", "BrierLoss")  # what is there is not made again
    assert "2/2" in again and "about -" not in again
    seconds = polars.read_csv("comparison/runs.csv")["seconds"]
    assert len(seconds) == 6 and seconds.min() >= 0
