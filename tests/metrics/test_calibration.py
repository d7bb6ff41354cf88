"""Calibration error and reliability curve: torchmetrics' for one label, and what they say of small samples."""

import math

import pytest
import scipy.stats
import torch
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_calibration_error

from lightning_bce import BinaryReliabilityCurve, MultilabelCalibrationError, MultilabelReliabilityCurve
from lightning_bce.metrics import (
    binary_brier_decomposition,
    binary_reliability_curve,
    multilabel_calibration_error,
    multilabel_reliability_curve,
    wilson_interval,
)

calibration_curve = pytest.importorskip("sklearn.calibration").calibration_curve


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
@pytest.mark.parametrize("bins", [1, 10, 15])
def test_each_label_is_that_of_torchmetrics(norm, bins):
    preds, target = torch.rand(257, 3).double(), torch.randint(0, 2, (257, 3))
    preds[:bins, 0] = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[:-1]  # on the edges
    expected = [binary_calibration_error(preds[:, i].contiguous(), target[:, i], bins, norm) for i in range(3)]
    metric = MultilabelCalibrationError(3, average="none", n_bins=bins, norm=norm)
    for part in zip(preds.split(100), target.split(100), strict=True):
        metric.update(*part)
    assert_close(metric.compute(), torch.stack(expected))


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_of_equal_mass_are_those_of_scikit_learn(bins):
    preds, target = torch.rand(257, 3).double(), torch.randint(0, 2, (257, 3))
    preds[:, 1] = preds[:, 1].square() * 0.01  # where uniform bins see one
    preds[:100, 2] = 0.5  # equal ones stay together
    found = multilabel_calibration_error(preds, target, 3, average="none", norm="max", n_bins=bins, binning="quantile")
    for i in range(3):
        observed, predicted = calibration_curve(target[:, i], preds[:, i], n_bins=bins, strategy="quantile")
        assert_close(found[i].item(), abs(observed - predicted).max().item())
    pooled = [t.reshape(-1, 1) for t in (preds, target)]
    options = {"n_bins": bins, "binning": "quantile"}
    micro = multilabel_calibration_error(preds, target, 3, average="micro", **options)
    assert_close(micro, multilabel_calibration_error(*pooled, 1, **options))
    target[:, 0] = -1
    unknown = multilabel_calibration_error(preds, target, 3, average="none", ignore_index=-1, **options)
    assert unknown[0].isnan() and not unknown[1:].isnan().any()
    assert multilabel_calibration_error(preds[:0], target[:0], 3, **options).isnan()
    with pytest.raises(ValueError, match="`binning` is 'mass'"):
        multilabel_calibration_error(preds, target, 3, binning="mass", ignore_index=-1)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_bins_of_a_few_elements_are_those_of_scikit_learn(rows):
    preds, target = torch.linspace(0.2, 0.7, rows, dtype=torch.float64), torch.arange(rows) % 2
    for bins in (1, 2, 15):
        observed, predicted = calibration_curve(target, preds, n_bins=bins, strategy="quantile")
        found = multilabel_calibration_error(
            preds[:, None], target[:, None], 1, norm="max", n_bins=bins, binning="quantile"
        )
        assert_close(found.item(), abs(observed - predicted).max().item())


@pytest.mark.parametrize("norm", ["l1", "l2", "max"])
def test_a_label_never_seen_has_no_error(norm):
    target = torch.tensor([[1, -1], [0, -1]])
    found = multilabel_calibration_error(torch.rand(2, 2), target, 2, norm=norm, average="none", ignore_index=-1)
    assert found.isnan().tolist() == [False, True]


def test_a_probability_of_1_is_in_the_last_bin():
    preds, target = torch.tensor([0.9, 1.0]), torch.tensor([1, 0])
    assert_close(multilabel_calibration_error(preds[:, None], target[:, None], 1, n_bins=2).item(), 0.45)
    assert binary_calibration_error(preds, target, 2).item() == pytest.approx(0.55)  # in one of its own


def test_the_bias_of_small_samples_is_the_stated_one():
    n, bins, runs = 2000, 15, 200
    preds = torch.rand(n, runs)
    target = (torch.rand(n, runs) < preds).long()  # calibrated: the error is 0
    found = multilabel_calibration_error(preds, target, runs, n_bins=bins).item()
    stated = math.sqrt(2 / math.pi) * math.sqrt(bins * (preds * (1 - preds)).mean() / n)
    assert found == pytest.approx(stated, rel=0.1)
    sure = 0.2 + 0.1 * torch.rand(n, 1)  # and what was written of p (1 - p) = 0.2 holds
    assert math.sqrt(2 / math.pi) * math.sqrt(bins * 0.2 / n) == pytest.approx(0.03, abs=0.002)
    assert multilabel_calibration_error(sure, torch.zeros(n, 1), 1, n_bins=bins).item() == pytest.approx(
        sure.mean().item(), rel=1e-4
    )


