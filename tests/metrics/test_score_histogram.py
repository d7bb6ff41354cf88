"""ScoreHistogram: every logit in its bin, decisions counted exactly, and areas within the bound that they state."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_confusion_matrix,
    binary_precision_recall_curve,
    binary_roc,
    multilabel_confusion_matrix,
)

from lightning_bce import ScoreHistogram
from lightning_bce.metrics import (
    score_auroc,
    score_average_precision,
    score_precision_recall,
    score_roc,
    summed,
)

LABELS = 3


def batch(rows=257, labels=LABELS, positives=0.3):
    shape = (rows, labels) if labels else (rows,)
    target = (torch.rand(shape) < positives).long()
    return 4 * torch.randn(shape) + 3 * target, target


def counted(*parts, labels=LABELS, **options):
    histogram = ScoreHistogram(labels, **options)
    for part in parts:
        histogram.update(*part)
    return histogram.compute()


@pytest.mark.parametrize("size", [7, 2**16])
def test_every_logit_is_in_its_bin(size, monkeypatch):
    monkeypatch.setattr(summed, "CHUNK", size)
    logits, target = batch()
    logits[:5, 0] = torch.tensor([-torch.inf, torch.inf, 0.0, -16.0, 16.0])
    logits[5:8, 0] = torch.tensor([-1e-30, 1 / 32, -1 / 32])  # next to an edge and on it
    scores = counted((logits, target)).scores
    edges = scores.edges.numpy()
    assert edges[[0, 1, 513, -2, -1]].tolist() == [-np.inf, -16, 0, 16, np.inf]
    for label in range(LABELS):
        for side in (0, 1):
            values = logits[:, label][target[:, label] == side].double().numpy()
            expected = np.bincount(np.searchsorted(edges, values, side="right").clip(1, 1026) - 1, minlength=1026)
            assert scores.count[label, side].tolist() == expected.tolist()


def test_decisions_are_those_of_torchmetrics():
    logits, target = batch()
    logits[:9] = 0.0  # at the threshold
    logits[9] = 1e-9
    result = counted((logits, target)).confusion
    assert torch.equal(result, multilabel_confusion_matrix(logits.sigmoid(), target, LABELS))
    thresholds = [0.1, 0.5, 0.93]
    result = counted((logits, target), threshold=thresholds).confusion
    for label, threshold in enumerate(thresholds):
        expected = binary_confusion_matrix(logits[:, label].sigmoid(), target[:, label], threshold)
        assert torch.equal(result[label], expected)


@given(st.integers(0, 2**31), st.sampled_from([2, 8, 64, 1024]), st.sampled_from([0.01, 0.3, 0.9]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_areas_are_within_their_bound(seed, bins, share, tied):
    torch.manual_seed(seed)
    logits, target = batch(1 + seed % 257, 0, share)
    logits = logits.round() if tied else logits
    scores = counted((logits, target), labels=1, bins=bins).scores
    count = scores.count.sum(-1)
    if count.min() > 0:
        value, error = score_auroc(scores)
        assert abs(value - binary_auroc(logits.double(), target)) <= error + 1e-6
    if count[0, 1] > 0:
        value, error = score_average_precision(scores)
        assert abs(value - binary_average_precision(logits.double(), target)) <= error + 1e-6


def test_the_bounds_are_small_and_do_not_say_nothing():
    logits, target = batch(100_003, 0, 0.02)
    scores = counted((logits, target), labels=1).scores
    area, precision = score_auroc(scores), score_average_precision(scores)
    assert area.error < 1e-3 and precision.error < 2e-2
    assert abs(area.value - binary_auroc(logits, target)) < 1e-4
    assert abs(precision.value - binary_average_precision(logits, target)) < 1e-3
    coarse = counted((logits, target), labels=1, bins=2).scores
    assert abs(score_auroc(coarse).value - binary_auroc(logits, target)) > 0.01  # and a bound is needed


def test_average_precision_adds_up_its_positives():
    p, n = torch.tensor([3, 0, 1, 2]), torch.tensor([2, 4, 0, 7])
    scores = counted((torch.zeros(1), torch.ones(1)), labels=1, bins=2).scores._replace(count=torch.stack([n, p])[None])
    total, a, f = 0.0, 0, 0
    for positives, negatives in zip(p.flip(0).tolist(), n.flip(0).tolist(), strict=True):
        for k in range(1, positives + 1):
            total += (a + k) / (a + k + f + negatives * (k - 0.5) / positives)
        a, f = a + positives, f + negatives
    assert_close(score_average_precision(scores).value.item(), total / 6)


def points(x, y):
    return {(round(a, 5), round(b, 5)) for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)}


def test_curves_pass_through_exact_points():
    logits, target = batch(257, 0)
    scores = counted((logits, target), labels=1).scores
    roc = score_roc(scores)
    inside = roc.threshold[1:-1]
    for at in (5, 400, 513, 700):
        decided = logits >= inside[at]
        for side, rate in ((0, roc.x), (1, roc.y)):
            assert_close(rate[0, at + 1], decided[target == side].double().mean())
    on_edges = (logits.clamp(-15, 15) * 32).floor() / 32  # where binned scores hide nothing
    scores = counted((on_edges, target), labels=1).scores
    fpr, tpr, _ = binary_roc(on_edges.double().sigmoid(), target)
    assert points(fpr, tpr) <= points(*score_roc(scores)[:2])
    precision, recall, _ = binary_precision_recall_curve(on_edges.double().sigmoid(), target)
    assert points(recall, precision) <= points(*score_precision_recall(scores)[:2])


def test_a_missing_side_is_nan_and_not_0():
    logits = torch.randn(7)
    scores = counted((logits, torch.zeros(7)), labels=1).scores
    assert score_auroc(scores).value.isnan().all() and score_average_precision(scores).value.isnan().all()
    assert score_roc(scores).y.isnan().all() and not score_roc(scores).x.isnan().any()
    assert score_precision_recall(scores).y[0, 0] == 1


def test_unknown_labels_count_nowhere():
    logits, target = batch()
    known = torch.rand(logits.shape) > 0.3
    expected = ScoreHistogram(LABELS)
    expected.update(logits, target, mask=known)
    assert expected.compute().scores.count.sum() == known.sum()
    for unknown in (-1, float("nan")):
        marked = torch.where(known, target.float(), unknown)
        found = counted((torch.where(known, logits, torch.nan), marked), ignore_index=unknown)
        assert_close(tuple(found.scores), tuple(expected.compute().scores))
        assert_close(found.confusion, expected.compute().confusion)
    by_row = ScoreHistogram(LABELS)
    by_row.update(logits, target, mask=known[:, 0])
    assert by_row.compute().confusion.sum() == 3 * known[:, 0].sum()


def test_positions_belong_to_their_label_and_half_precision_is_taken():
    logits, target = 4 * torch.randn(5, LABELS, 2, 3).bfloat16(), torch.randint(0, 2, (5, LABELS, 2, 3))
    rows = [t.movedim(1, -1).reshape(-1, LABELS) for t in (logits.float(), target)]
    assert_close(counted((logits, target)), counted(rows))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.randoms())
@settings(max_examples=20, deadline=None)
def test_splits_and_merges_in_any_order_give_the_same(sizes, random):
    parts = [batch(size) for size in sizes]
    histograms = []
    for part in parts:
        histograms.append(ScoreHistogram(LABELS))
        histograms[-1].update(*part)
    random.shuffle(histograms)
    for other in histograms[1:]:
        histograms[0].merge_state(other)
    whole = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    assert_close(histograms[0].compute(), counted(whole), rtol=0, atol=0)


def test_a_state_of_inference_mode_lives_on():
    part, histogram = batch(), ScoreHistogram(LABELS)
    with torch.inference_mode():
        histogram.reset()
        histogram.update(*part)
    histogram.update(*part)
    with torch.inference_mode():
        histogram.update(*part)
    assert_close(histogram.compute(), counted(part, part, part))
    assert_close(histogram(*part), counted(part))


def test_two_thresholds_in_a_collection_stay_apart():
    both = MetricCollection({"low": ScoreHistogram(threshold=0.3), "high": ScoreHistogram(threshold=0.7)})
    both.update(torch.tensor([-9.0, 9.0]), torch.tensor([0, 1]))  # on which they agree
    both.update(torch.tensor([0.0]), torch.tensor([1]))
    result = both.compute()
    assert result["low"].confusion[0].tolist() == [[1, 0], [0, 2]]
    assert result["high"].confusion[0].tolist() == [[1, 0], [1, 1]]


def test_update_never_waits_for_the_device():
    histogram = ScoreHistogram(LABELS, ignore_index=-1).to("meta")  # whose tensors have no value to wait for
    histogram.update(*(t.to("meta") for t in batch()))
    assert histogram.count.is_meta


def test_what_cannot_be_counted_is_refused():
    for options, said in (
        ({"bins": 3}, "an even number"),
        ({"threshold": 1.5}, r"one probability in \[0, 1\]"),
        ({"threshold": [0.5, 0.5]}, r"each of the 1 label"),
        ({"ignore_index": 1}, "also a label"),
        ({"limit": 0.0}, "`limit`"),
    ):
        with pytest.raises(ValueError, match=said):
            ScoreHistogram(**options)
    with pytest.raises(ValueError, match="3 label"):
        ScoreHistogram().update(*batch())
    with pytest.raises(TypeError, match="bool was expected"):
        ScoreHistogram(LABELS).update(*batch(), mask=torch.ones(257))
    with pytest.raises(ValueError, match="not the same quantity"):
        ScoreHistogram().merge_state(ScoreHistogram(threshold=0.4))


def test_the_plot_says_what_it_shows():
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    histogram = ScoreHistogram(LABELS)
    histogram.update(*batch())
    for label in (None, 1):
        figure, ax = histogram.plot(label=label)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("logit", "density (per logit)")
        plt.close(figure)
