"""Checkpoints: a file alone rebuilds the module that wrote it, holds nothing but data, and can have nothing called."""

import importlib
import os
import shutil
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric
from torchmetrics.classification import BinaryFBetaScore

import lightning_bce
from lightning_bce import (
    Batch,
    BCEFocalLoss,
    BCELoss,
    BCEWithLogitsLoss,
    BinaryClassifier,
    BinaryLoss,
    FocalLoss,
    SmallConvNet,
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

ROWS, FEATURES, SIZE = 33, 5, 11
PLAIN = (bool, int, float, str, type(None))
CALLS = []


# -- means ------------------------------------------------------------------------------------------------------------


class PlainNet(nn.Module):
    """A user's module that keeps its arguments, as most do."""

    def __init__(self, features, hidden=(7,), activation="relu"):
        super().__init__()
        self.features, self.hidden, self.activation = features, hidden, activation
        widths = [features, *hidden]
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)), nn.ReLU())
        self.last = nn.Linear(widths[-1], 1)

    def forward(self, inputs):
        return self.last(self.layers(inputs))


class ForgetfulNet(nn.Module):
    """A user's module that does not tell how it was made."""

    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, width), nn.Linear(width, 1)

    def forward(self, inputs):
        return self.last(self.first(inputs).tanh())


class OwnLoss(BinaryLoss):
    def __init__(self, power=2.0, *, factors=None, **options):
        super().__init__(**options)
        self.power, self.factors = power, factors

    def elementwise(self, logits, target):
        return (logits.sigmoid() - target).abs() ** self.power


class LearntLoss(BinaryLoss):
    """A user's loss with a trainable part, which belongs to the weights."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def elementwise(self, logits, target):
        return nn.functional.binary_cross_entropy_with_logits(logits * self.scale, target, reduction="none")


class OwnArguments(BinaryClassifier):
    """A user's classifier with a constructor of its own, that saves nothing itself."""

    def __init__(self, width: int, note: str = "none", **options):
        super().__init__(TabularMLP(FEATURES, hidden=(width,), dropout=0.0), **options)
        self.width, self.note = width, note


class SavesItself(BinaryClassifier):
    """The same, written as Lightning's tutorials do it."""

    def __init__(self, model, width=3, optimizer=None, lr_scheduler=None, **options):
        super().__init__(model, optimizer=optimizer, lr_scheduler=lr_scheduler, **options)
        self.save_hyperparameters()
        self.width = width


class SavesTheRest(BinaryClassifier):
    def __init__(self, model, loss=None, width=3):
        super().__init__(model, loss)
        self.save_hyperparameters(ignore=["model", "loss"])
        self.width = width


class OtherBatches(BinaryClassifier):
    def unpack_batch(self, batch):
        inputs, target = batch
        return Batch(-inputs, target)


class OtherForward(BinaryClassifier):
    def forward(self, inputs):
        return self.model(-inputs)


class ExtraHparams(BinaryClassifier):
    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.save_hyperparameters({"run": Path("some/where"), "made_by": len})


class Kept(Metric):
    """A metric whose state wants to be in the checkpoint."""

    def __init__(self):
        super().__init__()
        self.add_state("rows", torch.tensor(0), dist_reduce_fx="sum", persistent=True)

    def update(self, probability, labels):
        self.rows = self.rows + len(labels)

    def compute(self):
        return self.rows


class Bomb(nn.Module):
    """Tells when it is made: a class that is no loss, no optimizer, no scheduler and no metric."""

    def __init__(self, *arguments, **options):
        super().__init__()
        CALLS.append(arguments)


def batches(rows=ROWS):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(rows, FEATURES, generator=generator)
    target = (torch.rand(rows, 1, generator=generator) > 0.6).float()
    return DataLoader(TensorDataset(inputs, target), batch_size=SIZE)


