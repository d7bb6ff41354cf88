"""A balanced draw: its chances, its counts, and what is the same whatever the ranks and wherever a run was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars
import pytest
import sklearn.datasets  # noqa: F401  sets variables of the environment when first imported, which is no test's leak
import torch
from torch.testing import assert_close

from lightning_bce import LabelCounts
from lightning_bce.data import BreastCancerDataModule, DigitsDataModule, ParquetStreamDataModule, TableDataModule
from lightning_bce.data.balanced import BalancedDraw, draw_chances
from lightning_bce.data.base import BinaryDataModule
from lightning_bce.data.tensors import TensorRows

NAN = float("nan")


def rows(count: int) -> TensorRows:
    return TensorRows({"id": torch.arange(count)})


class TwoRareLabels(BinaryDataModule):
    """Two labels that come together more often than by chance."""

    num_features, num_labels, class_names = 1, 2, ("a", "b")

    def rows(self, part: str) -> TensorRows:
        target = torch.zeros(1000, 2)
        target[:40, 0] = target[20:70, 1] = 1
        return TensorRows({"inputs": torch.zeros(1000, 1), "target": target})


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_one_label_has_the_share_of_positives_that_was_asked_for_in_every_epoch(share):
    target = torch.zeros(257, 1)
    target[:7] = 1
    sampler = BalancedDraw(rows(257), draw_chances(target, share), seed=3)
    for _ in range(3):
        drawn = torch.tensor(list(sampler))
        times = torch.bincount(drawn, minlength=257)
        assert abs(target[drawn].sum().item() - 257 * share) < 1  # 257 rows cannot be shared out more evenly
        for side in (times[:7], times[7:]):
            assert side.max() - side.min() <= 1


def test_chances_of_many_labels_are_those_of_drawing_a_label_then_a_side_then_a_row():
    target = (torch.rand(9, 3) < 0.4).float()
    target[0], target[1] = 1, 0
    target[4, 1] = target[5, 0] = NAN
    target[:, 2] = 1  # a label without negatives is never drawn for
    expected = np.zeros(9)
    for label in (0, 1):
        for share, side in ((0.3, 1.0), (0.7, 0.0)):
            found = [i for i in range(9) if target[i, label] == side]
            for i in found:
                expected[i] += share / 2 / len(found)
    np.testing.assert_allclose(draw_chances(target, 0.3), expected)
    assert expected.sum() == pytest.approx(1)


def test_what_is_drawn_agrees_with_the_counts_that_correct_for_it():
    data = TwoRareLabels(positive_share=0.5, val_fraction=0.0, test_fraction=0.0)
    total = LabelCounts(torch.zeros(2), torch.zeros(2))
    for _ in range(8):
        for batch in data.train_dataloader():
            total = total + LabelCounts.of(batch["target"])
    assert_close(data.drawn_counts().prior, total.prior, rtol=0.02, atol=0)
    assert data.drawn_counts().prior.min() > 4 * data.label_counts().prior.max()


def test_ranks_share_one_draw_out_without_a_remainder():
    target = (torch.arange(33) < 4).float()[:, None]
    whole = BalancedDraw(rows(33), draw_chances(target, 0.5), seed=1)
    parts = [BalancedDraw(rows(33), draw_chances(target, 0.5), seed=1, rank=r, ranks=3) for r in range(3)]
    for epoch in (0, 5):
        for sampler in (whole, *parts):
            sampler.set_epoch(epoch)
        dealt = [list(part) for part in parts]
        together = [index for turn in zip(*dealt, strict=True) for index in turn]
        assert together == list(whole)
    assert [len(part) for part in parts] == [11, 11, 11]


def test_the_draw_follows_from_seed_and_epoch_and_leaves_random_states_alone():
    chances = draw_chances((torch.arange(33) < 4).float()[:, None], 0.5)
    sampler, state = BalancedDraw(rows(33), chances, seed=1), torch.get_rng_state()
    first, second = list(sampler), list(sampler)
    again = BalancedDraw(rows(33), chances, seed=1)
    again.set_epoch(1)
    assert first != second == list(again)
    assert first != list(BalancedDraw(rows(33), chances, seed=2))
    assert torch.equal(torch.get_rng_state(), state)


def test_tables_draw_by_labels_and_count_with_weights(tmp_path: Path):
    path = tmp_path / "a.csv"
    lines = [f"{i * i % 101},{1 + i % 3},{int(i % 9 == 0)}" for i in range(300)]
    path.write_text("\n".join(["x,w,y", *lines]))
    data = TableDataModule(path, weight_column="w", positive_share=0.5, val_fraction=0.1, batch_size=33)
    batches = list(data.train_dataloader())
    target = torch.cat([batch["target"] for batch in batches])
    assert abs(target.mean() - 0.5) < 0.01
    known = data.rows("train").columns
    counts = LabelCounts.of(known["target"], known["weight"])
    assert_close(data.label_counts().prior, counts.prior)
    chances = torch.from_numpy(draw_chances(known["target"], 0.5)) * known["weight"]
    positive = known["target"][:, 0] > 0.5
    assert data.drawn_counts().prior.item() == pytest.approx((chances[positive].sum() / chances.sum()).item())
    assert next(iter(data.val_dataloader()))["target"].mean() < 0.2  # the others keep their rate


def test_a_stream_counts_while_it_learns_and_keeps_the_counts(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="streams need pyarrow: pip install 'lightning_bce[stream]'")
    table = polars.DataFrame({"x": range(99), "w": [1.0, 2.0, 3.0] * 33, "y": [0, 1, 0, 0, None, 0, 0, 0, 1] * 11})
    for number in (0, 1):
        table[number::2].write_parquet(tmp_path / f"{number}.parquet", row_group_size=10)
    options = {"weight_column": "w", "missing_targets": "ignore", "seed": 1}
    data = ParquetStreamDataModule(tmp_path, **options)
    counts, train = data.label_counts(), data.rows("train").columns
    expected = LabelCounts.of(train["target"], train["weight"])
    assert_close(counts.positives, expected.positives)
    assert_close(counts.total, expected.total)
    again = ParquetStreamDataModule(tmp_path / "nowhere", **options)
    again.restore(data.state_dict())
    assert again.label_counts().plain() == counts.plain()
    # A checkpoint of before has none, and they are counted from the rows.
    old = {name: value for name, value in data.state_dict().items() if name != "label_counts"}
    again = ParquetStreamDataModule(tmp_path, **options)
    again.restore(old)
    assert_close(again.label_counts().positives, counts.positives)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: BreastCancerDataModule(positive_share=1), "must lie in"),
        (lambda path: DigitsDataModule(positive_share=0.0), "must lie in"),
        (lambda path: ParquetStreamDataModule(path, positive_share=0.5), "a stream cannot draw rows"),
        (lambda path: draw_chances(torch.zeros(7, 2), 0.5), "no label has positives and negatives"),
    ],
)
def test_a_draw_that_cannot_be_had_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)
