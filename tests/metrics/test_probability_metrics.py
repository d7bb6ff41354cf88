"""Log loss, Brier score, calibration error and reliability curve: what they share."""

import copy
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchmetrics import MetricCollection

from lightning_bce import (
    BinaryBrierScore,
    BinaryLogLoss,
    BinaryReliabilityCurve,
    FocalLoss,
    LossProfile,
    MultilabelBrierScore,
    MultilabelCalibrationError,
    MultilabelLogLoss,
    MultilabelReliabilityCurve,
    ScoreHistogram,
)
from lightning_bce.metrics import (
    binary_brier_decomposition,
    binary_brier_score,
    binary_log_loss,
    binary_reliability_curve,
    multilabel_brier_decomposition,
    multilabel_brier_score,
    multilabel_calibration_error,
    multilabel_log_loss,
    multilabel_reliability_curve,
    summed,
)

LABELS = 3
BINARY = {
    BinaryLogLoss: binary_log_loss,
    BinaryBrierScore: binary_brier_score,
    BinaryReliabilityCurve: binary_reliability_curve,
}
MULTILABEL = {
    MultilabelLogLoss: multilabel_log_loss,
    MultilabelBrierScore: multilabel_brier_score,
    MultilabelCalibrationError: multilabel_calibration_error,
    MultilabelReliabilityCurve: multilabel_reliability_curve,
}
BINNED = [multilabel_brier_decomposition, multilabel_reliability_curve, multilabel_calibration_error]
AVERAGED = [MultilabelLogLoss, MultilabelBrierScore, MultilabelCalibrationError]
AVERAGES = ["micro", "macro", "weighted", "none"]


def batch(rows=57, labels=LABELS):
    shape = (rows, labels) if labels else (rows,)
    logits = 2 * torch.randn(shape)
    return torch.sigmoid(logits), (torch.rand(shape) < torch.sigmoid(logits - 0.5)).long()


def of(kind, *parts, **options):
    metric = kind(LABELS, **options)
    for part in parts:
        metric.update(*part)
    return metric.compute()


def options_of(kind):
    return [{"average": average} for average in AVERAGES] if kind in AVERAGED else [{}]


@pytest.mark.parametrize("kind", MULTILABEL)
def test_class_and_function_agree_and_pieces_are_the_whole(kind, monkeypatch):
    part = batch()
    for options in options_of(kind):
        expected = MULTILABEL[kind](*part, LABELS, **options)
        assert_close(of(kind, part, **options), expected, rtol=0, atol=0)
        with monkeypatch.context() as patch:
            patch.setattr(summed, "CHUNK", 7)
            assert_close(of(kind, part, **options), expected)


@pytest.mark.parametrize("kind", BINARY)
def test_one_label_is_the_first_of_one(kind):
    preds, target = batch(57, 0)
    metric = kind()
    several = next(MULTILABEL[k] for k in MULTILABEL if k.__name__ == kind.__name__.replace("Binary", "Multilabel"))
    metric.update(preds.reshape(3, 19), target.reshape(3, 19))
    assert_close(metric.compute(), BINARY[kind](preds, target))
    assert_close(metric.compute(), several(preds[:, None], target[:, None], 1))


@pytest.mark.parametrize("kind", AVERAGED)
def test_averages_are_those_of_torchmetrics(kind):
    preds, target = batch()
    target[:, 1] = -1  # a label that was never seen
    target[:20, 2] = -1  # labels of different counts, whose mean is not that of all elements
    values = of(kind, (preds, target), average="none", ignore_index=-1)
    assert values.shape == (LABELS,) and values[1].isnan() and not values[[0, 2]].isnan().any()
    share = (target == 1).sum(0).double()
    assert_close(of(kind, (preds, target), average="macro", ignore_index=-1), values[[0, 2]].mean())
    weighted = (values * share)[[0, 2]].sum() / share.sum()
    assert_close(of(kind, (preds, target), average="weighted", ignore_index=-1), weighted)
    flat = [t[:, [0, 2]].reshape(-1, 1) for t in (preds, target)]
    micro = of(kind, (preds, target), average="micro", ignore_index=-1)
    assert_close(micro, MULTILABEL[kind](*flat, 1, average="macro", ignore_index=-1))
    assert_close(of(kind, (preds, target), average=None, ignore_index=-1), values, equal_nan=True)


