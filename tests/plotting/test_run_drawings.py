"""The drawings of a run show its numbers, for one label and for very many, and say so without matplotlib too."""

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.ticker import FixedLocator
from numpy.testing import assert_allclose
from recorded_runs import P_EDGES, R_EDGES, SCORE_EDGES, trained
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from lightning_bce.metrics.score_curves import score_auroc, score_average_precision
from lightning_bce.metrics.score_histogram import ScoreBins
from lightning_bce.plotting import drawings, pictures, text_pictures
from lightning_bce.plotting.calibration import ReliabilityDiagram
from lightning_bce.plotting.decisions import Decisions
from lightning_bce.plotting.drawing import NEGATIVE, POSITIVE, NothingToDraw
from lightning_bce.plotting.files import rendered
from lightning_bce.plotting.hardness import GradientByLabel, HardnessShares, LossConcentration
from lightning_bce.plotting.over_epochs import LossOverEpochs, SharesOverEpochs
from lightning_bce.plotting.scores import ScoreHistograms
from lightning_bce.plotting.threshold_curves import ROC, PrecisionRecall

SIZES = [1, 5, 14, 500]
NAMES = [
    "loss",
    "shares",
    "hardness",
    "distribution",
    "gradient",
    "precision_recall",
    "roc",
    "scores",
    "reliability",
    "confusion",
]


def changed(labels=5, **changes):
    evaluation, history = trained(labels)
    return dataclasses.replace(evaluation, **changes), history


def line_named(axes, name):
    return next(line for line in axes.lines if str(line.get_label()).startswith(name))


def tick_names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", SIZES)
def test_everything_is_drawn_with_named_axes_and_nothing_is_cut_off(labels):
    figures = pictures(*trained(labels))
    assert list(figures) == NAMES
    for name, figure in figures.items():
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.02, name
        assert any(axes.get_xlabel() for axes in figure.axes), name
        for axes in figure.axes:
            named = axes.get_ylabel() or isinstance(axes.yaxis.get_major_locator(), FixedLocator)
            assert named, name


@pytest.mark.parametrize("labels", SIZES)
def test_everything_is_said_in_plain_characters(labels):
    texts = text_pictures(*trained(labels), width=72)
    assert list(texts) == NAMES
    for name, text in texts.items():
        assert text.isascii() and "\x1b" not in text, name
        assert max(map(len, text.splitlines())) <= 72, name
        assert len(text.splitlines()) < 70, name