def test_l2_squared_is_the_reliability_part():
    preds, target = torch.rand(257), torch.randint(0, 2, (257,))
    error = multilabel_calibration_error(preds[:, None], target[:, None], 1, norm="l2")
    assert_close(error**2, binary_brier_decomposition(preds, target).reliability)


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="`norm` is 'l3'"):
        MultilabelCalibrationError(3, norm="l3")
    with pytest.raises(ValueError, match="`norm` is 'l3'"):
        multilabel_calibration_error(torch.rand(2, 3), torch.ones(2, 3), 3, norm="l3")


def test_the_curve_holds_sums_of_bins():
    preds, target = torch.tensor([0.0, 0.1, 0.25, 0.5, 1.0, 0.99]), torch.tensor([0, 1, 0, 0.5, 1, 1])
    curve = binary_reliability_curve(preds, target, n_bins=4)
    assert curve.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.count.tolist() == [[2, 1, 1, 2]]
    assert_close(curve.probability, torch.tensor([[0.1, 0.25, 0.5, 1.99]]).double())
    assert curve.positive.tolist() == [[1, 0, 0.5, 2]]


def test_the_options_of_a_curve_arrive():
    inside, wrong = torch.tensor([0.2, 0.9]), torch.tensor([0.0, 2.0])
    shapes = {1: lambda t: t, 2: lambda t: t[:, None]}
    functions = {1: binary_reliability_curve, 2: lambda *a, **o: multilabel_reliability_curve(*a, 1, **o)}
    classes = {1: BinaryReliabilityCurve, 2: lambda **o: MultilabelReliabilityCurve(1, **o)}
    for kind, shape in shapes.items():
        for compute in (functions[kind], lambda *a, kind=kind, **o: classes[kind](**o)(*a)):  # a function and a class
            preds, target = shape(inside), shape(wrong)
            assert compute(preds, target - 1, n_bins=2, ignore_index=-1).count.tolist() == [[0, 1]]
            logits = compute(preds, target / 2, n_bins=2, from_logits=True)
            assert logits.count.tolist() == [[0, 2]]  # logits above 0, which could be probabilities
            assert_close(logits.probability[0, 1].item(), inside.sigmoid().sum().item())
            with pytest.raises(ValueError, match="outside"):
                compute(preds, target)
            assert compute(preds, target, n_bins=2, validate_args=False).positive.tolist() == [[0, 2]]
            with pytest.raises(ValueError, match="`n_bins` is 0"):
                compute(preds, target, n_bins=0)
            assert len(compute(preds, target / 2).edges) == 16
        assert classes[kind](dist_sync_on_step=True).dist_sync_on_step
        with pytest.raises(ValueError, match="not the same quantity"):
            classes[kind]().merge_state(classes[kind](from_logits=True))


def test_a_curve_of_nothing_has_its_shape_and_takes_others():
    assert binary_reliability_curve(torch.rand(3), torch.ones(3), n_bins=1).count.tolist() == [[3]]
    nothing = multilabel_reliability_curve(torch.zeros(0, 3), torch.zeros(0, 3), 3, n_bins=4)
    for part, dtype in zip(nothing[1:], (torch.int64, torch.float64, torch.float64), strict=True):
        assert part.shape == (3, 4) and part.dtype == dtype and part.eq(0).all()
    seen = MultilabelReliabilityCurve(3, n_bins=4)
    seen.update(torch.rand(9, 3), torch.randint(0, 2, (9, 3)))
    fresh = MultilabelReliabilityCurve(3, n_bins=4)
    fresh.merge_state(seen)
    assert_close(tuple(fresh.compute()), tuple(seen.compute()))


