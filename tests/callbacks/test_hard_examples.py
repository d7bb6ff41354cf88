"""HardExamples finds planted faults, names them as a user knows them, and keeps no more than it is asked to."""

import csv
import functools
import warnings

import pytest
import torch
from foreign_lightning import Foreign, a_trainer, loader, samples
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BinaryClassifier, SmallConvNet
from lightning_bce.callbacks import HardExamples
from lightning_bce.callbacks.largest import Largest
from lightning_bce.losses import BCEWithLogitsLoss, DiceLoss, FocalLoss, ZLPRLoss

NAMES = ["cat", "dog", "a/b"]


def read(folder, stage="val"):
    with open(folder / f"hard_examples_{stage}.csv", newline="") as file:
        return list(csv.DictReader(file))


def validated(module, callback, data, folder, **options):
    trainer = a_trainer(callback, default_root_dir=folder, **options)
    trainer.validate(module, data, verbose=False)
    return trainer


class Given(torch.nn.Module):
    """Returns its input: the logits are what a test says."""

    def forward(self, inputs):
        return inputs


def given(labels=1, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this model has no constructor's arguments
        return BinaryClassifier(Given(), num_labels=labels, **options)


def rows_of(**columns):
    """A loader of batches of 7 rows, as mappings."""
    size = len(columns["target"])
    keys = list(columns)
    rows = [{key: columns[key][i] for key in keys} for i in range(size)]
    return DataLoader(rows, batch_size=7)


def test_planted_flipped_labels_are_found(tmp_path):
    torch.manual_seed(3)
    inputs = torch.randn(400, 5)
    side = inputs[:, :1] + inputs[:, 1:2]
    target = (side > 0).float()
    planted = (side.abs() > 1).nonzero()[::20, 0]  # close to the boundary a wrong label is none
    target[planted] = 1 - target[planted]
    hard = HardExamples(k=len(planted), loss=BCEWithLogitsLoss())
    data = DataLoader(TensorDataset(inputs, target), batch_size=32)
    optimizer = functools.partial(torch.optim.Adam, lr=0.05)
    classifier = BinaryClassifier(torch.nn.Linear(5, 1), FocalLoss(), metrics=[], optimizer=optimizer)
    a_trainer(hard, max_epochs=5, default_root_dir=tmp_path).fit(classifier, data, data)
    assert {row["id"] for row in hard.summary()} == set(planted.tolist())
    assert [int(row["id"]) for row in read(tmp_path)] == [row["id"] for row in hard.summary()]


def test_the_table_holds_the_largest_losses_of_all_batches_with_their_ids(tmp_path):
    logits, target = torch.randn(33, 3), (torch.rand(33, 3) > 0.5).float()
    names = [f"=row {i}" for i in range(33)]
    hard = HardExamples(k=5)
    data = rows_of(inputs=logits, target=target, id=names)
    validated(given(3, class_names=NAMES), hard, data, tmp_path)
    expected = BCEWithLogitsLoss(reduction="none")(logits, target)
    order = expected.mean(1).argsort(descending=True)[:5]
    assert [row["id"] for row in hard.summary()] == [names[i] for i in order]
    for row, i in zip(hard.summary(), order, strict=True):
        assert row["loss"] == pytest.approx(expected[i].mean().item(), rel=1e-6)
        assert row["label"] == NAMES[expected[i].argmax()]
        assert list(row["target"].values()) == target[i].tolist()
        assert list(row["probability"].values()) == pytest.approx(logits[i].sigmoid().tolist())
    written = read(tmp_path)
    assert written[0]["id"] == f"'{names[order[0]]}"  # no spreadsheet computes it
    assert list(written[0])[:3] == ["loss", "id", "label"] and "probability_a/b" in written[0]
    assert not (tmp_path / "hard_examples_val.png").exists()


def test_the_largest_label_decides_if_asked(tmp_path):
    logits = torch.tensor([[9.0, -9.0, -9.0], [2.0, 2.0, 2.0]])
    data = rows_of(inputs=logits, target=torch.zeros(2, 3))
    for reduction, first in (("mean", 0), ("max", 0)):
        hard = HardExamples(k=1, reduction=reduction)
        validated(given(3), hard, data, tmp_path)
        assert hard.summary()[0]["id"] == first
    logits[0, 0] = 4.0  # a mean of 1.3 against 2.1
    for reduction, first in (("mean", 1), ("max", 0)):
        hard = HardExamples(k=1, reduction=reduction)
        validated(given(3), hard, rows_of(inputs=logits, target=torch.zeros(2, 3)), tmp_path)
        assert hard.summary()[0]["id"] == first


def test_each_side_has_its_own(tmp_path):
    logits, target = torch.linspace(-3, 3, 33)[:, None], torch.zeros(33, 1)
    target[::8] = 1
    hard = HardExamples(k=2, by_side=True)
    validated(given(), hard, rows_of(inputs=logits, target=target), tmp_path)
    assert [(row["side"], row["id"]) for row in hard.summary()] == [
        ("positive", 0),
        ("positive", 8),
        ("negative", 31),
        ("negative", 30),
    ]
    assert {row["side"] for row in read(tmp_path)} == {"positive", "negative"}


def test_unknown_labels_count_nowhere(tmp_path):
    logits = torch.tensor([[50.0, 0.0], [1.0, 1.0], [torch.nan, 90.0]])
    target = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [-1.0, -1.0]])
    hard = HardExamples(k=3)
    data = rows_of(inputs=logits, target=target)
    validated(given(2, loss=BCEWithLogitsLoss(ignore_index=-1), metrics=[]), hard, data, tmp_path)
    assert [row["id"] for row in hard.summary()] == [1, 0]
    assert read(tmp_path)[1]["target_label_0"] == ""


