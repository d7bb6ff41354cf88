"""Runs are kept: through kills, damage, failures, on one process or several, in one share or several."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from comparing import OWN, quick, write_table

from lightning_bce.comparison import scheduling, store
from lightning_bce.comparison.compare import make_missing, settings_of
from lightning_bce.comparison.planning import plan
from lightning_bce.comparison.scheduling import run_all
from lightning_bce.comparison.scores import SCORES
from lightning_bce.data import BreastCancerDataModule, TableDataModule


def planned(losses=("FocalLoss",), data=None, **options):
    data = TableDataModule("table.csv", batch_size=64) if data is None else data
    return plan(list(losses), data, settings_of(**{"seeds": 2, "max_epochs": 2, **options}))


def numbers(runs):
    """Return what must not depend on how the runs were made."""
    told = [*SCORES, "best_epoch", "thresholds", "error", "rows", "test_rows"]
    return {key: [run.result[name] for name in told] for key, run in runs.items()}


def files():
    return {path: path.stat().st_mtime_ns for path in Path("comparison/runs").glob("*.npz")}


# -- kept and found again ---------------------------------------------------------------------------------------------


def test_a_finished_comparison_makes_no_run_again(monkeypatch):
    first = quick(["FocalLoss"])
    before = files()
    monkeypatch.setattr(scheduling, "make", None)
    again = quick(["FocalLoss"])
    assert numbers(again.runs) == numbers(first.runs) and files() == before and len(before) == 4


def test_a_further_loss_is_all_that_is_run(monkeypatch):
    quick(["FocalLoss"])
    before = files()
    quick(["FocalLoss", "BrierLoss"])
    assert len(files()) == len(before) + 2 and before.items() <= files().items()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_again(damage):
    first = quick(["FocalLoss"])
    path = next(iter(files()))
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    path.write_bytes({"cut": content[:middle], "flipped": flipped, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        again = quick(["FocalLoss"])
    assert numbers(again.runs) == numbers(first.runs)


def test_a_killed_comparison_goes_on_and_its_processes_end(folder):
    """Two processes are killed with the first; what they finished stays, and is what one process makes."""
    data = TableDataModule("table.csv", batch_size=64)
    script = (
        "from comparing import quick\n"
        "from lightning_bce.data import TableDataModule\n"
        "if __name__ == '__main__':\n"
        "    quick(['FocalLoss', 'BrierLoss'], TableDataModule('table.csv', batch_size=64), seeds=8, jobs=2)\n"
    )
    (folder / "script.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(store.__file__).parents[2]), *sys.path])
    process = subprocess.Popen([sys.executable, "script.py"], env=os.environ | {"PYTHONPATH": path})
    try:
        deadline = time.monotonic() + 120
        while not files():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived the process that it worked for"
        time.sleep(0.01)
    before = files()
    assert len(workers) >= 2 and 0 < len(before) < 24
    resumed = quick(["FocalLoss", "BrierLoss"], data, seeds=8)
    assert before.items() <= files().items() and len(files()) == 24
    whole = quick(["FocalLoss", "BrierLoss"], data, seeds=8, folder="whole")
    assert numbers(resumed.runs) == numbers(whole.runs)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_an_interruption_keeps_what_is_finished():
    made = planned()

    def interrupt(task, run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(made.tasks, Path("comparison"), 1, interrupt)
    assert len(files()) == 1


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_recorded_and_the_others_are_judged(monkeypatch):
    compared = quick([f"{OWN}.NotANumber", "FocalLoss"])
    assert len(compared.failures) == 2 and all("NotFiniteError" in error for _, error in compared.failures)
    assert [row.failed for row in compared.judgements[0].rows] == [0, 2, 0]
    assert compared.judgements[0].rows[1].state == "failed"
    assert "NotANumber (2 of 2)" in compared.verdicts["table"]
    monkeypatch.setattr(scheduling, "make", None)
    assert len(quick([f"{OWN}.NotANumber", "FocalLoss"]).failures) == 2  # kept, too
    with pytest.raises(TypeError):
        quick([f"{OWN}.NotANumber", "FocalLoss"], retry_failed=True)


def test_a_run_that_kills_its_process_takes_no_other_with_it():
    runs = make_missing(planned([f"{OWN}.Deadly"], seeds=1), Path("comparison"), jobs=2, show=False)
    errors = {run.result["loss"]: run.result["error"] for run in runs.values()}
    assert errors.pop("BCEWithLogitsLoss") is None
    assert "was killed twice" in errors.pop("Deadly") and not errors and len(files()) == 2


# -- shares -----------------------------------------------------------------------------------------------------------


def test_shares_are_disjoint_and_together_the_whole():
    made, folder = planned(["FocalLoss", "BrierLoss"]), Path("comparison")
    counts = []
    for share in range(4):
        make_missing(made, folder, jobs=1, shard=(share, 4), show=False)
        counts.append(len(files()))
    assert counts == [2, 4, 5, 6]
    whole = make_missing(made, Path("whole"), jobs=1, show=False)
    assert numbers(make_missing(made, folder, jobs=1, show=False)) == numbers(whole)
    assert len(files()) == 6


# -- what a run is known by -------------------------------------------------------------------------------------------


def keys(**options):
    return {task.key for task in planned(**options).tasks}


def test_a_run_is_known_by_all_that_decides_it_and_by_nothing_else(folder):
    own = [f"{OWN}.Twin"]
    before = keys(losses=own)
    assert keys(losses=own, metric="auroc", worth=0.5) == before
    assert keys(losses=own, data={"another name": TableDataModule("table.csv", batch_size=64)}) == before
    (folder / "moved").mkdir()
    (folder / "moved" / "table.csv").write_bytes((folder / "table.csv").read_bytes())
    assert keys(losses=own, data=TableDataModule("moved/table.csv", batch_size=64)) == before
    for change in (
        {"max_epochs": 3}, {"patience": 3}, {"stop_by": "log_loss"}, {"model": {"class_path": "torch.nn.Linear"}},
        {"precision": 0.5}, {"data": TableDataModule("table.csv", batch_size=32)}, {"folds": 2, "seeds": 1},
    ):  # fmt: skip
        assert not keys(losses=own, **change) & before, change
    write_table(Path("table.csv"), 0, rows=258)
    assert not keys(losses=own) & before


def test_a_users_own_loss_that_changed_is_run_again(folder):
    before = keys(losses=[f"{OWN}.Twin"])
    import importlib

    own = Path(importlib.import_module(OWN).__file__)
    text = own.read_text()
    own.write_text(text + "\n# changed\n")
    try:
        after = keys(losses=[f"{OWN}.Twin"])
    finally:
        own.write_text(text)
    assert len(before & after) == 2  # those of the reference


def test_files_are_plain_arrays_with_all_that_was_asked_for():
    compared = quick(["FocalLoss"], BreastCancerDataModule(), seeds=1, max_epochs=1)
    for task in compared.plan.tasks:
        with np.load(f"comparison/runs/{task.key}.npz", allow_pickle=False) as file:
            assert set(file.files) == {"told", "logits", "probability", "decision", "target", "known"}
