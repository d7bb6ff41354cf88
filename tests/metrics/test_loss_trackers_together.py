"""Several LossTrackers: on ranks, in collections, merged. Together they give the values of one that saw everything."""

import copy

import pytest
import torch
from torch.testing import assert_close
from torchmetrics import MetricCollection

from lightning_bce import BCEWithLogitsLoss, BinaryLoss, FocalLoss, LossTracker

LABELS = 3

# A batch's own sum is in float32, as the loss is.
FLOAT32 = {"rtol": 1e-6, "atol": 1e-9}


def batches(*sizes):
    return [(3 * torch.randn(n, LABELS), torch.randint(0, 2, (n, LABELS)), torch.rand(n)) for n in sizes]


def whole(parts):
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def tracked(parts, loss=None):
    tracker = LossTracker(loss or BCEWithLogitsLoss(), num_labels=LABELS)
    for part in parts:
        tracker.update(*part)
    return tracker


def at_once(parts):
    return tracked([whole(parts)]).compute()


# -- ranks ------------------------------------------------------------------------------------------------------------


def track_on_this_rank(rank, parts_of_ranks):
    """Compute on one rank: uneven ranks, a collection, a rank without a batch, and the state afterwards."""
    tracker = tracked(parts_of_ranks[rank])
    losses = {"plain": BCEWithLogitsLoss(), "heavy": BCEWithLogitsLoss(pos_weight=9.0)}
    collection = MetricCollection({name: LossTracker(loss, LABELS) for name, loss in losses.items()})
    for part in parts_of_ranks[rank]:
        collection.update(*part)
    lonely = tracked(parts_of_ranks[rank] if rank == 0 else [])
    local = tracker.loss_sum.clone()
    return {
        "uneven": tracker.compute(),
        "collection": {name: metric.compute()["loss"] for name, metric in collection.items()},
        "empty rank": lonely.compute(),
        "state is local again": torch.equal(tracker.loss_sum, local),
    }


def test_two_ranks_give_the_values_of_the_whole(on_two_ranks):
    parts = [batches(32, 7, 1), batches(5)]
    results = on_two_ranks(track_on_this_rank, parts)
    for result in results:
        assert_close(result["uneven"], at_once(parts[0] + parts[1]), **FLOAT32)
        assert_close(result["empty rank"], at_once(parts[0]), **FLOAT32)
        for name, pos_weight in (("plain", None), ("heavy", 9.0)):
            expected = BCEWithLogitsLoss(pos_weight=pos_weight)(*whole(parts[0] + parts[1]))
            assert_close(result["collection"][name].float(), expected)
        assert result["state is local again"]


# -- collections ------------------------------------------------------------------------------------------------------


def two_losses_that_begin_alike():
    """Two losses in a collection; the first batch has no positives, on which alone they differ."""
    losses = {"plain": BCEWithLogitsLoss(), "heavy": BCEWithLogitsLoss(pos_weight=9.0)}
    collection = MetricCollection({name: LossTracker(loss, LABELS) for name, loss in losses.items()})
    parts = batches(7, 33)
    parts[0][1].zero_()
    for part in parts:
        collection.update(*part)
    got = {name: metric.compute()["loss"].float() for name, metric in collection.items()}
    return got, {name: loss(*whole(parts)) for name, loss in losses.items()}


def test_a_collection_keeps_two_losses_apart_that_begin_alike():
    got, expected = two_losses_that_begin_alike()
    assert_close(got, expected)


def test_without_a_fingerprint_the_collection_would_take_one_for_the_other(monkeypatch):
    monkeypatch.setattr(BinaryLoss, "fingerprint", 0)
    got, expected = two_losses_that_begin_alike()
    assert got["heavy"] == got["plain"] and expected["heavy"] > expected["plain"] + 0.1


def test_neighbouring_fingerprints_are_told_apart(monkeypatch):  # torchmetrics compares states with `allclose`
    monkeypatch.setattr(BinaryLoss, "fingerprint", property(lambda loss: 3_000_000_001 + (loss.pos_weight is None)))
    got, expected = two_losses_that_begin_alike()
    assert_close(got, expected)


# -- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda t: t, lambda t: t.metric_state], ids=["tracker", "state"])
def test_merged_trackers_give_the_values_of_the_whole(form):
    parts = batches(32, 7, 1)
    tracker = tracked(parts[:1])
    tracker.compute()  # a value that is kept must not outlive the merge
    for part in parts[1:]:
        tracker.merge_state(form(tracked([part])))
    assert_close(tracker.compute(), at_once(parts), **FLOAT32)


def test_into_a_fresh_tracker_others_can_be_merged():
    parts = batches(32, 7)
    fresh = tracked([])
    for part in parts:
        fresh.merge_state(tracked([part]))
    assert_close(fresh.compute(), at_once(parts), **FLOAT32)  # no warning that nothing was seen


@pytest.mark.parametrize(
    "other",
    [
        lambda: tracked(batches(7), FocalLoss()),
        lambda: tracked(batches(7), BCEWithLogitsLoss(reduction="sum")),
        lambda: LossTracker(num_labels=LABELS),
        lambda: LossTracker(BCEWithLogitsLoss(), num_labels=2),
        lambda: tracked(batches(7), FocalLoss()).metric_state,
    ],
)
def test_a_tracker_of_another_quantity_is_not_merged(other):
    tracker = tracked(batches(7))
    before = copy.deepcopy(tracker.metric_state)
    with pytest.raises(ValueError, match="not the same quantity"):
        tracker.merge_state(other())
    assert_close(tracker.metric_state, before, rtol=0, atol=0)
