"""PerClassLossMonitor: its values add up to the loss, training does not notice it, and any module can use it."""

import contextlib
import math

import foreign_lightning
import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from foreign_lightning import FEATURES, LABELS, NAMES, ROWS, SIZE, loader, quiet_monitor, samples, validate
from lightning.pytorch.loggers.logger import Logger
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.classifier import BinaryClassifier
from lightning_bce.losses import BCELoss, BCEWithLogitsLoss, BinaryLoss, FocalLoss

pytestmark = [
    # Some runs only train.
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]


class Foreign(pl.LightningModule):
    """A module of other people: dropout, torch's loss, and the three entries that the callback reads."""

    def __init__(self, labels=LABELS, loss=None):
        super().__init__()
        torch.manual_seed(1)
        self.net = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(FEATURES, labels))
        self.calls = []
        if loss is not None:
            self.loss = loss

    def step(self, batch, stage):
        inputs, target = batch
        logits = self.net(inputs)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        self.log(f"{stage}_loss", loss, on_step=False, on_epoch=True, batch_size=len(target))
        return self.returned({"loss": loss, "logits": logits, "target": target})

    def returned(self, outputs):
        return outputs

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return self.step(batch, "val")

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.step(batch, "test")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Returning(Foreign):
    """One whose steps return what a function makes of the three entries."""

    def __init__(self, change, **options):
        super().__init__(**options)
        self.returned = change


class Notebook(Logger):
    """A logger that keeps what it is told."""

    name, version = "notebook", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def a_trainer(*callbacks, **options):
    return foreign_lightning.a_trainer(*callbacks, **({"log_every_n_steps": 1} | options))


def total(logged, names, stage="val", kind="loss_class"):
    """Return the mean over all elements from the means and counts of labels and sides."""
    losses = weights = 0.0
    for name in names:
        for side in ("negative", "positive"):
            weight = logged[f"{stage}_count_{side}/{name}"]
            losses += weight * logged.get(f"{stage}_{kind}_{side}/{name}", 0.0)
            weights += weight
    return losses / weights


# -- values -----------------------------------------------------------------------------------------------------------


def naive(module, batch):
    """Return losses of all elements, by torch on the whole set."""
    module.eval()
    with torch.no_grad():
        return F.binary_cross_entropy_with_logits(module.net(batch[0]), batch[1], reduction="none").double()


def test_means_and_shares_of_labels_and_sides_are_those_of_the_whole_set():
    module, batch = Foreign(), samples()
    logged = validate(module, quiet_monitor(NAMES))
    losses, positive = naive(module, batch), batch[1] > 0.5
    for i, name in enumerate(NAMES):
        for side, where in (("negative", ~positive[:, i]), ("positive", positive[:, i])):
            of_side = losses[where, i]
            assert logged[f"val_count_{side}/{name}"] == len(of_side)
            assert logged[f"val_loss_class_{side}/{name}"] == pytest.approx(of_side.mean().item(), rel=1e-6)
            assert logged[f"val_loss_share_{side}/{name}"] == pytest.approx(
                (of_side.sum() / losses.sum()).item(), rel=1e-6
            )
        assert logged[f"val_loss_class/{name}"] == pytest.approx(losses[:, i].mean().item(), rel=1e-6)
        assert logged[f"val_loss_share/{name}"] == pytest.approx((losses[:, i].sum() / losses.sum()).item(), rel=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        BCEWithLogitsLoss(pos_weight=9.0),
        BCEWithLogitsLoss(class_weight=[1.0, 5.0, 0.0], ignore_index=-1),
        FocalLoss(alpha=0.2, reduction="weighted_mean"),
        FocalLoss(reduction="batchmean"),
        BCEWithLogitsLoss(reduction="sum"),
        BCELoss(),
    ],
    ids=lambda loss: f"{type(loss).__name__} {loss.extra_repr()}",
)
def test_means_times_counts_add_up_to_the_logged_loss(loss):
    inputs, target = samples()
    if loss.ignore_index is not None:
        target[::3, 1] = -1
    batch = (inputs, target, torch.rand(ROWS) + 0.5)
    module = BinaryClassifier(torch.nn.Linear(FEATURES, LABELS), loss, LABELS, class_names=NAMES, metrics=[])
    monitor = PerClassLossMonitor(print_table=False)
    logged = validate(module, monitor, loader(batch))
    assert total(logged, NAMES) == pytest.approx(logged["val_loss"], rel=1e-6)
    assert sum(logged[f"val_loss_share/{name}"] for name in NAMES) == pytest.approx(1, rel=1e-6)
    assert monitor.results["val"][0]["loss"].item() == pytest.approx(logged["val_loss"], rel=1e-6)


