"""Metrics by name: what is known counts, a label that cannot have a value is left out, states stay as they are."""

import warnings

import pytest
import torch
from torch.testing import assert_close
from torchmetrics import classification
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_f1_score,
    binary_hinge_loss,
)

from lightning_bce.metrics import EvaluationMetrics, evaluation_metrics
from lightning_bce.metrics.evaluation import DEFAULT_METRICS

ROWS, LABELS = 57, 3
NAMES = ["AUROC", "AveragePrecision", "F1Score"]
PEERS = {"AUROC": binary_auroc, "AveragePrecision": binary_average_precision, "F1Score": binary_f1_score}


@pytest.fixture
def batch():
    """Probabilities, decisions by a threshold for each label, soft targets, and which are known."""
    probability = torch.rand(ROWS, LABELS)
    decision = probability > torch.tensor([0.2, 0.5, 0.7])
    target = torch.randint(0, 2, (ROWS, LABELS)) * 0.5 + 0.25  # a positive is 0.75
    target[:3] = 0.5  # which is on no side above, so negative
    return probability, decision, target, torch.rand(ROWS, LABELS) > 0.3


def seen(target, valid):
    """Return whether any negative and any positive of each label is known."""
    positive = target > 0.5
    return (~positive & valid).any(0), (positive & valid).any(0)


def expected(batch, labels):
    probability, decision, target, valid = batch
    found = {}
    for name, peer in PEERS.items():
        scores = decision.int() if name == "F1Score" else probability
        each = [peer(scores[valid[:, i], i], (target[valid[:, i], i] > 0.5).int()) for i in labels]
        found[name] = torch.stack(each).mean()
    return found


def test_values_are_means_over_labels_of_what_is_known(batch):
    probability, decision, target, valid = batch
    metrics = evaluation_metrics(NAMES, LABELS)
    for start, stop in ((0, 20), (20, 20), (20, ROWS)):  # one batch is empty
        metrics.add(*(part[start:stop] for part in batch))
    assert_close(metrics.means(*seen(target, valid)), expected(batch, range(LABELS)))
    copy = metrics.clone()
    metrics.reset()
    metrics.add(probability, decision, target, None)
    everything = torch.ones_like(valid)
    assert_close(metrics.means(*seen(target, everything)), expected((*batch[:3], everything), range(LABELS)))
    assert_close(copy.means(*seen(target, valid)), expected(batch, range(LABELS)))
    metrics.reset()
    rows = valid[:, :1]
    metrics.add(probability, decision, target, rows)  # is known, or is not, as a whole
    known = rows.expand_as(valid)
    assert_close(metrics.means(*seen(target, known)), expected((*batch[:3], known), range(LABELS)))


def test_the_labels_of_one_label_have_any_shape(batch):
    parts = [part[:, 1] for part in batch]
    metrics = evaluation_metrics(NAMES, 1)
    metrics.add(*parts)
    negatives, positives = seen(*(part[:, None] for part in parts[2:]))
    assert_close(metrics.means(negatives, positives), expected([part[:, None] for part in parts], [0]))


def test_labels_without_both_classes_have_no_ranking_and_no_warning(batch):
    probability, decision, target, valid = batch
    for only in (0.0, 1.0):
        one_class, metrics = target.clone(), evaluation_metrics([*NAMES, "Accuracy"], LABELS)
        one_class[:, 1] = only
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            metrics.add(probability, decision, one_class, valid)
            found = metrics.means(*seen(one_class, valid))
        ranked = expected((probability, decision, one_class, valid), [0, 2])
        assert_close([found[name] for name in NAMES[:2]], [ranked[name] for name in NAMES[:2]])
        right = ((decision == (one_class > 0.5)) & valid).sum(0) / valid.sum(0)
        assert_close(found["Accuracy"], right.mean())  # all three have one
    nothing = evaluation_metrics(NAMES[:2], LABELS)
    nothing.add(probability, decision, torch.zeros_like(target), valid)
    assert all(value.isnan() for value in nothing.means(*seen(torch.zeros_like(target), valid)).values())


def test_a_label_of_which_nothing_is_known_is_left_out(batch):
    *_, target, valid = batch
    valid[:, 1] = False
    for names in (NAMES, NAMES[:1], NAMES[1:2], NAMES[2:]):
        metrics = evaluation_metrics(names, LABELS)
        metrics.add(*batch)
        with torch.device("meta"):
            found = metrics.means(*seen(target, valid))
        assert_close(found, {name: expected(batch, [0, 2])[name] for name in names})


class WithModule(classification.MultilabelRecall):
    """A metric that has a module which is no metric."""

    def __init__(self, num_labels):
        super().__init__(num_labels)
        self.head = torch.nn.Identity()


def states(metrics):
    parts = [part for part in metrics.modules() if getattr(part, "_defaults", None)]
    return [(name, getattr(part, name)) for part in parts for name in part._defaults]


def kinds(metrics):
    """Return what ranks have to agree on: dtype, device and number of dimensions of each part of each state."""
    parts = [(name, state if isinstance(state, list) else [state]) for name, state in states(metrics)]
    return [(name, [(part.dtype, part.device, part.ndim) for part in state]) for name, state in parts]


def empty(metrics):
    return all(
        sum(len(piece) for piece in state) == 0 if isinstance(state, list) else not state.any()
        for name, state in states(metrics)
        if name != "fingerprint"
    )


