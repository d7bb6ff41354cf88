"""The command goes on where a run was, and says so when there is nothing to go on with."""

import csv
import sys
from pathlib import Path

import polars  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import pytest
import torch

from lightning_bce.cli import main

QUIET = [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--test_after_fit=false",
]
TABLE = ["--data=TableDataModule", "--data.path=table.csv", "--data.batch_size=11"]
SCHEDULED = [
    "--model.loss=FocalLoss",
    "--model.model.dropout=0.3",
    "--model.lr_scheduler=OneCycleLR",
    "--model.lr_scheduler.max_lr=0.02",
    "--model.lr_scheduler.total_steps=20",  # 51 rows of 77, in batches of 11, four times
    "--model.lr_scheduler_interval=step",
]
MOVING = [
    "--trainer.callbacks+=LossSchedule",
    "--trainer.callbacks.parameter=gamma",
    "--trainer.callbacks.start=0",
    "--trainer.callbacks.end=2",
    "--trainer.callbacks.over=3",
]
BREAKS = """
import torch
from lightning_bce import BinaryLoss

class Breaks(BinaryLoss):
    calls = 0

    def elementwise(self, logits, target):
        self.calls += self.training  # in an evaluation others look at it too
        return logits.square() * (float("nan") if self.calls >= 8 else 1.0)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rows = "".join(f"{a:.4f},{b:.4f},{c:.4f},{int(a > 0)}\n" for a, b, c in torch.randn(77, 3).tolist())
    Path("table.csv").write_text("a,b,c,label\n" + rows)
    return tmp_path


def fit(*flags, epochs):
    """Train and return the folder of the run."""
    main(["fit", *flags, *QUIET, f"--trainer.max_epochs={epochs}"])
    return max(Path("runs").iterdir(), key=lambda run: int(run.name.partition("_")[2]))


def read(run, name="last.ckpt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def logged(run):
    """Return what was logged by epoch and step, without the times of the wall clock."""
    with (run / "metrics.csv").open(newline="") as file:
        return {
            (row["epoch"], row["step"], name): value
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name not in ("epoch", "step")
        }


def test_two_and_two_epochs_are_four():
    straight = fit(*TABLE, *SCHEDULED, *MOVING, epochs=4)
    first = fit(*TABLE, *SCHEDULED, *MOVING, epochs=2)
    then = fit(f"--ckpt_path={first / 'checkpoints' / 'last.ckpt'}", *MOVING, epochs=4)
    left, right = read(then), read(straight)
    for part in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(left[part], right[part], rtol=0, atol=0)
    assert left["lr_schedulers"] == right["lr_schedulers"]
    assert (left["epoch"], left["global_step"]) == (right["epoch"], right["global_step"]) == (3, 20)
    at_once = logged(straight)
    assert len(logged(then)) > 30
    assert logged(then) == {key: at_once[key] for key in logged(then)}


def test_the_last_checkpoint_is_the_last_also_where_the_best_is_not():
    run = fit(*TABLE, "--model.optimizer.lr=3", "--model.loss=BCEWithLogitsLoss", epochs=5)
    assert read(run)["epoch"] == 4 and read(run, "best.ckpt")["epoch"] < 4


def test_a_loss_that_is_no_number_ends_with_status_one_and_leaves_the_last_checkpoint(capsys):
    Path("breaking.py").write_text(BREAKS)
    with pytest.raises(SystemExit) as stop:
        fit(*TABLE, "--model.loss=breaking.Breaks", epochs=3)
    # A text is printed by the interpreter, which then ends with 1.
    assert str(stop.value).startswith("error: The training loss is nan at step 7: epoch 1, batch 2;")
    assert "The logits are finite" in str(stop.value)
    assert read(Path("runs") / "version_0")["epoch"] == 0


@pytest.mark.parametrize("subcommand", ["fit", "validate", "test", "predict"])
def test_a_damaged_checkpoint_is_named_with_the_one_beside_it(subcommand, capsys):
    best = fit(*TABLE, epochs=1) / "checkpoints" / "best.ckpt"
    raw = best.read_bytes()
    best.write_bytes(raw[:-1000])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([subcommand, f"--ckpt_path={best}", *QUIET[:1]])
    answer = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in answer
    assert f"Damaged checkpoint {str(best)!r}: its end is missing" in answer and "last.ckpt', which is whole" in answer


def test_weights_that_are_no_numbers_are_refused(capsys):
    path = fit(*TABLE, epochs=1) / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    name = next(iter(checkpoint["state_dict"]))
    checkpoint["state_dict"][name].fill_(float("nan"))
    torch.save(checkpoint, path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--ckpt_path={path}", *QUIET, "--trainer.max_epochs=2"])
    answer = capsys.readouterr().err
    assert stop.value.code == 2 and f"The parameter {name!r} of the checkpoint" in answer


def test_what_is_changed_on_the_way_is_said_and_done(capsys):
    last = fit(*TABLE, epochs=1) / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    run = fit(f"--ckpt_path={last}", "--data.batch_size=7", "--model.optimizer.lr=0.5", epochs=2)
    said = capsys.readouterr().err
    assert "going on with data.batch_size 7; the checkpoint has 11\n" in said
    assert "going on with model.optimizer.lr 0.5; the checkpoint has 0.001\n" in said
    assert read(run)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert read(run)["global_step"] == 5 + 8  # 51 rows of 77


def test_what_is_the_same_is_not_said(capsys):
    last = fit(*TABLE, "--model.loss=FocalLoss", epochs=1) / "checkpoints" / "last.ckpt"
    fit(f"--ckpt_path={last}", "--model.loss=lightning_bce.losses.FocalLoss", "--data.batch_size=11", epochs=2)
    assert "going on with" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--model.optimizer=SGD", "--model.optimizer.lr=0.1"], "model.optimizer torch.optim.SGD"),
        (["--model.lr_scheduler.max_lr=0.5"], "model.lr_scheduler.max_lr 0.5"),
        (["--model.optimizer.lr=0.5"], "model.optimizer.lr 0.5"),
    ],
    ids=["another optimizer", "another schedule", "a rate beside a schedule"],
)
def test_what_would_have_no_effect_is_refused(flags, named, capsys):
    last = fit(*TABLE, *SCHEDULED, epochs=1) / "checkpoints" / "last.ckpt"
    with pytest.raises(SystemExit) as stopped:
        fit(f"--ckpt_path={last}", *flags, epochs=2)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert named in said and "would have no effect" in said.replace("\n", " ")