def test_a_curve_stays_on_its_device():
    part = torch.rand(9, 3, device="meta"), torch.ones(9, 3, device="meta")  # whose tensors have no value
    metric = MultilabelReliabilityCurve(3, validate_args=False).to("meta")
    for curve in (metric(*part), multilabel_reliability_curve(*part, 3, validate_args=False)):
        assert all(values.is_meta for values in curve)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_wilsons_interval_is_that_of_scipy(confidence):
    counts = [(k, n) for n in (1, 2, 7, 33, 257) for k in {0, 1, n // 3, n}]
    low, high = wilson_interval(*torch.tensor(counts).T, confidence)
    exact = [scipy.stats.binomtest(k, n).proportion_ci(confidence, method="wilson") for k, n in counts]
    assert_close(low.tolist(), [e.low for e in exact], rtol=1e-12, atol=1e-15)
    assert_close(high.tolist(), [e.high for e in exact], rtol=1e-12, atol=1e-15)
    if confidence == 0.95:
        assert_close(wilson_interval(*torch.tensor(counts).T), (low, high), rtol=0, atol=0)


def test_wilsons_interval_stays_within_0_and_1():
    count = torch.arange(1, 2000)
    assert wilson_interval(torch.zeros(1999), count)[0].min() >= 0
    assert wilson_interval(count, count)[1].max() <= 1
    for confidence in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="`confidence`"):
            wilson_interval(count, count, confidence)


def test_the_plot_shows_the_curve_with_its_intervals_and_counts():
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    several = MultilabelReliabilityCurve(2, n_bins=3)
    several.update(torch.tensor([[0.1, 0.5], [0.2, 0.6], [0.3, 0.6]]), torch.tensor([[0, 1], [0, 1], [1, 0]]))
    shown = several.compute()
    several.update(torch.rand(9, 2), torch.ones(9, 2))  # what is drawn is what was given
    one = BinaryReliabilityCurve(n_bins=3)
    one.update(torch.tensor([0.9]), torch.tensor([1]))
    for metric, arguments, options, title, share, count, of in (
        (several, [shown], {}, "Reliability", {0.2: 1 / 3, 1.7 / 3: 2 / 3}, [3, 3, 0], [3, 3]),
        (several, [shown], {"label": 1}, "Reliability of label 1", {1.7 / 3: 2 / 3}, [0, 3, 0], [3]),
        (one, [], {"confidence": 0.5}, "Reliability", {0.9: 1.0}, [0, 0, 1], [1]),
    ):
        figure, place = plt.subplots()
        found, upper = metric.plot(*arguments, ax=place, **options)
        figure.canvas.draw()
        assert found is figure and [upper] == [child for child in place.child_axes if child.get_ylabel()[0] == "s"]
        (below,) = (child for child in place.child_axes if child is not upper)
        assert (upper.get_title(), upper.get_ylabel()) == (title, "share of positives")
        assert (below.get_xlabel(), below.get_ylabel()) == ("predicted probability", "elements")
        assert upper.get_xlim() == below.get_xlim() == upper.get_ylim() == (0, 1)

        # The counts are below the curve, both within the place that was given, and its numbers stand there only once.
        outer, high, low = (a.get_position() for a in (place, upper, below))
        assert outer.y0 <= low.y0 < low.y1 < high.y0 < high.y1 <= outer.y1 + 1e-9
        for inner in (high, low):
            assert (inner.x0, inner.x1) == pytest.approx((outer.x0, outer.x1))
        assert not any(text.get_text() for text in upper.get_xticklabels())

        (bars,) = below.patches
        assert bars.get_data()[0].tolist() == count and bars.get_fill()
        assert_close(bars.get_data()[1].tolist(), [0.0, 1 / 3, 2 / 3, 1.0])
        assert below.get_yscale() == "log" and below.get_ylim()[0] == 0.5  # where one element is seen

        ((points, caps, (intervals,)),) = upper.containers
        assert_close(points.get_xydata().tolist(), [list(point) for point in share.items()], rtol=1e-6, atol=0)
        assert points.get_marker() == "o" and len(caps) == 2
        ends = [segment[:, 1].tolist() for segment in intervals.get_segments()]
        seen = torch.tensor([round(s * n) for s, n in zip(share.values(), of, strict=True)]), torch.tensor(of)
        expected = torch.stack(wilson_interval(*seen, options.get("confidence", 0.95)), -1)
        assert_close(ends, expected.tolist())

        perfect = next(line for line in upper.get_lines() if line.get_label() == "perfect")
        assert perfect.get_xydata().tolist() == [[0, 0], [1, 1]] and perfect.get_color() == "0.6"
        assert perfect.get_linestyle() != points.get_linestyle()
        assert perfect.get_linewidth() < points.get_linewidth()
        percent = "50" if options.get("confidence") else "95"
        named = [text.get_text() for text in upper.get_legend().get_texts()]
        assert named == ["perfect", f"observed, {percent} % interval"]
        plt.close(figure)
