"""Thresholds against a slow search in float64 over all that there are."""

import math
import re

import pytest
import torch
from torch.testing import assert_close

from lightning_bce.decision import Objective, fit_thresholds, tune_thresholds

ROWS, LABELS = 257, 3
OBJECTIVES = [
    Objective("fbeta"),
    Objective("fbeta", beta=2.0),
    Objective("balanced_accuracy"),
    Objective("mcc"),
    Objective("youden"),
    Objective("recall_at_precision", at_least=0.6),
    Objective("precision_at_recall", at_least=0.8),
    Objective("cost", false_positive_cost=1.0, false_negative_cost=7.0),
    Objective("top_k", k=0.1),
    Objective("top_k", k=33),
]
IDS = [f"{o.name}-{o.beta or o.at_least or o.k or ''}" for o in OBJECTIVES]


def samples(rows=ROWS, labels=LABELS, digits=2):
    """Return probabilities with ties, labels of which some are unknown, and weights."""
    logits = torch.randn(rows, labels)
    target = (torch.rand(rows, labels) < torch.sigmoid(2 * logits - 1)).float()
    target[torch.rand(rows, labels) > 0.9] = math.nan
    probability = torch.sigmoid(logits)
    return (probability if digits is None else probability.round(decimals=digits)), target, torch.rand(rows) + 0.5


def counts(probability, target, weight, threshold):
    """Return TP, FP, FN, TN in plain Python."""
    found = dict.fromkeys(("tp", "fp", "fn", "tn"), 0.0)
    for p, y, w in zip(probability.tolist(), target.tolist(), weight.tolist(), strict=True):
        if not math.isnan(y):
            found[("tp" if y > 0.5 else "fp") if p > threshold else ("fn" if y > 0.5 else "tn")] += w
    return found.values()


def slow_value(objective, tp, fp, fn, tn):
    """Return what is to be as large as possible, in first and second place, by the textbook."""
    recall, specificity = tp / (tp + fn), tn / (tn + fp)
    precision = tp / (tp + fp) if tp + fp else 0.0
    if objective.name == "fbeta":
        b = (objective.beta or 1.0) ** 2
        return ((1 + b) * precision * recall / (b * precision + recall) if tp else 0.0,)
    if objective.name == "balanced_accuracy":
        return ((recall + specificity) / 2,)
    if objective.name == "youden":
        return (recall + specificity - 1,)
    if objective.name == "mcc":
        margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return ((tp * tn - fp * fn) / math.sqrt(margins) if margins else 0.0,)
    if objective.name == "cost":
        return (-(objective.false_positive_cost * fp + objective.false_negative_cost * fn) / (tp + fp + fn + tn),)
    if objective.name == "recall_at_precision":
        return (precision >= objective.at_least, recall) if precision >= objective.at_least else (False, precision)
    if objective.name == "precision_at_recall":
        return (recall >= objective.at_least, precision)
    most = objective.k * (tp + fp + fn + tn) if objective.k < 1 else objective.k
    return (tp + fp if tp + fp <= most + 1e-9 else -1.0,)


def slowly(objective, probability, target, weight):
    """Return the best value over a threshold below, between and above all probabilities."""
    known = sorted({p for p, y in zip(probability.tolist(), target.tolist(), strict=True) if not math.isnan(y)})
    tried = [0.0, *known, 1.0]
    return max(slow_value(objective, *counts(probability, target, weight, t)) for t in tried)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
@pytest.mark.parametrize("per_label", [True, False])
def test_no_other_threshold_is_better(objective, per_label):
    probability, target, weight = samples()
    tuned = tune_thresholds(probability, target, objective, weight=weight, per_label=per_label)
    assert tuned.met.all()
    weights = weight[:, None].expand_as(target)
    columns = (
        [(probability, target, weights)]
        if not per_label
        else list(zip(probability.T, target.T, weights.T, strict=True))
    )
    for label, column in enumerate(columns):
        flat = [part.flatten() for part in column]
        reached = slow_value(objective, *counts(*flat, tuned.threshold[label].item()))
        assert reached == pytest.approx(slowly(objective, *flat))
    if not per_label:
        assert (tuned.threshold == tuned.threshold[0]).all() and tuned.threshold.shape == (LABELS,)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
def test_the_value_is_that_of_the_decisions(objective):
    probability, target, weight = samples()
    tuned = tune_thresholds(probability, target, objective, weight=weight)
    for label in range(LABELS):
        tp, fp, fn, tn = counts(probability[:, label], target[:, label], weight, tuned.threshold[label].item())
        value = slow_value(objective, tp, fp, fn, tn)[-1]
        expected = {"cost": -value, "top_k": tp / (tp + fp)}.get(objective.name, value)
        assert tuned.value[label].item() == pytest.approx(expected)


