"""Calibration error and reliability curve: torchmetrics' for one label, and what they say of small samples."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.functional.classification import binary_calibration_error

from lightning_bce import BinaryReliabilityCurve, MultilabelCalibrationError, MultilabelReliabilityCurve
from lightning_bce.metrics import (
    binary_brier_decomposition,
    binary_reliability_curve,
    multilabel_calibration_error,
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


def test_wilsons_interval_solves_its_equation():
    count = torch.tensor([1, 7, 33, 257])
    for positive in (torch.zeros(4), count // 3, count):
        low, high = wilson_interval(positive, count, 0.9)
        z = 1.6448536269514722
        for end in (low, high):
            share = positive / count
            inside = (end > 0) & (end < 1)
            assert_close(
                ((share - end).abs())[inside], (z * (end * (1 - end) / count).sqrt())[inside], check_dtype=False
            )
        assert ((low <= share + 1e-12) & (share <= high + 1e-12) & (low < high)).all()
    with pytest.raises(ValueError, match="`confidence`"):
        wilson_interval(count, count, 1.0)


def test_the_plot_shows_the_curve_and_its_counts():
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    preds = torch.rand(257, 3)
    several, one = MultilabelReliabilityCurve(3), BinaryReliabilityCurve()
    several.update(preds, (torch.rand(257, 3) < preds).long())
    one.update(preds[:, 0], torch.ones(257))
    for metric, options in ((several, {}), (several, {"label": 2}), (one, {"confidence": 0.5})):
        figure, ax = metric.plot(**options)
        assert (ax.get_ylabel(), ax.get_xlim()) == ("share of positives", (0, 1))
        names = [other.get_xlabel() for parent in figure.axes for other in [parent, *parent.child_axes]]
        assert "predicted probability" in names
        figure.canvas.draw()
        plt.close(figure)
