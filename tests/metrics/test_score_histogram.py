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
    ScoreBins,
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
    assert result.dtype == torch.int64
    thresholds = [0.1, 0.5, 0.93]
    result = counted((logits, target), threshold=thresholds).confusion
    for label, threshold in enumerate(thresholds):
        expected = binary_confusion_matrix(logits[:, label].sigmoid(), target[:, label], threshold)
        assert torch.equal(result[label], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_threshold_is_as_exact_as_the_probabilities(dtype):
    logits, target = torch.full((7, 2), -2.0, dtype=dtype), torch.ones(7, 2).long()
    at = torch.sigmoid(logits[0, 0]).item()
    for threshold, above in ((at - 1e-10, 7), (at + 1e-10, 0)):  # in float32 both are the probability itself
        decided = above if dtype == torch.float64 else 0
        for option, expected in ((threshold, [decided, decided]), ([0.9, threshold], [0, decided])):
            assert counted((logits, target), labels=2, threshold=option).confusion[:, 1, 1].tolist() == expected
        assert binary_confusion_matrix(logits[:, 0].sigmoid(), target[:, 0], threshold)[1, 1] == decided


def test_the_ends_of_the_options_are_taken():
    logits, target = torch.tensor([-3.0, torch.nan, 3.0, 0.3]), torch.tensor([0.0, 1.0, 1.0, 0.5])
    always, never = (counted((logits, target), labels=1, threshold=t, ignore_index=2) for t in (0, 1.0))
    assert always.confusion[0].tolist() == [[0, 2], [1, 1]]  # NaN is below all, and a half is a negative
    assert never.confusion[0].tolist() == [[2, 0], [2, 0]]
    scores = counted((logits, target), labels=1, bins=2, limit=0.5).scores
    assert scores.edges.tolist() == [-torch.inf, -0.5, 0, 0.5, torch.inf] and scores.edges.dtype == torch.float64
    assert scores.count[0].tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]


def test_a_single_number_is_a_batch_of_one_and_nothing_is_none():
    x, y = torch.tensor(0.3), torch.tensor(1)
    for options in ({}, {"mask": torch.tensor(True)}, {"mask": torch.tensor(False)}):
        one, row = ScoreHistogram(), ScoreHistogram()
        one.update(x, y, **options)
        row.update(x[None], y[None], **{name: mask[None] for name, mask in options.items()})
        assert_close(one.compute(), row.compute())
    for shape in ((0, LABELS), (5, LABELS, 0)):
        assert counted((torch.zeros(shape), torch.zeros(shape))).confusion.sum() == 0


def test_counts_are_added_in_place():  # with many labels they are larger than a batch
    histogram = ScoreHistogram(LABELS)
    count = histogram.count
    histogram.update(*batch())
    assert histogram.count is count and count.sum() == 257 * LABELS


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


def test_bounds_of_average_precision_are_those_of_the_best_and_the_worst_order():
    for positives, negatives in (([1, 3, 0, 2], [5, 0, 4, 1]), ([1], [1]), ([20], [1]), ([1, 0, 2], [3, 9, 30])):
        n, p, total = torch.tensor(negatives), torch.tensor(positives), sum(positives)
        low = high = middle = a = f = 0
        for more, other in zip(positives[::-1], negatives[::-1], strict=True):
            for k in range(1, more + 1):
                middle += (a + k) / (a + k + f + other * (k - 0.5) / more) / total
                low += (a + k) / (a + k + f + other) / total
                high += (a + more) / (a + more + f) / total  # its positives are tied
            a, f = a + more, f + other
        found = score_average_precision(ScoreBins(torch.zeros(0), torch.stack([n, p])[None]))
        assert_close(found.value.item(), middle)
        assert_close(found.error.item(), max(high - middle, middle - low))


def test_each_label_is_that_of_its_counts_alone():
    counts = torch.randint(0, 9, (3, 2, 7))
    counts[:, 0, -1], counts[:, 1, -1] = torch.tensor([1, 0, 2]), torch.tensor([0, 1, 1])
    edges = torch.linspace(-1, 1, 8)
    for compute in (score_roc, score_precision_recall, score_auroc, score_average_precision):
        together = compute(ScoreBins(edges, counts))
        for label in range(3):
            alone = compute(ScoreBins(edges, counts[label][None]))
            for of_all, of_one in zip(together[:2], alone[:2], strict=True):
                assert of_all.dtype == torch.float64
                assert_close(of_all[label], of_one[0])
    for compute in (score_roc, score_precision_recall):
        x, y, threshold = compute(ScoreBins(edges, counts))
        assert x.shape == y.shape == (3, 8) and threshold.tolist() == edges.flip(0).tolist()
    assert y[:, 1].tolist() == [0, 1, pytest.approx(1 / 3)]  # from one decision on, precision is that of the decisions


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
        twice = ScoreHistogram(LABELS, ignore_index=unknown)
        kept = torch.rand(logits.shape) > 0.3
        expected_of_both = ScoreHistogram(LABELS)
        twice.update(logits, marked, mask=kept)
        expected_of_both.update(logits, target, mask=kept & known)
        assert_close(twice.compute(), expected_of_both.compute())
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
    assert histogram.count.is_meta and histogram.compute().scores.edges.is_meta


