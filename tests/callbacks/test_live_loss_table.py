"""LiveLossTable shows the loss of each epoch and its parts, beside a rich bar as a table and elsewhere as lines."""

import io
import logging
import math
import re
import sys

import pytest
import rich
import torch
from foreign_lightning import LABELS, Foreign, a_trainer, loader, samples
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from rich.console import Console
from rich.measure import Measurement
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import binary_calibration_error, multilabel_average_precision

from lightning_bce import BinaryClassifier
from lightning_bce.callbacks import LiveLossTable, RunRecorder
from lightning_bce.callbacks.epoch_table import FORMS, Epoch, epoch_line, epoch_table
from lightning_bce.losses import BCEWithLogitsLoss, FocalLoss

EPOCHS = [
    Epoch(0, 0.5, 0.6, 0.45, 0.15, 0.7, 0.1),
    Epoch(1, 0.4, 0.5, 0.25, 0.25, 0.8, 0.1),
    Epoch(2, 0.3, 0.55, 0.25, 0.30, 0.75, 0.05),
]


def data(rows=33, labels=1, seed=0):
    return DataLoader(TensorDataset(*samples(rows, labels, seed)), batch_size=8)


def a_classifier(loss=None, labels=1, **options):
    return BinaryClassifier(torch.nn.Linear(5, labels), loss, num_labels=labels, **options)


def shown(table, width=100, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=file, width=width, color_system=None).print(table)
    file.flush()
    return raw.getvalue().decode(encoding)


def test_the_parts_add_up_to_the_loss_that_is_logged(capsys, tmp_path):
    live, logged = LiveLossTable(), []

    class Notes(RunRecorder):
        def on_train_epoch_end(self, trainer, pl_module):
            logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})
            super().on_train_epoch_end(trainer, pl_module)

    trainer = a_trainer(live, Notes(folder=str(tmp_path)), max_epochs=3)
    trainer.fit(a_classifier(FocalLoss()), data(), data(17, seed=1))
    assert [epoch.number for epoch in live.epochs] == [0, 1, 2]
    for epoch, values in zip(live.epochs, logged, strict=True):
        assert epoch.val == pytest.approx(values["val_loss"], rel=1e-6)
        assert epoch.negative + epoch.positive == pytest.approx(epoch.val)
        assert epoch.precision == pytest.approx(values["val_AveragePrecision"])
        assert epoch.calibration == pytest.approx(values["val_CalibrationError"])
    assert live.epochs[-1].train == pytest.approx(trainer.callback_metrics["train_loss"].item(), rel=1e-6)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert lines == [epoch_line(live.epochs[0])] + [epoch_line(live.epochs[i], live.epochs[i - 1]) for i in (1, 2)]
    assert "average precision" in lines[1] and re.search(r"val loss \S+ \([+-]\d", lines[1])


def test_without_logged_metrics_the_recorder_knows(capsys, tmp_path):
    live = LiveLossTable()
    classifier = a_classifier(labels=LABELS, metrics=[])
    trainer = a_trainer(live, RunRecorder(folder=str(tmp_path)))
    trainer.fit(classifier, data(labels=LABELS), data(labels=LABELS))
    inputs, target = samples()
    with torch.no_grad():
        probability = classifier(inputs).sigmoid()
    columns = zip(probability.T.contiguous(), target.T.int().contiguous(), strict=True)
    expected = torch.stack([binary_calibration_error(p, t) for p, t in columns])
    assert live.epochs[0].calibration == pytest.approx(expected.mean().item(), abs=1e-5)
    precision = multilabel_average_precision(probability, target.int(), LABELS)
    assert live.epochs[0].precision == pytest.approx(precision.item(), abs=0.05)


def streams():
    """Return where Lightning's log goes; pytest adds a handler that has no stream."""
    return [getattr(handler, "stream", None) for handler in logging.getLogger("lightning.pytorch").handlers]