@pytest.mark.parametrize("kind", MULTILABEL)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.randoms())
@settings(max_examples=10, deadline=None)
def test_splits_and_merges_in_any_order_give_the_same(kind, sizes, random):
    parts, metrics = [batch(size) for size in sizes], []
    for part in parts:
        metrics.append(kind(LABELS))
        metrics[-1].update(*part)
    random.shuffle(metrics)
    for other in metrics[1:]:
        metrics[0].merge_state(other)
    whole = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    assert_close(metrics[0].compute(), of(kind, whole), equal_nan=True)


@pytest.mark.parametrize("kind", MULTILABEL)
@pytest.mark.parametrize("unknown", [-1, float("nan")])
def test_unknown_labels_count_nowhere(kind, unknown):
    preds, target = batch()
    target = target.float()
    target[:, 1:] = unknown
    preds[:, 1:] = torch.nan
    for options in options_of(kind)[:2]:
        found = of(kind, (preds, target), ignore_index=unknown, **options)
        if kind is MultilabelReliabilityCurve:
            assert found.count.sum(1).tolist() == [57, 0, 0] and found.probability[1:].eq(0).all()
        else:
            assert_close(found, MULTILABEL[kind](preds[:, :1], target[:, :1], 1))


@pytest.mark.parametrize("kind", MULTILABEL)
def test_positions_belong_to_their_label(kind):
    preds, target = torch.rand(5, LABELS, 2, 3), torch.randint(0, 2, (5, LABELS, 2, 3))
    rows = [t.movedim(1, -1).reshape(-1, LABELS) for t in (preds, target)]
    assert_close(of(kind, (preds, target)), of(kind, rows))
    assert_close(of(kind, [t.T.contiguous().T for t in rows]), of(kind, rows))  # in another order in memory


@pytest.mark.parametrize("kind", MULTILABEL)
def test_logits_and_probabilities_give_the_same(kind):
    probabilities, target = batch()
    logits = torch.logit(probabilities)
    expected = of(kind, (probabilities, target), from_logits=False)
    assert_close(of(kind, (logits, target), from_logits=True), expected, rtol=1e-5, atol=1e-6)
    for preds in (logits, probabilities):  # as torchmetrics guesses
        assert_close(of(kind, (preds, target)), expected, rtol=1e-5, atol=1e-6)
    small = torch.full((1, LABELS), 0.5), torch.ones(1, LABELS)
    exact = of(kind, small, from_logits=True)
    assert_close(exact, of(kind, (torch.sigmoid(small[0]), small[1])))  # where guessing goes wrong


