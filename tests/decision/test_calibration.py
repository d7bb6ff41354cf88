"""Calibration maps against scipy's and torch's optimisers, scikit-learn's curve, and cases with a known answer."""

import math
import re
import sys

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.isotonic import IsotonicRegression
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from lightning_bce.decision import Calibration, fit_calibration
from lightning_bce.decision.quality import calibration_error, cross_calibrated, quality
from lightning_bce.decision.rows import Rows, rows_of
from lightning_bce.metrics import multilabel_calibration_error

ROWS, LABELS = 257, 3
METHODS = ["temperature", "platt", "vector", "isotonic"]


def samples(rows=ROWS, labels=LABELS):
    """Return distorted logits, labels of which some are unknown, and weights."""
    logits = torch.randn(rows, labels) * 3
    target = (torch.rand(rows, labels) < torch.sigmoid(logits / 2 - torch.arange(labels) / 2)).float()
    target[torch.rand(rows, labels) > 0.9] = math.nan
    return logits, target, torch.rand(rows) + 0.5


def with_platts_labels(target, weight):
    positives, negatives = (weight * target).sum(), (weight * (1 - target)).sum()
    return target * (positives + 1) / (positives + 2) + (1 - target) / (negatives + 2)


def known(logits, target, weight):
    """Return the known elements in float64, flat."""
    weight = weight[:, None].expand_as(target)
    there = ~target.isnan()
    return (part[there].double() for part in (logits, target, weight))


# -- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["temperature", "platt"])
@pytest.mark.parametrize("per_label", [True, False])
def test_scale_and_bias_minimise_the_log_loss(method, per_label):
    logits, target, weight = samples()
    calibration = fit_calibration(logits, target, method, weight=weight, per_label=per_label)
    for columns in [[i] for i in range(LABELS)] if per_label else [list(range(LABELS))]:
        x, y, w = known(logits[:, columns], target[:, columns], weight)
        t = with_platts_labels(y, w)

        def loss(ab, x=x, t=t, w=w):
            z = ab[0] * x + (ab[1] if method == "platt" else 0.0)
            return float((w * (torch.nn.functional.softplus(z, threshold=50) - t * z)).sum() / w.sum())

        best = scipy.optimize.minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15})
        expected = torch.tensor([best.x[0], best.x[1] if method == "platt" else 0.0]).float()
        assert_close(torch.stack([calibration.scale, calibration.bias])[:, columns[0]], expected, rtol=1e-5, atol=1e-5)


def test_newtons_minimum_is_that_of_lbfgs_with_strong_wolfe():
    logits, target, weight = samples(labels=1)
    x, y, w = known(logits, target, weight)
    t = with_platts_labels(y, w)
    ab = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    lbfgs = torch.optim.LBFGS(
        [ab], max_iter=100, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0.0
    )

    def closure():
        lbfgs.zero_grad()
        loss = binary_cross_entropy_with_logits(ab[0] * x + ab[1], t, w)
        loss.backward()
        return loss

    lbfgs.step(closure)
    calibration = fit_calibration(logits, target, "platt", weight=weight)
    assert_close(torch.cat([calibration.scale, calibration.bias]), ab.detach().float(), rtol=1e-6, atol=1e-6)


def test_logits_times_three_have_a_temperature_of_three():
    true = torch.linspace(-4, 4, 33).repeat_interleave(2)
    target = torch.tensor([1.0, 0.0]).repeat(33)
    # As many positives and negatives at each logit as its probability says.
    weight = torch.where(target > 0, torch.sigmoid(true), torch.sigmoid(-true)) * 1e6
    for method in ("temperature", "platt", "vector"):
        calibration = fit_calibration(3 * true, target, method, weight=weight)
        assert_close(calibration.scale, torch.tensor([1 / 3]), rtol=1e-4, atol=0)
        assert_close(calibration(3 * true), torch.sigmoid(true), rtol=1e-4, atol=1e-5)


