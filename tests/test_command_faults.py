"""What the command does when it is interrupted, or given a file that is meant to hurt."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from pathlib import Path

import polars  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak

from lightning_bce import BinaryClassifier
from lightning_bce.cli import main

FIT = ["fit", "--data=BreastCancerDataModule", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def status(capsys, *arguments):
    """Return the exit status of the command and what it wrote to standard error."""
    with pytest.raises(SystemExit) as stopped:
        main([*arguments])
    answer = capsys.readouterr().err
    assert "Traceback" not in answer
    return stopped.value.code, answer


# -- YAML -------------------------------------------------------------------------------------------------------------


def bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (bomb(), "more than 1,000,000 values"),
        ("model: &m\n  loss: *m\n", "contains itself: the value at line 1"),
        ("model: " + 5000 * "[", "nested too deeply"),
        ("model: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
        ("model:\n  loss: [unclosed\n", "line 2"),
    ],
    ids=["a bomb", "a ring", "a tower", "a call", "a bracket"],
)
def test_a_file_that_is_no_configuration_is_refused_in_a_moment(text, named, capsys):
    Path("run.yaml").write_text(text)
    code, answer = status(capsys, *FIT, "--config", "run.yaml")
    assert code == 2 and named in answer
    assert not Path("pwned").exists() and not Path("runs").exists()


def test_aliases_of_a_configuration_are_read(capsys):
    Path("run.yaml").write_text(
        "model:\n  optimizer: &o\n    class_path: torch.optim.SGD\n    init_args: {lr: 0.1}\n"
        "trainer: {max_epochs: 1, logger: false, enable_model_summary: false}\n"
    )
    main([*FIT, "--config=run.yaml"])


def test_arguments_that_the_optimizer_refuses_are_wrong_usage(capsys):
    code, answer = status(capsys, *FIT, "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=-1")
    assert code == 2 and "--model.optimizer: Invalid learning rate: -1.0" in answer
    assert not Path("runs").exists()


# -- signals ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def heard():
    """Python's own answers to signals: what a shell starts in the background ignores Ctrl-C, and so would the test."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_the_run_with_its_status_and_leaves_what_can_be_gone_on_from(number, code, capsys):
    Path(f"stop_by_{int(number)}.py").write_text(
        textwrap.dedent(
            f"""
            import os
            import lightning.pytorch as pl

            class Stop(pl.Callback):
                def on_train_batch_start(self, trainer, module, batch, batch_idx):
                    if trainer.current_epoch == 2:
                        os.kill(os.getpid(), {int(number)})
            """
        )
    )
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    found, _ = status(capsys, *FIT, f"--trainer.callbacks+=stop_by_{int(number)}.Stop", "--trainer.max_epochs=9")
    assert found == code
    assert BinaryClassifier.load_from_checkpoint("runs/version_0/checkpoints/last.ckpt")
    assert {n: signal.getsignal(n) for n in before} == before
    main(["fit", "--ckpt_path=runs/version_0/checkpoints/last.ckpt", "--trainer.max_epochs=3", *FIT[2:]])
    assert not [name for name in os.listdir("runs/version_0/checkpoints") if name.endswith(".partial")]


# -- names and paths --------------------------------------------------------------------------------------------------


def test_a_path_may_have_any_letters():
    main([*FIT, "--trainer.default_root_dir=läufe [red]/a b", "--trainer.max_epochs=1"])
    best = Path("läufe [red]/a b/version_0/checkpoints/best.ckpt")
    main(["predict", f"--ckpt_path={best}", "--predictions.output=a b/ü.csv", *FIT[2:]])
    assert Path("a b/ü.csv").is_file()


def test_names_of_labels_are_no_paths(monkeypatch):
    Path("inside").mkdir()
    monkeypatch.chdir("inside")
    rows = "".join(f"{i / 7:.3f},{int(i % 3 == 0)},{int(i % 4 == 0)}\n" for i in range(99))
    Path("table.csv").write_text("a,../../climbs,/tmp/absolute\n" + rows)
    table = ["--data=TableDataModule", "--data.path=table.csv", "--data.target=-2:"]
    main(["fit", *table, *FIT[2:], "--trainer.max_epochs=1"])
    assert sorted(path.name for path in Path("..").iterdir()) == ["inside"]
    assert not Path("/tmp/absolute").exists()


def test_nothing_of_the_machine_is_in_a_checkpoint(monkeypatch):
    monkeypatch.setenv("A_SECRET", "hunter2-of-the-environment")
    main([*FIT, "--trainer.max_epochs=1"])
    for path in Path("runs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"hunter2" not in content and os.fsencode(Path.cwd()) not in content, path
