"""BinaryClassifier: what it logs is exact, what it refuses it explains, and what a project overrides it follows."""

import math
import os
import warnings
from functools import partial
from operator import itemgetter

import lightning.pytorch as pl
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
import torchmetrics
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAccuracy, BinaryFBetaScore, MultilabelAUROC, MultilabelF1Score

from lightning_bce import (
    Batch,
    BCELoss,
    BCEWithLogitsLoss,
    BinaryClassifier,
    BinaryLoss,
    FocalLoss,
    Recorded,
    TabularMLP,
    WeightedBCELoss,
)
from lightning_bce.spec import SpecError

pytestmark = [
    # Lightning asks torch's pytree in a way that torch has deprecated; nothing that we could change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]

ROWS, FEATURES, LABELS, SIZE = 33, 5, 3, 8  # the last batch has one row
NAN = math.nan
STILL = partial(torch.optim.SGD, lr=0.0)  # the weights stay, so that the loss of an epoch is that of one model


# -- means ------------------------------------------------------------------------------------------------------------


class Raises(Recorded, nn.Module):
    """Fails at the batch that it is told."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, inputs):
        self.calls += 1
        if self.calls == self.at:
            raise RuntimeError("interrupted")
        return inputs[:, :1]


class Given(Recorded, nn.Module):
    """Returns its inputs, in a shape of choice, as logits."""

    def __init__(self, tail=(-1,)):
        super().__init__()
        self.tail = tail
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return inputs.reshape(len(inputs), *self.tail) * self.scale


class Smoothed(BCEWithLogitsLoss):
    """A user's loss that is a BCEWithLogitsLoss and not the log-loss."""

    def elementwise(self, logits, target):
        return super().elementwise(logits, 0.9 * target + 0.05)


class Tempered(BinaryLoss):
    """A user's loss with a trainable part."""

    def __init__(self, start=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))

    def elementwise(self, logits, target):
        return F.binary_cross_entropy_with_logits(logits * self.scale, target, reduction="none")


class Dated(BCEWithLogitsLoss):
    """A user's loss that depends on the epoch."""

    def __init__(self, **options):
        super().__init__(**options)
        self.epochs = []

    def start_epoch(self, epoch):
        self.epochs.append(epoch)


class SeenRows(torchmetrics.Metric):
    """Counts the labels it is shown."""

    def __init__(self):
        super().__init__()
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probability, labels):
        self.rows = self.rows + labels.numel()

    def compute(self):
        return self.rows


class Listener(pl.Callback):
    """Keeps what the steps return."""

    def __init__(self):
        self.train, self.val, self.rates = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.train.append(outputs)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.val.append(outputs)


class Notebook(Logger):
    """A logger that keeps what it is told."""

    name, version = "notebook", 0

    def __init__(self):
        super().__init__()
        self.rows, self.hparams = [], None

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def log_hyperparams(self, params, *args, **kwargs):
        self.hparams = dict(params)

    def column(self, name):
        return [row[name] for row in self.rows if name in row]


def loader(batch, size=SIZE):
    """Return a loader of one big batch, of any form, cut into small ones."""
    rows = len(next(iter(batch.values())) if isinstance(batch, dict) else batch[0])
    parts = [slice(start, start + size) for start in range(0, rows, size)]
    return DataLoader([apply_to_collection(batch, torch.Tensor, itemgetter(part)) for part in parts], batch_size=None)


def a_trainer(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
    }
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | options))


def evaluate(classifier, batch, stage="validate", size=SIZE):
    (found,) = getattr(a_trainer(), stage)(classifier, loader(batch, size), verbose=False)
    return found


def fit(classifier, batch, *callbacks, **options):
    trainer = a_trainer(*callbacks, **options)
    trainer.fit(classifier, loader(batch), loader(batch))
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def samples(labels=1, rows=ROWS):
    return torch.randn(rows, FEATURES), (torch.rand(rows, labels) > 0.6).float()


def a_classifier(labels=1, loss=None, **options):
    net = TabularMLP(FEATURES, labels, hidden=(7,), dropout=0.0)
    return BinaryClassifier(net, loss, num_labels=labels, **({"metrics": [], "optimizer": STILL} | options))


