"""Brier score: its parts add up, whatever the bins hide, and are what their names say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_bce import BinaryBrierScore, MultilabelBrierScore
from lightning_bce.metrics import (
    binary_brier_decomposition,
    binary_brier_score,
    multilabel_brier_decomposition,
    multilabel_brier_score,
)

brier_score_loss = pytest.importorskip("sklearn.metrics").brier_score_loss


def by_hand(preds, target, weight, bins):
    """The decomposition by loops over bins and elements."""
    total, parts = weight.sum(), [0.0] * 6
    mean = (weight * target).sum() / total
    parts[0] = (weight * (preds - target) ** 2).sum() / total
    parts[3] = (weight * (target - mean) ** 2).sum() / total
    for k in range(bins):
        inside = (preds >= k / bins) & ((preds < (k + 1) / bins) | (k == bins - 1))
        p, y, w = preds[inside], target[inside], weight[inside]
        if w.sum() > 0:
            p_k, y_k = (w * p).sum() / w.sum(), (w * y).sum() / w.sum()
            parts[1] += w.sum() * (p_k - y_k) ** 2 / total
            parts[2] += w.sum() * (y_k - mean) ** 2 / total
            parts[4] += (w * (p - p_k) ** 2).sum() / total
            parts[5] += 2 * (w * (y - y_k) * (p - p_k)).sum() / total
    return [float(part) for part in parts]


def test_it_is_that_of_scikit_learn():
    preds, target, weight = torch.rand(257).double(), torch.randint(0, 2, (257,)), torch.rand(257).double()
    expected = brier_score_loss(target.numpy(), preds.numpy(), sample_weight=weight.numpy())
    assert_close(binary_brier_score(preds, target, weight).item(), float(expected))


@given(st.integers(0, 2**31), st.integers(1, 20), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_parts_are_those_of_a_loop_and_add_up(seed, bins, soft):
    torch.manual_seed(seed)
    preds, weight = torch.rand(57).double(), torch.rand(57).double()
    target = torch.rand(57).double() if soft else torch.randint(0, 2, (57,)).double()
    parts = binary_brier_decomposition(preds, target, weight, n_bins=bins)
    assert_close([part.item() for part in parts], by_hand(preds, target, weight, bins))
    score, reliability, resolution, uncertainty, variance, covariance = parts
    assert_close(score, reliability - resolution + uncertainty + variance - covariance)


def test_with_one_probability_a_bin_the_parts_are_murphys():
    preds = torch.tensor([0.05, 0.25, 0.45, 0.85]).double().repeat_interleave(25)
    target = torch.randint(0, 2, (100,))
    score, reliability, resolution, uncertainty, variance, covariance = binary_brier_decomposition(
        preds, target, n_bins=5
    )
    assert_close(score, reliability - resolution + uncertainty)
    assert_close(torch.stack([variance, covariance]), torch.zeros(2).double())
    share = target.double().mean()
    assert_close(uncertainty, share * (1 - share))


@pytest.mark.parametrize("average", ["micro", "macro", "weighted", "none"])
def test_averages_of_the_parts_add_up(average):
    metric = MultilabelBrierScore(3, average=average)
    for _ in range(3):
        metric.update(torch.rand(19, 3), torch.randint(0, 2, (19, 3)), torch.rand(19))
    parts = metric.decomposition()
    assert_close(parts.score, metric.compute())
    assert_close(parts.score, parts[1] - parts[2] + parts[3] + parts[4] - parts[5])


def test_from_logits_a_tiny_score_keeps_its_digits():
    metric = BinaryBrierScore(from_logits=True)
    metric.update(torch.tensor([20.0]), torch.tensor([1]))
    exact = torch.sigmoid(torch.tensor(-20.0).double()) ** 2
    assert_close(metric.compute(), exact, rtol=1e-6, atol=0.0)
    assert binary_brier_score(torch.sigmoid(torch.tensor([20.0])), torch.tensor([1])) == 0  # which probabilities lack


def test_a_label_never_seen_has_no_parts():
    target = torch.tensor([[1, -1], [0, -1]])
    parts = multilabel_brier_decomposition(torch.rand(2, 2), target, 2, average="none", ignore_index=-1)
    assert all(part[1].isnan() and not part[0].isnan() for part in parts)


def test_weights_count_in_every_function_and_metric():
    preds, target, weight = torch.rand(33, 3).double(), torch.randint(0, 2, (33, 3)), torch.rand(33).double()
    expected = [by_hand(preds[:, i], target[:, i], weight, 15) for i in range(3)]  # the default number of bins
    metrics = MultilabelBrierScore(3, average="none"), BinaryBrierScore()
    metrics[0].update(preds, target, weight)
    metrics[1].update(preds[:, 0], target[:, 0], weight)
    several = multilabel_brier_decomposition(preds, target, 3, weight, average="none")
    for parts in (several, metrics[0].decomposition()):
        assert_close([list(part) for part in zip(*(p.tolist() for p in parts), strict=True)], expected)
    one = binary_brier_decomposition(preds[:, 0], target[:, 0], weight)
    for parts in (one, metrics[1].decomposition()):
        assert_close([part.item() for part in parts], expected[0])
    assert_close(multilabel_brier_score(preds, target, 3, weight, average="none"), several.score)
    assert_close(multilabel_brier_decomposition(preds, target, 3, weight).score, several.score.mean())


def test_parts_of_all_labels_together_are_those_of_one_label():
    preds, target = torch.rand(33, 3).double(), torch.randint(0, 2, (33, 3))
    target[:20, 1] = -1
    together = multilabel_brier_decomposition(preds, target, 3, average="micro", ignore_index=-1)
    assert_close(together, binary_brier_decomposition(preds.flatten(), target.flatten(), ignore_index=-1))


def test_parts_are_read_as_the_options_say():
    preds, target = torch.rand(33, 2).double(), torch.randint(0, 2, (33, 2))  # taken for logits by the option alone
    expected = multilabel_brier_decomposition(torch.sigmoid(preds), target, 2)
    assert_close(multilabel_brier_decomposition(preds, target, 2, from_logits=True), expected)
    one = binary_brier_decomposition(torch.sigmoid(preds[:, 0]), target[:, 0])
    assert_close(binary_brier_decomposition(preds[:, 0], target[:, 0], from_logits=True), one)