def test_a_positive_weight_of_nine_is_a_bias_of_log_nine():
    true = torch.linspace(-4, 4, 33).repeat_interleave(2)
    target = torch.tensor([1.0, 0.0]).repeat(33)
    weight = torch.where(target > 0, torch.sigmoid(true), torch.sigmoid(-true)) * 1e6
    calibration = fit_calibration(true + math.log(9), target, "platt", weight=weight)
    assert_close(calibration.bias, torch.tensor([-math.log(9)]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_part_the_classes_have_a_finite_map(method):
    logits = torch.cat([torch.full((5,), -1.0), torch.full((7,), 1e4)])
    target = (logits > 0).float()
    calibration = fit_calibration(logits, target, method)
    probability = calibration(torch.tensor([-1e4, -1.0, 1e4]))
    assert torch.isfinite(calibration.scale).all() and torch.isfinite(calibration.logits(logits)).all()
    assert (probability[1:].diff() > 0).all()
    if method in ("platt", "vector"):  # Platt's labels are met exactly
        assert_close(probability[1:], torch.tensor([1 / 7, 8 / 9]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_scores_stays_also_of_those_that_say_the_opposite(method):
    logits, target, _ = samples(labels=1)
    calibration = fit_calibration(logits, 1 - target, method)
    points = torch.linspace(-9, 9, 33)
    probability = calibration(points)
    assert (probability.diff() >= 0).all()
    if method != "isotonic":
        assert calibration.scale.item() == pytest.approx(1e-4)
    if method in ("platt", "vector"):  # the best with this scale: the mean is right
        x, y, _ = known(logits, 1 - target, torch.ones(ROWS))
        assert calibration(x.float()).mean().item() == pytest.approx(y.mean().item(), abs=0.01)


def test_equal_scores_get_the_share_of_positives():
    calibration = fit_calibration(torch.full((1000,), 2.0), (torch.arange(1000) < 100).float(), "platt")
    assert calibration(torch.tensor([2.0])).item() == pytest.approx(0.1, abs=2e-3)


def test_vector_is_platt_by_label():
    logits, target, weight = samples()
    vector = fit_calibration(logits, target, "vector", weight=weight)
    platt = fit_calibration(logits, target, "platt", weight=weight, per_label=True)
    assert torch.equal(vector.scale, platt.scale) and torch.equal(vector.bias, platt.bias)


def test_many_rows_in_several_steps_give_the_same(monkeypatch):
    logits, target, weight = samples()
    expected = fit_calibration(logits, target, "vector", weight=weight)
    monkeypatch.setattr("lightning_bce.decision.calibration._ELEMENTS", 20)
    found = fit_calibration(logits, target, "vector", weight=weight)
    assert_close((found.scale, found.bias), (expected.scale, expected.bias))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_of_weight_two_is_two_rows(method):
    logits, target, _ = samples()
    double = torch.arange(ROWS) % 2 == 0
    expected = fit_calibration(torch.cat([logits, logits[double]]), torch.cat([target, target[double]]), method)
    found = fit_calibration(logits, target, method, weight=1.0 + double.float())
    assert_close(found(logits), expected(logits), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_unknown_labels_and_rows_of_no_weight_do_not_count(method):
    logits, target, weight = samples()
    masked = fit_calibration(logits, target.nan_to_num(5.0), method, weight=weight, mask=~target.isnan())
    expected = fit_calibration(logits, target, method, weight=weight)
    assert_close(masked(logits), expected(logits))
    more = torch.cat([logits, torch.full((3, LABELS), math.nan)])
    nothing = torch.cat([weight, torch.zeros(3)])
    found = fit_calibration(more, torch.cat([target, torch.ones(3, LABELS)]), method, weight=nothing)
    assert_close(found(logits), expected(logits))


@pytest.mark.parametrize("method", METHODS)
def test_a_label_of_one_class_keeps_its_probabilities_and_says_so(method):
    logits, target, _ = samples()
    target[:, 1] = torch.where(target[:, 1].isnan(), target[:, 1], 0.0)
    if method in ("vector", "isotonic"):
        with pytest.warns(UserWarning, match="Nothing can be calibrated for dog: positives and negatives are needed"):
            calibration = fit_calibration(logits, target, method, names=["cat", "dog", "owl"])
        assert_close(calibration(logits)[:, 1], torch.sigmoid(logits[:, 1]))
        assert not torch.allclose(calibration(logits)[:, 0], torch.sigmoid(logits[:, 0]), atol=1e-2)
        assert_close(calibration.logits(logits)[:, 1], logits[:, 1])
    else:  # the common map is that of all labels
        calibration = fit_calibration(logits, target, method)
        assert (calibration.scale == calibration.scale[0]).all()


# -- curves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_label", [True, False])
def test_curves_are_scikit_learns(per_label):
    logits, target, weight = samples()
    logits = logits.round(decimals=1)  # ties
    calibration = fit_calibration(logits, target, "isotonic", weight=weight, per_label=per_label)
    between = torch.linspace(-12, 12, 333)
    ends = torch.tensor([-math.inf, math.inf])
    for label in range(LABELS):
        columns = [label] if per_label else list(range(LABELS))
        x, y, w = (part.numpy() for part in known(logits[:, columns], target[:, columns], weight))
        sklearns = IsotonicRegression(out_of_bounds="clip").fit(x, y, sample_weight=w)
        least = 1 / (w.sum() + 2)
        there = ~target[:, label].isnan()
        expected = np.clip(sklearns.predict(logits[there, label].double().numpy()), least, 1 - least)
        assert_close(calibration(logits)[there, label], torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-6)
        knots = sklearns.X_thresholds_, np.clip(sklearns.y_thresholds_, least, 1 - least)
        found = calibration(torch.cat([between, ends])[:, None].expand(-1, LABELS))[:, label]
        assert_close(found[:-2], torch.from_numpy(np.interp(between.numpy(), *knots)).float(), rtol=1e-4, atol=1e-6)
        assert_close(found[-2:], torch.from_numpy(knots[1][[0, -1]]).float())


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 8, 9, 33])
def test_the_knot_below_is_found_among_any_number(number):
    knots = torch.arange(number).float()
    calibration = Calibration(1)
    calibration.knots, calibration.values = knots[None], (knots[None] + 1) / (number + 1)
    calibration.curved = torch.tensor([True])
    points = torch.linspace(-1, number, 16 * (number + 1) + 1)
    expected = np.interp(points.numpy(), knots.numpy(), calibration.values[0].numpy())
    assert_close(calibration(points), torch.from_numpy(expected).float())


def test_a_curve_without_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.isotonic", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'lightning_bce[data]'")):
        fit_calibration(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]), "isotonic")