@pytest.mark.parametrize("kind", MULTILABEL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_full(kind, dtype):
    preds, target = batch()
    preds, target = torch.logit(preds).to(dtype), target.to(dtype)
    expected = of(kind, (preds.float(), target.float()), from_logits=True)
    metric = kind(LABELS, from_logits=True).to(dtype)
    for _ in range(300):  # in bfloat16, counting ends at 256
        metric.update(preds[:1], target[:1])
    metric.reset()
    metric.update(preds, target)
    assert_close(metric.compute(), expected)


@pytest.mark.parametrize("kind", MULTILABEL)
def test_it_survives_inference_mode_copies_and_a_collection(kind):
    part = batch()
    metric = pickle.loads(pickle.dumps(kind(LABELS)))
    with torch.inference_mode():
        metric.reset()
        metric.update(*part)
    metric.update(*part)
    assert_close(metric.compute(), of(kind, part, part))
    assert_close(metric(*part), of(kind, part))


def test_a_collection_gives_what_each_gives():
    parts = [batch(), batch(9)]
    by_max = MultilabelCalibrationError(LABELS, norm="max")
    collection = MetricCollection({kind.__name__: kind(LABELS) for kind in MULTILABEL} | {"by_max": by_max})
    for part in parts:
        collection.update(*part)
    for name, value in collection.compute().items():
        if name != "by_max":
            assert_close(value, of({k.__name__: k for k in MULTILABEL}[name], *parts))
    assert_close(collection.compute()["by_max"], of(MultilabelCalibrationError, *parts, norm="max"))
    # The bins are counted once for the three that read them.
    assert len(collection.compute_groups) == 3


def test_update_never_waits_for_the_device():
    for kind in MULTILABEL:
        metric = kind(LABELS, validate_args=False, ignore_index=-1).to("meta")  # whose tensors have no value
        metric.update(*(t.to("meta") for t in batch()))


@pytest.mark.parametrize("kind", MULTILABEL)
def test_what_cannot_be_read_is_refused(kind):
    preds, target = batch()
    for arguments, options, said in (
        ((preds, target[:3]), {}, "they must be equal"),
        ((preds[:, :2], target[:, :2]), {}, r"\(N, 3, ...\) was expected"),
        ((preds, target + 1), {}, "outside"),
        ((preds + 1, target), {"from_logits": False}, "probabilities"),
    ):
        with pytest.raises(ValueError, match=said):
            of(kind, arguments, **options)
        with pytest.raises(ValueError, match=said):
            MULTILABEL[kind](*arguments, LABELS, **options)
    of(kind, (preds, target + 1), validate_args=False)
    with pytest.raises(TypeError, match="floating-point"):
        of(kind, (target, target))
    for options, said in (({"ignore_index": 0}, "also a label"), ({"from_logits": 1}, "from_logits")):
        with pytest.raises((ValueError, TypeError), match=said):
            kind(LABELS, **options)
    with pytest.raises(ValueError, match="num_labels"):
        kind(0)
    if kind in AVERAGED:
        with pytest.raises(ValueError, match="`average` is 'mean'"):
            kind(LABELS, average="mean")
    if kind is not MultilabelLogLoss:
        with pytest.raises(ValueError, match="n_bins"):
            kind(LABELS, n_bins=0)
    with pytest.raises(ValueError, match="not the same quantity"):
        kind(LABELS).merge_state(kind(LABELS, ignore_index=-1))


def test_each_argument_is_named_by_what_refuses_it():
    preds, target = batch()
    for options, kind, said in (
        ({"from_logits": 1}, TypeError, "^`from_logits` is 1"),
        ({"validate_args": 1}, TypeError, "^`validate_args` is 1"),
        ({"ignore_index": 1.0}, ValueError, "^`ignore_index` is 1.0"),
    ):
        for function in BINARY.values():
            with pytest.raises(kind, match=said):
                function(preds[:, 0], target[:, 0], **options)
        for function in MULTILABEL.values():
            with pytest.raises(kind, match=said):
                function(preds, target, LABELS, **options)
    BinaryLogLoss(ignore_index=2)  # the smallest whole number that is no label
    by_bin = [partial(function, preds, target, LABELS) for function in BINNED]
    by_bin += [partial(by_bin[-1], binning="quantile"), partial(binary_brier_decomposition, preds, target)]
    by_bin += [partial(kind, LABELS) for kind in MULTILABEL if kind is not MultilabelLogLoss]
    for make in by_bin:
        make(n_bins=1)
        with pytest.raises(ValueError, match=r"^`n_bins` is 0"):
            make(n_bins=0)
    for kind in MULTILABEL:
        with pytest.raises(ValueError, match=r"^`num_labels` is 0"):
            kind(0)
    for function in (multilabel_log_loss, multilabel_brier_score, multilabel_brier_decomposition):
        with pytest.raises(ValueError, match=r"^`weight` has shape"):
            function(preds, target, LABELS, torch.ones(5))


def test_function_and_metric_take_the_same_options():
    preds, target = torch.rand(33, LABELS).double(), torch.randint(0, 2, (33, LABELS))
    probability, target[:7, 1] = torch.sigmoid(preds), -1
    wrong = torch.where(target < 0, -1, 2 * target)
    options = {"from_logits": True, "ignore_index": -1}  # scores in [0, 1], which only the option takes for logits
    shared = {"sync_on_compute": False, "validate_args": False}
    for kind, function in MULTILABEL.items():
        metric = kind(LABELS, **shared, **options)
        metric.update(preds, wrong)
        assert not metric.sync_on_compute
        expected = function(probability, wrong, LABELS, ignore_index=-1, from_logits=False, validate_args=False)
        assert_close(metric.compute(), expected)
        assert_close(function(preds, wrong, LABELS, validate_args=False, **options), expected)
        assert_close(kind(LABELS, **options)(preds, target), function(probability, target, LABELS, ignore_index=-1))
    for kind, function in BINARY.items():
        metric = kind(**shared, **options)
        metric.update(preds[:, 1], wrong[:, 1])
        assert not metric.sync_on_compute
        expected = function(probability[7:, 1], wrong[7:, 1], from_logits=False, validate_args=False)
        assert_close(metric.compute(), expected)
        assert_close(function(preds[:, 1], wrong[:, 1], validate_args=False, **options), expected)
    by_mass = {"n_bins": 4, "binning": "quantile"}
    assert_close(
        multilabel_calibration_error(preds, wrong, LABELS, validate_args=False, **by_mass, **options),
        multilabel_calibration_error(probability, wrong, LABELS, ignore_index=-1, validate_args=False, **by_mass),
    )


def test_values_are_checked_unless_it_is_said_not_to():
    preds, target = torch.rand(5, LABELS), torch.full((5, LABELS), 3)
    calls = [
        partial(function, preds[:, 0], target[:, 0]) for function in (*BINARY.values(), binary_brier_decomposition)
    ]
    calls += [partial(function, preds, target, LABELS) for function in (*MULTILABEL.values(), *BINNED)]
    calls += [partial(call, binning="quantile") for call in calls if call.func is multilabel_calibration_error]
    calls += [partial(kind().update, preds[:, 0], target[:, 0]) for kind in BINARY]
    calls += [partial(kind(LABELS).update, preds, target) for kind in MULTILABEL]
    for call in calls:
        with pytest.raises(ValueError, match=r"^`target` has values outside"):
            call()


def test_what_is_unknown_may_have_any_score_and_weight():
    preds, target = torch.tensor([0.2, 7.0, 0.9]), torch.tensor([0, -1, 1])
    weight = torch.tensor([2.0, -1.0, 1.0])
    found = binary_brier_score(preds, target, weight, from_logits=False, ignore_index=-1)
    assert_close(found.item(), (2 * 0.04 + 0.01) / 3)
    with pytest.raises(ValueError, match=r"^`weight` must be finite and at least 0"):
        binary_brier_score(preds, target, -weight, from_logits=False, ignore_index=-1)


def test_scores_a_little_above_1_are_logits_and_labels_may_be_true_or_false():
    preds, target = torch.tensor([0.5, 1.5]), torch.tensor([False, True])
    for function in BINARY.values():
        assert_close(function(preds, target), function(torch.sigmoid(preds), target.long(), from_logits=False))


def test_a_score_on_an_edge_belongs_to_the_bin_above():
    for dtype in (torch.float32, torch.float64):
        for bins in (10, 15):
            edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)[:-1].to(dtype)
            preds = torch.cat([edges, edges + 0.01])
            curve = binary_reliability_curve(preds, torch.ones_like(preds), n_bins=bins)
            assert curve.count.tolist() == [[2] * bins]
            parts = binary_brier_decomposition(preds, torch.ones_like(preds), n_bins=bins)
            assert_close(parts.within_variance.item(), 0.005**2)