def test_one_label_has_rows_and_names_too():
    logged = validate(Foreign(1), quiet_monitor(["spam"]), loader(samples(labels=1)))
    assert total(logged, ["spam"]) == pytest.approx(logged["val_loss"], rel=1e-6)
    assert logged["val_loss_share/spam"] == 1.0


def test_what_was_never_seen_is_not_logged_and_a_nan_that_was_seen_is():
    inputs, target = samples()
    target[:, 0], target[:, 1] = 0, 1
    logged = validate(Foreign(), quiet_monitor(NAMES), loader((inputs, target)))
    assert not {"val_loss_class_positive/cat", "val_loss_share_positive/cat", "val_loss_class_negative/dog"} & set(
        logged
    )
    assert logged["val_count_positive/cat"] == logged["val_count_negative/dog"] == 0
    assert "val_loss_class/cat" in logged and not any(map(math.isnan, logged.values()))
    inputs[0] = math.nan
    assert math.isnan(validate(Foreign(), quiet_monitor(NAMES), loader((inputs, target)))["val_loss_class/cat"])


def test_a_loss_of_zero_has_no_shares():
    class Nothing(BinaryLoss):
        def elementwise(self, logits, target):
            return 0 * logits

    monitor = quiet_monitor(NAMES, loss=Nothing())
    logged = validate(Foreign(), monitor)
    assert logged["val_loss_class/cat"] == 0 and not any("share" in name for name in logged)
    assert [row["label"] for row in monitor.summary()] == NAMES and monitor.table().row_count == LABELS


def test_a_given_loss_is_looked_at_in_place_of_the_modules_sums():
    inputs, target = samples()
    mask, weight = torch.rand(ROWS, LABELS) > 0.4, torch.rand(ROWS)
    parts = [slice(i, i + SIZE) for i in range(0, ROWS, SIZE)]
    batches = [{"inputs": inputs[p], "target": target[p], "mask": mask[p], "weight": weight[p]} for p in parts]
    module = BinaryClassifier(torch.nn.Linear(FEATURES, LABELS), num_labels=LABELS, metrics=[])
    focal = FocalLoss(gamma=3.0, reduction="weighted_mean")
    own, other = PerClassLossMonitor(print_table=False), quiet_monitor(loss=focal, prefix="focal_")
    trainer = a_trainer(own, other)
    trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    with torch.no_grad():
        expected = focal(module(inputs), target, weight, mask=mask)
    assert_close(other.results["val"][0]["loss"].float(), expected)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert own.results["val"][0]["loss"].item() == pytest.approx(logged["val_loss"], rel=1e-6)
    assert {"val_loss_class/label_0", "focal_val_loss_class/label_0"} <= set(logged)


def test_weight_and_mask_that_the_step_returns_are_used():
    mask, weight = torch.rand(ROWS, LABELS) > 0.4, torch.rand(ROWS)
    loss = BCEWithLogitsLoss(reduction="weighted_mean")
    module = Returning(lambda outputs: {**outputs, "mask": mask, "weight": weight})
    monitor, batch = quiet_monitor(loss=loss), samples()
    validate(module, monitor, loader(batch, ROWS))
    module.eval()
    with torch.no_grad():
        assert_close(monitor.results["val"][0]["loss"].float(), loss(module.net(batch[0]), batch[1], weight, mask=mask))


