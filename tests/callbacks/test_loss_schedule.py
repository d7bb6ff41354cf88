"""A scheduled hyper-parameter is where its formula says, in training, in logs and in checkpoints."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, FocalLoss, TabularMLP
from lightning_bce.callbacks import LossSchedule

ROWS = 33


class Watch(pl.Callback):
    def __init__(self):
        self.steps, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(pl_module.loss.gamma)

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append(trainer.callback_metrics.get("loss_gamma"))


def loader():
    x = torch.randn(ROWS, 3)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).float()), batch_size=11)


def fit(schedule, loss=None, epochs=5, path=None, folder=None):
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=folder is not None,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[schedule, watch],
    )
    trainer.fit(BinaryClassifier(TabularMLP(3), loss or FocalLoss()), loader(), loader(), ckpt_path=path)
    return trainer, watch


def test_it_moves_from_the_first_epoch_to_the_last():
    _, watch = fit(LossSchedule("gamma", start=0.0, end=2.0))
    assert watch.steps == pytest.approx([value for value in (0, 0.5, 1, 1.5, 2) for _ in range(3)])


def test_it_stays_where_it_has_arrived():
    _, watch = fit(LossSchedule("gamma", start=4.0, end=1.0, over=2))
    assert watch.steps[::3] == pytest.approx([4, 2.5, 1, 1, 1])


def test_by_step_it_arrives_with_the_last_step():
    _, watch = fit(LossSchedule("gamma", start=0.0, end=14.0, interval="step"))
    assert watch.steps == pytest.approx(list(range(15)))


def test_a_cosine_starts_and_ends_slowly_and_is_halfway_in_the_middle():
    schedule = LossSchedule("gamma", start=1.0, end=3.0, shape="cosine")
    values = [schedule.value_at(t, 100) for t in (0, 1, 50, 99, 100)]
    assert (values[0], values[2], values[4]) == pytest.approx((1, 2, 3))
    assert values[1] - values[0] < 0.01 and values[4] - values[3] < 0.01


def test_it_is_logged_each_epoch():
    trainer, _ = fit(LossSchedule("gamma", start=0.0, end=2.0))
    assert trainer.callback_metrics["loss_gamma"] == pytest.approx(2.0)


@pytest.mark.filterwarnings("ignore:.*dirpath has changed")  # the resumed run has a folder of its own
def test_a_checkpoint_has_the_value_that_training_has_reached(tmp_path):
    trainer, _ = fit(LossSchedule("gamma", start=0.0, end=2.0, over=4), epochs=3, folder=tmp_path)
    path = trainer.checkpoint_callback.best_model_path
    assert BinaryClassifier.load_from_checkpoint(path).loss.gamma == 1.0
    _, watch = fit(LossSchedule("gamma", start=0.0, end=2.0, over=4), epochs=5, path=path, folder=tmp_path / "again")
    assert watch.steps[::3] == pytest.approx([1.5, 2.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 1.0, "end": 1.0}, "two different"),
        ({"start": 0.0, "end": float("nan")}, "finite"),
        ({"start": 0.0, "end": 1.0, "over": 0}, "`over` is 0"),
        ({"start": 0.0, "end": 1.0, "shape": "square"}, "square"),
        ({"start": 0.0, "end": 1.0, "interval": "year"}, "year"),
    ],
)
def test_what_makes_no_schedule_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LossSchedule("gamma", **options)


def test_a_value_that_the_loss_refuses_is_refused_before_training():
    with pytest.raises(ValueError, match="`gamma` is -1"):
        fit(LossSchedule("gamma", start=2.0, end=-1.0))


def test_a_loss_without_the_number_is_refused_with_what_it_has():
    with pytest.raises(ValueError, match="BCEWithLogitsLoss has no number 'gamma'"):
        fit(LossSchedule("gamma", start=0.0, end=1.0), BCEWithLogitsLoss())
    with pytest.raises(ValueError, match="it has: gamma"):
        fit(LossSchedule("reduction", start=0.0, end=1.0))