def cross_entropy(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def focal(logits, target, gamma=1.5, alpha=0.3):
    p = torch.sigmoid(logits)
    return -alpha * (1 - p) ** gamma * target * p.log() - (1 - alpha) * p**gamma * (1 - target) * (1 - p).log()


def article(logits, target, alpha=0.3, eps=1e-5):
    p = torch.sigmoid(logits)
    return -(1 - alpha) * target * (p + eps).log() - alpha * (1 - target) * (1 - p + eps).log()


def over_all(losses, valid, weight, reduction):
    """Return the mean over the whole set, as the table in BinaryLoss's docstring defines it."""
    total = (losses * weight)[valid].sum()
    if reduction == "weighted_mean":
        return total / weight.expand_as(losses)[valid].sum()
    if reduction == "batchmean":
        return total / valid.any(1).sum()
    return total / valid.sum()


# -- the exact loss ---------------------------------------------------------------------------------------------------

LOSSES = {
    "plain": (BCEWithLogitsLoss, {}, cross_entropy),
    "pos_weight": (
        BCEWithLogitsLoss,
        {"pos_weight": [1.0, 3.0, 7.3]},
        lambda x, y: cross_entropy(x, y) * torch.where(y == 1, torch.tensor([1.0, 3.0, 7.3]).double(), 1.0),
    ),
    "class_weight": (
        BCEWithLogitsLoss,
        {"class_weight": [0.2, 1.0, 5.0]},
        lambda x, y: cross_entropy(x, y) * torch.tensor([0.2, 1.0, 5.0]).double(),
    ),
    "smoothed": (Smoothed, {}, lambda x, y: cross_entropy(x, 0.9 * y + 0.05)),
    "focal": (FocalLoss, {"gamma": 1.5, "alpha": 0.3}, focal),
    "probabilities": (BCELoss, {}, cross_entropy),
    "article": (WeightedBCELoss, {"alpha": 0.3}, article),
}
SETTINGS = [
    *((name, "mean", parts) for name in LOSSES for parts in [(), ("weight", "mask", "nan")]),
    *(("plain", reduction, parts) for reduction in ["mean", "sum"] for parts in [("weight",), ("mask",), ("nan",)]),
    *(
        (name, reduction, parts)
        for name in ["plain", "focal", "article"]
        for reduction in ["weighted_mean", "batchmean"]
        for parts in [("weight",), ("weight", "mask", "nan")]
    ),
]


@pytest.mark.parametrize(("name", "reduction", "parts"), SETTINGS)
def test_the_logged_losses_are_those_of_the_whole_set(name, reduction, parts):
    cls, options, elements = LOSSES[name]
    inputs, target = samples(LABELS)
    valid, weight = torch.ones(ROWS, LABELS, dtype=torch.bool), torch.ones(ROWS, 1)
    batch = {"inputs": inputs, "target": target}
    if "weight" in parts:
        weight = 3 * torch.rand(ROWS, 1)
        batch["weight"] = weight[:, 0]
    if "mask" in parts:
        valid = torch.rand(ROWS, LABELS) > 0.3
        valid[5] = False  # a row of which nothing is known
        batch["mask"] = valid
    if "nan" in parts:
        unknown = torch.rand(ROWS, LABELS) > 0.8
        valid = valid & ~unknown
        batch["target"] = torch.where(unknown, NAN, target)
        options = options | {"ignore_index": NAN}
    classifier = a_classifier(LABELS, cls(reduction=reduction, **options))
    logged = fit(classifier, batch)
    logged |= evaluate(classifier, batch, "test")

    logits, target = classifier(inputs).detach().double(), target.double()
    expected = over_all(elements(logits, target), valid, weight.double(), reduction).item()
    log_loss = cross_entropy(logits, target)[valid].mean().item()
    assert logged["train_loss"] == pytest.approx(expected, rel=2e-6)
    assert logged["val_loss"] == pytest.approx(expected, rel=2e-6)
    assert logged["test_loss"] == pytest.approx(expected, rel=2e-6)
    assert logged["val_log_loss"] == pytest.approx(log_loss, rel=2e-6)
    assert logged["test_log_loss"] == pytest.approx(log_loss, rel=2e-6)


def test_the_mean_of_the_batches_would_be_another_number():  # so that the test above can fail
    classifier, (inputs, target) = a_classifier(), samples()
    losses = cross_entropy(classifier(inputs), target)
    of_batches = torch.stack([part.mean() for part in losses.split(SIZE)]).mean()
    assert abs(of_batches - losses.mean()) > 1e-4
    assert evaluate(classifier, (inputs, target))["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-6)


@pytest.mark.parametrize("loss", [None, FocalLoss(), WeightedBCELoss(), BCEWithLogitsLoss(pos_weight=9.0)], ids=str)
def test_the_log_loss_is_scikit_learns_whatever_is_trained(loss):
    classifier, (inputs, target) = a_classifier(loss=loss), samples()
    probability = torch.sigmoid(classifier(inputs).detach().double())
    logged = evaluate(classifier, (inputs, target))
    assert logged["val_log_loss"] == pytest.approx(sklearn.metrics.log_loss(target, probability), rel=1e-6)


@pytest.mark.parametrize("size", [1, 7, 33, 257])
def test_the_size_of_the_batches_changes_no_logged_value(size):
    classifier, batch = a_classifier(metrics=None), samples(rows=257)
    found, whole = evaluate(classifier, batch, size=size), evaluate(classifier, batch, size=1000)
    assert found == pytest.approx(whole, rel=1e-5)


def test_a_loss_on_probabilities_receives_the_sigmoid():
    inputs, target = 3 * torch.randn(ROWS, 1), (torch.rand(ROWS, 1) > 0.5).float()
    on_logits = evaluate(BinaryClassifier(Given(), metrics=[]), (inputs, target))
    on_probabilities = evaluate(BinaryClassifier(Given(), BCELoss(), metrics=[]), (inputs, target))
    assert on_probabilities == pytest.approx(on_logits, rel=1e-5)


# -- names ------------------------------------------------------------------------------------------------------------

METRICS = {"Accuracy", "AveragePrecision", "AUROC", "F1Score", "MatthewsCorrCoef"}


@pytest.mark.parametrize(("labels", "metrics"), [(1, METRICS | {"CalibrationError"}), (LABELS, METRICS)])
def test_the_logged_names_are_these(labels, metrics):
    classifier, batch, notebook = a_classifier(labels, metrics=None), samples(labels), Notebook()
    trainer = a_trainer(logger=notebook, log_every_n_steps=1)
    trainer.fit(classifier, loader(batch), loader(batch))
    val = {"val_loss", "val_log_loss", *(f"val_{name}" for name in metrics)}
    assert set(trainer.callback_metrics) == {"train_loss", "train_loss_step"} | val
    assert set().union(*notebook.rows) == {"train_loss", "train_loss_step", "epoch"} | val
    trainer.test(classifier, loader(batch), verbose=False)
    assert set(trainer.callback_metrics) == {name.replace("val_", "test_") for name in val}


def test_the_loss_of_each_step_is_logged():
    classifier, (inputs, target), notebook = a_classifier(), samples(), Notebook()
    fit(classifier, (inputs, target), logger=notebook, log_every_n_steps=1)
    losses = cross_entropy(classifier(inputs), target)
    assert notebook.column("train_loss_step") == pytest.approx([part.mean().item() for part in losses.split(SIZE)])


def test_a_logger_is_given_plain_hyper_parameters():
    notebook = Notebook()
    fit(a_classifier(loss=FocalLoss()), samples(), logger=notebook, log_every_n_steps=1)
    assert notebook.hparams["loss"]["class_path"].endswith("FocalLoss")
    assert notebook.hparams["loss"]["init_args"]["gamma"] == 2.0


def test_several_validation_sets_are_logged_each():
    classifier, first, second = a_classifier(), samples(), samples(rows=7)
    trainer = a_trainer()
    trainer.fit(classifier, loader(first), [loader(first), loader(second)])
    logged = trainer.callback_metrics
    for index, (inputs, target) in enumerate([first, second]):
        expected = cross_entropy(classifier(inputs), target).mean()
        assert_close(logged[f"val_loss/dataloader_idx_{index}"], expected.detach())
        assert_close(logged[f"val_log_loss/dataloader_idx_{index}"], expected.detach())
    assert "val_loss" not in logged


# -- metrics ----------------------------------------------------------------------------------------------------------


def by_scikit_learn(probability, target, threshold):
    decision = probability > threshold
    return {
        "Accuracy": sklearn.metrics.accuracy_score(target, decision),
        "AveragePrecision": sklearn.metrics.average_precision_score(target, probability),
        "AUROC": sklearn.metrics.roc_auc_score(target, probability),
        "F1Score": sklearn.metrics.f1_score(target, decision),
    }


@pytest.mark.parametrize("threshold", [0.5, 0.47])
def test_the_metrics_of_one_label_are_scikit_learns(threshold):
    classifier, (inputs, target) = a_classifier(metrics=None, threshold=threshold), samples(rows=257)
    logged = evaluate(classifier, (inputs, target))
    probability = torch.sigmoid(classifier(inputs).detach())
    expected = by_scikit_learn(probability, target, threshold)
    expected["MatthewsCorrCoef"] = sklearn.metrics.matthews_corrcoef(target, probability > threshold)
    for name, value in expected.items():
        assert logged[f"val_{name}"] == pytest.approx(value, abs=1e-5), name
    whole = torchmetrics.functional.classification.binary_calibration_error(probability, target.int())
    assert logged["val_CalibrationError"] == pytest.approx(whole.item(), abs=1e-6)


def test_the_metrics_of_several_labels_are_the_means_of_scikit_learns():
    classifier, (inputs, target) = a_classifier(LABELS, metrics=None), samples(LABELS, rows=257)
    logged = evaluate(classifier, (inputs, target))
    probability = torch.sigmoid(classifier(inputs).detach())
    each = [by_scikit_learn(probability[:, c], target[:, c], 0.5) for c in range(LABELS)]
    for name in each[0]:
        assert logged[f"val_{name}"] == pytest.approx(sum(m[name] for m in each) / LABELS, abs=1e-5), name
    matthews = torchmetrics.functional.classification.multilabel_matthews_corrcoef
    assert logged["val_MatthewsCorrCoef"] == pytest.approx(matthews(probability, target.int(), LABELS).item(), abs=1e-6)


@pytest.mark.parametrize("how", ["mask", "nan"])
def test_unknown_labels_are_left_out_of_every_metric(how):
    (inputs, target), known = samples(rows=257), torch.rand(257, 1) > 0.4
    garbage = torch.where(known, target, NAN if how == "nan" else 1 - target)
    batch = {"inputs": inputs, "target": garbage} | ({"mask": known} if how == "mask" else {})
    loss = BCEWithLogitsLoss(ignore_index=NAN) if how == "nan" else None
    classifier = a_classifier(loss=loss, metrics=None)
    rows = known[:, 0]
    expected = evaluate(classifier, (inputs[rows], target[rows]))
    assert evaluate(classifier, batch) == pytest.approx(expected, abs=1e-5)
    assert evaluate(classifier, (inputs, target)) != pytest.approx(expected, abs=1e-3)  # it does make a difference


def test_unknown_labels_of_several_are_left_out_label_by_label():
    (inputs, target), known = samples(LABELS, rows=257), torch.rand(257, LABELS) > 0.4
    classifier = a_classifier(LABELS, BCEWithLogitsLoss(ignore_index=NAN), metrics=None)
    logged = evaluate(classifier, (inputs, torch.where(known, target, NAN)))
    p = torch.sigmoid(classifier(inputs).detach())
    each = [by_scikit_learn(p[:, c][known[:, c]], target[:, c][known[:, c]], 0.5) for c in range(LABELS)]
    for name in each[0]:
        assert logged[f"val_{name}"] == pytest.approx(sum(m[name] for m in each) / LABELS, abs=1e-5), name


def test_a_label_of_which_nothing_is_known_is_left_out():
    (inputs, target), known = samples(LABELS), torch.rand(ROWS, LABELS) > 0.3
    known[:, 1] = False
    classifier = a_classifier(LABELS, BCEWithLogitsLoss(ignore_index=NAN), metrics=None)
    logged = evaluate(classifier, (inputs, torch.where(known, target, NAN)))
    p = torch.sigmoid(classifier(inputs).detach())
    each = [by_scikit_learn(p[:, c][known[:, c]], target[:, c][known[:, c]], 0.5) for c in (0, 2)]
    for name in each[0]:
        assert logged[f"val_{name}"] == pytest.approx(sum(m[name] for m in each) / 2, abs=1e-5), name


@pytest.mark.parametrize("labels", [1, LABELS])
def test_of_nothing_known_the_values_are_nan(labels):
    inputs, target = samples(labels)
    classifier = a_classifier(labels, BCEWithLogitsLoss(ignore_index=NAN), metrics=["AUROC", "Accuracy", "F1Score"])
    logged = evaluate(classifier, (inputs, torch.full_like(target, NAN)))
    assert len(logged) == 5 and all(map(math.isnan, logged.values())), logged


@pytest.mark.parametrize("labels", [1, LABELS])
def test_a_batch_that_is_empty_or_unknown_changes_nothing(labels):
    inputs, target = samples(labels)
    classifier = a_classifier(labels, BCEWithLogitsLoss(ignore_index=NAN), metrics=None)
    parts = [(inputs, target), (inputs[:0], target[:0]), (inputs, torch.full_like(target, NAN))]
    for order in (parts, parts[::-1]):
        (logged,) = a_trainer().validate(classifier, DataLoader(order, batch_size=None), verbose=False)
        assert logged == pytest.approx(evaluate(classifier, (inputs, target)), abs=1e-6)


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_a_ranking_of_one_class_is_nan_and_not_a_number(only):
    inputs, target = samples()
    logged = evaluate(a_classifier(metrics=None), (inputs, torch.full_like(target, only)))
    assert math.isnan(logged["val_AUROC"]) and math.isnan(logged["val_AveragePrecision"])
    assert math.isfinite(logged["val_loss"])


def test_the_mean_over_labels_leaves_out_those_of_one_class():
    inputs, target = samples(LABELS)
    target[:, 1] = 0.0
    classifier = a_classifier(LABELS, metrics=None)
    logged = evaluate(classifier, (inputs, target))
    p = torch.sigmoid(classifier(inputs).detach())
    each = [by_scikit_learn(p[:, c], target[:, c], 0.5) for c in (0, 2)]
    for name in ("AUROC", "AveragePrecision"):
        assert logged[f"val_{name}"] == pytest.approx(sum(m[name] for m in each) / 2, abs=1e-5)


def test_no_metrics_are_none():
    assert set(evaluate(a_classifier(metrics=[]), samples())) == {"val_loss", "val_log_loss"}


def test_metrics_are_chosen_by_name_or_given_as_objects():
    inputs, target = samples()
    classifier = a_classifier(metrics=["Recall", BinaryFBetaScore(beta=2.0), BinaryAccuracy(threshold=0.4)])
    logged = evaluate(classifier, (inputs, target))
    p = torch.sigmoid(classifier(inputs).detach())
    assert set(logged) == {"val_loss", "val_log_loss", "val_Recall", "val_FBetaScore", "val_Accuracy"}
    assert logged["val_Recall"] == pytest.approx(sklearn.metrics.recall_score(target, p > 0.5))
    assert logged["val_FBetaScore"] == pytest.approx(sklearn.metrics.fbeta_score(target, p > 0.5, beta=2.0))
    assert logged["val_Accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(target, p > 0.4))


@pytest.mark.parametrize("labels", [1, LABELS])
def test_every_metric_of_torchmetrics_that_is_a_number_goes_by_its_name(labels):
    prefix, found = "Binary" if labels == 1 else "Multilabel", []
    for name, cls in vars(torchmetrics.classification).items():
        if not name.startswith(prefix):
            continue
        try:
            a_classifier(labels, metrics=[name.removeprefix(prefix)])
        except ValueError as error:
            assert "Pass a metric object" in str(error) or "not one number" in str(error)
        else:
            found.append((name.removeprefix(prefix), cls))
    assert len(found) > 10
    classifier, (inputs, target) = a_classifier(labels, metrics=[name for name, _ in found]), samples(labels)
    logged = evaluate(classifier, (inputs, target))
    probability = torch.sigmoid(classifier(inputs).detach())
    for name, cls in found:
        metric = cls() if labels == 1 else cls(labels)
        expected = metric(probability, target.int()).mean().item()  # by default torchmetrics takes the mean as well
        assert logged[f"val_{name}"] == pytest.approx(expected, abs=1e-5), name


@pytest.mark.parametrize("labels", [1, LABELS])
def test_what_torchmetrics_lacks_goes_by_its_name_too(labels):
    classifier, (inputs, target) = (
        a_classifier(labels, metrics=["LogLoss", "BrierScore", "CalibrationError"]),
        samples(labels),
    )
    logged = evaluate(classifier, (inputs, target))
    probability = torch.sigmoid(classifier(inputs).detach())
    assert logged["val_LogLoss"] == pytest.approx(logged["val_log_loss"], abs=1e-6)
    assert logged["val_BrierScore"] == pytest.approx((probability - target).square().mean().item(), abs=1e-6)
    assert 0 < logged["val_CalibrationError"] < 1


def test_a_metric_object_averages_over_labels_in_its_own_way():
    inputs, target = samples(LABELS)
    given = [MultilabelAUROC(LABELS, average="macro"), MultilabelF1Score(LABELS, average="micro")]
    classifier = a_classifier(LABELS, metrics=given)
    logged = evaluate(classifier, (inputs, target))
    p = torch.sigmoid(classifier(inputs).detach())
    assert logged["val_AUROC"] == pytest.approx(sklearn.metrics.roc_auc_score(target, p), abs=1e-6)
    assert logged["val_F1Score"] == pytest.approx(sklearn.metrics.f1_score(target, p > 0.5, average="micro"), abs=1e-6)


def test_a_metric_object_stays_the_callers():
    metric = SeenRows()
    evaluate(a_classifier(metrics=[metric]), samples())
    assert metric.rows == 0


@pytest.mark.parametrize(
    ("name", "nearest"), [("AUROCC", "AUROC"), ("BinaryAUROC", "AUROC"), ("accuracy", "Accuracy"), ("F1", "F1Score")]
)
def test_an_unknown_metric_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"'{name}'.*Did you mean [^?]*\b{nearest}\b"):
        a_classifier(metrics=[name])
    a_classifier(metrics=[nearest])


def test_a_metric_of_one_label_only_is_refused_for_several():
    with pytest.raises(ValueError, match="neither torchmetrics nor lightning_bce has MultilabelCohenKappa"):
        a_classifier(LABELS, metrics=["CohenKappa"])
    a_classifier(1, metrics=["CohenKappa"])


def test_a_metric_that_needs_arguments_says_so():
    with pytest.raises(ValueError, match="Pass a metric object"):
        a_classifier(metrics=["FBetaScore"])


def test_the_same_metric_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        a_classifier(metrics=["Accuracy", BinaryAccuracy()])


@pytest.mark.parametrize("name", ["ROC", "PrecisionRecallCurve", "ConfusionMatrix", "StatScores"])
@pytest.mark.parametrize("labels", [1, LABELS])
def test_a_metric_that_is_no_number_is_refused(labels, name):
    match = f"{name}, whose value is not one number"
    with pytest.raises(ValueError, match=match):
        a_classifier(labels, metrics=[name])
    cls = getattr(torchmetrics.classification, ("Binary" if labels == 1 else "Multilabel") + name)
    with pytest.raises(ValueError, match=match):
        evaluate(a_classifier(labels, metrics=[cls() if labels == 1 else cls(labels)]), samples(labels))


# -- decisions --------------------------------------------------------------------------------------------------------


def test_a_decision_is_above_the_threshold_and_not_at_it():
    logits = torch.tensor([[-1.0], [0.0], [1e-3]])
    classifier = BinaryClassifier(Given(), metrics=["Accuracy"])
    (outputs,) = a_trainer().predict(classifier, loader((logits,)))
    assert outputs["decision"].tolist() == [False, False, True]
    logged = evaluate(classifier, (logits, torch.tensor([[0.0], [0.0], [1.0]])))
    assert logged["val_Accuracy"] == 1.0


@pytest.mark.parametrize(("threshold", "positives"), [(0.0, 3), (1.0, 0)])
def test_at_the_ends_of_the_threshold_all_or_none_is_positive(threshold, positives):
    classifier = BinaryClassifier(Given(), threshold=threshold)
    (outputs,) = a_trainer().predict(classifier, loader((torch.tensor([[-50.0], [0.0], [50.0]]),)))
    assert outputs["decision"].sum() == positives


def test_a_prediction_is_a_float32_probability_with_its_id():
    inputs, _ = samples(LABELS)
    classifier = a_classifier(LABELS)
    found = a_trainer().predict(classifier, loader({"inputs": inputs, "id": torch.arange(ROWS)}))
    probability = torch.cat([part["probability"] for part in found])
    assert probability.dtype == torch.float32
    assert_close(probability, torch.sigmoid(classifier(inputs)).detach())
    assert torch.cat([part["id"] for part in found]).tolist() == list(range(ROWS))
    assert torch.equal(torch.cat([part["decision"] for part in found]), probability > 0.5)


@pytest.mark.parametrize("tail", [(), (1,)])
def test_the_predictions_of_one_label_are_a_column_less(tail):
    classifier = BinaryClassifier(Given(tail))
    found = a_trainer().predict(classifier, DataLoader(torch.randn(ROWS), batch_size=SIZE))  # the inputs alone
    assert [tuple(part["probability"].shape) for part in found] == [(8,)] * 4 + [(1,)]


# -- shapes and forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, ROWS])  # one row: (1, 1) must not become (); two: not one of two labels
@pytest.mark.parametrize("tail_of_target", [(), (1,)])
@pytest.mark.parametrize("tail_of_output", [(), (1,)])
def test_a_last_dimension_of_one_makes_no_difference(tail_of_output, tail_of_target, rows):
    logits, target, weight = torch.randn(rows), (torch.rand(rows) > 0.5).float(), torch.rand(rows)
    classifier = BinaryClassifier(Given(tail_of_output), metrics=["Accuracy"])
    logged = evaluate(classifier, (logits, target.reshape(rows, *tail_of_target), weight))
    assert logged["val_loss"] == pytest.approx((weight * cross_entropy(logits, target)).mean().item(), rel=1e-5)
    assert logged["val_Accuracy"] == pytest.approx(((logits > 0) == (target == 1)).float().mean().item())


@pytest.mark.parametrize(("tail", "advice"), [((2,), "one output, not one for each class"), ((3,), "num_labels")])
def test_an_output_of_another_width_is_refused_with_advice(tail, advice):
    classifier = BinaryClassifier(Given(tail), metrics=[])
    inputs = torch.randn(ROWS, *tail)
    with pytest.raises(ValueError, match=advice):
        evaluate(classifier, (inputs, torch.zeros(ROWS, 1)))
    with pytest.raises(ValueError, match=advice):
        a_trainer().predict(classifier, loader((inputs,)))


def test_an_output_without_a_batch_is_refused():
    classifier = BinaryClassifier(nn.Sequential(nn.Flatten(0)), metrics=[])
    classifier.forward = lambda inputs: inputs.squeeze()  # what a model with `squeeze()` does to a batch of one
    with pytest.raises(ValueError, match=r"shape \(\)"):
        classifier.validation_step((torch.randn(1, 1), torch.zeros(1, 1)), 0)
    classifier.validation_step((torch.randn(2, 1), torch.zeros(2)), 0)


@pytest.mark.parametrize("shape", [(ROWS, 2), (ROWS + 1, 1), (1, ROWS)])
def test_a_target_of_another_shape_is_refused(shape):
    classifier = BinaryClassifier(Given((1,)), metrics=[])
    with pytest.raises(ValueError, match="must be equal"):
        classifier.validation_step((torch.randn(ROWS, 1), torch.zeros(shape)), 0)


def test_dense_labels_are_so_many_elements():
    shape = (7, LABELS, 5, 4)
    logits, target, known = torch.randn(shape), (torch.rand(shape) > 0.5).float(), torch.rand(shape) > 0.3
    classifier = BinaryClassifier(Given(shape[1:]), num_labels=LABELS, metrics=["Accuracy", "AUROC"])
    logged = evaluate(classifier, {"inputs": logits, "target": target, "mask": known}, size=2)
    assert logged["val_loss"] == pytest.approx(cross_entropy(logits, target)[known].mean().item(), rel=1e-6)
    each = [
        by_scikit_learn(torch.sigmoid(logits[:, c][known[:, c]]), target[:, c][known[:, c]], 0.5) for c in range(LABELS)
    ]
    for name in ("Accuracy", "AUROC"):
        assert logged[f"val_{name}"] == pytest.approx(sum(m[name] for m in each) / LABELS, abs=1e-6)
    (outputs,) = a_trainer().predict(classifier, loader((logits,)))
    assert outputs["probability"].shape == shape


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float64])
def test_a_target_of_any_real_type_is_taken(dtype):
    inputs, target = samples()
    classifier = a_classifier(metrics=None)
    assert evaluate(classifier, (inputs, target.to(dtype))) == pytest.approx(evaluate(classifier, (inputs, target)))


