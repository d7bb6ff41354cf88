"""A disk that is full, at the first file of a run or at a later one: the run ends with a line, its files are whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_bce.checkpoints import check_whole
from lightning_bce.cli import main
from lightning_bce.files import append_line
from lightning_bce.provenance import read_provenance
from lightning_bce.record import read_run
from lightning_bce.safe_yaml import check_yaml

try:
    import resource
except ImportError:  # of Unix
    resource = None

SECONDS = 60
KIB = 8, 36, 68, 120  # full at the configuration, the record, the first checkpoint, a later epoch
TRAINER = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FIT = ["fit", "--data.path=../table.csv", "--model.model.hidden=[7]", "--trainer.max_epochs=4"]
SHORT = ["--test_after_fit=false", *TRAINER]

pytestmark = pytest.mark.skipif(resource is None, reason="this system has neither limits nor file systems in memory")


@pytest.fixture(autouse=True)
def table(tmp_path):
    rows = "".join(f"{i * i % 17},{i * 7 % 11},{int(i * i % 17 > 8)}\n" for i in range(77))
    (tmp_path / "table.csv").write_text("a,b,label\n" + rows)


def command(folder, arguments, limit):
    os.chdir(folder)
    os.dup2(os.open("../answer.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # not the stream of pytest
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    main(arguments)


def run(folder, arguments, limit=None):
    """Return the exit status of the command and what it wrote to standard error."""
    # A fork, because importing everything anew would take longer than the training.
    process = multiprocessing.get_context("fork").Process(target=command, args=(folder, arguments, limit))
    process.start()
    process.join(SECONDS)
    process.kill()
    return process.exitcode, (folder.parent / "answer.txt").read_text()


def check_full(folder, status, answer):
    """Check the answer, and that whatever is there is whole; Lightning's own metrics.csv may be cut, see the limits."""
    last = answer.strip().split("\n")[-1]
    assert status == 1 and last.startswith("error: [Errno ") and "Make room" in last, answer
    assert "Traceback" not in answer, answer
    for path in folder.rglob("*"):
        assert not path.name.endswith(".partial"), path
        if path.suffix == ".ckpt":
            check_whole(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name == "config.yaml":
            check_yaml(path)
            assert "max_epochs: 4" in path.read_text()
        elif path.name == "history.jsonl":
            assert path.read_text().endswith("\n")
            read_run(path.parents[1])
    for record in folder.glob("runs/*"):
        read_provenance(record)


def check_goes_on(folder):
    found = list(folder.glob("runs/*/checkpoints/last.ckpt"))
    if found:
        status, answer = run(folder, ["fit", f"--ckpt_path={found[0]}", "--trainer.max_epochs=4", *SHORT])
        assert status == 0, answer
    return len(found)


def fill(above):
    """Train on small file systems in memory, of which each is full at another file."""
    resumed = 0
    for size in KIB:
        folder = above / f"disk_{size}"
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(folder)], check=True)
        check_full(folder, *run(folder, [*FIT, *SHORT]))
        subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True)
        resumed += check_goes_on(folder)
    print("resumed", resumed)


def test_a_disk_that_is_full_ends_the_run_with_a_line_and_leaves_whole_files(tmp_path):
    # In a space of mounts of its own, which ends with the process.
    private = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-r", "-m"]
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*private, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    told = in_a_process(*private, sys.executable, __file__, tmp_path)
    assert "resumed 0" not in told, "no size is large enough for a checkpoint any more"


def test_a_file_that_may_not_grow_ends_the_run_with_a_line_and_leaves_whole_files(tmp_path):
    in_a_process(sys.executable, __file__, tmp_path, "20000")
    assert list(tmp_path.glob("disk/runs/*/config.yaml"))


def in_a_process(*call):
    """Return what a process prints that forks the runs: that of pytest has threads of other tests, and their locks."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run([*map(str, call)], env=environment, capture_output=True, text=True, timeout=3 * SECONDS)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


def test_half_a_line_is_taken_back(tmp_path):
    append_line(tmp_path / "log.txt", "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*log\.txt"):
            append_line(tmp_path / "log.txt", "longer than what is left")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "log.txt").read_text() == "one\n"


if __name__ == "__main__":
    above, *limits = sys.argv[1:]
    if limits:
        place = Path(above, "disk")
        place.mkdir()
        check_full(place, *run(place, [*FIT, *SHORT], limit=int(limits[0])))
    else:
        fill(Path(above))