def test_the_threshold_lies_in_the_middle_of_two_probabilities_and_is_the_highest_of_equals():
    assert_close(fit_thresholds([0.1, 0.2, 0.4, 0.3], [0, 0, 1, 1]), torch.tensor([0.25]))
    # Youden's index is 0.5 above 0.3 and above 0.1.
    assert_close(fit_thresholds([0.1, 0.2, 0.4, 0.3], [0, 1, 1, 0], "youden"), torch.tensor([0.35]))


def test_between_neighbours_in_float32_the_decision_is_still_right():
    lower = torch.tensor(0.7)
    upper = torch.nextafter(lower, torch.tensor(1.0))
    threshold = fit_thresholds(torch.stack([lower, upper]), [0, 1])
    assert lower <= threshold < upper


def test_all_or_none_can_be_the_best_decision():
    probability = torch.tensor([0.2, 0.4, 0.6, 0.8])
    always = tune_thresholds(probability, [1, 1, 1, 0], Objective("cost", false_negative_cost=9.0))
    assert always.threshold.item() == pytest.approx(0.1) and always.value.item() == 0.25
    never = tune_thresholds(probability, [1, 0, 0, 0], Objective("cost", false_positive_cost=9.0))
    assert never.threshold.item() == pytest.approx(0.9) and never.value.item() == 0.25


def test_probabilities_of_0_and_1_are_decided_within_0_and_1():
    probability, target = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    costs = Objective("cost", false_negative_cost=9.0), Objective("cost", false_positive_cost=9.0)
    # No threshold in [0, 1] has a probability of 0 above it.
    assert [fit_thresholds(probability, target, cost).item() for cost in costs] == [0.5, 1.0]


def test_a_label_of_one_class_keeps_its_threshold_and_says_so():
    probability, target, _ = samples()
    target[:, 0], target[:, 2] = 0.0, math.nan
    with pytest.warns(UserWarning, match=re.escape("for cat, a/b: positives and negatives are needed")):
        tuned = tune_thresholds(probability, target, fallback=[0.3, 0.4, 0.7], bootstrap=7, names=["cat", "dog", "a/b"])
    assert_close(tuned.threshold[[0, 2]], torch.tensor([0.3, 0.7]))
    assert tuned.met.tolist() == [False, True, False]
    assert all(part.isnan().tolist() == [True, False, True] for part in (tuned.value, *tuned[3:]))


def test_what_cannot_be_reached_is_approached_and_said():
    probability = torch.tensor([0.1, 0.5, 0.7, 0.9])
    with pytest.warns(UserWarning, match="No threshold reaches what 'recall_at_precision' asks for \\(0.9\\)"):
        tuned = tune_thresholds(probability, [0, 1, 1, 0], Objective("recall_at_precision", at_least=0.9))
    # Two of three are positive above 0.1 and 0.5.
    assert tuned.threshold.item() == pytest.approx(0.3)
    assert (tuned.met.item(), tuned.value.item()) == (False, 1.0)


def test_top_k_never_decides_for_more_than_k():
    probability = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.1])
    for k, selected in ((1, 1), (3, 1), (4, 4), (0.2, 1), (0.99, 4)):
        threshold = fit_thresholds(probability, [1, 0, 1, 0, 0], Objective("top_k", k=k))
        assert (probability > threshold).sum() == selected


def test_shapes_of_one_label_and_of_dense_outputs():
    probability, target, weight = samples(64, 4)
    expected = fit_thresholds(probability, target, weight=weight)
    one = [
        fit_thresholds(p, t, weight=weight)
        for p, t in ((probability[:, 0], target[:, 0]), (probability[:, :1], target[:, :1]))
    ]
    assert_close(torch.cat(one), expected[:1].repeat(2))
    # (8, 4, 2, 4): rows of 8 samples with 2 x 4 places
    dense = [
        part.reshape(8, 2, 4, 4).movedim(-1, 1) for part in (probability, target, weight[:, None].expand_as(target))
    ]
    assert_close(fit_thresholds(dense[0], dense[1], weight=dense[2]), expected)
    assert_close(fit_thresholds(probability.numpy(), target.numpy(), weight=weight.numpy()), expected)


def test_a_mask_is_as_good_as_nan():
    probability, target, _ = samples()
    mask = ~target.isnan()
    assert_close(fit_thresholds(probability, target.nan_to_num(7.0), mask=mask), fit_thresholds(probability, target))


def test_many_labels_in_several_steps_are_as_each_alone(monkeypatch):
    probability, target, weight = samples(33, 13)
    expected = torch.cat([fit_thresholds(probability[:, i], target[:, i], weight=weight) for i in range(13)])
    monkeypatch.setattr("lightning_bce.decision.thresholds._ELEMENTS", 100)
    assert_close(fit_thresholds(probability, target, weight=weight), expected)