def a_trainer(folder, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    quiet["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **(quiet | options))


def trained(classifier, folder, name="a.ckpt", loader=None):
    """Train an epoch and return the path of the checkpoint."""
    loader = batches() if loader is None else loader
    trainer = a_trainer(folder)
    trainer.fit(classifier, loader, loader)
    trainer.save_checkpoint(folder / name)
    return folder / name


def read(path):
    return torch.load(path, weights_only=True)


def rewritten(path, **hyper_parameters):
    """Return a checkpoint with other hyper-parameters, as somebody could send it."""
    checkpoint = read(path)
    checkpoint["hyper_parameters"] |= hyper_parameters
    torch.save(checkpoint, path)
    return path


def is_plain(value):
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if type(value) is list else type(value) in PLAIN


def assert_same(found, original):
    """Assert that two classifiers have the same loss, the same weights and the same results."""
    assert type(found) is type(original)
    assert type(found.loss) is type(original.loss)
    assert found.loss.fingerprint == original.loss.fingerprint  # of the spec, in which NaN is not equal to itself
    assert repr(found.model) == repr(original.model)
    assert_close(found.state_dict(), original.state_dict(), rtol=0, atol=0)
    logged = [a_trainer(None).validate(module, batches(), verbose=False)[0] for module in (found, original)]
    assert logged[0] == pytest.approx(logged[1], nan_ok=True, abs=0, rel=0)


# -- there and back ---------------------------------------------------------------------------------------------------

MODELS = {
    "tabular": lambda: TabularMLP(FEATURES, hidden=(7, 3), dropout=0.25),
    "sequential": lambda: nn.Sequential(nn.Linear(FEATURES, 7), nn.BatchNorm1d(7), nn.GELU("tanh"), nn.Linear(7, 1)),
    "a user's": lambda: PlainNet(FEATURES, hidden=(7, 3), activation="gelu"),
    "a user's in a sequence": lambda: nn.Sequential(PlainNet(FEATURES), nn.Flatten(0)),
    "linear": lambda: nn.Linear(FEATURES, 1, bias=False),
}
LOSSES = {
    "none": lambda: None,
    "focal": lambda: FocalLoss(gamma=0.5, alpha=0.3),
    "article": lambda: WeightedBCELoss(alpha=0.3, eps=1e-3),
    "article's focal": lambda: BCEFocalLoss(gamma=1.0),
    "probabilities": lambda: BCELoss(reduction="sum"),
    "tensor": lambda: BCEWithLogitsLoss(pos_weight=torch.tensor([9.7]), class_weight=torch.tensor([0.1])),
    "ignored": lambda: BCEWithLogitsLoss(ignore_index=float("nan"), reduction="weighted_mean"),
    "own": lambda: OwnLoss(3.0, factors={"a": (1, 2)}, class_weight=[2.0]),
    "learnt": lambda: LearntLoss(),
}


@pytest.mark.parametrize(
    ("model", "loss"),
    [*((model, "focal") for model in MODELS), *(("tabular", loss) for loss in LOSSES if loss != "focal")],
)
def test_the_file_alone_gives_the_module_back(model, loss, tmp_path):
    classifier = BinaryClassifier(MODELS[model](), LOSSES[loss]())
    path = trained(classifier, tmp_path)
    torch.manual_seed(9)  # a model that is merely built anew would have other weights
    assert_same(BinaryClassifier.load_from_checkpoint(path), classifier)
    assert_same(BinaryClassifier.load_from_checkpoint(path, weights_only=True), classifier)


def test_images_too(tmp_path):
    data = DataLoader(TensorDataset(torch.randn(ROWS, 1, 8, 8), torch.ones(ROWS, 3)), batch_size=SIZE)
    classifier = BinaryClassifier(SmallConvNet(1, 3, width=5), num_labels=3, metrics=[])
    found = BinaryClassifier.load_from_checkpoint(trained(classifier, tmp_path, loader=data))
    images = torch.randn(7, 1, 8, 8)
    assert_close(found.eval()(images), classifier.eval()(images), rtol=0, atol=0)


@pytest.mark.parametrize("model", ["tabular", "a user's"])
@pytest.mark.parametrize("loss", ["tensor", "own"])
def test_a_second_generation_is_as_good_as_the_first(model, loss, tmp_path):
    first = BinaryClassifier(MODELS[model](), LOSSES[loss](), metrics=["Recall"], class_names=["good"])
    hyper_parameters = read(trained(first, tmp_path))["hyper_parameters"]
    for generation in range(2):
        child = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
        path = trained(child, tmp_path)
        assert_same(BinaryClassifier.load_from_checkpoint(path), child)
        assert read(path)["hyper_parameters"] == hyper_parameters, generation
    assert any(not torch.equal(a, b) for a, b in zip(child.parameters(), first.parameters(), strict=True))


def test_every_option_comes_back(tmp_path):
    options = {
        "num_labels": 1,
        "optimizer": partial(torch.optim.SGD, lr=0.125, momentum=0.5),
        "lr_scheduler": partial(OneCycleLR, max_lr=0.5, total_steps=100),
        "lr_scheduler_interval": "step",
        "monitor": "val_log_loss",
        "metrics": ["Recall", BinaryFBetaScore(beta=2.0)],
        "threshold": 0.25,
        "class_names": ("good",),
    }
    classifier = BinaryClassifier(TabularMLP(FEATURES), **options)
    found = BinaryClassifier.load_from_checkpoint(trained(classifier, tmp_path))
    assert_same(found, classifier)
    for module in (classifier, found):
        configured = module.configure_optimizers()
        assert type(configured["optimizer"]) is torch.optim.SGD
        assert configured["optimizer"].defaults["momentum"] == 0.5
        assert type(configured["lr_scheduler"]["scheduler"]) is OneCycleLR
        assert configured["lr_scheduler"]["interval"] == "step"
        assert module.threshold == 0.25
        assert module.class_names == ["good"]
        assert set(module._metrics) == {"Recall", "FBetaScore"}
        assert module._metrics["FBetaScore"].beta == 2.0


def test_another_process_reads_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from lightning_bce import BinaryLoss\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, width):\n"
        "        super().__init__()\n"
        "        self.width, self.layer = width, torch.nn.Linear(width, 1)\n"
        "    def forward(self, x):\n"
        "        return self.layer(x)\n"
        "class Loss(BinaryLoss):\n"
        "    def __init__(self, power=1.0, **options):\n"
        "        super().__init__(**options)\n"
        "        self.power = power\n"
        "    def elementwise(self, logits, target):\n"
        "        return (logits.sigmoid() - target).abs() ** self.power\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = importlib.import_module("mine")
    monkeypatch.delitem(sys.modules, "mine")
    classifier = BinaryClassifier(mine.Net(FEATURES), mine.Loss(3.0))
    trained(classifier, tmp_path)
    read_it = (  # without importing the user's module: the checkpoint names it
        "import torch\n"
        "from lightning_bce import BinaryClassifier\n"
        "classifier = BinaryClassifier.load_from_checkpoint('a.ckpt')\n"
        f"print(classifier.loss(classifier(torch.ones(1, {FEATURES})), torch.ones(1, 1)).item())\n"
    )
    path = os.pathsep.join([str(Path(lightning_bce.__file__).parents[1]), str(tmp_path)])
    told = subprocess.run(
        [sys.executable, "-c", read_it],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    expected = classifier.loss(classifier(torch.ones(1, FEATURES)), torch.ones(1, 1)).item()
    assert float(told.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-6)


# -- resume -----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path):
    options = {"optimizer": partial(torch.optim.Adam, lr=0.01), "lr_scheduler": partial(ExponentialLR, gamma=0.5)}
    whole, first, second = (BinaryClassifier(PlainNet(FEATURES), FocalLoss(), **options) for _ in range(3))
    first.load_state_dict(whole.state_dict())
    data = batches()
    expected = a_trainer(tmp_path, max_epochs=4)
    expected.fit(whole, data, data)

    until_now = a_trainer(tmp_path, max_epochs=2)
    until_now.fit(first, data, data)
    until_now.save_checkpoint(tmp_path / "half.ckpt")
    resumed = a_trainer(tmp_path, max_epochs=4)
    resumed.fit(second, data, data, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.global_step == expected.global_step > until_now.global_step
    assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert resumed.callback_metrics == expected.callback_metrics


@pytest.mark.parametrize("monitor", ["val_loss", "val_log_loss", "val_AUROC", "train_loss"])
def test_the_best_is_found_by_what_is_logged(monitor, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor=monitor, filename="{epoch}-{" + monitor + ":.3f}")
    trainer = a_trainer(tmp_path, best, max_epochs=3)
    classifier = BinaryClassifier(PlainNet(FEATURES), WeightedBCELoss())
    data = batches()
    trainer.fit(classifier, data, data)
    assert Path(best.best_model_path).parent == tmp_path  # a slash in a name would have made a folder
    (logged,) = trainer.test(dataloaders=data, ckpt_path="best", verbose=False)
    (validated,) = trainer.validate(dataloaders=data, ckpt_path="best", verbose=False)
    if monitor.startswith("val"):
        assert validated[monitor] == pytest.approx(best.best_model_score.item(), rel=1e-6)
        assert logged[monitor.replace("val", "test")] == validated[monitor]


# -- what is in the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "learnt"])
def test_the_file_holds_the_models_weights_and_plain_values_only(loss, tmp_path):
    classifier = BinaryClassifier(
        MODELS["sequential"](),
        LOSSES[loss](),
        optimizer=partial(torch.optim.AdamW, lr=1e-4, betas=(0.8, 0.9)),
        lr_scheduler=partial(ExponentialLR, gamma=0.5),
        metrics=["AUROC", BinaryFBetaScore(beta=2.0)],
        class_names=("good",),
    )
    path = trained(classifier, tmp_path)
    checkpoint = read(path)
    parts = {name: getattr(classifier, name).state_dict() for name in ("model", "decision")}
    assert set(checkpoint["state_dict"]) == {f"{part}.{name}" for part in parts for name in parts[part]}
    hyper_parameters = checkpoint["hyper_parameters"]
    assert is_plain(hyper_parameters), hyper_parameters
    assert is_plain(dict(classifier.hparams)), classifier.hparams
    assert hyper_parameters["optimizer"]["init_args"]["betas"] == [0.8, 0.9]


def trained_names(checkpoint):
    return {name for name in checkpoint["state_dict"] if not name.startswith("decision.")}


def test_the_trainable_part_of_a_loss_is_in_the_file(tmp_path):
    checkpoint = read(trained(BinaryClassifier(nn.Linear(FEATURES, 1), LearntLoss()), tmp_path))
    assert trained_names(checkpoint) == {"model.weight", "model.bias", "loss.scale"}


def test_metric_states_stay_out_whatever_a_metric_wants(tmp_path):
    metric = Kept()
    assert set(metric.state_dict()) == {"rows"}
    classifier = BinaryClassifier(nn.Linear(FEATURES, 1), metrics=[metric])
    path = trained(classifier, tmp_path)
    assert trained_names(read(path)) == {"model.weight", "model.bias"}
    assert_same(BinaryClassifier.load_from_checkpoint(path), classifier)


def test_weights_fit_a_classifier_that_has_not_run_and_one_that_has(tmp_path):
    ran, fresh = (BinaryClassifier(nn.Linear(FEATURES, 1), loss) for loss in (FocalLoss(), BCEWithLogitsLoss()))
    trained(ran, tmp_path)
    assert set(ran.state_dict()) == set(fresh.state_dict())
    fresh.load_state_dict(ran.state_dict())
    ran.load_state_dict(fresh.state_dict())


# -- a model that cannot be written down ------------------------------------------------------------------------------


def test_an_undescribable_model_is_warned_of_and_asked_for(tmp_path):
    with pytest.warns(UserWarning, match=r"Recorded.*load_from_checkpoint\(path, model=\.\.\.\)"):
        classifier = BinaryClassifier(ForgetfulNet(3), FocalLoss(gamma=1.0))
    path = trained(classifier, tmp_path)
    assert is_plain(read(path)["hyper_parameters"])
    with pytest.raises(SpecError, match=r"Pass it: `load_from_checkpoint\(path, model=\.\.\.\)`"):
        BinaryClassifier.load_from_checkpoint(path)
    with pytest.warns(UserWarning, match="Recorded"):
        found = BinaryClassifier.load_from_checkpoint(path, model=ForgetfulNet(3))
    assert_same(found, classifier)
    with pytest.warns(UserWarning, match="Recorded"), pytest.raises(RuntimeError, match="size mismatch"):
        BinaryClassifier.load_from_checkpoint(path, model=ForgetfulNet(7))


def test_a_lambda_in_the_model_is_warned_of_by_its_name():
    class Calls(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, inputs):
            return self.function(inputs)

    with pytest.warns(UserWarning, match="Calls"):
        BinaryClassifier(Calls(lambda inputs: inputs))


def test_a_loss_that_cannot_be_written_down_is_refused():
    with pytest.raises(SpecError, match=r"OwnLoss\(factors"):
        BinaryClassifier(nn.Linear(FEATURES, 1), OwnLoss(factors={"f": lambda: 0}))
    BinaryClassifier(nn.Linear(FEATURES, 1), OwnLoss(factors={"f": 0}))


def test_what_is_passed_at_loading_goes_before_what_is_written(tmp_path):
    classifier = BinaryClassifier(nn.Linear(FEATURES, 1), FocalLoss())
    path = trained(classifier, tmp_path)
    other = BCEWithLogitsLoss(pos_weight=3.0)
    found = BinaryClassifier.load_from_checkpoint(path, loss=other, threshold=0.25)
    assert found.loss is other
    assert found.threshold == 0.25
    assert_close(found.model.weight, classifier.model.weight, rtol=0, atol=0)


# -- subclasses -------------------------------------------------------------------------------------------------------


def test_a_subclass_with_its_own_arguments_comes_back(tmp_path):
    classifier = OwnArguments(7, note="mine", loss=FocalLoss(gamma=1.0), threshold=0.25)
    path = trained(classifier, tmp_path)
    for found in (OwnArguments.load_from_checkpoint(path), OwnArguments.load_from_checkpoint(path, threshold=0.25)):
        assert_same(found, classifier)
        assert (found.width, found.note, found.threshold) == (7, "mine", 0.25)
    second = trained(found, tmp_path, "b.ckpt")
    assert read(second)["hyper_parameters"] == read(path)["hyper_parameters"]
    assert_same(OwnArguments.load_from_checkpoint(second), found)


# Lightning asks to leave modules out of the hyper-parameters; here they become plain values.
@pytest.mark.filterwarnings("ignore:Attribute '(model|loss)' is an instance of `nn.Module`")
def test_a_subclass_that_saves_its_arguments_itself_comes_back(tmp_path):
    classifier = SavesItself(
        PlainNet(FEATURES),
        width=9,
        optimizer=partial(torch.optim.SGD, lr=0.125),
        lr_scheduler=partial(ExponentialLR, gamma=0.5),
        loss=FocalLoss(gamma=1.0),
    )
    path = trained(classifier, tmp_path)
    assert is_plain(read(path)["hyper_parameters"])
    found = SavesItself.load_from_checkpoint(path)
    assert_same(found, classifier)
    assert found.width == 9
    configured = found.configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["lr_scheduler"]["scheduler"].gamma == 0.5
    assert_same(SavesItself.load_from_checkpoint(trained(found, tmp_path, "b.ckpt")), found)


@pytest.mark.filterwarnings("ignore:Attribute 'model' is an instance of `nn.Module`")  # see above
def test_a_subclass_that_saves_an_undescribable_model_is_asked_for_it(tmp_path):
    with pytest.warns(UserWarning, match="Recorded"):
        classifier = SavesItself(ForgetfulNet(3), width=9)
    path = trained(classifier, tmp_path)
    with pytest.raises(SpecError, match="Pass it"):
        SavesItself.load_from_checkpoint(path)
    with pytest.warns(UserWarning, match="Recorded"):
        assert_same(SavesItself.load_from_checkpoint(path, model=ForgetfulNet(3)), classifier)


def test_a_subclass_that_saves_the_rest_itself_comes_back(tmp_path):
    classifier = SavesTheRest(PlainNet(FEATURES), FocalLoss(gamma=1.0), width=9)
    found = SavesTheRest.load_from_checkpoint(trained(classifier, tmp_path))
    assert_same(found, classifier)
    assert found.width == 9


@pytest.mark.parametrize("cls", [OtherBatches, OtherForward])
def test_a_subclass_of_one_method_comes_back(cls, tmp_path):
    classifier = cls(PlainNet(FEATURES), WeightedBCELoss())
    path = trained(classifier, tmp_path)
    assert_same(cls.load_from_checkpoint(path), classifier)
    assert type(BinaryClassifier.load_from_checkpoint(path)) is BinaryClassifier


def test_a_hyper_parameter_without_a_plain_form_is_left_out_aloud(tmp_path):
    classifier = ExtraHparams(nn.Linear(FEATURES, 1))
    with pytest.warns(UserWarning, match=r"made_by is <built-in function len>.*left out"):
        path = trained(classifier, tmp_path)
    saved = read(path)["hyper_parameters"]
    assert saved["run"] == str(Path("some/where"))
    assert "made_by" not in saved


# -- what a file cannot do --------------------------------------------------------------------------------------------

EVIL = ["os.system", "builtins.print", "builtins.eval", "subprocess.Popen", "torch.load", f"{__name__}.Bomb"]


@pytest.fixture(scope="module")
def written_once(tmp_path_factory):
    classifier = BinaryClassifier(nn.Linear(FEATURES, 1), FocalLoss(), metrics=[])
    return trained(classifier, tmp_path_factory.mktemp("harmless"))


@pytest.fixture
def harmless(written_once, tmp_path):
    return Path(shutil.copy(written_once, tmp_path))


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("argument", ["loss", "optimizer", "lr_scheduler", "metrics"])
def test_a_file_that_names_anything_else_is_refused_and_nothing_is_called(argument, name, harmless, tmp_path):
    CALLS.clear()
    trace = tmp_path / "called"
    spec = {"class_path": name, "init_args": {"command": f"touch {trace}"}}
    rewritten(harmless, **{argument: [spec] if argument == "metrics" else spec})
    with pytest.raises(SpecError, match="should name a subclass of"):
        BinaryClassifier.load_from_checkpoint(harmless)
    assert not trace.exists()
    assert CALLS == []


@pytest.mark.parametrize("name", EVIL[:-1])
def test_a_model_is_a_module_also_within_another(name, harmless, tmp_path):
    trace = tmp_path / "called"
    spec = {"class_path": name, "init_args": {"command": f"touch {trace}"}}
    inside = {"class_path": "torch.nn.modules.container.Sequential", "children": [spec]}
    for model in (spec, inside):
        with pytest.raises(SpecError, match="should name a subclass of"):
            BinaryClassifier.load_from_checkpoint(rewritten(harmless, model=model))
    assert not trace.exists()


def test_the_bomb_does_go_off_where_it_may(harmless):  # so that the tests above can fail
    CALLS.clear()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        BinaryClassifier.load_from_checkpoint(rewritten(harmless, model={"class_path": f"{__name__}.Bomb"}))
    assert len(CALLS) >= 1


def test_another_loss_may_be_named(harmless):
    found = BinaryClassifier.load_from_checkpoint(
        rewritten(harmless, loss={"class_path": "lightning_bce.BCEFocalLoss", "init_args": {"gamma": 1.0}})
    )
    assert type(found.loss) is BCEFocalLoss


def test_a_class_that_has_gone_is_named(harmless):
    with pytest.raises(SpecError, match=r"gone\.Net.*put its file on the path"):
        BinaryClassifier.load_from_checkpoint(rewritten(harmless, model={"class_path": "gone.Net", "init_args": {}}))