def test_every_form_of_a_batch_gives_the_same():
    (inputs, target), weight = samples(), torch.rand(ROWS)
    forms = [
        (inputs, target, weight),
        [inputs, target, weight],
        {"inputs": inputs, "target": target, "weight": weight},
        {"inputs": inputs, "target": target, "weight": weight, "id": list("abc"), "note": "more is no harm"},
        Batch(inputs, target, weight),
    ]
    classifier = a_classifier()
    first, *others = (evaluate(classifier, form) for form in forms)
    assert all(other == first for other in others)
    assert first != evaluate(classifier, (inputs, target))  # the weight is not lost


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        ((1, 2, 3, 4), "a tuple of 4"),
        ((), "a tuple of 0"),
        ({"image": 1, "label": 2}, r"a mapping with \['image', 'label'\]"),
        ("text", "a str"),
        (None, "a NoneType"),
    ],
    ids=repr,
)
def test_a_batch_of_another_form_is_refused_with_the_way_out(batch, came):
    with pytest.raises(TypeError, match=rf"The batch is {came}.*override `unpack_batch`"):
        a_classifier().unpack_batch(batch)


@pytest.mark.parametrize(
    "batch", [torch.zeros(7, FEATURES), (torch.zeros(7, FEATURES),), {"inputs": torch.zeros(7, 5)}]
)
def test_a_missing_target_is_said(batch):
    with pytest.raises(TypeError, match="no target"):
        a_classifier().training_step(batch, 0)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_wrong_labels_are_found_in_every_stage(stage):
    inputs, target = samples()
    classifier = a_classifier()
    evaluate(classifier, (inputs, target))  # that a batch has been seen to be right does not speak for the others
    wrong = (inputs, target + 1)
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        fit(classifier, wrong) if stage == "fit" else evaluate(classifier, wrong, stage)