# -- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_label", [True, False])
@pytest.mark.parametrize("name", ["fbeta", "youden"])
def test_intervals_are_those_of_a_slow_bootstrap(name, per_label):
    draws, rows = 50, 65
    probability, target, weight = samples(rows, 2, digits=None)
    objective = Objective(name)
    tuned = tune_thresholds(probability, target, objective, weight=weight, per_label=per_label, bootstrap=draws, seed=3)
    drawn = torch.randint(rows, (draws, rows), generator=torch.Generator().manual_seed(3))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for label in range(2 if per_label else 1):
        columns = [label] if per_label else [0, 1]
        best, value = [], []
        for draw in drawn:
            p, y, w = (
                part[draw][:, columns].flatten() for part in (probability, target, weight[:, None].expand_as(target))
            )
            # The candidates are those of all rows: a cut between two that were drawn is a cut between these.
            best.append(max(slow_value(objective, *counts(p, y, w, t)) for t in p.tolist())[0])
            value.append(slow_value(objective, *counts(p, y, w, tuned.threshold[label].item()))[0])
        expected = torch.tensor(value, dtype=torch.float64).quantile(ends)
        assert_close(torch.stack([tuned.value_low[label], tuned.value_high[label]]), expected)
        assert tuned.threshold_low[label] <= tuned.threshold[label] <= tuned.threshold_high[label]
        assert max(best) >= tuned.value_high[label]


def test_the_threshold_of_a_draw_is_the_best_of_that_draw():
    # With one draw the interval is its best threshold.
    probability, target, _ = samples(65, 1, digits=None)
    target = target.nan_to_num(0.0)
    for seed in range(7):
        tuned = tune_thresholds(probability, target, bootstrap=1, seed=seed)
        drawn = torch.randint(65, (1, 65), generator=torch.Generator().manual_seed(seed))[0]
        p, y = probability[drawn, 0], target[drawn, 0]
        reached = slow_value(Objective(), *counts(p, y, torch.ones(65), tuned.threshold_low.item()))
        assert reached == pytest.approx(slowly(Objective(), p, y, torch.ones(65)))
        assert tuned.threshold_low == tuned.threshold_high


def test_intervals_of_many_rows_in_groups_hold_what_they_say():
    """Of 60 sets from one distribution about 95 % have the true best threshold's F1 in the interval."""
    inside = 0
    truth = torch.sigmoid(torch.linspace(-8, 8, 200001))
    density = torch.exp(-torch.logit(truth).double().square() / 2)
    for seed in range(60):
        torch.manual_seed(seed)
        probability = torch.sigmoid(torch.randn(1500))
        target = (torch.rand(1500) < probability).float()
        tuned = tune_thresholds(probability, target, bootstrap=100)
        above = (truth > tuned.threshold).double() * density
        f1 = 2 * (above * truth).sum() / (above.sum() + (density * truth).sum())
        inside += int(tuned.value_low <= f1 <= tuned.value_high)
    assert 50 <= inside <= 60


def test_torchs_random_state_is_left_alone():
    before = torch.get_rng_state()
    probability, target, _ = samples()
    after = torch.get_rng_state()
    tune_thresholds(probability, target, bootstrap=7)
    assert torch.equal(torch.get_rng_state(), after) and not torch.equal(before, after)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "f1"}, "F1 is 'fbeta'"),
        ({"beta": 0.0}, "`beta` is 0"),
        ({"beta": -1.0}, "`beta` is -1"),
        ({"name": "mcc", "beta": 1.0}, "no effect with objective 'mcc'"),
        ({"at_least": 0.9}, "no effect with objective 'fbeta'"),
        ({"name": "recall_at_precision"}, "needs a number in"),
        ({"name": "recall_at_precision", "at_least": 1.5}, "needs a number in"),
        ({"name": "cost", "false_positive_cost": 0.0, "false_negative_cost": 0.0}, "Both costs are 0"),
        ({"name": "top_k"}, "'top_k' needs"),
        ({"name": "cost", "false_positive_cost": math.inf}, "a finite number"),
    ],
)
def test_objectives_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([2.0, 0.1], [1, 0]), {}, "Apply `torch.sigmoid`"),
        (([math.nan, 0.1], [1, 0]), {}, "is NaN"),
        (([0.3, 0.1], [1, 2]), {}, "outside"),
        (([0.3, 0.1], [1]), {}, "they must be equal"),
        (([0.3, 0.1], [1, 0]), {"weight": [1.0, -1.0]}, "`weight` must be"),
        (([0.3, 0.1], [1, 0]), {"weight": [1.0, 1.0, 1.0]}, "one value for each row"),
        (([0.3, 0.1], [1, 0]), {"bootstrap": -1}, "`bootstrap` is -1"),
        (([0.3, 0.1], [1, 0]), {"confidence": 1.0}, "`confidence` is 1.0"),
    ],
)
def test_wrong_input_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        tune_thresholds(*arguments, **options)
