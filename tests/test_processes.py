"""What a user sees when one of several processes dies, and when nobody reads what the command writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

FIT = ["fit", "--data=BreastCancerDataModule", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
SECONDS = 90


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dying.py").write_text(
        textwrap.dedent(
            """
            import os, signal
            import lightning.pytorch as pl
            from lightning_bce.data import BreastCancerDataModule, TensorRows

            class RankDies(pl.Callback):
                def on_train_batch_start(self, trainer, module, batch, batch_idx):
                    if trainer.global_rank == 1 and trainer.current_epoch == 1:
                        os.kill(os.getpid(), signal.SIGKILL)

            class Rows(TensorRows):
                def __getitems__(self, indices):
                    os.kill(os.getpid(), signal.SIGKILL)

            class WorkerDies(BreastCancerDataModule):
                def rows(self, part):
                    rows = super().rows(part)
                    return Rows(rows.columns) if part == "train" else rows
            """
        )
    )


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lightning_bce", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        **{"stdout": subprocess.PIPE, **options},
    )


def children(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_rank_that_is_killed_ends_the_run_with_status_one_and_no_orphan():
    with command(
        *FIT, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.callbacks+=dying.RankDies"
    ) as process:
        ranks = set()
        try:
            while process.poll() is None:
                ranks |= set(children(process.pid))
                time.sleep(0.2)
        finally:
            process.kill()
        answer = process.stderr.read()
    assert process.returncode == 1, answer
    assert "Connection" in answer or "reset" in answer or "closed" in answer
    assert not [pid for pid in ranks if Path(f"/proc/{pid}/cmdline").exists() and "dying" in cmdline(pid)]


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_data_worker_that_is_killed_ends_the_run_with_status_one():
    with command(*FIT[:1], "--data=dying.WorkerDies", "--data.num_workers=1", *FIT[2:]) as process:
        _, answer = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "DataLoader worker" in answer and f"{signal.SIGKILL.name.removeprefix('SIG').capitalize()}" in answer


def test_a_pipe_that_nobody_reads_is_no_traceback():
    with command("fit", "--help", stdout=subprocess.PIPE) as process:
        process.stdout.close()
        answer = process.stderr.read()
    assert "Traceback" not in answer


def test_without_a_home_and_without_colours_a_run_is_plain():
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_bce", *FIT, "--trainer.max_epochs=1"],
        env=environment | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