# -- what a step returns ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean", "weighted_mean"])
@pytest.mark.parametrize("loss", [FocalLoss, WeightedBCELoss])
def test_the_outputs_are_detached_but_the_loss_and_add_up_to_it(loss, reduction):
    classifier = a_classifier(LABELS, loss(reduction=reduction))
    inputs, target = samples(LABELS)
    outputs = classifier.validation_step((inputs, target, torch.rand(ROWS)), 0)
    assert set(outputs) == {"loss", "logits", "target", "sums"}
    assert outputs["loss"].requires_grad
    sums = outputs["sums"]
    assert not any(t.requires_grad for t in (outputs["logits"], outputs["target"], sums.loss, sums.weight))
    assert sums.loss.shape == sums.weight.shape == (LABELS, 2)
    assert_close(sums.loss.sum() if reduction == "sum" else sums.mean(), outputs["loss"].detach())
    scores = outputs["logits"] if loss.input_space == "logits" else torch.sigmoid(outputs["logits"])
    assert torch.equal(outputs["logits"], classifier(inputs).detach())
    assert_close(classifier.loss(scores, target), loss(reduction=reduction)(scores, target))


def test_the_gradient_is_that_of_the_loss():
    classifier, (inputs, target) = a_classifier(loss=BCEWithLogitsLoss(pos_weight=3.0)), samples()
    parameters = list(classifier.parameters())
    found = torch.autograd.grad(classifier.validation_step((inputs, target), 0)["loss"], parameters)
    torchs = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))(classifier(inputs), target)
    assert_close(found, torch.autograd.grad(torchs, parameters))