@pytest.mark.parametrize("kind", [*BINARY, *MULTILABEL])
def test_states_are_float64_sums_of_one_shape_from_the_start(kind):
    several = kind in MULTILABEL
    make = partial(kind, LABELS) if several else kind
    part = batch() if several else batch(57, 0)
    expected, fresh, seen = make()(*part), make(), make()
    shapes = {name: (state.shape, state.dtype) for name, state in fresh.sums.items()}
    seen.update(*part)
    assert {name: (state.shape, state.dtype) for name, state in seen.sums.items()} == shapes
    fresh.merge_state(seen)  # one that saw nothing
    assert_close(fresh.compute(), expected)
    function = (MULTILABEL if several else BINARY)[kind]
    none = [t[:0] for t in part]
    nothing = function(*none, LABELS) if several else function(*none)
    if isinstance(nothing, torch.Tensor):
        assert nothing.isnan() and nothing.dtype == torch.float64
    if kind in AVERAGED:
        each = function(*none, LABELS, average="none")
        assert each.isnan().all() and each.shape == (LABELS,) and each.dtype == torch.float64


@pytest.mark.parametrize("kind", MULTILABEL)
def test_what_an_update_makes_lies_where_the_scores_lie(kind):
    part = batch()
    expected = of(kind, part)
    with torch.device("meta"):  # where a tensor lies that is made without saying where
        assert_close(MULTILABEL[kind](*part, LABELS), expected)
        if kind is MultilabelCalibrationError:
            assert multilabel_calibration_error(*part, LABELS, binning="quantile").device.type == "cpu"
    metric = kind(LABELS)
    metric.update(*part)
    with torch.device("meta"):
        metric.to(torch.bfloat16)
    assert_close(metric.compute(), expected)