def test_a_nan_loss_stands_first(tmp_path):
    data = rows_of(inputs=torch.tensor([[9.0], [torch.nan], [1.0]]), target=torch.zeros(3, 1))
    hard = HardExamples(k=2)
    validated(given(metrics=[]), hard, data, tmp_path)
    assert [row["id"] for row in hard.summary()] == [1, 0]


def test_of_a_foreign_module_rows_are_known_by_their_number_or_their_place(tmp_path):
    inputs, target = samples()
    numbered = DataLoader(TensorDataset(inputs, target), batch_size=8)
    batched = loader((inputs, target))
    found = []
    for data in (numbered, batched):
        hard = HardExamples(k=3, loss=BCEWithLogitsLoss())
        validated(Foreign(), hard, data, tmp_path)
        found.append([row["id"] for row in hard.summary()])
    assert found[1] == [f"batch {i // 8}, sample {i % 8}" for i in found[0]]
    with pytest.raises(TypeError, match=r"HardExamples\(loss=lightning_bce.BCEWithLogitsLoss\(\)\)"):
        validated(Foreign(), HardExamples(), numbered, tmp_path)


def test_images_are_drawn_with_their_titles(tmp_path):
    images = torch.rand(9, 1, 6, 6)
    hard = HardExamples(k=4)
    data = rows_of(inputs=images, target=torch.zeros(9, 1), id=[f"$x_{i}$ {i * '[b]'}" for i in range(9)])
    validated(BinaryClassifier(SmallConvNet()), hard, data, tmp_path)
    assert (tmp_path / "hard_examples_val.png").stat().st_size > 1000
    figure = hard.figure()
    shown = [axis.get_title().split("\n")[0] for axis in figure.axes]
    assert shown == [row["id"] if len(row["id"]) <= 24 else row["id"][:23] + "…" for row in hard.summary()]
    drawn = figure.axes[0].images[0].get_array()
    image = images[int(hard.summary()[0]["id"][3])][0]
    assert_close(torch.tensor(drawn), ((image - image.min()) / (image.max() - image.min())).double())
    validated(BinaryClassifier(SmallConvNet()), HardExamples(pictures=False), data, tmp_path / "without")
    assert not (tmp_path / "without" / "hard_examples_val.png").exists()


def test_dense_outputs_are_judged_by_their_mean(tmp_path):
    logits, target = torch.randn(5, 2, 4, 4), torch.zeros(5, 2, 4, 4)
    target[2, 1, :2] = 1
    hard = HardExamples(k=2)
    validated(given(2, metrics=[]), hard, rows_of(inputs=logits, target=target), tmp_path)
    expected = BCEWithLogitsLoss(reduction="none")(logits, target).flatten(1).mean(1)
    assert [row["id"] for row in hard.summary()] == expected.argsort(descending=True)[:2].tolist()
    assert hard.summary()[0]["probability"]["label_0"] == pytest.approx(
        logits[hard.summary()[0]["id"], 0].sigmoid().mean().item()
    )


