"""Checkpoint files are whole: a crash leaves the old one or the new one, and one that is not whole is named."""

import contextlib
import errno
import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier
from lightning_bce.checkpoints import AtomicCheckpointIO, DamagedCheckpointError, check_whole
from lightning_bce.cli import main

try:
    import resource
except ImportError:  # of Unix
    resource = None


def content():
    return {"state_dict": {"w": torch.arange(1000.0)}, "epoch": 3, "text": "a" * 99}


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(), path)
    return path


def classifier_file(folder, name="a.ckpt"):
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
    )
    rows = TensorDataset(torch.randn(33, 3), torch.ones(33, 1))
    loader = DataLoader(rows, batch_size=11)
    trainer.fit(BinaryClassifier(nn.Linear(3, 1)), loader, loader)
    trainer.save_checkpoint(folder / name)
    return folder / name


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_save_leaves_the_checkpoint_alone(whole):
    assert [path.name for path in whole.parent.iterdir()] == ["last.ckpt"]
    assert torch.equal(torch.load(whole, weights_only=True)["state_dict"]["w"], content()["state_dict"]["w"])


def test_a_file_has_the_rights_that_others_get(whole, tmp_path):
    (tmp_path / "other").write_bytes(b"")
    assert whole.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_folders_are_made(tmp_path):
    AtomicCheckpointIO().save_checkpoint(content(), tmp_path / "a" / "b" / "last.ckpt")
    check_whole(tmp_path / "a" / "b" / "last.ckpt")


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(whole, monkeypatch):
    before = whole.read_bytes()

    def full(checkpoint, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(content(), whole)
    assert whole.read_bytes() == before and len(list(whole.parent.iterdir())) == 1


@pytest.mark.skipif(resource is None, reason="this system has no limit for the size of a file")
def test_what_the_disk_says_is_said(whole):  # torch would say that a position was unexpected
    before = whole.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large; the checkpoints before are whole.*last\.ckpt"):
            AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, whole)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert whole.read_bytes() == before and len(list(whole.parent.iterdir())) == 1


class Payload:
    def __reduce__(self):
        return os.mkdir, ("it ran",)