def test_a_loss_on_probabilities_gets_them():
    logits, probabilities = quiet_monitor(), quiet_monitor(loss=BCELoss(), prefix="p_")
    a_trainer(logits, probabilities).validate(Foreign(), loader(samples()), verbose=False)
    assert_close(logits.results["val"][0], probabilities.results["val"][0], rtol=1e-4, atol=1e-4)  # its eps


def test_train_sums_are_logged_once_an_epoch():
    notebook = Notebook()
    trainer = a_trainer(
        quiet_monitor(NAMES, stages=["train"]), logger=notebook, accumulate_grad_batches=2, max_epochs=2
    )
    trainer.fit(Foreign(), loader(samples()))
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert total(logged, NAMES, "train") == pytest.approx(logged["train_loss"], rel=1e-6)
    assert len([row for row in notebook.rows if "train_loss_class/cat" in row]) == 2
    assert not any("val_" in name for name in logged)


# -- it does not disturb ----------------------------------------------------------------------------------------------


class Noisy(BinaryLoss):
    """A loss that draws random numbers and depends on its mode."""

    def elementwise(self, logits, target):
        assert not torch.is_grad_enabled() and not self.training
        return (logits - target).square() * torch.rand_like(logits)


def trained(*callbacks):
    module = Foreign(loss=Noisy())
    trainer = a_trainer(*callbacks, max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(module, loader(samples()), loader(samples(7, seed=1)))
    return [p.detach().clone() for p in module.parameters()], module


def watched():
    return trained(PerClassLossMonitor(stages=["train", "val"], print_table=False))


def test_training_is_the_same_bit_for_bit():
    alone, _ = trained()
    beside, module = watched()
    assert all(map(torch.equal, alone, beside))
    assert module.loss.training


def test_without_the_guard_the_random_numbers_would_shift(monkeypatch):
    alone, _ = trained()
    monkeypatch.setattr(torch.random, "fork_rng", lambda **options: contextlib.nullcontext())
    assert not all(map(torch.equal, alone, watched()[0]))


def test_the_sanity_check_is_not_counted():
    monitor = quiet_monitor(NAMES)
    trainer = a_trainer(monitor, num_sanity_val_steps=-1)
    trainer.fit(Foreign(), loader(samples()), loader(samples()))
    row = monitor.summary("val")[0]
    assert row["negatives"] + row["positives"] == ROWS
    notebook = Notebook()
    trainer = a_trainer(quiet_monitor(NAMES), num_sanity_val_steps=-1, check_val_every_n_epoch=2, logger=notebook)
    trainer.fit(Foreign(), loader(samples()), loader(samples()))  # the sanity check is all that sees the validation set
    assert trainer.callbacks[0].results == {} and not any("val_" in name for row in notebook.rows for name in row)


def test_after_an_interrupted_epoch_only_the_next_one_is_counted():
    class Interrupted(Foreign):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if batch_idx == 2 and not self.calls:
                self.calls.append(batch_idx)
                raise RuntimeError("cable pulled")
            return super().validation_step(batch, batch_idx)

    module, monitor = Interrupted(), quiet_monitor(NAMES)
    with pytest.raises(RuntimeError, match="cable"):
        validate(module, monitor)
    validate(module, monitor)
    assert sum(monitor.summary()[0][side] for side in ("negatives", "positives")) == ROWS


def test_checkpoints_hold_nothing_of_it(tmp_path):
    trainer = a_trainer(quiet_monitor(NAMES))
    trainer.fit(Foreign(), loader(samples()), loader(samples()))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["callbacks"] == {}
    assert set(saved["state_dict"]) == set(Foreign().state_dict())


@pytest.mark.parametrize("loggers", [0, 1, 2])
def test_it_works_with_any_number_of_loggers(loggers):
    notebooks = [Notebook() for _ in range(loggers)]
    logged = validate(Foreign(), quiet_monitor(NAMES), logger=notebooks or False)
    assert "val_loss_class/a/b" in logged
    for notebook in notebooks:
        (row,) = notebook.rows
        assert row["val_loss_class/a/b"] == pytest.approx(logged["val_loss_class/a/b"])


@pytest.mark.filterwarnings("ignore:.*barebones")
@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"fast_dev_run": True}, {"val"}),
        ({"limit_val_batches": 0}, set()),
        ({"barebones": True}, set()),
        ({"limit_val_batches": 0.5, "val_check_interval": 0.5}, {"val"}),
    ],
    ids=str,
)
def test_short_runs_pass(options, stages):
    if "barebones" in options:
        options = options | dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"))
        options |= dict.fromkeys(("enable_model_summary", "num_sanity_val_steps", "log_every_n_steps"))
    monitor = quiet_monitor(NAMES)
    # Where nothing is watched, a step may return what it likes.
    module = Foreign() if stages else Returning(lambda outputs: outputs["loss"])
    a_trainer(monitor, **options).fit(module, loader(samples()), loader(samples()))
    assert set(monitor.results) == stages


