"""Laws of every data module: whole-tensor batches, repeatable order, refused arguments."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from lightning_bce.data import BinaryDataModule, TensorRows
from lightning_bce.data.tensors import EpochShuffle, as_it_is


class Counted(BinaryDataModule):
    """33 numbered rows, all parts alike."""

    num_features, num_labels, class_names = 1, 1, ["odd"]  # type: ignore[assignment]

    def rows(self, part):
        numbers = torch.arange(33)
        columns = {"inputs": numbers.float()[:, None], "target": (numbers % 2).float()[:, None], "id": numbers}
        return None if part == "val" and not self.fractions["val"] else TensorRows(columns)


def order(loader):
    return torch.cat([batch["id"] for batch in loader]).tolist()


def test_a_batch_is_the_rows_in_order():
    rows = TensorRows({"inputs": torch.arange(6.0).reshape(3, 2), "id": ["a", "b", "c"]})
    batch = rows.__getitems__([2, 0])
    assert batch["inputs"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert batch["id"] == ["c", "a"]
    assert rows[1]["id"] == "b" and len(rows) == 3


def test_a_loader_asks_for_whole_batches(monkeypatch):
    monkeypatch.setattr(TensorRows, "__getitem__", lambda *_: pytest.fail("a row was made on its own"))
    assert [len(batch["id"]) for batch in Counted(batch_size=10).train_dataloader()] == [10, 10, 10, 3]


def test_columns_of_unlike_lengths_are_refused():
    with pytest.raises(ValueError, match="equally long"):
        TensorRows({"inputs": torch.zeros(3, 2), "id": ["a"]})


def test_training_order_changes_with_the_epoch_and_repeats_with_the_seed():
    first, again, other = (Counted(seed=seed, batch_size=7).train_dataloader() for seed in (0, 0, 1))
    epochs = [order(first), order(first)]
    assert epochs == [order(again), order(again)]
    assert epochs[0] != epochs[1] and epochs[0] != order(other)
    assert sorted(epochs[0]) == list(range(33))


def test_a_resumed_run_has_the_order_of_an_uninterrupted_one():
    loader, resumed = Counted().train_dataloader(), Counted().train_dataloader()
    order(loader)
    resumed.sampler.set_epoch(1)
    assert order(resumed) == order(loader)


def test_evaluation_keeps_the_order_of_the_rows():
    data = Counted(batch_size=7)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert order(loader) == list(range(33))


def test_loaders_leave_the_global_random_states_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = Counted(batch_size=7)
    order(data.train_dataloader())
    order(data.val_dataloader())
    assert (torch.get_rng_state() == torch_state).all()
    assert (np.random.get_state()[1] == numpy_state).all()


def test_workers_give_the_batches_of_the_main_process():
    alone, helped = Counted(batch_size=7).train_dataloader(), Counted(batch_size=7, num_workers=1).train_dataloader()
    assert helped.persistent_workers
    assert [order(alone), order(alone)] == [order(helped), order(helped)]


def test_a_distributed_sampler_takes_the_place_of_the_shuffle():
    rows = Counted().rows("train")
    seen = []
    for rank in (0, 1):
        sampler = DistributedSampler(rows, num_replicas=2, rank=rank, shuffle=True)
        seen += order(DataLoader(rows, batch_size=7, sampler=sampler, collate_fn=as_it_is))
    assert set(seen) == set(range(33)) and len(seen) == 34
    assert isinstance(EpochShuffle(rows), torch.utils.data.RandomSampler)  # what Lightning looks for


def test_without_validation_there_is_no_loader():
    assert Counted(val_fraction=0.0).val_dataloader() == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "`batch_size` is 0: it must be at least 1"),
        ({"batch_size": -1}, ValueError, "at least 1"),
        ({"batch_size": 2.0}, TypeError, "a float: it must be a whole number"),
        ({"batch_size": True}, TypeError, "whole number"),
        ({"num_workers": -1}, ValueError, "at least 0"),
        ({"seed": -1}, ValueError, "at least 0"),
        ({"val_fraction": 1.0}, ValueError, r"must lie in \[0, 1\)"),
        ({"val_fraction": -0.1}, ValueError, r"must lie in \[0, 1\)"),
        ({"test_fraction": float("nan")}, ValueError, r"must lie in \[0, 1\)"),
        ({"val_fraction": "0.1"}, TypeError, "a str"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, ValueError, "leave nothing to train on"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Counted(**arguments)


def test_nothing_to_train_on_is_refused(monkeypatch):
    monkeypatch.setattr(Counted, "rows", lambda *_: TensorRows({"inputs": torch.zeros(0, 1)}))
    with pytest.raises(ValueError, match="no row to train on"):
        Counted().train_dataloader()