def test_accumulated_gradients_change_no_logged_value():
    classifier, (inputs, target) = a_classifier(), samples()
    batch = inputs, target
    books, listeners = [Notebook(), Notebook()], [Listener(), Listener()]
    for number, book, listener in zip([1, 2], books, listeners, strict=True):
        fit(classifier, batch, listener, logger=book, log_every_n_steps=1, accumulate_grad_batches=number)
    for name in ("train_loss", "val_loss"):
        assert books[0].column(name) == books[1].column(name) != []
    losses = cross_entropy(classifier(inputs), target)
    for number, book in zip([1, 2], books, strict=True):  # once for each step of the optimizer, the last of one batch
        of_windows = [part.mean().item() for part in losses.split(number * SIZE)]
        assert book.column("train_loss_step") == pytest.approx(of_windows, rel=1e-6)
    for once, accumulated in zip(listeners[0].train, listeners[1].train, strict=True):
        assert_close(accumulated["sums"].mean(), once["loss"])
        assert_close(accumulated["loss"], once["loss"] / 2)  # Lightning's own: the part of the window


# -- epochs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sanity", [0, 2, -1])
def test_the_sanity_check_is_not_counted(sanity):
    classifier, (inputs, target) = a_classifier(metrics=[SeenRows()]), samples()
    book = Notebook()
    fit(classifier, (inputs, target), logger=book, log_every_n_steps=1, num_sanity_val_steps=sanity)
    assert book.column("val_SeenRows") == [ROWS]
    assert book.column("val_loss") == pytest.approx([cross_entropy(classifier(inputs), target).mean().item()])


