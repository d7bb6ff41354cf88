"""What the training labels decide before training: counted once, exact over ranks, kept in checkpoints."""

from __future__ import annotations

import functools
import math
import os
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from lightning_bce import (
    BCEWithLogitsLoss,
    BinaryClassifier,
    FocalLoss,
    LabelCounts,
    LogitAdjustedLoss,
    MultiLabelHead,
    SmallConvNet,
    TabularMLP,
)
from lightning_bce.data import DigitsDataModule
from lightning_bce.data.base import BinaryDataModule
from lightning_bce.data.tensors import TensorRows

pytestmark = [
    # What happens before training and in its first step is looked at; nothing is validated.
    pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`"),
]


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(**{**quiet, "max_epochs": 1, "enable_checkpointing": False, "limit_val_batches": 0, **options})


class Counted(Dataset[Any]):
    """Rows that note how often each was asked for."""

    def __init__(self, inputs: Tensor, *parts: Tensor) -> None:
        self.parts = (inputs, *parts)
        self.asked = torch.zeros(len(inputs), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.asked[index] += 1
        return tuple(part[index] for part in self.parts)


def rare(rows: int = 257, rate: float = 0.05, labels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 5, generator=generator), (torch.rand(rows, labels, generator=generator) < rate).float()


# -- counting ---------------------------------------------------------------------------------------------------------


def test_labels_are_counted_once_and_only_if_something_waits_for_them():
    inputs, target = rare()
    for loss, bias, passes in (
        (BCEWithLogitsLoss(), False, 0),
        (BCEWithLogitsLoss(), True, 1),
        (BCEWithLogitsLoss(pos_weight="auto"), False, 1),
        (BCEWithLogitsLoss(pos_weight="auto"), True, 1),
    ):
        rows = Counted(inputs, target)
        classifier = BinaryClassifier(TabularMLP(5), loss, prior_bias=bias)
        trainer(max_epochs=3).fit(classifier, DataLoader(rows, batch_size=33, shuffle=True))
        assert rows.asked.tolist() == [3 + passes] * 257
        assert passes == 0 or classifier.label_counts.positives.item() == target.sum()


def test_another_training_counts_its_own_labels_unless_counts_were_given(tmp_path):
    rates = []
    given = LabelCounts(positives=10, negatives=90)
    for start in (None, given):
        classifier = BinaryClassifier(TabularMLP(5), deployment_prior=0.5)
        classifier.label_counts = start
        for rate in (0.2, 0.6):
            trainer(max_epochs=1).fit(classifier, DataLoader(TensorDataset(*rare(rate=rate)), batch_size=33))
            rates.append(classifier.label_counts.prior.item())
            assert_close(classifier.decision.shift, -torch.logit(classifier.label_counts.prior).float())
    right = [rare(rate=rate)[1].mean().item() for rate in (0.2, 0.6)]
    assert rates == pytest.approx([*right, 0.1, 0.1])


def test_weights_and_unknown_labels_are_counted_as_the_loss_counts_them():
    inputs, target = rare(labels=2, rate=0.3)
    target[::3, 1] = -1
    weight = torch.rand(257)
    loss = BCEWithLogitsLoss(pos_weight="auto", ignore_index=-1)
    trainer().fit(
        BinaryClassifier(TabularMLP(5, 2), loss, num_labels=2), DataLoader(TensorDataset(inputs, target, weight), 33)
    )
    known = target >= 0
    positive = (weight[:, None] * (target == 1)).sum(0)
    negative = (weight[:, None] * (known & (target == 0))).sum(0)
    assert_close(loss.pos_weight, (negative / positive).double(), check_dtype=False)


def test_counting_leaves_the_order_of_the_training_as_it_was():
    def order(**options: Any) -> list[Tensor]:
        torch.manual_seed(7)
        seen: list[Tensor] = []

        class Watch(pl.Callback):
            def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
                seen.append(batch[0])

        loader = DataLoader(TensorDataset(*rare()), 33, shuffle=True)
        classifier = BinaryClassifier(TabularMLP(5), BCEWithLogitsLoss(**options))
        trainer(callbacks=[Watch()]).fit(classifier, loader)
        return seen

    assert all(torch.equal(a, b) for a, b in zip(order(), order(pos_weight="auto"), strict=True))


def test_a_sampler_that_draws_otherwise_is_counted_as_it_draws():
    inputs, target = rare()
    chances = torch.where(target[:, 0] > 0, 1 / target.sum(), 1 / (1 - target).sum())
    loader = DataLoader(TensorDataset(inputs, target), 33, sampler=WeightedRandomSampler(chances.tolist(), 2048))
    loss = BCEWithLogitsLoss(pos_weight="auto")
    trainer().fit(BinaryClassifier(TabularMLP(5), loss), loader)
    assert loss.pos_weight.item() == pytest.approx(1, abs=0.2)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(5), torch.ones(1)


def test_a_stream_is_not_read_for_its_labels_and_counts_can_be_given():
    loss = BCEWithLogitsLoss(pos_weight="auto")
    classifier = BinaryClassifier(TabularMLP(5), loss, prior_bias=True)
    with pytest.raises(TypeError, match=r"IterableDataset \(Endless\).*label_counts"):
        trainer(limit_train_batches=2).fit(classifier, DataLoader(Endless(), 7))
    classifier.label_counts = LabelCounts(1, 9)
    trainer(limit_train_batches=2).fit(classifier, DataLoader(Endless(), 7))
    assert loss.pos_weight.item() == pytest.approx(9)


def test_counts_of_another_number_of_labels_are_refused():
    classifier = BinaryClassifier(TabularMLP(5), prior_bias=True)
    classifier.label_counts = LabelCounts([1, 1], [9, 9])
    with pytest.raises(ValueError, match="counts of 2 label"):
        trainer().fit(classifier, DataLoader(TensorDataset(*rare()), 33))


class TargetLast(BinaryClassifier):
    """One that reads the targets of a data module in another way."""

    def unpack_batch(self, batch: Any) -> Any:
        return super().unpack_batch({**batch, "target": 1 - batch["target"]})


def test_a_subclass_that_unpacks_otherwise_is_counted_as_it_unpacks():
    data = DigitsDataModule()
    classifier = TargetLast(SmallConvNet(width=4), BCEWithLogitsLoss(pos_weight="auto"))
    trainer(limit_train_batches=1, limit_val_batches=0).fit(classifier, data)
    assert_close(classifier.label_counts.prior, 1 - data.label_counts().prior)


# -- in checkpoints and logs ------------------------------------------------------------------------------------------


class Renamed(FocalLoss):
    """A loss with an argument of another name, which its spec keeps as it is."""

    def __init__(self, balance: str = "auto") -> None:
        super().__init__(alpha=balance)


@pytest.mark.parametrize(
    "loss", [BCEWithLogitsLoss(pos_weight="auto"), 0.5 * FocalLoss(alpha="sqrt")], ids=["bce", "sum"]
)
def test_resolved_values_are_in_hyper_parameters_and_in_checkpoints_of_two_generations(loss, tmp_path):
    loader = DataLoader(TensorDataset(*rare()), 33)
    logger = CSVLogger(tmp_path)
    first = trainer(logger=logger, log_every_n_steps=1)
    classifier = BinaryClassifier(TabularMLP(5), loss)
    first.fit(classifier, loader)
    first.save_checkpoint(tmp_path / "a.ckpt")
    assert classifier.hparams["loss"] == loss.spec() and "auto" not in str(loss.spec())
    shown = (Path(logger.log_dir) / "hparams.yaml").read_text()
    assert "pos_weight" in shown or "alpha" in shown
    assert "auto" not in shown and "sqrt" not in shown

    logits, target = torch.randn(33, 1), (torch.rand(33, 1) < 0.3).float()
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.loss.unresolved == ()
    second = trainer(max_epochs=2)
    second.fit(again, loader, ckpt_path=tmp_path / "a.ckpt")
    second.save_checkpoint(tmp_path / "b.ckpt")
    third = BinaryClassifier.load_from_checkpoint(tmp_path / "b.ckpt", weights_only=True)
    assert_close(third.loss(logits, target), loss(logits, target), rtol=0, atol=0)
    assert third.label_counts.plain() == classifier.label_counts.plain()


def test_a_run_that_goes_on_takes_the_counts_of_its_checkpoint(tmp_path):
    first = trainer()
    rows = Counted(*rare())
    classifier = BinaryClassifier(TabularMLP(5), Renamed(), prior_bias=True)
    first.fit(classifier, DataLoader(rows, 33))
    first.save_checkpoint(tmp_path / "a.ckpt")
    alpha = classifier.loss.alpha
    assert BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt").loss.alpha == alpha

    fresh = BinaryClassifier(TabularMLP(5), Renamed(), prior_bias=True)
    rows.asked.zero_()
    second = trainer(max_epochs=3)
    second.fit(fresh, DataLoader(rows, 33), ckpt_path=tmp_path / "a.ckpt")
    trained = rows.asked[0].item()
    assert fresh.loss.alpha == alpha
    rows.asked.zero_()
    trainer(max_epochs=3).fit(BinaryClassifier(TabularMLP(5)), DataLoader(rows, 33), ckpt_path=tmp_path / "a.ckpt")
    assert rows.asked[0].item() == trained  # as one that needs no counts
    # A checkpoint of a loss that needed no counts has none to give: they are counted then.
    plain = trainer()
    plain.fit(BinaryClassifier(TabularMLP(5)), DataLoader(rows, 33))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    late = BinaryClassifier(TabularMLP(5), FocalLoss(alpha="auto"))
    trainer(max_epochs=2).fit(late, DataLoader(rows, 33), ckpt_path=tmp_path / "plain.ckpt")
    assert late.loss.alpha == pytest.approx(alpha)


# -- the first bias ---------------------------------------------------------------------------------------------------


class FirstLoss(pl.Callback):
    """Keeps the logits and the loss of the first batch."""

    loss: float
    logits: Tensor

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if index == 0 and trainer.current_epoch == 0:
            self.loss, self.logits = outputs["sums"].mean().item(), outputs["logits"]


def one_percent(batch: int = 1000) -> DataLoader[Any]:
    target = torch.zeros(1000, 1)
    target[:10] = 1
    return DataLoader(TensorDataset(torch.zeros(1000, 5), target), batch)


def test_the_first_loss_at_one_percent_is_the_entropy_of_the_labels():
    for bias, expected in ((False, math.log(2)), (True, -0.01 * math.log(0.01) - 0.99 * math.log(0.99))):
        watch = FirstLoss()
        model = TabularMLP(5, dropout=0.0)
        nn.init.zeros_(model.layers[-1].bias)
        for layer in model.layers:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        trainer(callbacks=[watch]).fit(BinaryClassifier(model, prior_bias=bias), one_percent())
        assert watch.loss == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(0.056, abs=1e-4)


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        (BCEWithLogitsLoss(), math.log(1 / 99)),
        (BCEWithLogitsLoss(pos_weight="auto"), 0.0),
        (BCEWithLogitsLoss(pos_weight="sqrt"), math.log(1 / 99) / 2),
        (LogitAdjustedLoss(prior="auto"), 0.0),
        (FocalLoss(), math.log(1 / 99)),
    ],
)
def test_the_bias_starts_where_the_loss_is_smallest_if_that_is_known(loss, start):
    watch = FirstLoss()
    trainer(callbacks=[watch]).fit(BinaryClassifier(nn.Linear(5, 1), loss, prior_bias=True), one_percent())
    assert_close(watch.logits, torch.full((1000, 1), start))


class Head(nn.Module):
    """A model whose last registered layer with one output is not the one that makes the logits."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.bias = bias
        self.head = nn.Linear(5, 1, bias=bias)
        self.gate = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.gate(x).sigmoid().round().add(1).div(2).round()


def test_a_layer_that_does_not_make_the_logits_is_found_out_at_the_first_batch():
    model = Head()
    nn.init.constant_(model.gate.bias, 9.0)
    with pytest.raises(ValueError, match="'gate' is not what is added to the logits"):
        trainer().fit(BinaryClassifier(model, prior_bias=True), one_percent())
    assert_close(model.gate.bias.data, torch.full((1,), 9.0))
    watch = FirstLoss()
    trainer(callbacks=[watch]).fit(BinaryClassifier(model, prior_bias="head"), one_percent())
    assert_close(watch.logits, torch.full((1000, 1), math.log(1 / 99)))
    # "auto" puts it back and goes on.
    again = Head()
    before = again.gate.bias.detach().clone()
    optimizer = functools.partial(torch.optim.SGD, lr=0.0)
    trainer().fit(BinaryClassifier(again, prior_bias="auto", optimizer=optimizer), one_percent())
    assert torch.equal(again.gate.bias, before)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.filterwarnings("ignore:.*cannot be written into a checkpoint")  # not what these are about
@pytest.mark.parametrize(
    ("model", "prior_bias", "message"),
    [
        (Hidden(), True, r"has no such layer; it has: none"),
        (nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)), True, "which has none"),
        (TabularMLP(5, 1), "layers.0", r"'layers.0'.*layers.6 \(1\)"),
        (TabularMLP(5, 1), "head", r"'head'.*layers.6 \(1\)"),
    ],
)
def test_a_bias_that_cannot_be_set_is_refused_with_what_there_is(model, prior_bias, message):
    with pytest.raises(ValueError, match=message):
        trainer().fit(BinaryClassifier(model, prior_bias=prior_bias), one_percent())


@pytest.mark.parametrize("labels", [1, 3])
def test_a_loss_with_weights_of_other_labels_is_named(labels):
    loss = BCEWithLogitsLoss(pos_weight=[1.0, 2.0])
    with pytest.raises(ValueError, match=f"The loss has weights of 2 labels and `num_labels` is {labels}"):
        data = DataLoader(TensorDataset(torch.zeros(7, 5), torch.eye(7, labels)), 7)
        trainer().fit(BinaryClassifier(nn.Linear(5, labels), loss, labels, prior_bias="auto"), data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiLabelHead(5, 7, BCEWithLogitsLoss(pos_weight="auto")), r"pos_weight waits.*loss.resolve"),
        (lambda: BinaryClassifier(nn.Identity(), head=MultiLabelHead(5, 7), prior_bias=True), "give it its `prior`"),
        (lambda: BinaryClassifier(nn.Identity(), head=MultiLabelHead(5, 7), deployment_prior=0.1), "no effect with a"),
    ],
)
def test_a_head_has_a_prior_of_its_own(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_without_such_a_layer_trains_with_auto():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifier = BinaryClassifier(Hidden(), prior_bias="auto")
    trainer().fit(classifier, one_percent())


def test_a_trained_model_keeps_its_bias(tmp_path):
    first, slow = trainer(max_epochs=2), functools.partial(torch.optim.SGD, lr=0.0)
    classifier = BinaryClassifier(nn.Linear(5, 1), prior_bias=True, optimizer=slow)
    first.fit(classifier, one_percent())
    with torch.no_grad():
        classifier.model.bias.fill_(1.5)
    first.save_checkpoint(tmp_path / "a.ckpt")
    trainer().fit(classifier, one_percent())  # a second fit of the same object
    assert classifier.model.bias.item() == 1.5
    tuned = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    trainer().fit(tuned, one_percent())  # a training that starts from a checkpoint
    assert tuned.model.bias.item() == 1.5
    resumed = BinaryClassifier(nn.Linear(5, 1), prior_bias=True, optimizer=slow)
    trainer(max_epochs=3).fit(resumed, one_percent(), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.model.bias.item() == 1.5


def test_masks_start_at_the_rate_of_each_channel():
    target = torch.zeros(7, 2, 8, 8)
    target[:, 0, :2], target[:, 1, :, :1] = 1, 1
    watch = FirstLoss()
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=2))
    nn.init.zeros_(model[2].weight)
    loader = DataLoader(TensorDataset(torch.randn(7, 1, 4, 4), target), 7)
    trainer(callbacks=[watch]).fit(BinaryClassifier(model, num_labels=2, prior_bias=True), loader)
    expected = torch.tensor([0.25, 0.125]).logit().reshape(1, 2, 1, 1).expand(7, 2, 8, 8)
    assert_close(watch.logits, expected)


# -- a balanced draw --------------------------------------------------------------------------------------------------


class Steps(BinaryDataModule):
    """One word with three values, each with a rate of its own: a linear model on it can be exact."""

    num_features, num_labels, class_names = 3, 1, ("rare",)
    RATES = (0.01, 0.05, 0.2)

    def rows(self, part: Any) -> TensorRows:
        inputs = torch.eye(3).repeat_interleave(1000, 0)
        target = torch.cat([(torch.arange(1000) < 1000 * rate).float() for rate in self.RATES])[:, None]
        return TensorRows({"inputs": inputs, "target": target})


@pytest.mark.parametrize("share", [None, 0.5])
def test_probabilities_of_a_balanced_draw_are_those_of_the_data(share):
    data = Steps(positive_share=share, batch_size=3000, val_fraction=0, test_fraction=0)
    optimizer = functools.partial(torch.optim.Adam, lr=0.1)
    classifier = BinaryClassifier(nn.Linear(3, 1), prior_bias=True, optimizer=optimizer, metrics=[])
    trainer(max_epochs=150, limit_val_batches=0).fit(classifier, data)
    found = classifier(torch.eye(3)).sigmoid().flatten()
    # Bayes' rule takes the rates of the draw back to those of the data. Where 1,000 rows have 10 positives, an epoch's
    # draw of negatives leaves a few per cent.
    assert_close(found, torch.tensor(Steps.RATES), rtol=0.02 if share is None else 0.1, atol=0)


def test_the_loss_of_a_balanced_draw_starts_at_the_entropy_of_the_draw():
    watch = FirstLoss()
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    data = Steps(positive_share=0.5, batch_size=3000, val_fraction=0, test_fraction=0)
    trainer(callbacks=[watch], limit_val_batches=0).fit(BinaryClassifier(model, prior_bias=True), data)
    assert watch.loss == pytest.approx(math.log(2), abs=1e-3)
    assert_close(watch.logits, torch.full((3000, 1), math.log(0.26 / 2.74)))


# -- two ranks --------------------------------------------------------------------------------------------------------


def on_a_rank(rank: int) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "test"}
    warnings.simplefilter("ignore")
    options = {"devices": 2, "strategy": "ddp", "plugins": [TorchElasticEnvironment()]}
    still = functools.partial(torch.optim.SGD, lr=0.0)
    loss = FocalLoss(gamma=0.0, alpha="auto")
    classifier = BinaryClassifier(nn.Linear(5, 1), loss, prior_bias=True, optimizer=still)
    trainer(**options).fit(classifier, DataLoader(TensorDataset(*rare(rows=33, rate=0.3)), 4, shuffle=True))
    seen: list[Tensor] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
            seen.append(batch["id"])

    data = DigitsDataModule(positive_share=0.5)
    drawn = BinaryClassifier(SmallConvNet(width=4))
    trainer(**options, callbacks=[Watch()], limit_val_batches=0).fit(drawn, data)
    return {
        "counts": classifier.label_counts.plain(),
        "alpha": classifier.loss.alpha,
        "bias": classifier.model.bias.item(),
        "drawn": torch.cat(seen),
        "shift": drawn._drawn,
    }


def test_two_ranks_count_each_row_once_and_share_one_draw(on_two_ranks):
    first, second = on_two_ranks(on_a_rank)
    _, target = rare(rows=33, rate=0.3)  # 33 rows: Lightning's sampler repeats one
    assert first["counts"] == second["counts"] == LabelCounts.of(target).plain()
    rate = target.mean().item()
    assert first["alpha"] == second["alpha"] == pytest.approx(1 - rate)
    assert first["bias"] == second["bias"] == pytest.approx(math.log(rate / (1 - rate)))
    data = DigitsDataModule(positive_share=0.5)
    alone = torch.cat([batch["id"] for batch in data.train_dataloader()])
    together = torch.cat([first["drawn"], second["drawn"]])
    assert len(alone) <= len(together) <= len(alone) + 1
    drawn = torch.stack([torch.bincount(ids, minlength=1797) for ids in (alone, together)])
    assert (drawn[0] - drawn[1]).abs().max() <= 1
    assert torch.equal(first["shift"], second["shift"])