# -- modules of other people ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "came"),
    [
        (lambda outputs: None, "which was None"),
        (lambda outputs: outputs["loss"], "a tensor of shape"),
        (lambda outputs: {"loss": outputs["loss"]}, "the loss alone"),
        (lambda outputs: {**outputs, "target": [1]}, r"a dictionary with \['loss', 'logits', 'target'\]"),
        (lambda outputs: [outputs], "which was list"),
    ],
)
def test_a_step_that_returns_something_else_is_told_what_to_return(change, came):
    with pytest.raises(TypeError, match=rf"Returning\.validation_step.*{came}") as error:
        validate(Returning(change), quiet_monitor())
    assert '{"loss": loss, "logits": logits.detach(), "target": target}' in str(error.value)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_training_step_is_told_too_and_one_that_skips_a_batch_is_not():
    monitor = quiet_monitor(NAMES, stages=["train"])
    with pytest.raises(TypeError, match=r"training_step returns, which was the loss alone"):
        a_trainer(monitor).fit(Returning(lambda outputs: outputs["loss"]), loader(samples()))
    skipping = Returning(lambda outputs: None if len(outputs["target"]) == 1 else outputs)
    a_trainer(monitor).fit(skipping, loader(samples()))
    assert sum(monitor.summary("train")[0][side] for side in ("negatives", "positives")) == ROWS - 1


def test_the_error_comes_in_the_sanity_check_already():
    module = Returning(lambda outputs: None if not module.training else outputs)
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(TypeError, match="validation_step"):
        a_trainer(quiet_monitor(), num_sanity_val_steps=1).fit(module, loader(samples()), loader(samples()))
    assert all(map(torch.equal, before, module.parameters()))


@pytest.mark.parametrize(
    ("loss", "what"),
    [(None, "has no attribute `loss`"), (torch.nn.BCEWithLogitsLoss(), "has BCEWithLogitsLoss as its")],
)
def test_a_module_without_a_loss_of_ours_is_told_to_name_one(loss, what):
    with pytest.raises(TypeError, match=rf"{what}.*PerClassLossMonitor\(loss="):
        validate(Foreign(loss=loss), PerClassLossMonitor())


def test_a_module_with_a_loss_of_ours_needs_no_argument():
    module, monitor = Foreign(loss=FocalLoss()), PerClassLossMonitor(print_table=False)
    logged = validate(module, monitor)
    assert set(logged) > {"val_loss_class/label_0", "val_loss_class/label_2"}
    assert "FocalLoss, mean" in str(monitor.table().title)


@pytest.mark.parametrize(
    "loss", [torch.nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, "bce"], ids=lambda loss: str(loss)[:20]
)
def test_a_loss_that_cannot_be_split_is_refused(loss):
    with pytest.raises(TypeError, match=r"BinaryLoss was expected.*lightning_bce\.BCEWithLogitsLoss"):
        PerClassLossMonitor(loss=loss)


@pytest.mark.parametrize(
    "options",
    [{"stages": "val"}, {"stages": ["predict"]}, {"stages": []}, {"max_rows": 0}, {"max_rows": True}],
    ids=str,
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is"):
        PerClassLossMonitor(**options)
