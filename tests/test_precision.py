"""Low precision is for the model: the loss, its sums and the metrics keep theirs."""

import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import classification
from torchmetrics.functional.classification import binary_auroc, binary_hinge_loss, multilabel_coverage_error

from lightning_bce import (
    BCELoss,
    BCEWithLogitsLoss,
    BinaryClassifier,
    BrierLoss,
    FocalLoss,
    TabularMLP,
    WeightedBCELoss,
)
from lightning_bce.callbacks import PerClassLossMonitor

pytestmark = [
    # Lightning asks torch's pytree in a way that torch has deprecated; nothing that we could change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

ROWS, FEATURES, LABELS, SIZE = 4000, 5, 3, 257  # in bfloat16 a count would stop at 256, in float16 at 2048
PRECISIONS = {
    "bf16-true": torch.bfloat16,
    "bf16-mixed": torch.bfloat16,
    "16-true": torch.float16,
    "16-mixed": torch.float16,
    "32-true": torch.float32,
    "64-true": torch.float64,
}
FACTOR = 99.7  # 99.5 in bfloat16
STILL = partial(torch.optim.SGD, lr=0.0)
METRICS = {
    "Accuracy": "accuracy",
    "AveragePrecision": "average_precision",
    "AUROC": "auroc",
    "F1Score": "f1_score",
}
MONITORED = ((None, ""), (BrierLoss(), "brier_"))


class Listener(pl.Callback):
    """Keeps what the steps return."""

    def __init__(self):
        self.train, self.val = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(outputs)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.val.append(outputs)

    def seen(self, name):
        return torch.cat([outputs[name] for outputs in self.val])


def samples(labels=1, rows=ROWS):
    inputs = torch.randn(rows, FEATURES)
    target = (torch.rand(rows, labels) < torch.sigmoid(2 * inputs[:, :1])).float()
    return DataLoader(TensorDataset(inputs, target), batch_size=SIZE)


def a_classifier(loss=None, labels=1, **options):
    net = nn.Sequential(nn.Linear(FEATURES, labels))
    with torch.no_grad():
        net[0].weight.mul_(5)  # so that some logits are large
    return BinaryClassifier(net, loss, num_labels=labels, **({"metrics": []} | options))


def a_trainer(precision, *callbacks, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    if precision == "16-mixed":  # which Lightning itself has for GPUs
        plugin = MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))
        return pl.Trainer(accelerator="cpu", plugins=[plugin], callbacks=list(callbacks), **(quiet | options))
    return pl.Trainer(accelerator="cpu", precision=precision, callbacks=list(callbacks), **(quiet | options))


def validated(classifier, precision, data, trainer_options=None):
    listener = Listener()
    trainer = a_trainer(precision, listener, **(trainer_options or {}))
    (logged,) = trainer.validate(classifier, data, verbose=False)
    return logged, listener


