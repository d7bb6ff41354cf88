"""Log loss: scikit-learn's on probabilities, and exact on logits."""

import mpmath
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BinaryLogLoss, MultilabelLogLoss, bce_with_logits
from lightning_bce.metrics import binary_log_loss, multilabel_log_loss

log_loss = pytest.importorskip("sklearn.metrics").log_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_that_of_scikit_learn(dtype):
    preds, target, weight = torch.rand(257, dtype=dtype), torch.randint(0, 2, (257,)), torch.rand(257, dtype=dtype)
    preds[:4] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # kept away from infinity in the same way
    target[:4] = torch.tensor([0, 1, 0, 1])
    tolerance = {"rtol": 10 * torch.finfo(dtype).eps, "atol": 0.0}
    for w in (None, weight):
        given = None if w is None else w.numpy()
        expected = log_loss(target.numpy(), preds.numpy(), sample_weight=given, labels=[0, 1])
        assert_close(binary_log_loss(preds, target, w).item(), float(expected), **tolerance)


def test_each_label_is_that_of_scikit_learn():
    preds, target, weight = torch.rand(57, 3).double(), torch.randint(0, 2, (57, 3)), torch.rand(57).double()
    expected = [
        log_loss(target[:, i].numpy(), preds[:, i].numpy(), sample_weight=weight.numpy(), labels=[0, 1])
        for i in range(3)
    ]
    found = multilabel_log_loss(preds, target, 3, weight, average="none")
    assert_close(found.numpy(), np.array(expected))
    metric = MultilabelLogLoss(3, average="none")
    for part in zip(preds.split(20), target.split(20), weight.split(20), strict=True):
        metric.update(*part)
    assert_close(metric.compute(), found)


def test_from_logits_it_is_exact():
    for logit, label in ((-20.0, 0), (20.0, 1), (40.0, 1), (-90.0, 1), (200.0, 0), (0.3, 1)):
        with mpmath.workdps(50):
            exact = float(mpmath.log1p(mpmath.exp(mpmath.mpf(logit) * (1 - 2 * label))))
        found = binary_log_loss(torch.tensor([logit]), torch.tensor([label]), from_logits=True)
        exact = float(mpmath.log1p(mpmath.exp(float(torch.tensor(logit)) * (1 if label == 0 else -1))))
        assert_close(found.item(), exact, rtol=1e-6, atol=0.0)
    sure = binary_log_loss(torch.sigmoid(torch.tensor([200.0])), torch.tensor([0]))
    assert_close(sure.item(), -np.log(np.finfo(np.float32).eps), rtol=1e-6, atol=0.0)  # what probabilities can say


def test_soft_labels_mix_both_sides():
    preds = torch.tensor([0.2, 0.7])
    soft = binary_log_loss(preds, torch.tensor([0.25, 0.25]))
    hard = [binary_log_loss(preds, torch.full((2,), label)) for label in (0, 1)]
    assert_close(soft, 0.75 * hard[0] + 0.25 * hard[1])


def test_nothing_seen_is_nan_and_a_nan_is_seen():
    metric = BinaryLogLoss(ignore_index=-1)
    metric.update(torch.tensor([0.3]), torch.tensor([-1]))
    assert metric.compute().isnan()
    metric.update(torch.tensor([0.3]), torch.tensor([1]))
    assert_close(metric.compute().item(), -np.log(0.3), rtol=1e-6, atol=0.0)
    metric.update(torch.tensor([torch.nan]), torch.tensor([1]))
    assert metric.compute().isnan()


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="`weight`"):
        binary_log_loss(torch.rand(2), torch.ones(2), torch.tensor([1.0, -1.0]))


def test_options_reach_function_and_metric_alike():
    preds, target = torch.rand(33, 3).double(), torch.randint(0, 2, (33, 3))
    target[:5, 1] = -1
    options = {"from_logits": True, "ignore_index": -1}  # scores in [0, 1], which only the option takes for logits
    kept = target >= 0
    elements = bce_with_logits(preds, target.double())
    assert_close(multilabel_log_loss(preds, target, 3, average="micro", **options), elements[kept].mean())
    means = torch.stack([elements[:, i][kept[:, i]].mean() for i in range(3)])
    for average, expected in (("micro", elements[kept].mean()), ("macro", means.mean()), ("none", means)):
        metric = MultilabelLogLoss(3, average, sync_on_compute=False, **options)
        metric.update(preds, target)
        assert_close(metric.compute(), expected)
        assert not metric.sync_on_compute
        assert all(state.dtype == torch.float64 for name, state in metric.sums.items() if name != "fingerprint")
    binary = BinaryLogLoss(sync_on_compute=False, **options)
    binary.update(preds[:, 0], target[:, 0])
    assert not binary.sync_on_compute
    for found in (binary.compute(), binary_log_loss(preds[:, 0], target[:, 0], **options)):
        assert_close(found, means[0])  # a scalar, not one of one label


def test_a_metric_of_other_options_is_not_merged():
    for one, other in (({"from_logits": True}, {}), ({"ignore_index": -1}, {"ignore_index": -2})):
        with pytest.raises(ValueError, match="not the same quantity"):
            BinaryLogLoss(**one).merge_state(BinaryLogLoss(**other))


def test_a_metric_checks_values_unless_told_not_to():
    for metric, shape in ((BinaryLogLoss(), (2,)), (MultilabelLogLoss(2), (1, 2))):
        with pytest.raises(ValueError, match="target"):
            metric.update(torch.rand(shape), torch.full(shape, 3))


def test_weights_are_added_up_in_float64():
    weight = torch.tensor([2.0**24, 1.0, 1.0])  # in float32 the ones would count nothing
    metric = BinaryLogLoss()
    metric.update(torch.full((3,), 0.5), torch.tensor([0, 1, 1]), weight)
    assert (metric.weight_sum, metric.positive_sum) == (2**24 + 2, 2)