def test_what_cannot_be_counted_is_refused():
    for options, said in (
        ({"num_labels": 0}, "`num_labels`"),
        ({"bins": 0}, "`bins`"),
        ({"bins": 3}, "an even number"),
        ({"threshold": 1.5}, r"one probability in \[0, 1\]"),
        ({"threshold": [0.5, 0.5]}, r"each of the 1 label"),
        *(({"ignore_index": label}, "also a label") for label in (0, 0.5, 1)),
        ({"limit": 0.0}, "`limit`"),
    ):
        with pytest.raises(ValueError, match=said):
            ScoreHistogram(**options)
    with pytest.raises(ValueError, match="3 label"):
        ScoreHistogram().update(*batch())
    with pytest.raises(TypeError, match="bool was expected"):
        ScoreHistogram(LABELS).update(*batch(), mask=torch.ones(257))
    with pytest.raises(ValueError, match="`mask` has shape"):
        ScoreHistogram(LABELS).update(*batch(), mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`mask` has shape"):
        ScoreHistogram().update(*batch(labels=0), mask=torch.tensor(True))
    with pytest.raises(ValueError, match="`mask` has shape"):
        ScoreHistogram().update(torch.tensor(0.3), torch.tensor(1), mask=torch.ones(2, dtype=torch.bool))
    for other in ({"threshold": 0.4}, {"limit": 8.0}, {"ignore_index": -1}):
        with pytest.raises(ValueError, match="not the same quantity"):
            ScoreHistogram().merge_state(ScoreHistogram(**other))


def test_the_plot_shows_the_density_of_each_side():
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    histogram = ScoreHistogram(2, bins=34, limit=17.0)  # of which two each are drawn as one
    logits = torch.tensor([-99.0, -17.0, -16.5, -15.0, 11.0, 12.0]).repeat_interleave(torch.tensor([2, 1, 1, 1, 1, 1]))
    histogram.update(torch.stack([logits, -logits], -1), torch.tensor([[0, 1]]).repeat(7, 1))
    histogram.update(torch.tensor([[-6.0, 0.0]]), torch.tensor([[1, 1]]))
    histogram.update(torch.full((1000, 2), torch.nan), torch.tensor([[0, 1]]).repeat(1000, 1))  # NaN is below all
    shown = histogram.compute()
    histogram.update(torch.rand(9, 2), torch.ones(9, 2))  # what is drawn is what was given
    edges = [float(edge) for edge in range(-17, 18, 2)]
    left, right = {0: 1004, 1: 1, 14: 2}, {2: 1, 3: 1, 16: 5}  # elements by bar
    for label, title, sides, limits, named in (
        (0, "Scores of label 0", [left, {5: 1}], (-17, 13), ["negatives (1,007)", "positives (1)"]),
        (1, "Scores of label 1", [{}, {0: 1000, 8: 1, **right}], (-17, 17), ["positives (1,008)"]),
        (None, "Scores", [left, {0: 1000, 5: 1, 8: 1, **right}], (-17, 17), ["negatives (1,007)", "positives (1,009)"]),
    ):
        figure, given = plt.subplots()
        given.set(xlim=(-99, 99), ylim=(-9, 2))
        found, ax = histogram.plot(shown, given, label=label)
        assert found is figure and ax is given
        assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == (title, "logit", "density (per logit)")
        assert (ax.get_xlim(), ax.get_ylim()) == (limits, (0, 2))
        assert [text.get_text() for text in ax.get_legend().get_texts()] == named
        for bars, side in zip(ax.patches, [side for side in sides if side], strict=True):
            values, at, _ = bars.get_data()
            assert at.tolist() == edges
            total = sum(side.values())
            assert_close(values.tolist(), [side.get(bar, 0) / total / 2 for bar in range(17)])
            assert bars.get_fill() and bars.get_alpha() < 1  # one side shines through the other
        plt.close(figure)
    figure, ax = ScoreHistogram().plot(ScoreHistogram()(torch.zeros(0), torch.zeros(0)))
    assert ax.get_xlim() == (-16, 16) and ax.get_legend() is None
    plt.close(figure)
    histogram.reset()
    histogram.update(torch.tensor([[0.0, 0.0], [5.0, 0.0], [-8.0, 0.0]]), torch.zeros(3, 2))
    figure, ax = histogram.plot(label=0)
    assert ax.get_xlim() == (-9, 7)  # no more than where elements are
    plt.close(figure)