def test_text_needs_no_matplotlib_and_pictures_say_that_they_do(monkeypatch):
    for name in [module for module in sys.modules if module.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert list(text_pictures(*trained(5))) == NAMES
    with pytest.raises(ImportError, match=r"pip install 'lightning_bce\[plot\]'"):
        pictures(*trained(5))


def test_pyplot_knows_nothing_of_the_figures():
    from matplotlib import pyplot

    pictures(*trained(1))
    assert pyplot.get_fignums() == []


def test_a_picture_is_the_same_file_again():
    drawing = LossConcentration(*trained(1))
    for kind in ("png", "svg", "pdf"):
        assert rendered(drawing.figure(), kind) == rendered(drawing.figure(), kind)


def test_names_are_neither_mathematics_nor_commands_nor_endless():
    name = "$\\frac{a}{b$ [red]\x1b[31m\u202e" + 40 * "x"
    evaluation, history = trained(5)
    evaluation = dataclasses.replace(evaluation, labels=[name, "b $x$", "[bold]c[/bold]", "d", "e"])
    for picture, figure in pictures(evaluation, history).items():
        figure.draw_without_rendering()
        shown = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
        assert not any("\x1b" in text or "\u202e" in text for text in shown), picture
    ticks = tick_names(Decisions(evaluation).figure().axes[0].yaxis)
    first = next(text for text in ticks if "frac" in text)
    assert first.startswith(r"\$\frac{a") and len(first) <= 23 and "b \\$x\\$" in ticks
    texts = text_pictures(evaluation, history)
    assert not any("\x1b" in text or "\u202e" in text for text in texts.values())
    assert "[bold]c[/bold]" in texts["confusion"]


def test_what_was_not_recorded_is_left_out():
    evaluation, history = trained(5)
    line = history[-1]
    bare = dataclasses.replace(
        line, scores=None, reliability=None, distribution=None, hardness=None, confusion=None, threshold=None
    )
    assert list(pictures(bare, history)) == ["loss", "shares", "gradient"]
    assert [drawing.name for drawing in drawings(evaluation)] == NAMES[1:]  # a heat map of one column
    with pytest.raises(NothingToDraw):
        LossOverEpochs(evaluation, [])


def test_too_narrow_a_terminal_is_refused():
    with pytest.raises(ValueError, match="40 are the least"):
        text_pictures(*trained(1), width=20)


def test_a_loss_without_form_by_label_is_drawn_by_side():
    evaluation, history = trained(5)

    def summed(e):
        return dataclasses.replace(e, loss=e.loss.sum(0, keepdim=True), weight=e.weight.sum(0, keepdim=True))

    evaluation, history = summed(evaluation), [summed(e) for e in history]
    shares = SharesOverEpochs(evaluation, history)
    assert shares.names == ["negatives", "positives"]
    assert_allclose(shares.shares.sum(0), 1.0)
    assert list(pictures(evaluation, history)) == NAMES


def test_numbers_that_are_unknown_are_drawn_as_unknown():
    nan = torch.full_like(trained(5)[0].loss, math.nan)
    evaluation, history = changed(5, loss=nan, gradient=nan)
    evaluation = dataclasses.replace(
        evaluation, hardness=dataclasses.replace(evaluation.hardness, loss=evaluation.hardness.loss * math.nan)
    )
    drawn = {drawing.name: drawing for drawing in drawings(evaluation, [*history[:-1], evaluation])}
    assert "gradient" not in drawn
    assert "unknown" in drawn["hardness"].finding()
    for drawing in drawn.values():
        assert "nan" not in drawing.text().lower(), drawing.name
        drawing.figure().draw_without_rendering()
    heat = drawn["shares"].figure().axes[0]
    assert heat.images[0].get_array().mask[:, -1].all() and heat.patch.get_hatch()


# -- over training ----------------------------------------------------------------------------------------------------


def test_the_areas_add_up_to_the_mean_loss_of_every_epoch():
    evaluation, history = trained(5)
    figure = LossOverEpochs(evaluation, history).figure()
    for axes, stage in zip(figure.axes, ("train", "val"), strict=True):
        lines = [line for line in history if line.stage == stage]
        means = [float(line.loss.sum() / line.weight.sum()) for line in lines]
        negative = [float(line.loss[:, 0].sum() / line.weight.sum()) for line in lines]
        total = line_named(axes, "loss")
        assert_allclose(total.get_ydata(), means)
        assert total.get_xdata().tolist() == [line.epoch for line in lines]
        lower, upper = (area.get_paths()[0].vertices for area in axes.collections)
        assert_allclose(lower[1 : len(lines) + 1, 1].min(), 0.0)
        assert set(np.round(negative, 9)) <= set(np.round(lower[:, 1], 9))
        assert set(np.round(means, 9)) | set(np.round(negative, 9)) <= set(np.round(upper[:, 1], 9))
        assert [to_hex(area.get_facecolor()[0]) for area in axes.collections] == [NEGATIVE, POSITIVE]
        assert axes.collections[1].get_hatch() and not axes.collections[0].get_hatch()


def test_the_lowest_validation_loss_is_marked():
    evaluation, history = trained(5)
    val = [float(line.loss.sum() / line.weight.sum()) for line in history if line.stage == "val"]
    drawing = LossOverEpochs(evaluation, history)
    mark = line_named(drawing.figure().axes[1], "lowest")
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (int(np.argmin(val)), pytest.approx(min(val)))
    assert f"lowest in epoch {np.argmin(val)}" in drawing.finding()


def test_one_epoch_is_a_pair_of_bars_and_negative_losses_are_lines():
    evaluation, history = trained(5)
    first = [line for line in history if line.epoch == 0]
    axes = LossOverEpochs(evaluation, first).figure().axes[1]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(
        float(first[1].loss.sum() / first[1].weight.sum())
    )
    below = [dataclasses.replace(line, loss=-line.loss) for line in history]
    axes = LossOverEpochs(evaluation, below).figure().axes[1]
    assert not axes.collections and axes.get_ylim()[0] < 0


def test_several_evaluations_of_an_epoch_stand_at_their_steps():
    evaluation, history = trained(5)
    twice = [dataclasses.replace(line, epoch=line.epoch // 2) for line in history]
    drawing = LossOverEpochs(evaluation, twice)
    assert drawing.time == "step of the optimizer" == drawing.figure().axes[1].get_xlabel()
    assert drawing.parts["val"].at.tolist() == [line.step for line in history if line.stage == "val"]


@pytest.mark.parametrize("labels", [5, 14, 500])
def test_the_heat_map_holds_the_share_of_every_label_in_every_epoch_the_largest_at_the_end_first(labels):
    evaluation, history = trained(labels)
    figure = SharesOverEpochs(evaluation, history).figure()
    cells = np.concatenate(
        [axes.images[0].get_array() for axes in figure.axes if axes.images and axes.get_yticks().size]
    )
    lines = [line for line in history if line.stage == "val"]
    shares = np.stack([(line.loss.sum(1) / line.loss.sum()).numpy() for line in lines], axis=1)
    order = np.argsort(-shares[:, -1], kind="stable")
    assert_allclose(np.asarray(cells)[: len(order)], shares[order])
    named = tick_names(figure.axes[0].yaxis)
    assert named == [evaluation.labels[i] for i in order[: len(named)]] and len(named) == min(labels, 20)
    assert figure.axes[-1].get_ylabel() == "share of the loss, %"
    if labels == 500:  # the others have their ranks on the axis
        assert tick_names(figure.axes[1].yaxis)[0] == "21" and tick_names(figure.axes[1].yaxis)[-1] == "500"


# -- hardness ---------------------------------------------------------------------------------------------------------


def test_the_bars_by_hardness_are_shares_of_examples_loss_and_gradient():
    evaluation, _ = trained(14)
    drawing = HardnessShares(evaluation)
    for axes, name in zip(drawing.figure().axes, ("examples", "loss", "gradient"), strict=True):
        part = getattr(evaluation.hardness, "count" if name == "examples" else name)
        heights = np.asarray([bar.get_height() for bar in axes.patches]).reshape(2, -1)
        assert_allclose(heights, 100 * (part / part.sum()).numpy())
        assert [bar.get_x() for bar in axes.patches[: len(P_EDGES) - 1]] == P_EDGES[:-1].tolist()
        assert heights.sum() == pytest.approx(100)
    wrong = float(evaluation.hardness.loss[:, P_EDGES[1:] <= 0.5].sum() / evaluation.hardness.loss.sum())
    assert f"{100 * wrong:.1f} % of the loss" in drawing.finding()


def test_the_cumulative_distribution_is_that_of_the_sorted_losses():
    evaluation, _ = trained(14)
    distribution = evaluation.distribution
    axes = LossConcentration(evaluation).figure().axes[0]
    for side, name in enumerate(("negatives", "positives")):
        line = line_named(axes, name)
        count, loss = distribution.count[side].numpy(), distribution.loss[side].numpy()
        each = np.repeat(loss / np.maximum(count, 1), count.astype(int))  # every element has the mean loss of its bin
        at = np.linspace(0, 1, len(each) + 1)
        expected = np.append(0, np.sort(each).cumsum()) / each.sum()
        assert_allclose(np.interp(at, line.get_xdata(), line.get_ydata()), expected, atol=1e-9)
        assert f"{count.sum():,.0f}" in line.get_label()
    assert line_named(axes, "negatives").get_linestyle() != line_named(axes, "positives").get_linestyle()
    assert (
        axes.get_xlabel().startswith("fraction of the examples") and axes.get_ylabel() == "cumulative normalized loss"
    )


def test_a_side_without_examples_has_no_curve():
    evaluation, _ = trained(5)
    distribution = evaluation.distribution
    only = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    half = dataclasses.replace(distribution, count=distribution.count * only, loss=distribution.loss * only)
    drawing = LossConcentration(dataclasses.replace(evaluation, distribution=half))
    assert list(drawing.curves) == ["negatives"] and "positives" not in drawing.finding()


@pytest.mark.parametrize("labels", SIZES)
def test_the_pull_of_each_label_is_the_derivative_of_the_mean_loss(labels):
    evaluation, _ = trained(labels)
    axes = GradientByLabel(evaluation).figure().axes[0]
    pull = (evaluation.gradient / evaluation.weight.sum()).numpy()
    order = np.argsort(-np.abs(pull).sum(1), kind="stable")[:24]
    widths = np.asarray([bar.get_width() for bar in axes.patches]).reshape(2, -1)
    assert_allclose(widths, pull[order].T)
    assert_allclose(line_named(axes, "together").get_xdata(), pull[order].sum(1))
    assert tick_names(axes.yaxis) == [evaluation.labels[i] for i in order]
    assert axes.get_xlabel().endswith("nats per logit")
    rest = axes.get_title(loc="left")
    assert rest.startswith("476 labels that pull less") if labels == 500 else not rest


# -- decisions --------------------------------------------------------------------------------------------------------


def elements(count):
    """Return target, score and weight of elements that are counted in bins, (2, S)."""
    middle = SCORE_EDGES.clamp(-13, 13)
    score = ((middle[1:] + middle[:-1]) / 2).numpy()
    return np.repeat([0, 1], len(score)), np.tile(score, 2), count.numpy().ravel()


@pytest.mark.parametrize("labels", SIZES)
def test_areas_under_the_curves_are_those_of_scikit_learn_up_to_what_the_bins_hide(labels):
    evaluation, _ = trained(labels)
    bins = ScoreBins(evaluation.scores.edges, evaluation.scores.count)
    for kind, area, error in (
        (PrecisionRecall, average_precision_score, score_average_precision(bins).error),
        (ROC, roc_auc_score, score_auroc(bins).error),
    ):
        drawing = kind(evaluation)
        target, score, weight = elements(evaluation.scores.count.sum(0))
        assert drawing.together.area == pytest.approx(area(target, score, sample_weight=weight), abs=0.02)
        if labels == 1:
            assert drawing.by_label == []
            continue
        assert math.isnan(drawing.areas[-1])  # nobody has the last label
        expected = []
        for count in evaluation.scores.count[:-1]:
            target, score, weight = elements(count)
            expected.append(area(target[weight > 0], score[weight > 0], sample_weight=weight[weight > 0]))
        assert (np.abs(drawing.areas[:-1] - expected) <= error[:-1].numpy() + 1e-12).all()
        assert drawing.macro == pytest.approx(np.nanmean(drawing.areas))
        assert drawing.worst == np.argsort(drawing.areas[:-1], kind="stable")[:3].tolist()
        assert f"1 of {labels}" in drawing.finding()


def test_the_curves_go_through_the_points_of_scikit_learn_and_the_threshold_lies_on_them():
    evaluation, _ = trained(1)
    target, score, weight = elements(evaluation.scores.count[0])
    false, _, _ = sklearn_roc_curve(target, score, sample_weight=weight, drop_intermediate=False)
    axes = ROC(evaluation).figure().axes[0]
    line = line_named(axes, "AUROC")
    at = np.searchsorted(np.unique(line.get_xdata()), np.unique(false))
    assert_allclose(np.unique(line.get_xdata())[at], np.unique(false))
    (tn, fp), (fn, tp) = evaluation.confusion[0].tolist()
    mark = line_named(axes, "threshold 0.5")
    assert_allclose([mark.get_xdata()[0], mark.get_ydata()[0]], [fp / (tn + fp), tp / (tp + fn)])
    # SCORE_EDGES has an edge at 0, the logit of the threshold: the mark lies on the curve.
    assert np.hypot(line.get_xdata() - mark.get_xdata(), line.get_ydata() - mark.get_ydata()).min() < 1e-9
    mark = line_named(PrecisionRecall(evaluation).figure().axes[0], "threshold 0.5")
    assert_allclose([mark.get_xdata()[0], mark.get_ydata()[0]], [tp / (tp + fn), tp / (tp + fp)])


def test_few_labels_are_drawn_one_by_one_and_many_as_a_band():
    few, many = (PrecisionRecall(trained(labels)[0]).figure().axes[0] for labels in (14, 500))
    assert len([line for line in few.lines if len(line.get_xdata()) > 2 and line.get_linewidth() == 0.7]) == 13
    assert not few.collections and len(many.collections) == 1
    assert line_named(many, "mean of labels") and line_named(many, "all together")


def test_without_positives_there_is_no_curve():
    evaluation, _ = trained(5)
    none = evaluation.scores.count.clone()
    none[:, 1] = 0
    bare = dataclasses.replace(evaluation, scores=dataclasses.replace(evaluation.scores, count=none))
    assert not {"precision_recall", "roc"} & set(pictures(bare))


@pytest.mark.parametrize("labels", SIZES)
def test_histograms_of_both_classes_are_densities_with_the_threshold_at_its_logit(labels):
    evaluation, _ = trained(labels)
    drawing = ScoreHistograms(dataclasses.replace(evaluation, threshold=torch.full((labels,), 0.9).double()))
    assert_allclose((drawing.density * np.diff(drawing.edges)).sum(1), 1.0)
    axes = drawing.figure().axes[0]
    assert line_named(axes, "threshold 0.9").get_xdata()[0] == pytest.approx(math.log(9))
    outlines = [patch for patch in axes.patches if patch.get_label().startswith(("negatives", "positives"))]
    for side, patch in enumerate(outlines):
        assert_allclose(patch.get_data().values, 100 * drawing.density[side])
    assert outlines[0].get_linestyle() != outlines[1].get_linestyle()


def test_scores_of_labels_are_their_quantiles():
    evaluation, _ = trained(5)
    drawing = ScoreHistograms(evaluation)
    for label in range(5):
        for side in range(2):
            count = evaluation.scores.count[label, side].numpy()
            if not count.sum():
                assert np.isnan(drawing.quantiles[label, side]).all()
                continue
            edges = SCORE_EDGES.numpy()
            for q, value in zip((0.05, 0.5, 0.95), drawing.quantiles[label, side], strict=True):
                below = count[edges[1:] <= value - 0.1].sum() / count.sum()
                above = count[edges[:-1] < value + 0.1].sum() / count.sum()
                assert below <= q <= above


def test_the_confusion_matrix_shows_counts_and_shares_of_the_row():
    evaluation, _ = trained(1)
    axes = Decisions(evaluation).figure().axes[0]
    (tn, fp), (fn, tp) = evaluation.confusion[0].tolist()
    shown = [text.get_text() for text in axes.texts]
    pairs = [(tn, tn + fp), (fp, tn + fp), (fn, fn + tp), (tp, fn + tp)]
    assert shown == [f"{part:,.0f}\n{100 * part / of:.1f} %" for part, of in pairs]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("decision", "truth")


@pytest.mark.parametrize("labels", [5, 500])
def test_labels_have_their_rates_the_lowest_f1_first_and_unknown_ones_hatched(labels):
    evaluation, _ = trained(labels)
    axes = Decisions(evaluation).figure().axes[0]
    cells = axes.images[0].get_array()
    (tn, fp), (fn, tp) = evaluation.confusion.sum(0).tolist()
    assert_allclose(cells[0].data, [tp / (tp + fn), tp / (tp + fp), tn / (tn + fp), 2 * tp / (2 * tp + fp + fn)])
    f1 = cells[1:, 3].compressed()
    assert (np.diff(f1) >= 0).all() and len(cells) == (6 if labels == 5 else 25)
    if labels == 5:
        assert cells.mask[-1].tolist() == [True, True, False, True] and axes.patch.get_hatch()
    else:
        assert axes.get_title(loc="left") == "476 labels of higher or unknown F1 are left out"


# -- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", SIZES)
def test_the_reliability_diagram_holds_means_shares_counts_and_intervals(labels):
    evaluation, _ = trained(labels)
    reliability = evaluation.reliability
    top, bottom = ReliabilityDiagram(evaluation).figure().axes
    count = reliability.count.sum(0).numpy()
    some = count > 0
    line, _, (bars,) = top.containers[0].lines
    assert_allclose(line.get_xdata(), (reliability.probability.sum(0).numpy() / np.maximum(count, 1))[some])
    shares = (reliability.positive.sum(0).numpy() / np.maximum(count, 1))[some]
    assert_allclose(line.get_ydata(), shares)
    intervals = [
        binomtest(round(share * n), round(n)).proportion_ci(method="wilson")
        for share, n in zip(shares, count[some], strict=True)
    ]
    ends = np.asarray([segment[:, 1] for segment in bars.get_segments()])
    assert_allclose(ends, [(interval.low, interval.high) for interval in intervals], atol=1e-6)
    assert_allclose([bar.get_height() for bar in bottom.patches], count)
    assert [bar.get_x() for bar in bottom.patches] == R_EDGES[:-1].tolist()


def test_calibration_errors_are_gaps_weighted_by_counts():
    evaluation, _ = trained(5)
    r = evaluation.reliability
    drawing = ReliabilityDiagram(evaluation)
    assert_allclose(drawing.errors, ((r.probability - r.positive).abs().sum(1) / r.count.sum(1)).numpy())
    together = (r.probability - r.positive).sum(0).abs().sum() / r.count.sum()
    assert drawing.error == pytest.approx(float(together))
    assert drawing.worst == np.argsort(-drawing.errors, kind="stable")[:2].tolist()
