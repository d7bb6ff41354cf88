"""`lightning-bce plot run` draws a finished run whole, or says what to do."""

import importlib.util
import sys

import pytest
from recorded_runs import write_run

from lightning_bce.cli import main

PNG = b"\x89PNG\r\n\x1a\n"


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["plot", "run", *map(str, arguments)])
    assert stopped.value.code == 2
    answer = capsys.readouterr().err
    assert "Traceback" not in answer
    return answer


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    write_run(tmp_path / "version_0", labels=5)
    return tmp_path / "version_0"


def test_all_pictures_of_a_run_are_written_into_its_folder_with_what_they_say(run, capsys):
    main(["plot", "run", str(run)])
    files = sorted(path.name for path in (run / "pictures").iterdir())
    assert len(files) == 10 and files[0] == "val_confusion.png"
    assert all((run / "pictures" / name).read_bytes().startswith(PNG) for name in files)
    told = capsys.readouterr().out
    assert all(name in told for name in files) and "The validation loss is lowest in epoch" in told


def test_all_pictures_are_written_also_where_nobody_reads_what_they_say(run, monkeypatch):
    def closed(text):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("lightning_bce.plot_command._say", closed)
    with pytest.raises(SystemExit):
        main(["plot", "run", str(run)])
    assert len(list((run / "pictures").glob("*.png"))) == 10


@pytest.mark.parametrize(("kind", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_formats_and_folder_are_as_asked_for(run, tmp_path, kind, start):
    main(["plot", "run", str(run), "--format", kind, "--output", str(tmp_path / "a" / "b")])
    files = list((tmp_path / "a" / "b").iterdir())
    assert len(files) == 10 and all(path.suffix == f".{kind}" and path.read_bytes().startswith(start) for path in files)
    assert not (run / "pictures").exists()


def test_pictures_that_exist_are_kept_unless_told_otherwise(run, capsys):
    (run / "pictures").mkdir()
    (run / "pictures" / "val_roc.png").write_text("mine")
    assert "add --overwrite" in refused(capsys, run)
    assert [path.name for path in (run / "pictures").iterdir()] == ["val_roc.png"]  # and none beside it
    main(["plot", "run", str(run), "--overwrite"])
    assert (run / "pictures" / "val_roc.png").read_bytes().startswith(PNG)


def test_without_matplotlib_the_terminal_gets_text(run, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    main(["plot", "run", str(run)])
    shown = capsys.readouterr().out
    assert "precision against recall" in shown and "pip install 'lightning_bce[plot]'" in shown
    assert not (run / "pictures").exists()
    assert "--format is about pictures, and they need matplotlib" in refused(capsys, run, "--format", "svg")


def test_text_is_shown_where_it_is_asked_for_and_writes_nothing(run, capsys):
    before = sorted(run.rglob("*"))
    main(["plot", "run", str(run), "--text"])
    assert "Decisions at the threshold" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == before
    assert "--text writes none" in refused(capsys, run, "--text", "--output", "x")


def test_what_cannot_be_drawn_says_what_to_do(run, capsys, tmp_path):
    assert "add the callback RunRecorder" in refused(capsys, tmp_path / "nothing")
    assert "Did you mean" in refused(capsys, tmp_path)
    assert "no evaluation of stage 'test'; there are: train, val" in refused(capsys, run, "--stage", "test")
    path = run / "record" / "val.json"
    path.write_text(path.read_text()[:100])
    assert "val.json" in refused(capsys, run)