# -- the module -------------------------------------------------------------------------------------------------------


def fitted(method):
    logits, target, weight = samples()
    if method == "isotonic":
        target[:, 1] = 0.0  # a label without a curve among those with one
        with pytest.warns(UserWarning, match="label 1"):
            return fit_calibration(logits, target, method, weight=weight)
    return fit_calibration(logits, target, method, weight=weight)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_and_log_odds_belong_together(method):
    calibration, logits = fitted(method), torch.linspace(-15, 15, 99).reshape(33, 3)
    assert_close(torch.sigmoid(calibration.logits(logits)), calibration(logits), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_kept_and_half_precision_is_not(method):
    calibration, logits = fitted(method), torch.randn(7, 3, 2, 5)
    dense = calibration(logits)
    assert_close(dense, calibration(logits.movedim(1, -1).reshape(-1, 3)).reshape(7, 2, 5, 3).movedim(-1, 1))
    assert calibration(torch.zeros(0, 3)).shape == (0, 3)
    expected = calibration(logits.bfloat16())
    half = calibration.bfloat16()
    assert half.scale.dtype == half.knots.dtype == torch.float32
    assert torch.equal(half(logits.bfloat16()), expected) and expected.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_it_comes_back_from_its_state(method):
    calibration, logits = fitted(method), torch.randn(7, 3)
    again = Calibration(3)
    again.load_state_dict(calibration.state_dict())
    assert again.method == method and torch.equal(again(logits), calibration(logits))
    again.load_state_dict(Calibration(3).state_dict())
    assert again.method is None and torch.equal(again(logits), torch.sigmoid(logits))
    taken = Calibration(3)
    taken.set(calibration)
    calibration.scale.zero_()
    assert taken.method == method and (taken.scale != 0).all()


def test_a_calibration_of_other_labels_is_refused():
    with pytest.raises(ValueError, match="of 2 label"):
        Calibration(3).set(Calibration(2))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Calibration(3).load_state_dict(Calibration(2).state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_exported_with_any_number_of_rows(method):
    calibration = fitted(method)
    program = torch.export.export(
        calibration, (torch.randn(5, 3),), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},)
    )
    for rows in (1, 7, 33):
        logits = torch.randn(rows, 3) * 9
        assert_close(program.module()(logits), calibration(logits), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated")
@pytest.mark.parametrize("method", METHODS)
def test_an_onnx_file_gives_the_same_probabilities(method, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'lightning_bce[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'lightning_bce[onnx]'")
    calibration, path = fitted(method).eval(), str(tmp_path / "map.onnx")
    rows = ({0: torch.export.Dim("rows", min=1)},)
    names = {"input_names": ["logits"], "output_names": ["probability"]}
    torch.onnx.export(calibration, (torch.randn(5, 3),), path, dynamic_shapes=rows, dynamo=True, verbose=False, **names)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 33):
        logits = torch.randn(size, 3) * 9
        (probability,) = session.run(["probability"], {"logits": logits.numpy()})
        assert_close(torch.from_numpy(probability), calibration(logits), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "beta"}, "expected one of temperature"),
        ({"method": "vector", "per_label": False}, "is 'platt'"),
        ({"logits": torch.tensor([0.0, math.nan])}, "is NaN"),
        ({"target": torch.tensor([0.0, 2.0])}, "outside"),
    ],
)
def test_wrong_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_calibration(**({"logits": torch.tensor([0.0, 1.0]), "target": torch.tensor([0.0, 1.0])} | arguments))


