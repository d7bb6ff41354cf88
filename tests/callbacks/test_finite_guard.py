"""A loss that is no number stops the training with step, batch and cause, and spoils no checkpoint."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, BinaryLoss
from lightning_bce.callbacks import FiniteGuard
from lightning_bce.callbacks.finite_guard import NotFiniteError

ROWS, FEATURES, SIZE = 33, 3, 11


class Overflows(nn.Linear):
    """Returns what is no number, from numbers, in its fifth training step."""

    calls = 0

    def forward(self, inputs):
        self.calls += self.training
        return super().forward(inputs) * (float("inf") if self.training and self.calls >= 5 else 1.0)


class Breaks(BinaryLoss):
    """Is no number in its fifth training step, for logits that are."""

    calls = 0

    def elementwise(self, logits, target):
        self.calls += torch.is_grad_enabled()
        return logits.square() * (float("nan") if self.calls >= 5 else 1.0)


class Spoilt(BinaryClassifier):
    """Its loss is finite and the gradient is not, in the fifth step or the last of an epoch."""

    at = 4

    def on_after_backward(self):
        if self.trainer.global_step == self.at:
            self.model.bias.grad.fill_(float("nan"))


class Kept(pl.Callback):
    """Keeps the weights of the last step."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights = {name: value.clone() for name, value in pl_module.model.state_dict().items()}


def loader(bad_row=None):
    inputs = torch.randn(ROWS, FEATURES)
    if bad_row is not None:
        inputs[bad_row, 1] = float("nan")
    return DataLoader(TensorDataset(inputs, (inputs[:, :1] > 0).float()), batch_size=SIZE)


def fit(classifier, loader, guard, folder, callbacks=(), epochs=4):
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[guard, *callbacks, ModelCheckpoint(folder, filename="last", enable_version_counter=False)],
    )
    trainer.fit(classifier, loader, globals()["loader"]())
    return trainer


def linear():
    return nn.Linear(FEATURES, 1)


@pytest.mark.parametrize(
    ("classifier", "place", "cause"),
    [
        (lambda: BinaryClassifier(Overflows(FEATURES, 1)), "step 4: epoch 1, batch 1;", "the model overflowed"),
        (lambda: BinaryClassifier(linear(), Breaks()), "step 4: epoch 1, batch 1;", "The logits are finite"),
        (lambda: Spoilt(linear()), "step 5: epoch 1, batch 2;", "The weight 'model.bias' is no number"),
    ],
    ids=["model", "loss", "weight"],
)
def test_the_cause_is_named(classifier, place, cause, tmp_path):
    kept = Kept()
    with pytest.raises(NotFiniteError) as stop:
        fit(classifier(), loader(), FiniteGuard(), tmp_path, [kept])
    assert place in str(stop.value) and cause in str(stop.value)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["epoch"] == 0 and saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_inputs_are_named_with_their_rows(tmp_path):
    with pytest.raises(NotFiniteError, match=r"is nan at step 1: epoch 0, batch 1; .*`inputs` .* in row\(s\) 2\."):
        fit(BinaryClassifier(linear()), loader(SIZE + 2), FiniteGuard(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_weights_are_what_they_were_before(tmp_path):
    kept, classifier = Kept(), BinaryClassifier(linear(), Breaks())
    with pytest.raises(NotFiniteError):
        fit(classifier, loader(), FiniteGuard(), tmp_path, [kept])
    for name, value in classifier.model.state_dict().items():
        assert torch.equal(value, kept.weights[name])


@pytest.mark.parametrize(
    ("classifier", "rows", "step", "cause"),
    [
        (lambda: BinaryClassifier(linear()), SIZE + 2, "step 1: epoch 0, batch 1;", "The batch's inputs hold NaN"),
        (lambda: BinaryClassifier(Overflows(FEATURES, 1)), None, "step 4: epoch 1, batch 1;", "a weight was no number"),
        (lambda: BinaryClassifier(linear(), Breaks()), None, "step 4: epoch 1, batch 1;", "the loss itself overflowed"),
        (lambda: Spoilt(linear()), None, "step 5: epoch 1, batch 2;", "a weight was no number"),
    ],
    ids=["inputs", "model", "loss", "weight"],
)
@pytest.mark.parametrize("every", [2, 100])
def test_a_look_that_comes_late_names_the_first_bad_step(classifier, rows, step, cause, every, tmp_path):
    with pytest.raises(NotFiniteError) as stop:
        fit(classifier(), loader(rows), FiniteGuard(every), tmp_path)
    assert step in str(stop.value) and cause in str(stop.value) and "every_n_steps=1" in str(stop.value)
    for path in tmp_path.iterdir():
        assert torch.load(path, weights_only=True)["epoch"] == 0


def test_weights_that_the_last_step_of_an_epoch_spoils_are_not_saved(tmp_path):
    classifier = Spoilt(linear())
    classifier.at = 5
    with pytest.raises(
        NotFiniteError, match=r"'model.bias' is no number after step 6, epoch 1, batch 2.* No checkpoint"
    ):
        fit(classifier, loader(), FiniteGuard(), tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


def test_unknown_labels_are_no_fault(tmp_path):
    inputs = torch.randn(ROWS, FEATURES)
    target = torch.full((ROWS, 1), float("nan"))
    target[::2] = 1.0
    rows = DataLoader(TensorDataset(inputs, target), batch_size=SIZE)
    trainer = fit(
        BinaryClassifier(linear(), BCEWithLogitsLoss(ignore_index=float("nan"))), rows, FiniteGuard(), tmp_path
    )
    assert trainer.state.finished


def test_without_it_the_training_ends_normally_with_weights_that_are_no_numbers(tmp_path):
    trainer = fit(BinaryClassifier(linear(), Breaks()), loader(), pl.Callback(), tmp_path)
    assert trainer.state.finished and trainer.lightning_module.model.weight.isnan().all()


def test_a_step_below_one_is_refused():
    with pytest.raises(ValueError, match="`every_n_steps` is 0"):
        FiniteGuard(0)


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader`", "ignore:.*across ranks is zero")
def test_a_training_without_a_batch_is_refused(tmp_path):
    rows = TensorDataset(torch.ones(3, FEATURES), torch.ones(3, 1))
    with pytest.raises(ValueError, match="has no batch: nothing was trained"):
        fit(BinaryClassifier(linear()), DataLoader(rows, batch_size=SIZE, drop_last=True), FiniteGuard(), tmp_path)


class Nothing(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


def test_a_training_on_an_empty_stream_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no batch: nothing was trained"):
        fit(BinaryClassifier(linear()), DataLoader(Nothing()), FiniteGuard(), tmp_path)