def test_a_state_by_name_is_merged_like_a_metric():
    parts = [batch(9), batch(7), batch(5)]
    one, other = MultilabelBrierScore(LABELS), MultilabelBrierScore(LABELS)
    one.update(*parts[0])
    for part in parts[1:]:
        other.update(*part)
    stale = one.compute()
    copies = [copy.deepcopy(one), copy.deepcopy(one)]
    copies[0].merge_state(other)
    copies[1].merge_state(other.metric_state)
    for merged, updates in zip(copies, (3, 2), strict=True):
        assert_close(merged.compute(), of(MultilabelBrierScore, *parts))
        assert merged.compute() != stale and merged.update_count == updates  # a state by name counts as one
    for metric in (MultilabelBrierScore(LABELS, from_logits=True), MultilabelBrierScore(2), MultilabelLogLoss(LABELS)):
        with pytest.raises(ValueError, match=r"of this MultilabelBrierScore, .* Build both with the same options\.$"):
            one.merge_state(metric.metric_state)


def test_options_of_the_functions_are_checked_too():
    part = batch()
    for function in BINNED:
        with pytest.raises(ValueError, match="n_bins"):
            function(*part, LABELS, n_bins=0)
    for function in (binary_log_loss, binary_brier_score, binary_brier_decomposition, binary_reliability_curve):
        with pytest.raises(ValueError, match="also a label"):
            function(*part, ignore_index=1)


@pytest.mark.parametrize("kind", AVERAGED)
def test_values_are_drawn_as_torchmetrics_does(kind):
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    metric = kind(LABELS, average="none")
    metric.update(*batch())
    _, ax = metric.plot()
    assert len(ax.get_lines()) >= LABELS
    own, values = plt.subplots()[1], [metric(*batch()), metric(*batch())]
    _, ax = metric.plot(values, own)
    assert ax is own and (ax.get_title() or ax.get_ylabel())
    drawn = [list(line.get_ydata()) for line in ax.get_lines() if len(line.get_ydata()) == 2]
    for of_label in zip(*(value.tolist() for value in values), strict=True):
        assert pytest.approx(of_label) in drawn
    plt.close("all")


def test_nothing_seen_is_drawn_without_a_warning():
    pytest.importorskip("matplotlib").use("agg")
    import matplotlib.pyplot as plt

    for metric in (*(kind(LABELS) for kind in MULTILABEL), ScoreHistogram(LABELS), LossProfile(FocalLoss(), LABELS)):
        metric.update(*(t[:0] for t in batch()))
        figure, _ = metric.plot()
        figure.canvas.draw()
        plt.close(figure)