@pytest.mark.parametrize(
    "load", [BinaryClassifier.load_from_checkpoint, AtomicCheckpointIO().load_checkpoint], ids=["classifier", "trainer"]
)
def test_a_file_of_another_machine_is_read_without_what_a_pickle_can_do(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with fsspec.open("memory://a.ckpt", "wb") as file:
        torch.save({**content(), "payload": Payload()}, file)
    with pytest.raises(pickle.UnpicklingError):
        load("memory://a.ckpt")
    assert not Path("it ran").exists()
    load_unsafely = functools.partial(load, weights_only=False)
    with contextlib.suppress(KeyError, TypeError, RuntimeError):  # the content is no classifier
        load_unsafely("memory://a.ckpt")
    assert Path("it ran").exists()  # or the refusal would prove nothing


SLOW = """
import sys, time, torch
from lightning_bce.cli import main
from lightning_bce.checkpoints import AtomicCheckpointIO

def slow(checkpoint, file):
    file.write(b"PK" + bytes(100_000))
    file.flush()
    print("half", flush=True)
    time.sleep(600)

torch.save = slow
AtomicCheckpointIO().save_checkpoint({"epoch": 9}, sys.argv[1])
"""


def test_a_save_that_is_killed_in_the_middle_leaves_the_old_file_whole(whole):
    before = whole.read_bytes()
    with subprocess.Popen([sys.executable, "-c", SLOW, str(whole)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert whole.read_bytes() == before
    left = [path.name for path in whole.parent.iterdir() if path != whole]
    assert len(left) == 1 and left[0].startswith(".last.ckpt.") and left[0].endswith(".partial")
    # And what it leaves hinders nobody.
    AtomicCheckpointIO().save_checkpoint(content() | {"epoch": 4}, whole)
    check_whole(whole)
    assert torch.load(whole, weights_only=True)["epoch"] == 4


def another_file_system(folder):
    """Return a folder that is on another file system, or skip."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK):
        pytest.skip("there is no /dev/shm to write to")
    if shared.stat().st_dev == folder.stat().st_dev:
        pytest.skip("/dev/shm and the test's folder are on one file system")
    return shared


def test_nothing_is_written_to_the_folder_for_temporary_files(whole, monkeypatch):
    other = another_file_system(whole.parent)
    monkeypatch.setattr("tempfile.tempdir", str(other))
    before, seen = set(other.iterdir()), []
    save = torch.save

    def watched(checkpoint, file):
        save(checkpoint, file)
        seen.append((os.fstat(file.fileno()).st_dev, set(other.iterdir()) - before))

    monkeypatch.setattr(torch, "save", watched)
    AtomicCheckpointIO().save_checkpoint(content(), whole)
    assert seen == [(whole.parent.stat().st_dev, set())]


# -- reading ----------------------------------------------------------------------------------------------------------

DAMAGES = {
    "empty": (lambda raw: b"", "it is empty"),
    "text": (lambda raw: b"epoch: 3\n", "it does not begin like a checkpoint"),
    "cut": (lambda raw: raw[: len(raw) // 2], "its end is missing"),
    "one byte short": (lambda raw: raw[:-1], "its end is missing"),
    "a weight": (lambda raw: raw[:2000] + bytes([raw[2000] ^ 1]) + raw[2001:], "'data/0' does not have its checksum"),
    "infinite": (lambda raw: raw[:2000] + b"\0\0\x80\x7f" + raw[2004:], "'data/0' does not have its checksum"),
    "zeros": (lambda raw: raw[:500] + bytes(500) + raw[1000:], "checksum|overwritten"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage, whole):
    change, message = DAMAGES[damage]
    whole.write_bytes(change(whole.read_bytes()))
    with pytest.raises(DamagedCheckpointError, match=f"Damaged checkpoint '.*last.ckpt': .*({message})"):
        AtomicCheckpointIO().load_checkpoint(whole)


def test_no_overwritten_byte_is_loaded_as_something_else(whole):  # every 7th, for the time it takes
    raw, there = whole.read_bytes(), content()
    named = 0
    for index in range(0, len(raw), 7):
        whole.write_bytes(raw[:index] + bytes([raw[index] ^ 0xFF]) + raw[index + 1 :])
        try:
            found = AtomicCheckpointIO().load_checkpoint(whole, weights_only=True)
        except DamagedCheckpointError:
            named += 1
            continue
        assert torch.equal(found["state_dict"]["w"], there["state_dict"]["w"]), index
        assert (found["epoch"], found["text"]) == (3, there["text"]), index
    assert named > 500


def test_the_other_checkpoint_is_named_if_it_is_whole(whole):
    whole.with_name("bad.ckpt").write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"Go on from '.*last\.ckpt', which is whole"):
        check_whole(whole.with_name("bad.ckpt"))
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(DamagedCheckpointError, match="no other whole checkpoint"):
        check_whole(whole.with_name("bad.ckpt"))


def test_what_torch_wrote_is_read(tmp_path):
    torch.save(content(), tmp_path / "new.ckpt")
    torch.save(content(), tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("new.ckpt", "old.ckpt"):
        assert AtomicCheckpointIO().load_checkpoint(tmp_path / name, weights_only=True)["epoch"] == 3


def test_more_than_plain_values_are_not_damage(tmp_path):
    torch.save({"path": Path("a")}, tmp_path / "a.ckpt")
    check_whole(tmp_path / "a.ckpt")


def test_a_file_that_is_missing_is_lightnings_to_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "missing.ckpt")


# -- the classifier ---------------------------------------------------------------------------------------------------


def test_the_classifier_names_a_damaged_file(tmp_path):
    path = classifier_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedCheckpointError, match="Damaged checkpoint"):
        BinaryClassifier.load_from_checkpoint(path)


def test_it_is_loaded_by_the_class_and_not_by_an_instance(tmp_path):
    path = classifier_file(tmp_path)
    assert isinstance(BinaryClassifier.load_from_checkpoint(path), BinaryClassifier)
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        BinaryClassifier(nn.Linear(3, 1)).load_from_checkpoint(path)


def test_an_open_file_is_loaded(tmp_path):
    with classifier_file(tmp_path).open("rb") as file:
        assert isinstance(BinaryClassifier.load_from_checkpoint(file), BinaryClassifier)


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path):
    path = classifier_file(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["model.weight"][0, 1] = float("inf")
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"'model.weight' of the checkpoint has 1 of 3 elements that are NaN or inf"):
        BinaryClassifier.load_from_checkpoint(path)
    loader = DataLoader([0])
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match=r"'model.weight' of the checkpoint"):
        trainer.fit(BinaryClassifier(nn.Linear(3, 1)), loader, loader, ckpt_path=path)


# -- a training that is killed ----------------------------------------------------------------------------------------

# `KILLS=20 pytest tests/test_whole_checkpoints.py -k any_moment` kills it more often.
KILLS = int(os.environ.get("KILLS", "3"))
EPOCHS = 4 * KILLS
SECONDS = 20 * KILLS
TRAINING = [
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    f"--trainer.max_epochs={EPOCHS}",
    "--test_after_fit=false",
]
FRESH = [
    "--data=TableDataModule",
    "--data.path=table.csv",
    "--data.batch_size=11",
    "--model.model.hidden=[7]",
    "--model.model.dropout=0.3",
    "--model.optimizer.lr=0.01",
]


def train(folder, flags):
    os.chdir(folder)
    main(["fit", *flags, *TRAINING])


def states(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/**/last.ckpt")}


def start(folder, flags):
    # A fork, because importing everything anew would take longer than the training.
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder, flags))
    process.start()
    return process


def kill_again_and_again(straight, killed):
    """Train in one go and in pieces, each killed some milliseconds after it has written a checkpoint."""
    start(straight, FRESH).join(SECONDS)
    flags, hits = FRESH, 0
    for wait in torch.rand(KILLS).mul(0.1).tolist():
        known, process = states(killed), start(killed, flags)
        while process.is_alive() and states(killed) == known:
            time.sleep(0.002)
        time.sleep(wait)  # into the next epoch, validation or save
        process.kill()
        process.join()
        hits += process.exitcode == -signal.SIGKILL
        for path in killed.glob("runs/**/*.ckpt"):
            check_whole(path)
        newest = max(states(killed).items(), key=lambda item: item[1])[0]
        flags = [f"--ckpt_path={newest}"]
    start(killed, flags).join(SECONDS)
    print("killed", hits)


def end_of(folder):
    newest = max(states(folder).items(), key=lambda item: item[1])[0]
    checkpoint = torch.load(newest, weights_only=True)
    stopped = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("EarlyStopping"))
    # All epochs, or as many as the recipe's EarlyStopping lets it: the same number in one go and in pieces.
    assert checkpoint["epoch"] == (stopped["stopped_epoch"] or EPOCHS - 1), stopped
    return checkpoint["epoch"], checkpoint["state_dict"], checkpoint["optimizer_states"][0]["state"]


def test_a_training_that_is_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path):
    # With the folder for temporary files on another file system where there is one: the harder case.
    shared = Path("/dev/shm")
    temporary = {"TMPDIR": str(shared)} if os.access(shared, os.W_OK) else {}
    folders = tmp_path / "straight", tmp_path / "killed"
    rows = torch.randn(77, 3).tolist()
    for folder in folders:
        folder.mkdir()
        lines = "".join(f"{a:.4f},{b:.4f},{c:.4f},{int(a > 0)}\n" for a, b, c in rows)
        (folder / "table.csv").write_text("a,b,c,label\n" + lines)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | temporary
    call = [sys.executable, __file__, *map(str, folders)]
    told = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=2 * SECONDS)
    assert told.returncode == 0 and "killed" in told.stdout, told.stdout + told.stderr
    assert "killed 0" not in told.stdout, "every training had ended before it was killed"
    torch.testing.assert_close(end_of(folders[1]), end_of(folders[0]), rtol=0, atol=0)


if __name__ == "__main__":
    kill_again_and_again(*map(Path, sys.argv[1:]))