def cross_entropy(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def weighted(logits, target):
    return cross_entropy(logits, target) * torch.where(target == 1, FACTOR, 1.0)


def focal(logits, target):
    p = torch.sigmoid(logits)
    return torch.where(target == 1, (1 - p) ** 2, p**2) * cross_entropy(logits, target)


def article(logits, target):
    p = torch.sigmoid(logits)
    return -0.75 * target * (p + 1e-5).log() - 0.25 * (1 - target) * (1 - p + 1e-5).log()


LOSSES = {
    "plain": (BCEWithLogitsLoss, {}, cross_entropy),
    "pos_weight": (BCEWithLogitsLoss, {"pos_weight": FACTOR}, weighted),
    "focal": (FocalLoss, {}, focal),
    "probabilities": (BCELoss, {}, cross_entropy),
    "article": (WeightedBCELoss, {}, article),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_logged_loss_is_that_of_the_models_logits_in_float64(precision, loss):
    cls, options, formula = LOSSES[loss]
    logged, listener = validated(a_classifier(cls(**options)), precision, samples())
    logits, target = listener.seen("logits"), listener.seen("target")
    assert logits.dtype == PRECISIONS[precision]
    assert len(logits) == ROWS
    exact = formula(logits.double(), target.double()).mean().item()
    assert logged["val_loss"] == pytest.approx(exact, rel=1e-5)
    log_loss = cross_entropy(logits.double(), target.double()).mean().item()
    assert logged["val_log_loss"] == pytest.approx(log_loss, rel=1e-5)


def test_sums_in_bfloat16_would_not_pass_this():  # so that the test above can fail
    _, listener = validated(a_classifier(), "bf16-true", samples())
    losses = cross_entropy(listener.seen("logits"), listener.seen("target"))
    exact = cross_entropy(listener.seen("logits").double(), listener.seen("target").double()).mean()
    assert losses.dtype == torch.bfloat16
    assert abs(losses.mean().double() / exact - 1) > 1e-4
    rounded = weighted(torch.zeros(1).double(), torch.ones(1).double()) * torch.tensor(FACTOR).bfloat16() / FACTOR
    assert abs(rounded / weighted(torch.zeros(1).double(), torch.ones(1).double()) - 1) > 1e-3


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("loss", ["pos_weight", "article"])
def test_the_loss_of_a_step_is_in_float32_or_better(loss, precision):
    cls, options, formula = LOSSES[loss]
    classifier, listener = a_classifier(cls(**options), optimizer=torch.optim.SGD), Listener()
    data = samples(rows=33)
    start = classifier.model[0].weight.detach().clone()
    a_trainer(precision, listener).fit(classifier, data, data)
    expected = torch.float64 if precision == "64-true" else torch.float32
    for outputs in listener.train + listener.val:
        sums = outputs["sums"]
        assert outputs["loss"].dtype == sums.loss.dtype == sums.weight.dtype == expected
        exact = formula(outputs["logits"].double(), outputs["target"].double()).mean()
        assert_close(outputs["loss"].double(), exact, rtol=1e-5, atol=1e-7)
    assert not torch.equal(classifier.model[0].weight.to(start), start)  # the gradient did arrive


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_epochs_training_loss_counts_every_row(precision):
    classifier, listener, data = a_classifier(FocalLoss(), optimizer=STILL), Listener(), samples()
    trainer = a_trainer(precision, listener, max_epochs=2)
    trainer.fit(classifier, data, data)
    one_epoch = listener.train[: len(listener.train) // 2]
    logits, target = (torch.cat([outputs[name] for outputs in one_epoch]).double() for name in ("logits", "target"))
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(focal(logits, target).mean().item(), rel=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metrics_keep_their_precision(precision):
    data = samples()
    classifier = a_classifier(metrics=["AUROC", "HingeLoss"])
    for _ in range(2):  # the second time their states are there when Lightning casts the module
        logged, listener = validated(classifier, precision, data)
        probability, target = torch.sigmoid(listener.seen("logits").float()), listener.seen("target").int()
        assert logged["val_AUROC"] == pytest.approx(binary_auroc(probability, target).item(), abs=1e-5)
        assert logged["val_HingeLoss"] == pytest.approx(binary_hinge_loss(probability, target).item(), rel=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metrics_of_several_labels_keep_their_precision(precision):
    classifier = a_classifier(labels=LABELS, metrics=["CoverageError"])
    logged, listener = validated(classifier, precision, samples(LABELS))
    probability, target = torch.sigmoid(listener.seen("logits").float()), listener.seen("target").int()
    expected = multilabel_coverage_error(probability, target, LABELS).item()
    assert logged["val_CoverageError"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_that_is_logged_in_a_fit_and_after_it_is_that_of_the_models_logits(precision):
    inputs, target = samples(LABELS).dataset.tensors
    target = torch.where(torch.rand_like(target) > 0.8, math.nan, target)
    data = DataLoader(TensorDataset(inputs, target), batch_size=SIZE)
    classifier = a_classifier(FocalLoss(ignore_index=math.nan), LABELS, metrics=None, optimizer=STILL)
    listener, monitor = Listener(), PerClassLossMonitor(print_table=False)
    trainer = a_trainer(precision, listener, monitor, max_epochs=2)
    trainer.fit(classifier, data, data)
    logits, known = (listener.seen(name)[-ROWS:] for name in ("logits", "target"))
    labels, probability = torch.where(known.isnan(), -1, known).int(), torch.sigmoid(logits.float())
    expected = {
        f"val_{name}": getattr(classification, f"multilabel_{function}")(
            probability, labels, LABELS, ignore_index=-1
        ).item()
        for name, function in METRICS.items()
    }
    for name, formula in {"val_loss": focal, "val_log_loss": cross_entropy}.items():
        expected[name] = formula(logits.double(), known.double()).nanmean().item()

    runs = [{name: value.item() for name, value in trainer.callback_metrics.items()}]
    runs += trainer.validate(classifier, data, verbose=False)  # whose states were there when it cast the module
    runs += trainer.test(classifier, data, verbose=False)
    runs[2] = {name.replace("test_", "val_"): value for name, value in runs[2].items()}
    for logged in runs:
        assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    for stage in ("val", "test"):
        (result,) = monitor.results[stage]
        assert (result["negative_weight"] == (labels == 0).sum(0)).all()
        assert (result["positive_weight"] == (labels == 1).sum(0)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_monitor_of_any_loss_is_as_exact_by_label(precision):
    own, brier = (PerClassLossMonitor(loss=loss, prefix=p, print_table=False) for loss, p in MONITORED)
    listener = Listener()
    trainer = a_trainer(precision, listener, own, brier)
    trainer.validate(a_classifier(FocalLoss(), LABELS), samples(LABELS), verbose=False)
    logits, target = listener.seen("logits").double(), listener.seen("target").double()
    for monitor, losses in ((own, focal(logits, target)), (brier, (torch.sigmoid(logits) - target) ** 2)):
        (result,) = monitor.results["val"]
        assert_close(result["class_loss"], losses.mean(0), rtol=1e-5, atol=0)
        positive = (losses * target).sum(0) / target.sum(0)
        assert_close(result["positive_loss"], positive, rtol=1e-5, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_prediction_is_in_float32(precision):
    found = a_trainer(precision).predict(a_classifier(), samples(rows=33))
    assert {part["probability"].dtype for part in found} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_loss_that_has_been_cast_is_as_exact_in_the_next_run(precision):
    classifier, data = a_classifier(BCEWithLogitsLoss(pos_weight=FACTOR, class_weight=[0.3])), samples()
    before, _ = validated(classifier, "32-true", data)
    validated(classifier, precision, data)
    assert classifier.loss.pos_weight.item() == FACTOR
    assert classifier.loss.class_weight.item() == 0.3
    logged, listener = validated(classifier.float(), "32-true", data)
    exact = 0.3 * weighted(listener.seen("logits").double(), listener.seen("target").double()).mean().item()
    assert logged["val_loss"] == pytest.approx(exact, rel=1e-6)
    if precision == "64-true":
        assert logged["val_loss"] == pytest.approx(before["val_loss"], rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_checkpoint_of_another_precision_loads(precision, tmp_path):
    net = TabularMLP(FEATURES, hidden=(7,), dropout=0.0)
    classifier, data = BinaryClassifier(net, BCEWithLogitsLoss(pos_weight=FACTOR), metrics=[]), samples(rows=33)
    trainer = a_trainer(precision)
    trainer.fit(classifier, data, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert found.loss.pos_weight.item() == FACTOR
    expected = {name: value.to(found.state_dict()[name]) for name, value in classifier.state_dict().items()}
    assert_close(found.float().state_dict(), expected, rtol=0, atol=0)
