"""The record of a run comes back as it was written, and says what is wrong with it."""

import math

import pytest
import torch

from lightning_bce.record import (
    Evaluation,
    Hardness,
    LossDistribution,
    Reliability,
    Scores,
    begin_record,
    read_run,
    write_evaluation,
)


def an_evaluation(stage="val", epoch=0, labels=3, **changes):
    values = {
        "stage": stage,
        "epoch": epoch,
        "step": 7 * epoch,
        "loss_name": "FocalLoss",
        "labels": [f"label [{i}]" for i in range(labels)],
        "loss": torch.rand(labels, 2, dtype=torch.float64),
        "weight": torch.rand(labels, 2, dtype=torch.float64),
        "gradient": torch.randn(labels, 2, dtype=torch.float64),
        "metrics": {"val_loss": 0.25, "val_AUROC": math.nan},
        "hardness": Hardness(torch.linspace(0, 1, 6).double(), *torch.rand(3, 2, 5, dtype=torch.float64)),
        "distribution": LossDistribution(
            torch.tensor([0.0, 0.1, math.inf], dtype=torch.float64), *torch.rand(2, 2, 2, dtype=torch.float64)
        ),
        "scores": Scores(
            torch.tensor([-math.inf, 0.0, math.inf], dtype=torch.float64), torch.rand(labels, 2, 2).double()
        ),
        "reliability": Reliability(torch.linspace(0, 1, 4).double(), *torch.rand(3, labels, 3, dtype=torch.float64)),
        "threshold": torch.full((labels,), 0.5, dtype=torch.float64),
        "confusion": torch.ones(labels, 2, 2, dtype=torch.float64),
    }
    return Evaluation(**{**values, **changes})


def assert_same(found, expected):
    assert found.to_json() == expected.to_json()
    assert torch.equal(found.loss, expected.loss)


def test_an_evaluation_comes_back_to_the_last_digit(tmp_path):
    written = an_evaluation()
    write_evaluation(tmp_path, written)
    record = read_run(tmp_path)
    assert_same(record.evaluations["val"], written)
    assert math.isnan(record.evaluations["val"].metrics["val_AUROC"])
    assert record.evaluations["val"].scores.edges[0] == -math.inf


def test_whole_numbers_come_back_as_they_were_however_large(tmp_path):
    loss = torch.tensor([[0.0, 3.0], [1e300, -(2.0**60)]], dtype=torch.float64)
    assert torch.equal(Evaluation.from_json(an_evaluation(labels=2, loss=loss).to_json()).loss, loss)


def test_the_history_keeps_every_epoch_without_the_curves(tmp_path):
    epochs = [an_evaluation(epoch=epoch) for epoch in range(3)]
    for evaluation in epochs:
        write_evaluation(tmp_path, evaluation)
    record = read_run(tmp_path)
    assert [line.epoch for line in record.history] == [0, 1, 2]
    assert record.history[1].scores is None and torch.equal(record.history[1].loss, epochs[1].loss)
    assert_same(record.evaluations["val"], epochs[2])


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    write_evaluation(tmp_path, an_evaluation())
    with open(tmp_path / "record" / "history.jsonl", "a") as file:
        file.write(an_evaluation().to_json()[:100])
    assert len(read_run(tmp_path).history) == 1


def test_a_damaged_file_is_named(tmp_path):
    write_evaluation(tmp_path, an_evaluation())
    path = tmp_path / "record" / "val.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(ValueError, match=r"val.json', line 1: .*not of format 1"):
        read_run(tmp_path)
    path.write_text('{"format": 1, "stage": "val"}')
    with pytest.raises(ValueError, match=r"val.json', line 1: .*missing"):
        read_run(tmp_path)


def test_a_folder_without_a_record_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="add the callback RunRecorder"):
        read_run(tmp_path)
    write_evaluation(tmp_path / "version_3", an_evaluation())
    with pytest.raises(FileNotFoundError, match=r"Did you mean .*version_3\?"):
        read_run(tmp_path)


def test_a_damaged_line_does_not_stop_a_training_that_goes_on(tmp_path):
    for epoch in range(3):
        write_evaluation(tmp_path, an_evaluation(epoch=epoch))
    path = tmp_path / "record" / "history.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "damaged", lines[1], lines[2], lines[2][:50]]))
    begin_record(tmp_path, step=7)
    assert path.read_text().splitlines() == [lines[0], "damaged", lines[1]]
    with pytest.raises(ValueError, match=r"history.jsonl', line 2"):
        read_run(tmp_path)
    begin_record(tmp_path, step=0)
    assert list((tmp_path / "record").iterdir()) == []


def test_what_is_no_point_in_time_has_no_line(tmp_path):
    write_evaluation(tmp_path, an_evaluation("test", dataloader=2), history=False)
    record = read_run(tmp_path)
    assert record.history == [] and list(record.evaluations) == ["test_2"]