def test_every_epoch_and_every_fit_begin_at_zero():
    classifier, (inputs, target) = a_classifier(metrics=[SeenRows()]), samples()
    expected = pytest.approx(cross_entropy(classifier(inputs), target).mean().item())
    for _ in range(2):
        book = Notebook()
        fit(classifier, (inputs, target), logger=book, log_every_n_steps=1, max_epochs=2)
        assert book.column("val_SeenRows") == [ROWS] * 2
        assert book.column("train_loss") == [expected] * 2
    logged = fit(classifier, (inputs[:7], target[:7]), max_epochs=2)
    assert logged["train_loss"] == pytest.approx(cross_entropy(classifier(inputs[:7]), target[:7]).mean().item())
    assert logged["train_loss"] != expected
    assert evaluate(classifier, (inputs[:7], target[:7]), "validate")["val_SeenRows"] == 7
    assert evaluate(classifier, (inputs[:7], target[:7]), "test")["test_SeenRows"] == 7


def test_a_validation_within_an_epoch_leaves_the_training_loss_whole():
    classifier, (inputs, target) = a_classifier(), samples()
    trainer = a_trainer(val_check_interval=2)
    trainer.fit(classifier, loader((inputs, target)), loader((inputs[:7], target[:7])))
    assert_close(trainer.callback_metrics["train_loss"], cross_entropy(classifier(inputs), target).mean().detach())


def test_the_loss_is_told_which_epoch_begins_and_goes_on_from_a_checkpoint(tmp_path):
    batch = samples()
    for loss in (Dated(), 2.0 * Dated() + BCEWithLogitsLoss()):
        classifier = a_classifier(loss=loss)
        trainer = a_trainer(max_epochs=2, num_sanity_val_steps=2)
        trainer.fit(classifier, loader(batch), loader(batch))
        assert epochs_of(classifier) == [0, 1]
        trainer.save_checkpoint(tmp_path / "two.ckpt")
        again = BinaryClassifier.load_from_checkpoint(tmp_path / "two.ckpt")
        assert epochs_of(again) == []
        a_trainer(max_epochs=5).fit(again, loader(batch), loader(batch), ckpt_path=tmp_path / "two.ckpt")
        assert epochs_of(again) == [2, 3, 4]