def test_several_dataloaders_are_told_apart(tmp_path):
    hard = HardExamples(k=2, loss=BCEWithLogitsLoss())
    data = [DataLoader(TensorDataset(*samples(seed=seed)), batch_size=8) for seed in (0, 1)]
    validated(Foreign(), hard, data, tmp_path)
    assert [row["dataloader"] for row in read(tmp_path)] == ["0", "0", "1", "1"]
    assert len(hard.summary(dataloader_idx=1)) == 2
    with pytest.raises(LookupError, match=r"there are: val \(dataloader 0\), val \(dataloader 1\)"):
        hard.summary("test")


def test_a_loss_of_a_ranking_of_a_sample_will_do_and_one_of_a_label_not(tmp_path):
    logits, target = torch.randn(9, 3), (torch.rand(9, 3) > 0.5).float()
    data = rows_of(inputs=logits, target=target)
    hard = HardExamples(k=2)
    validated(given(3, loss=ZLPRLoss()), hard, data, tmp_path)
    expected = ZLPRLoss(reduction="none")(logits, target)
    assert [row["id"] for row in hard.summary()] == expected.argsort(descending=True)[:2].tolist()
    assert "label" not in hard.summary()[0]
    for loss in (DiceLoss(), 0.5 * BCEWithLogitsLoss() + DiceLoss()):
        with pytest.raises(ValueError, match="Say by which loss to look for hard examples"):
            validated(given(3, loss=loss), HardExamples(), data, tmp_path)
    validated(given(3, loss=DiceLoss()), HardExamples(loss=BCEWithLogitsLoss()), data, tmp_path)
    with pytest.raises(ValueError, match="not of its sides"):
        HardExamples(loss=ZLPRLoss(), by_side=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"k": 0}, "`k` is 0"),
        ({"reduction": "sum"}, "`reduction` is 'sum'"),
        ({"stages": "val"}, "`stages` is 'val'"),
        ({"stages": ["all"]}, "`stages` is"),
    ],
)
def test_wrong_options_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        HardExamples(**options)
    with pytest.raises(TypeError, match="a BinaryLoss was expected"):
        HardExamples(loss=torch.nn.BCEWithLogitsLoss())


def test_a_trial_run_writes_nothing(tmp_path):
    data = DataLoader(TensorDataset(*samples()), batch_size=8)
    hard = HardExamples(loss=BCEWithLogitsLoss())
    a_trainer(hard, fast_dev_run=True, default_root_dir=tmp_path).fit(Foreign(), data, data)
    assert len(hard.summary()) == 8
    hard = HardExamples(loss=BCEWithLogitsLoss())
    barebones = {"barebones": True, "num_sanity_val_steps": 0, "enable_checkpointing": None, "logger": None}
    a_trainer(hard, default_root_dir=tmp_path, **barebones).validate(Foreign(), data, verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_many_batches_are_not_all_kept(tmp_path):
    hard, sizes = HardExamples(k=3), []
    size, count = 2, 300
    names = [str(i) for i in range(size * count)]
    rows = [
        {"inputs": torch.randn(size, 1), "target": torch.zeros(size, 1), "id": names[i * size : (i + 1) * size]}
        for i in range(count)
    ]
    add = hard.add

    def counted(*arguments):
        add(*arguments)
        sizes.append(len(hard._keepers[0].names))

    hard.add = counted
    validated(given(metrics=[]), hard, DataLoader(rows, batch_size=None), tmp_path)
    values = torch.cat([row["inputs"] for row in rows]).flatten()
    assert [row["id"] for row in hard.summary()] == [names[i] for i in values.argsort(descending=True)[:3]]
    assert max(sizes) < 70


def test_what_is_kept_does_not_depend_on_the_cut():
    values, parts = torch.randn(100), torch.arange(100)
    whole, cut = Largest(7), Largest(7)
    whole.offer(values, {"row": parts})
    for start in range(0, 100, 9):
        cut.offer(values[start : start + 9], {"row": parts[start : start + 9]})
    expected = values.argsort(descending=True)[:7]
    for largest in (whole, cut):
        kept, with_it = largest.kept()
        assert_close(kept, values[expected])
        assert torch.equal(with_it["row"], expected)
