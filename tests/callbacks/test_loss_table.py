"""The table of the loss by label: what it shows, and that no stream and no name can break it."""

import io
import sys

import pytest
import rich
from foreign_lightning import LABELS, NAMES, Foreign, a_trainer, loader, quiet_monitor, samples, validate
from rich.console import Console
from rich.file_proxy import FileProxy

from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.losses import BCEWithLogitsLoss

pytestmark = [
    # Some runs only train.
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]


class Stream(io.StringIO):
    """A stand-in for stdout: a file or a terminal, of some encoding."""

    def __init__(self, terminal, encoding):
        super().__init__()
        self.terminal, self.coding = terminal, encoding

    encoding = property(lambda self: self.coding)

    def isatty(self):
        return self.terminal

    def write(self, text):
        text.encode(self.coding)  # raises, as a file does
        return super().write(text)


def printed(monkeypatch, monitor, terminal=False, encoding="utf-8", width="100", labels=LABELS):
    stream = Stream(terminal, encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", width)
    validate(Foreign(labels), monitor, loader(samples(labels=labels)))
    return stream.getvalue()


def test_the_table_is_sorted_by_share_and_says_what_it_is(capsys):
    monitor = PerClassLossMonitor(NAMES, BCEWithLogitsLoss())
    validate(Foreign(), monitor)
    text = capsys.readouterr().out
    rows = monitor.summary()
    assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)
    assert (
        f"val loss by label: BCEWithLogitsLoss, mean {monitor.results['val'][0]['loss']:.4g} over 99 elements" in text
    )
    places = [text.index(f"| {row['label']} ") for row in rows]
    assert places == sorted(places)
    assert f"{rows[0]['share']:.1%} ###" in text


def test_labels_beyond_the_limit_are_one_row(capsys):
    monitor = PerClassLossMonitor(loss=BCEWithLogitsLoss(), max_rows=2)
    validate(Foreign(7), monitor, loader(samples(labels=7)))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = monitor.summary()
    assert len(lines) == 2 + 2 + 1 and "5 more" in lines[-1]  # the heading has two lines
    assert f"{sum(row['share'] for row in rows[2:]):.1%}" in lines[-1]
    assert f"{sum(row['negatives'] for row in rows[2:]):.0f}" in lines[-1]
    assert monitor.table().row_count == 3


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_without_a_terminal_the_table_is_plain_ascii(monkeypatch, encoding):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = printed(
        monkeypatch, PerClassLossMonitor(["caf\u00e9", "x", "\u732b"], BCEWithLogitsLoss()), encoding=encoding
    )
    assert "\x1b" not in text
    rest = text.replace("caf\u00e9", "").replace("\u732b", "")
    assert rest.isascii()
    assert ("caf\u00e9" in text) == (encoding != "ascii") and ("\\u732b" in text) == (encoding != "utf-8")


def test_a_terminal_gets_lines_and_one_without_unicode_gets_none(monkeypatch):
    assert "─" in printed(monkeypatch, PerClassLossMonitor(NAMES, BCEWithLogitsLoss()), terminal=True)
    latin = printed(monkeypatch, PerClassLossMonitor(NAMES, BCEWithLogitsLoss()), terminal=True, encoding="latin-1")
    assert latin.isascii() and "cat" in latin


@pytest.mark.parametrize("width", ["1", "20", "40", "79"])
def test_a_narrow_terminal_gets_fewer_columns(monkeypatch, width):
    text = printed(monkeypatch, PerClassLossMonitor(NAMES, BCEWithLogitsLoss()), terminal=True, width=width)
    assert text
    if int(width) >= 40:
        assert all(name in text for name in [*NAMES, "share"])


@pytest.mark.parametrize("terminal", [False, True])
def test_names_of_labels_cannot_steer_the_terminal(monkeypatch, terminal):
    names = ["[red]x[/red]", "a\x1b[2Jb", "\u202ereversed\r\n"]
    text = printed(monkeypatch, PerClassLossMonitor(names, BCEWithLogitsLoss()), terminal=terminal, width="200")
    assert "[red]x[/red]" in text and r"a\x1b[2Jb" in text and r"\u202ereversed\r\n" in text
    assert "\x1b[2J" not in text and "\u202e" not in text and "\r" not in text


def test_control_characters_are_not_logged_either():
    assert "val_loss_class/a\\x1b[2Jb" in validate(Foreign(), quiet_monitor(["a\x1b[2Jb", "x", "y"]))


def test_fit_prints_once_and_test_once(capsys):
    monitor = PerClassLossMonitor(NAMES, BCEWithLogitsLoss())
    trainer = a_trainer(monitor, max_epochs=3, num_sanity_val_steps=2)
    module = Foreign()
    trainer.fit(module, loader(samples()), loader(samples()))
    assert capsys.readouterr().out.count("loss by label") == 1
    trainer.test(module, loader(samples()), verbose=False)
    text = capsys.readouterr().out
    assert text.count("test loss by label") == 1 and "val loss by label" not in text
    assert set(monitor.results) == {"val", "test"}


def test_results_of_an_earlier_run_are_not_printed_again(capsys):
    monitor, module = PerClassLossMonitor(NAMES, BCEWithLogitsLoss()), Foreign()
    validate(module, monitor)
    assert capsys.readouterr().out != ""
    a_trainer(monitor).fit(module, loader(samples()))
    assert capsys.readouterr().out == "" and "val" in monitor.results


def test_while_rich_shows_a_progress_bar_the_table_goes_above_it(monkeypatch):
    terminal = Stream(True, "utf-8")
    console = Console(file=terminal, force_terminal=True, width=120, legacy_windows=False)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    monitor = PerClassLossMonitor(NAMES, BCEWithLogitsLoss())
    monkeypatch.setattr(sys, "stdout", FileProxy(console, terminal))  # as a running bar does
    validate(Foreign(), monitor)
    text = terminal.getvalue()
    assert "───" in text and "of loss" in text and "\\x" not in text and "+--" not in text


def test_the_table_can_be_switched_off(capsys):
    validate(Foreign(), quiet_monitor(NAMES))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("error", [BrokenPipeError("pipe closed"), ValueError("I/O operation on closed file")], ids=str)
def test_a_stream_that_takes_nothing_does_not_cost_the_run(monkeypatch, error):
    def refuse(self, text):
        raise error

    monkeypatch.setattr(Stream, "write", refuse)
    with pytest.warns(UserWarning, match=f"could not be printed .{error}"):
        printed(monkeypatch, PerClassLossMonitor(NAMES, BCEWithLogitsLoss()))


def test_a_program_without_stdout_passes(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    validate(Foreign(), PerClassLossMonitor(NAMES, BCEWithLogitsLoss()))


def test_results_that_are_not_there_are_asked_for_in_vain_with_advice():
    monitor = quiet_monitor(NAMES)
    with pytest.raises(LookupError, match="none yet"):
        monitor.table()
    validate(Foreign(), monitor)
    with pytest.raises(LookupError, match=r"stage 'test'.*val \(dataloader 0\)"):
        monitor.summary("test")
    with pytest.raises(LookupError, match="dataloader 3"):
        monitor.summary("val", 3)


def test_eighty_columns_hold_both_sides_of_every_label(monkeypatch):
    monitor = PerClassLossMonitor(["fraud"], BCEWithLogitsLoss())
    text = printed(monkeypatch, monitor, terminal=True, width="80", labels=1)
    assert "fraud" in text and text.count("neg.") == text.count("pos.") - 1 == 2 and "…" not in text