def epochs_of(classifier):
    (found,) = [module.epochs for module in classifier.loss.modules() if isinstance(module, Dated)]
    return found


def test_an_interrupted_epoch_is_forgotten():
    classifier = BinaryClassifier(Raises(at=3), metrics=[SeenRows()])
    inputs, target = samples()
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(classifier, (inputs, target))
    logged = evaluate(classifier, (inputs, target))
    assert logged["val_SeenRows"] == ROWS
    assert logged["val_loss"] == pytest.approx(cross_entropy(inputs[:, :1], target).mean().item())


# In barebones mode Lightning says that nothing is logged.
@pytest.mark.filterwarnings("ignore:.*barebones")
@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"fast_dev_run": 3}, {"barebones": True}], ids=str)
def test_a_trial_run_trains(options, tmp_path):
    classifier, batch = a_classifier(optimizer=None, metrics=None), samples()
    before = [p.detach().clone() for p in classifier.parameters()]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, **quiet, **options)
    trainer.fit(classifier, loader(batch), loader(batch))
    assert all(not torch.equal(old, new) for old, new in zip(before, classifier.parameters(), strict=True))


def test_metrics_do_not_change_the_training():
    batch, weights = samples(), []
    start = a_classifier().state_dict()
    for metrics in ([], None, ["Recall", SeenRows()]):
        classifier = a_classifier(metrics=metrics, optimizer=partial(torch.optim.Adam, lr=0.01))
        classifier.load_state_dict(start)
        torch.manual_seed(7)
        fit(classifier, batch, max_epochs=3, num_sanity_val_steps=2)
        weights.append(classifier.state_dict())
    for other in weights[1:]:
        assert_close(other, weights[0], rtol=0, atol=0)
    assert any(not torch.equal(weights[0][name], start[name]) for name in start)


# -- two ranks --------------------------------------------------------------------------------------------------------


