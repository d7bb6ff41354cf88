"""Metrics of the first k labels, against torchmetrics and loops over the samples."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_precision

from lightning_bce.heads import SparseTarget
from lightning_bce.metrics import NDCGAtK, PrecisionAtK, PropensityScoredPrecisionAtK, propensities

ROWS, LABELS = 33, 17


@pytest.fixture
def batch():
    scores = torch.rand(ROWS, LABELS)
    dense = (torch.rand(ROWS, LABELS) < 0.2).long()
    dense[3] = 0
    return scores, dense


def of(dense):
    return SparseTarget.from_sparse(dense.float().to_sparse())


def value(metric, scores, dense, parts=(10, 3, 20)):
    for some, target in zip(scores.split(parts), dense.split(parts), strict=True):
        metric.update(some.topk(LABELS)[1], of(target))
    return metric.compute()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("action", ["neg", "skip"])
def test_precision_and_ndcg_are_torchmetrics(k, action, batch):
    scores, dense = batch
    rows = [n for n in range(ROWS) if action == "neg" or dense[n].any()]
    for metric, peer in ((PrecisionAtK, retrieval_precision), (NDCGAtK, retrieval_normalized_dcg)):
        expected = torch.stack([peer(scores[n], dense[n], top_k=k).float() for n in rows]).mean()
        assert_close(value(metric(k, empty_target_action=action), scores, dense), expected)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_propensity_scores_weigh_the_hits(k, batch):
    scores, dense = batch
    p = 0.1 + 0.9 * torch.rand(LABELS, dtype=torch.float64)
    gained = possible = 0.0
    for n in range(ROWS):
        gained += sum(float(dense[n, label] / p[label]) for label in scores[n].topk(k)[1])
        possible += sum(sorted(((dense[n] / p).tolist()), reverse=True)[:k])
    found = value(PropensityScoredPrecisionAtK(p, k), scores, dense)
    assert_close(found.double(), torch.tensor(gained / possible, dtype=torch.float64), rtol=1e-6, atol=0)
    assert_close(value(PropensityScoredPrecisionAtK(p, k), dense / p, dense), torch.tensor(1.0))


def test_propensities_are_the_papers():
    counts, n = [0, 1, 7, 500], 1000
    c = (math.log(n) - 1) * 2.5**0.55
    expected = [1 / (1 + c * math.exp(-0.55 * math.log(count + 1.5))) for count in counts]
    assert_close(propensities(counts, n), torch.tensor(expected, dtype=torch.float64))


def test_soft_and_unknown_labels_have_a_side():
    dense = torch.tensor([[0.6, 0.4, torch.nan, 0.0]])
    metric = PrecisionAtK(3)
    metric.update(torch.tensor([[0, 1, 2]]), of(dense))
    assert_close(metric.compute(), torch.tensor(1 / 3))


def test_no_sample_is_nan_and_no_positive_is_none():
    metric = PrecisionAtK(2)
    metric.update(torch.zeros(0, 2, dtype=torch.int64), SparseTarget.of([], 5))
    assert metric.compute().isnan()
    metric.update(torch.tensor([[0, 1]]), SparseTarget.of([[]], 5))
    assert metric.compute() == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PrecisionAtK(0), "`k` is 0"),
        (lambda: NDCGAtK(1, empty_target_action="pos"), "neg, skip"),
        (lambda: PropensityScoredPrecisionAtK([0.0, 1.0]), r"outside \(0, 1\]"),
        (lambda: PropensityScoredPrecisionAtK([1.0], empty_target_action="skip"), "no effect"),
        (lambda: propensities([-1.0], 10), "negative"),
        (lambda: propensities([1.0], 2), "at least 3"),
        (lambda: PrecisionAtK(3).update(torch.zeros(1, 2, dtype=torch.int64), SparseTarget.of([[]], 5)), "at least 3"),
        (
            lambda: PropensityScoredPrecisionAtK([1.0]).update(
                torch.zeros(1, 2, dtype=torch.int64), SparseTarget.of([[]], 5)
            ),
            "5 labels and there are 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_dense_target_is_refused():
    with pytest.raises(TypeError, match=r"SparseTarget\.of"):
        PrecisionAtK().update(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 5))
