"""LossTracker: exact over batches, ranks, casts and copies, and never silent about what it did not see."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, FocalLoss, LossSums, LossTracker

LABELS = 3


def batches(*sizes, labels=LABELS):
    return [(3 * torch.randn(n, labels), torch.randint(0, 2, (n, labels)), torch.rand(n)) for n in sizes]


def whole(parts):
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def tracked(parts, loss=None, **options):
    tracker = LossTracker(loss or BCEWithLogitsLoss(), num_labels=LABELS, **options)
    for part in parts:
        tracker.update(*part)
    return tracker


def by_hand(logits, target, weight):
    """Every number of the tracker for binary cross-entropy, from its elements in float64."""
    losses = (1 - 2 * target) * logits.double()
    losses = torch.log1p(torch.exp(-losses.abs())) + losses.clamp(min=0)
    losses = losses * weight[:, None]
    sides = [(losses * (target == side), (target == side).double()) for side in (0, 1)]
    (negative, negatives), (positive, positives) = [(a.sum(0), b.sum(0)) for a, b in sides]
    return {
        "loss": losses.mean(),
        "class_loss": losses.mean(0),
        "negative_loss": negative / negatives,
        "positive_loss": positive / positives,
        "share": losses.sum(0) / losses.sum(),
        "negative_share": negative / losses.sum(),
        "positive_share": positive / losses.sum(),
        "negative_weight": negatives,
        "positive_weight": positives,
    }


# A batch's own sum is in float32, as the loss is.
FLOAT32 = {"rtol": 1e-6, "atol": 1e-9}


# -- exactness --------------------------------------------------------------------------------------------------------


def test_uneven_batches_give_the_values_of_the_whole():
    parts = batches(32, 32, 32, 5, 1)
    result = tracked(parts).compute()
    assert_close(result, by_hand(*whole(parts)), **FLOAT32)
    mean_of_means = torch.stack([by_hand(*part)["loss"] for part in parts]).mean()
    assert abs(result["loss"] - mean_of_means) > 1e-3  # the wrong answer is far enough away to be seen


def test_sums_and_logits_count_the_same():
    parts, loss = batches(7, 3), BCEWithLogitsLoss(reduction="weighted_mean")
    by_sums = LossTracker(num_labels=LABELS)
    for part in parts:
        by_sums.update(loss.sums(*part))
    assert_close(by_sums.compute(), tracked(parts, loss).compute())
    assert_close(by_sums.compute()["loss"].float(), loss(*whole(parts)))


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "batchmean"])
def test_the_loss_is_that_of_the_reduction_over_all_elements(reduction):
    loss = FocalLoss(reduction=reduction, class_weight=[1.0, 5.0, 0.2], ignore_index=-1)
    parts = batches(7, 33, 2)
    for _, target, _ in parts:
        target[0, :] = target[1, 0] = -1
    assert_close(tracked(parts, loss).compute()["loss"].float(), loss(*whole(parts)))


def test_a_mask_is_passed_on():
    (logits, target, _), mask = batches(33)[0], torch.rand(33) > 0.5
    tracker = LossTracker(BCEWithLogitsLoss(), num_labels=LABELS)
    tracker.update(logits, target, mask=mask)
    assert_close(tracker.compute(), by_hand(logits[mask], target[mask], torch.ones(int(mask.sum()))), **FLOAT32)


def test_the_parts_add_up():
    result = tracked(batches(33, 7), FocalLoss(alpha=0.25, class_weight=[1.0, 9.0, 0.1])).compute()
    one = torch.tensor(1.0, dtype=torch.float64)
    assert_close(result["share"].sum(), one)
    assert_close(result["negative_share"] + result["positive_share"], result["share"])
    weight = result["negative_weight"] + result["positive_weight"]
    assert_close((result["class_loss"] * weight).sum() / weight.sum(), result["loss"])
    sides = result["negative_loss"] * result["negative_weight"] + result["positive_loss"] * result["positive_weight"]
    assert_close(sides / weight, result["class_loss"])


def test_a_long_run_does_not_drift():
    start, steps = 2**24, 257  # where a float32 counter stops
    assert torch.tensor(float(start)) + 1 == start
    tracker = LossTracker()
    tracker.update(LossSums(torch.full((1, 2), 0.1 * start), torch.full((1, 2), float(start))))
    for _ in range(steps):
        tracker.update(LossSums(torch.full((1, 2), 0.1), torch.ones(1, 2)))
    first, step = (torch.tensor(x).double().item() for x in (0.1 * start, 0.1))
    expected = math.fsum([first] + [step] * steps) / (start + steps)
    assert tracker.weight_sum.tolist() == [[start + steps] * 2]
    assert_close(tracker.compute()["loss"].item(), expected, rtol=1e-15, atol=0)


# -- one epoch after another ------------------------------------------------------------------------------------------


def test_forward_returns_the_batch_and_counts_it():
    parts = batches(7, 33, 2)
    tracker = tracked([])
    for part in parts:
        assert_close(tracker(*part), by_hand(*part), **FLOAT32)
    assert_close(tracker.compute(), by_hand(*whole(parts)), **FLOAT32)


def test_an_epoch_forgets_the_one_before():
    parts = batches(7, 33)
    tracker = tracked(parts)
    assert_close(tracker.compute(), tracker.compute(), rtol=0, atol=0)
    tracker.reset()
    tracker.reset()
    tracker.update(*parts[0])
    assert_close(tracker.compute(), by_hand(*parts[0]), **FLOAT32)
    tracker.update(*parts[1])  # a value that is kept must not outlive the update
    assert_close(tracker.compute(), by_hand(*whole(parts)), **FLOAT32)


def test_before_an_update_everything_is_nan_with_one_warning():
    tracker = tracked([])
    with pytest.warns(UserWarning, match="before the ``update``") as told:
        result = tracker.compute()
    assert len(told) == 1
    for name in ("loss", "class_loss", "negative_loss", "positive_loss", "share"):
        assert result[name].isnan().all(), name
    assert (result["positive_weight"] == 0).all()


def test_a_side_never_seen_has_no_mean_and_hurts_no_other():
    tracker = LossTracker(BCEWithLogitsLoss(ignore_index=-1), num_labels=LABELS)
    logits, target, _ = batches(7)[0]
    target[:, 0], target[:, 1] = 0, -1
    target[:, 2] = torch.tensor([0, 1, 0, 1, 0, 1, 0])
    tracker.update(logits, target)
    result = tracker.compute()
    assert result["positive_loss"].isnan().tolist() == [True, True, False]
    assert result["class_loss"].isnan().tolist() == [False, True, False]
    assert result["loss"].isfinite()
    assert_close(result["share"].sum(), torch.tensor(1.0, dtype=torch.float64))


def test_a_nan_loss_is_seen():
    parts = batches(7, 7, 7)
    parts[1][0][0, 1] = math.nan
    result = tracked(parts).compute()
    assert result["loss"].isnan() and result["class_loss"].isnan().tolist() == [False, True, False]


# -- memory, modes, casts, copies -------------------------------------------------------------------------------------


def test_no_graph_is_kept():
    logits, target, weight = batches(7)[0]
    tracker = tracked([])
    leaf = nn.Parameter(logits)
    for step in (lambda: tracker.update(leaf, target, weight), lambda: tracker(leaf, target, weight)):
        step()
        kept = [*tracker.metric_state.values(), *tracker.compute().values(), *(tracker._forward_cache or {}).values()]
        assert not any(tensor.requires_grad for tensor in kept)


def test_reset_in_inference_mode_it_goes_on_outside():
    parts = batches(7, 33)
    tracker = tracked(parts[:1])
    with torch.inference_mode():
        tracker.reset()
    tracker.update(*parts[0])
    with torch.inference_mode():
        tracker.update(*parts[1])
        assert_close(tracker.compute(), by_hand(*whole(parts)), **FLOAT32)
    tracker(*parts[0])
    assert_close(tracker.compute(), by_hand(*whole([*parts, parts[0]])), **FLOAT32)


CASTS = [
    lambda m: m.to(torch.bfloat16),
    lambda m: m.half(),
    lambda m: m.bfloat16(),
    lambda m: m.float(),
    lambda m: m[0].set_dtype(torch.float16),
    lambda m: m.to("cpu", torch.float16),
]


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_of_the_model_leaves_the_sums_alone(cast):
    parts, loss = batches(257, 33), BCEWithLogitsLoss(pos_weight=99.7)
    reference, model = tracked(parts, loss), nn.Sequential(tracked(parts[:1], loss))
    model[0].compute()  # a value that is kept must not be cast either
    cast(model)
    assert_close(model[0].compute(), tracked(parts[:1], loss).compute(), rtol=0, atol=0)
    model[0].update(*parts[1])
    assert_close(model[0].compute(), reference.compute(), rtol=0, atol=0)
    assert model[0].loss_sum.dtype == torch.float64
    model[0].merge_state(reference)  # its fingerprint was not rounded
    model[0].reset()
    model[0].update(*parts[0])
    assert_close(model[0].compute(), tracked(parts[:1], loss).compute(), rtol=0, atol=0)


def test_it_moves_with_the_model():
    model = nn.Sequential(tracked(batches(7))).to("meta")
    assert {state.device.type for state in model[0].metric_state.values()} == {"meta"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: t.clone(), lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_goes_its_own_way(copied):
    parts = batches(7, 33)
    tracker = tracked(parts[:1])
    twin = copied(tracker)
    twin.update(*parts[1])
    assert_close(tracker.compute(), by_hand(*parts[0]), **FLOAT32)
    assert_close(twin.compute(), by_hand(*whole(parts)), **FLOAT32)


def test_a_persistent_tracker_goes_on_from_its_checkpoint():
    parts = batches(7, 33)
    tracker, resumed = tracked(parts[:1]), tracked([])
    assert tracker.state_dict() == {}
    for metric in (tracker, resumed):
        metric.persistent(True)
    resumed.load_state_dict(tracker.state_dict())
    resumed.update(*parts[1])
    assert_close(resumed.compute(), by_hand(*whole(parts)), **FLOAT32)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.zeros(7, 3), torch.zeros(7)), "they must be equal"),
        ((torch.zeros(7, 3), torch.full((7, 3), 2)), "outside"),
        ((torch.zeros(7, 2), torch.zeros(7, 2)), "num_labels"),
        ((torch.zeros(7, 3),), "without targets"),
        ((LossSums(torch.zeros(1, 2), torch.zeros(1, 2)),), "num_labels"),
        ((LossSums(torch.zeros(3, 2), torch.zeros(1, 2)),), "num_labels"),
        ((LossSums(torch.zeros(3, 2), torch.zeros(3, 2)), torch.zeros(7)), "pass them alone"),
        ((LossSums(torch.zeros(3, 2), torch.zeros(3, 2)), None, torch.zeros(7)), "pass them alone"),
    ],
)
def test_a_refused_batch_leaves_the_state_as_it_was(arguments, said):
    parts = batches(7)
    tracker = tracked(parts)
    tracker.loss.recheck()
    with pytest.raises(ValueError, match=said):
        tracker.update(*arguments)
    assert_close(tracker.compute(), by_hand(*parts[0]), **FLOAT32)


def test_without_a_loss_it_takes_sums_only():
    with pytest.raises(ValueError, match="has no loss"):
        LossTracker().update(torch.zeros(7), torch.zeros(7))


def test_what_is_no_loss_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"lightning_bce\.BinaryLoss"):
        LossTracker(nn.BCEWithLogitsLoss())
    with pytest.raises(ValueError, match="`num_labels` is 0"):
        LossTracker(num_labels=0)


@pytest.mark.parametrize("labels", [1, 3])
def test_it_plots_its_labels(labels):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed").use("Agg")
    from matplotlib import pyplot

    tracker = LossTracker(BCEWithLogitsLoss(), num_labels=labels)
    values = [tracker(*part[:2]) for part in batches(7, 33, labels=labels)]
    given = pyplot.subplots()[1]
    for value, ax in ((None, None), (values[0], None), (values[0], given), (values, None), (values, given)):
        given.clear()
        axis = tracker.plot(value, ax)[1]
        axis.figure.canvas.draw()
        assert (axis is given) == (ax is given)
        drawn = sorted(float(y) for line in axis.get_lines()[:labels] for y in line.get_ydata())
        means = [v["class_loss"].reshape(-1) for v in (values if value is values else [value or tracker.compute()])]
        assert_close(drawn, sorted(torch.cat(means).tolist()))
    pyplot.close("all")
