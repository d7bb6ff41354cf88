"""The benchmarks run and write what they say. Their figures are nobody's business here: test machines are busy."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run(script: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout


def test_one_pass_writes_a_csv_a_plot_and_a_table(tmp_path):
    peers = ["torch BCE", "torchvision focal", "published ASL", "kornia focal"]
    only = ["BCEWithLogitsLoss, formula", "FocalLoss, chunks", "AsymmetricLoss, formula", *peers]
    smallest = ["--sizes", "33", "257", "--dtypes", "float32", "--threads", "1", "--repeats", "2", "--seconds", "0"]
    printed = run("one_pass.py", *smallest, "--output", str(tmp_path), "--only", *only)

    with (tmp_path / "one_pass.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["contender"] for row in rows} == {*only, "one multiplication", "physical limit"}
    measured = [row for row in rows if row["status"] == "measured"]
    assert {row["batch"] for row in measured} == {"33", "257"}
    assert all(float(row["median_s"]) >= float(row["min_s"]) > 0 and row["rounds"] == "2" for row in measured)
    # Only what is not installed may stay out.
    assert {row["contender"] for row in rows if row["status"] != "measured"} <= {"kornia focal"}
    assert (tmp_path / "one_pass.png").read_bytes().startswith(b"\x89PNG")
    assert "torchvision focal" in printed and "257" in printed


def test_training_overhead_compares_each_callback():
    printed = run("training_overhead.py", "--rounds", "1", "--steps", "2", "--threads", "1")

    assert all(name in printed for name in ("our loss", "PerClassLossMonitor", "RunRecorder", "HardExamples"))


def test_which_loss_prints_a_table_and_writes_its_pictures(tmp_path):
    printed = run("which_loss.py", "--quick", "--jobs", "1", "--output", str(tmp_path), "--folder", str(tmp_path / "c"))

    assert printed.startswith("| loss | breast cancer | digit 8 | mean rank |") and "**digit 8**" in printed
    assert printed.count("\n| ") == 1 + 9  # the rule, BCE and eight others
    for name in ("which_loss", "which_loss_ranks"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_heads_compares_shapes_and_writes_a_csv(tmp_path):
    options = ["--shapes", "64x4", "--rounds", "2", "--seconds", "0", "--threads", "1", "--batch", "8"]
    only = ["head, BCE", "batch chunks", "floor"]
    printed = run("heads.py", *options, "--no-memory", "--output", str(tmp_path), "--only", *only)

    with (tmp_path / "heads.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["family"] for row in rows} == {"bce", "stepping", "floor"}
    assert all(float(row["median_ms"]) >= float(row["min_ms"]) > 0 for row in rows)
    assert "head, BCE, SGD inside" in printed


def test_heads_measures_memory_in_a_process():
    printed = run("heads.py", "--shapes", "64x4", "--batch", "8", "--memory-of", "head, BCE")
    found = json.loads(printed.splitlines()[-1])
    assert found is None or found >= 0  # only Linux keeps the mark