def test_beside_a_rich_bar_the_table_is_above_it_and_stays(monkeypatch):
    monkeypatch.setattr(rich, "_console", Console())  # the bar replaces it
    screen = io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 110, "height": 40})
    live, before = LiveLossTable(), streams()
    trainer = a_trainer(bar, live, max_epochs=3, enable_progress_bar=True)
    trainer.fit(a_classifier(), data(), data())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    last = text[text.rindex("by epoch") :]
    assert "BCEWithLogitsLoss by epoch" in text and "positives" in last and "Epoch 2/2" in last
    assert [line.split()[0] for line in last.splitlines() if re.match(r" +\d ", line)] == ["0", "1", "2"]
    assert last.index("calibr.") < last.index("Epoch 2/2")
    assert streams() == before


def test_beside_another_bar_it_is_a_line_for_each_epoch(capsys):
    trainer = a_trainer(TQDMProgressBar(), LiveLossTable(), max_epochs=2, enable_progress_bar=True)
    trainer.fit(a_classifier(), data(), data())
    # Each begins where a bar was wiped out, and ends in a line feed before it is drawn again.
    assert len(re.findall(r"\repoch \d: train loss [^\r\n]*\n", capsys.readouterr().out)) == 2


def test_a_stream_of_ascii_and_one_that_is_closed_do_no_harm(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    a_trainer(LiveLossTable()).fit(a_classifier(), data(), data())
    sys.stdout.close()
    with pytest.warns(UserWarning, match="could not be printed"):
        a_trainer(LiveLossTable()).fit(a_classifier(), data(), data())


def test_a_narrow_terminal_gets_fewer_columns_and_no_line_is_cut():
    live = LiveLossTable(max_rows=2)
    live.epochs = EPOCHS
    for width, there, gone in ((100, "calibr.", "nothing"), (74, "calibr.", "share"), (50, "positives", "calibr.")):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, height=40)
        text = shown(live.table(console), width)
        assert there in text and gone not in text and "…" not in text
        assert max(map(len, text.splitlines())) <= width
    console = Console(file=io.StringIO(), width=30, height=3, force_terminal=True)
    text = shown(live.table(console), 30)
    assert "val" in text and " 2 " in text and " 1 " not in text  # one row in a low terminal


def test_arrows_say_where_a_value_goes_and_ascii_is_enough():
    text = shown(epoch_table(EPOCHS, "[red]a title[/red]"))
    assert "[red]a title[/red]" in text  # nothing in it is markup
    second = next(line for line in text.splitlines() if re.match(r" +1 ", line))
    assert second.split()[1:] == "0.4 ▼ 0.5 ▼ 0.25 ▼ 0.25 ▲ ████░░░░ 50% 0.8000 ▲ 0.1 =".split()
    plain = shown(epoch_table(EPOCHS, "title", plain=True), encoding="ascii")
    assert "####.... 50%" in " ".join(plain.split()) and "0.4 v" in plain and "0.7500 v" in plain
    wide = Console(width=500)
    widths = [Measurement.get(wide, wide.options, epoch_table(EPOCHS, "", **form)).maximum for form in FORMS]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 25


def test_what_is_not_there_is_left_out():
    alone = Epoch(0, train=0.5)
    assert epoch_line(alone) == "epoch 0: train loss 0.5"
    text = shown(epoch_table([alone], "title"))
    assert "precision" not in text and "nan" not in text
    zero = Epoch(1, 0.0, 0.0, 0.0, 0.0)
    assert "%" not in epoch_line(zero, zero) and "nan" not in shown(epoch_table([zero, zero], "title"))


def test_a_foreign_module_shows_what_it_gives(capsys):
    live = LiveLossTable(loss=BCEWithLogitsLoss())
    module = Foreign()
    module.training_step = lambda batch, batch_idx: module.step(batch)["loss"]
    a_trainer(live).fit(module, loader(samples()), [loader(samples()), loader(samples(5, seed=2))])
    (epoch,) = live.epochs
    assert math.isnan(epoch.train) and math.isnan(epoch.precision)
    with torch.no_grad():
        losses = [
            BCEWithLogitsLoss(reduction="none")(module.net(inputs), target).flatten()
            for inputs, target in (samples(), samples(5, seed=2))
        ]
    assert epoch.val == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)  # of both dataloaders
    assert capsys.readouterr().out.startswith("epoch 0: val loss")


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="`max_rows` is 0"):
        LiveLossTable(max_rows=0)
    with pytest.raises(TypeError, match="a BinaryLoss was expected"):
        LiveLossTable(loss=torch.nn.BCEWithLogitsLoss())