@pytest.mark.parametrize("labels", [1, LABELS])
def test_a_rank_without_a_row_takes_part_with_empty_states(labels, batch):
    known = torch.ones(labels, dtype=torch.bool)
    parts = [part[:, :labels] for part in batch[:3]]
    names = ["AUROC", "F1Score", "Accuracy", "ExactMatch", "BrierScore"][: 3 if labels == 1 else 5]
    own = [WithModule(labels)] if labels > 1 else []
    alone, late, early = (evaluation_metrics([*names, *own], labels) for _ in range(3))
    alone.add(*parts, None)
    with torch.device("meta"):  # where a tensor lies that is made without saying where
        late._take_part(known)
    assert empty(late)
    assert kinds(late) == kinds(alone)
    late.add(*parts, None)
    early.add(*parts, None)
    early._take_part(known)  # which has rows of its own
    for metrics in (late, early):
        assert_close(metrics.means(known, known), alone.means(known, known))


def test_in_a_process_group_nothing_seen_is_nan(tmp_path):
    metrics, no = evaluation_metrics(["AUROC", "F1Score"], LABELS), torch.zeros(LABELS, dtype=torch.bool)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert all(value.isnan() for value in metrics.means(no, no).values())  # and torchmetrics does not warn
    finally:
        torch.distributed.destroy_process_group()


def test_states_keep_their_precision_and_follow_the_module(batch):
    names, target = ["AUROC", "HingeLoss", "BrierScore"], batch[2][:, 0]
    first, second = [part[:33, 0] for part in batch[:3]], [part[33:, 0] for part in batch[:3]]
    metrics, yes = evaluation_metrics(names, 1), torch.ones(1, dtype=torch.bool)
    metrics.add(*first, None)
    metrics.to(torch.bfloat16)
    metrics.add(*second, None)
    labels = (target > 0.5).int()
    values = metrics.means(yes, yes)
    assert_close(values["AUROC"], binary_auroc(batch[0][:, 0], labels))
    assert_close(values["HingeLoss"], binary_hinge_loss(batch[0][:, 0], labels))
    metrics.reset()
    metrics.to("meta", torch.bfloat16)
    assert all(state.device.type == "meta" for _, state in states(metrics) if not isinstance(state, list))


def test_names_are_torchmetrics_and_iterate_in_two_kinds():
    assert set(evaluation_metrics(None, 1)) == set(DEFAULT_METRICS)
    assert set(evaluation_metrics(None, LABELS)) == set(DEFAULT_METRICS) - {"CalibrationError"}
    own = classification.MultilabelRecall(LABELS, threshold=0.3)
    spec = {"class_path": "torchmetrics.classification.MultilabelPrecision", "init_args": {"num_labels": LABELS}}
    metrics = evaluation_metrics(["F1Score", "AUROC", own, spec, "LogLoss"], LABELS)
    assert isinstance(metrics, EvaluationMetrics)
    assert set(metrics.scored) == {"AUROC", "Recall", "Precision", "LogLoss"}  # objects have a threshold of their own
    assert list(metrics.decided) == ["F1Score"]
    assert list(metrics) == [*metrics.scored, "F1Score"] and all(isinstance(name, str) for name in metrics)
    assert type(metrics["F1Score"]) is classification.MultilabelF1Score
    assert metrics["Recall"] is not own and metrics["Recall"].threshold == 0.3
    assert metrics["F1Score"].ignore_index == -1 and not metrics["F1Score"].validate_args
    metrics.add(torch.rand(5, LABELS), torch.ones(5, LABELS), torch.ones(5, LABELS), None)
    assert not metrics.state_dict()


def test_a_persistent_object_adds_nothing_to_a_checkpoint():
    own = classification.BinaryAccuracy()
    own.persistent(True)
    assert own.state_dict() and not evaluation_metrics([own], 1).state_dict()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["AUROCC"], r"^`metrics` names 'AUROCC', and neither .* has BinaryAUROCC\. Did you mean .*\bAUROC\b"),
        (["Acuracy"], r"Did you mean Accuracy\b[^?]*\? There are: AUROC, Accuracy, Average.*, StatScores\.$"),
        (["AUROC curve"], r"Did you mean AUROC or "),
        (["§"], r"has Binary§\. There are: AUROC"),
        (["ConfusionMatrix"], r"^`metrics` holds ConfusionMatrix, whose .* Use it in a callback, which finds the log"),
        (["PrecisionRecallCurve"], "^`metrics` holds PrecisionRecallCurve, whose value is not one number"),
        (["ROC"], "^`metrics` holds ROC, whose value is not one number"),
        (["StatScores"], "^`metrics` holds StatScores, whose value is not one number"),
        (["FBetaScore"], r"^BinaryFBetaScore needs arguments \(.*beta.*\)\. Pass a metric object instead of its name"),
        (["Accuracy", classification.BinaryAccuracy()], r"^`metrics` names a metric twice: \['Accuracy', 'BinaryAcc"),
    ],
)
def test_what_has_no_number_or_name_is_refused(metrics, said):
    with pytest.raises(ValueError, match=said):
        evaluation_metrics(metrics, 1)


@pytest.mark.parametrize("kind", ["ConfusionMatrix", "ROC"])
def test_an_object_whose_value_is_no_number_is_refused_where_it_shows(kind):
    metrics, yes = evaluation_metrics([getattr(classification, f"Binary{kind}")()], 1), torch.ones(1, dtype=torch.bool)
    metrics.add(torch.rand(9), torch.ones(9), (torch.arange(9) % 2).float(), None)
    with pytest.raises(ValueError, match=f"^`metrics` holds {kind}, whose value is not one number, and only one"):
        metrics.means(yes, yes)