# -- how good it is ---------------------------------------------------------------------------------------------------


def test_the_calibration_error_is_that_of_the_metric_and_counts_weights():
    logits, target, _ = samples()
    probability = torch.sigmoid(logits)
    options = {"average": "none", "from_logits": False, "ignore_index": math.nan}
    expected = multilabel_calibration_error(probability, target, LABELS, **options)
    assert_close(calibration_error(probability, target), expected, rtol=1e-6, atol=0)
    double = torch.arange(ROWS) % 2 == 0
    twice = [torch.cat([part, part[double]]) for part in (probability, target)]
    weighted = calibration_error(probability, target, weight=1.0 + double.float())
    assert_close(weighted, multilabel_calibration_error(*twice, LABELS, **options), rtol=1e-6, atol=0)


def test_log_loss_and_brier_are_those_of_the_formulas():
    logits, target, weight = samples()
    found = quality(rows_of(logits, target, weight))
    for label in range(LABELS):
        x, y, w = known(logits[:, [label]], target[:, [label]], weight)
        p = torch.sigmoid(x)
        assert_close(found.log_loss[label], (w * -(y * p.log() + (1 - y) * (1 - p).log())).sum() / w.sum())
        assert_close(found.brier[label], (w * (p - y) ** 2).sum() / w.sum())


def test_a_fold_is_calibrated_by_the_others():
    logits, target, weight = samples()
    rows = rows_of(logits, target, weight)
    found = cross_calibrated(rows, "vector", None, 3)
    held = torch.arange(ROWS) % 3 == 1
    other = fit_calibration(*(part[~held] for part in rows[:2]), "vector", weight=rows.weight[~held])
    assert_close(found.score[held], other.logits(rows.score[held]))


def test_on_rows_apart_a_curve_through_noise_shows_its_error():
    rows = Rows(torch.randn(99, 1), (torch.rand(99, 1) > 0.5).float(), torch.ones(99, 1))
    curve = fit_calibration(*rows[:2], "isotonic")
    on_the_fit = quality(rows._replace(score=curve.logits(rows.score)))
    apart = quality(cross_calibrated(rows, "isotonic", None, 5))
    assert on_the_fit.error.item() < 0.02 < apart.error.item()
    assert on_the_fit.log_loss < apart.log_loss