def fit_on_a_rank(rank, parts, start):
    """Fit on this rank's rows and return what it logged."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # the group is there already
    classifier = a_classifier(LABELS, FocalLoss(ignore_index=NAN), metrics=None)
    classifier.load_state_dict(start)
    trainer = a_trainer(
        strategy="ddp", devices=2, plugins=[TorchElasticEnvironment()], use_distributed_sampler=False, max_epochs=2
    )
    train, val = (loader(part[rank]) for part in parts)
    trainer.fit(classifier, train, val)
    logged = dict(trainer.callback_metrics)
    trainer.test(classifier, val, verbose=False)
    return logged | trainer.callback_metrics


def test_two_ranks_log_what_one_process_logs(on_two_ranks):
    inputs, target = samples(LABELS)
    target[torch.rand(ROWS, LABELS) > 0.8] = NAN
    classifier = a_classifier(LABELS, FocalLoss(ignore_index=NAN), metrics=None)
    cuts = [(slice(0, 16), slice(16, 25)), (slice(0, 26), slice(26, 33))]  # equally many training batches, not rows
    parts = [[(inputs[cut], target[cut]) for cut in pair] for pair in cuts]
    found = on_two_ranks(fit_on_a_rank, parts, classifier.state_dict())

    trainer = a_trainer()
    trainer.fit(classifier, loader((inputs[:25], target[:25])), loader((inputs, target)))
    expected = dict(trainer.callback_metrics)
    trainer.test(classifier, loader((inputs, target)), verbose=False)
    expected |= trainer.callback_metrics
    del expected["train_loss_step"]  # of other rows: a step takes a batch of each rank
    for logged in found:
        del logged["train_loss_step"]
        assert_close(logged, expected, rtol=1e-5, atol=1e-6)


# -- optimizers -------------------------------------------------------------------------------------------------------


def optimizer_of(**options):
    return a_classifier(**options).configure_optimizers()


def test_no_optimizer_is_adamw():
    found = optimizer_of(optimizer=None)
    assert type(found) is torch.optim.AdamW
    assert found.defaults["lr"] == 1e-3


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        (torch.optim.SGD, 1e-3),
        (partial(torch.optim.SGD, lr=0.3), 0.3),
        ({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}, 0.3),
        ({"class_path": "torch.optim.SGD"}, 1e-3),
    ],
    ids=["class", "partial", "spec", "spec without arguments"],
)
def test_an_optimizer_is_a_class_a_partial_or_a_spec(given, rate):
    found = optimizer_of(optimizer=given)
    assert type(found) is torch.optim.SGD
    assert found.param_groups[0]["lr"] == rate


@pytest.mark.parametrize(
    "given",
    [lambda parameters: torch.optim.SGD(parameters), partial(torch.optim.SGD, 3), nn.ReLU, nn.ReLU(), "Adam", 3],
)
def test_what_makes_no_optimizer_is_refused_with_the_remedy(given):
    with pytest.raises(
        SpecError, match=r"functools\.partial\(SomeClass, lr=0\.1\), or override `configure_optimizers`"
    ):
        a_classifier(optimizer=given)
    with pytest.raises(SpecError, match="`lr_scheduler` is"):
        a_classifier(lr_scheduler=given)


def test_a_scheduler_that_holds_a_lambda_is_refused():
    with pytest.raises(SpecError, match="no plain form"):
        a_classifier(lr_scheduler=partial(LambdaLR, lr_lambda=lambda epoch: 0.5))


def test_only_what_is_trainable_is_optimised():
    classifier = a_classifier(optimizer=None)
    first, *others = list(classifier.parameters())
    first.requires_grad_(False)
    (group,) = classifier.configure_optimizers().param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in others}
    classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        classifier.configure_optimizers()


def test_the_trainable_part_of_a_loss_is_trained():
    classifier = a_classifier(loss=Tempered(), optimizer=partial(torch.optim.SGD, lr=1.0))
    fit(classifier, samples())
    assert classifier.loss.scale.item() != 1.0


def rates(trained_with, epochs, **options):
    listener = Listener()
    fit(a_classifier(optimizer=trained_with, **options), samples(), listener, max_epochs=epochs)
    return listener.rates


def test_a_scheduler_moves_each_epoch():
    found = rates(partial(torch.optim.SGD, lr=0.1), 3, lr_scheduler=partial(ExponentialLR, gamma=0.5))
    assert found[::5] == pytest.approx([0.1, 0.05, 0.025])  # five batches
    found = rates(
        partial(torch.optim.SGD, lr=0.1),
        2,
        lr_scheduler={"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
    )
    assert found[::5] == pytest.approx([0.1, 0.01])


def test_a_scheduler_moves_each_step():
    options = {"max_lr": 0.5, "total_steps": 10}
    found = rates(torch.optim.SGD, 2, lr_scheduler=partial(OneCycleLR, **options), lr_scheduler_interval="step")
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    by_hand, expected = OneCycleLR(optimizer, **options), []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(expected) < 10:
            by_hand.step()
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("monitor", ["val_loss", "val_log_loss", "train_loss"])
def test_a_plateau_is_seen_in_what_is_monitored(monitor):
    plateau = partial(ReduceLROnPlateau, factor=0.5, patience=0, eps=0.0)
    config = optimizer_of(lr_scheduler=plateau, monitor=monitor)["lr_scheduler"]
    assert config["monitor"] == monitor
    # With a rate of 1e-12 nothing improves after the first epoch.
    found = rates(partial(torch.optim.SGD, lr=1e-12), 4, lr_scheduler=plateau, monitor=monitor)
    assert found[::5] == pytest.approx([1e-12, 1e-12, 5e-13, 2.5e-13], rel=1e-6, abs=0)


def test_a_monitor_that_is_not_logged_is_refused_by_its_name():
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="val_lss"):
        rates(STILL, 1, lr_scheduler=ReduceLROnPlateau, monitor="val_lss")


# -- what is refused at construction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_labels": 0}, "num_labels"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": NAN}, "threshold"),
        ({"lr_scheduler_interval": "step"}, "no effect"),
        ({"lr_scheduler": StepLR, "lr_scheduler_interval": "steps"}, "lr_scheduler_interval"),
        ({"monitor": "val_log_loss"}, "no effect"),
        ({"class_names": ["a", "b"]}, "class_names"),
        ({"num_labels": 2, "class_names": ["a", "a"]}, "class_names"),
        ({"loss": BCEWithLogitsLoss(reduction="none")}, "'none'"),
    ],
    ids=str,
)
def test_an_option_out_of_range_or_without_effect_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        BinaryClassifier(Given(), **options)


@pytest.mark.parametrize(
    "loss",
    [nn.BCEWithLogitsLoss(), FocalLoss, "bce", cross_entropy],
    ids=["a module", "a class", "a name", "a function"],
)
def test_a_loss_of_torch_is_refused_with_its_equal_here(loss):
    with pytest.raises((TypeError, SpecError), match="BinaryLoss"):
        BinaryClassifier(Given(), loss)


@pytest.mark.parametrize("model", [nn.Linear, "resnet", len], ids=str)
def test_what_is_no_module_is_refused(model):
    with pytest.raises(TypeError, match=r"`model` is .*nn\.Module was expected"):
        BinaryClassifier(model)


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Softmax(1), nn.LogSigmoid()], ids=str)
def test_a_model_that_ends_in_probabilities_is_warned_of(last):
    with pytest.warns(UserWarning, match="should return logits"):
        BinaryClassifier(nn.Sequential(nn.Linear(FEATURES, 1), last))


class HiddenSigmoid(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs).sigmoid()


def test_outputs_that_look_like_probabilities_are_warned_of_once():
    rows = DataLoader(TensorDataset(torch.randn(99, 3), (torch.rand(99, 1) > 0.5).float()), batch_size=66)
    for model, warned in ((HiddenSigmoid(3, 1), 1), (nn.Linear(3, 1), 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            a_trainer(max_epochs=4).fit(BinaryClassifier(model, metrics=[]), rows)
        assert sum("lie between 0 and 1" in str(warning.message) for warning in said) == warned


def test_names_of_labels_are_kept_or_made():
    assert a_classifier(LABELS).class_names == ["label_0", "label_1", "label_2"]
    assert a_classifier(2, class_names=("cat", "dog")).class_names == ["cat", "dog"]


# -- what a project overrides -----------------------------------------------------------------------------------------


class OtherBatches(BinaryClassifier):
    def unpack_batch(self, batch):
        return Batch(batch["image"], batch["label"], id=batch["name"])


class TwoInputs(BinaryClassifier):
    def forward(self, inputs):
        left, right = inputs
        return self.model(left + right)


class OwnOptimizer(BinaryClassifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.25)


class Positional(BinaryClassifier):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)


class WithFunction(BinaryClassifier):
    def __init__(self, model, change=torch.neg, **options):
        super().__init__(model, **options)
        self.change = change


def test_arguments_that_a_checkpoint_cannot_hold_are_refused():
    with pytest.raises(SpecError, match=r"\*arguments.*named parameters"):
        Positional(Given())
    Positional(model=Given())
    with pytest.raises(SpecError, match=r"change is <built-in method abs"):
        WithFunction(Given(), change=torch.abs)


def test_a_default_that_a_checkpoint_cannot_hold_need_not_be_in_it():
    assert WithFunction(Given()).change is torch.neg
    assert "change" not in WithFunction(Given()).hparams


def test_batches_of_another_form_need_one_method():
    (inputs, target), net = samples(), TabularMLP(FEATURES, dropout=0.0)
    names = [f"row {i}" for i in range(ROWS)]
    batch = {"image": inputs, "label": target, "name": names}
    logged = evaluate(OtherBatches(net, metrics=None), batch, size=ROWS)
    assert logged == evaluate(BinaryClassifier(net, metrics=None), (inputs, target), size=ROWS)
    (outputs,) = a_trainer().predict(OtherBatches(net), loader(batch, size=ROWS))
    assert outputs["id"] == names


def test_a_model_that_is_called_differently_needs_one_method():
    (inputs, target), net = samples(), TabularMLP(FEATURES, dropout=0.0)
    logged = evaluate(TwoInputs(net), {"inputs": (inputs, inputs), "target": target}, size=ROWS)
    assert logged == evaluate(BinaryClassifier(net), (2 * inputs, target), size=ROWS)


def test_an_optimizer_of_another_kind_needs_one_method():
    listener = Listener()
    fit(OwnOptimizer(TabularMLP(FEATURES)), samples(), listener)
    assert set(listener.rates) == {0.25}
