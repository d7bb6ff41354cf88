"""Metrics of the first k labels, against torchmetrics and loops over the samples."""

import math

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_precision

from lightning_bce.heads import SparseTarget
from lightning_bce.metrics import NDCGAtK, PrecisionAtK, PropensityScoredPrecisionAtK, propensities
from lightning_bce.metrics.at_k import metrics_at_k

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
    assert propensities(counts, 3).shape == (4,)  # the fewest


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
    scored = PropensityScoredPrecisionAtK([0.5] * 5, 2)
    scored.update(torch.tensor([[0, 1]]), SparseTarget.of([[]], 5))
    assert scored.compute().isnan()  # there was nothing to gain


def all_three(k=3):
    return PrecisionAtK(k), NDCGAtK(k), PropensityScoredPrecisionAtK(torch.linspace(0.1, 1, LABELS), k)


def test_parts_that_are_merged_are_the_whole(batch):
    for one, other, whole in zip(all_three(), all_three(), all_three(), strict=True):
        for metric, part in ((one, slice(0, 20)), (other, slice(20, None))):
            metric.update(batch[0][part].topk(LABELS)[1], of(batch[1][part]))
        one.merge_state(other)
        assert_close(one.compute(), value(whole, *batch))
        assert one.compute().dtype == torch.float32 and one.compute().shape == ()


def test_what_an_update_makes_lies_where_the_labels_lie(batch):
    for action in ("neg", "skip"):
        metrics = PrecisionAtK(3, empty_target_action=action), NDCGAtK(3, empty_target_action=action), all_three()[2]
        expected = [value(metric.clone(), *batch, (33,)) for metric in metrics]
        ranked, target = batch[0].topk(LABELS)[1], of(batch[1])
        for metric, known in zip(metrics, expected, strict=True):
            with torch.device("meta"):  # where a tensor lies that is made without saying where
                metric.update(ranked, target)
            assert_close(metric.compute(), known)


def test_sums_are_in_float64_and_propensities_are_no_part_of_a_checkpoint():
    metric = PropensityScoredPrecisionAtK([0.1, 0.3, 1.0], sync_on_compute=False)
    assert metric.gained.dtype == metric.possible.dtype == torch.float64
    assert metric.gain.tolist() == [1 / 0.1, 1 / 0.3, 1.0]
    assert not metric.state_dict() and not metric.sync_on_compute
    assert PrecisionAtK().k == metric.k == 1


def test_propensities_come_with_the_counts_of_the_training_data(batch):
    scores, dense = batch
    counts = dense.sum(0)
    for options in ({}, {"a": 0.5, "b": 0.4}):
        metric = PropensityScoredPrecisionAtK(k=3, **options)
        assert metric.unresolved
        metric.resolve(counts, ROWS)
        assert not metric.unresolved
        expected = value(PropensityScoredPrecisionAtK(propensities(counts, ROWS, **options), 3), scores, dense)
        assert_close(value(metric, scores, dense), expected)
    assert expected != value(PropensityScoredPrecisionAtK(propensities(counts, ROWS), 3), scores, dense)


def test_a_collection_has_copies_by_name_and_no_k_beyond_the_labels():
    for made in (metrics_at_k(), metrics_at_k(num_labels=5)):
        sizes = {name: metric.k for name, metric in made.items()}
        assert sizes == {"PrecisionAt1": 1, "PrecisionAt3": 3, "PrecisionAt5": 5, "NDCGAt5": 5}
    assert set(metrics_at_k(num_labels=4)) == {"PrecisionAt1", "PrecisionAt3"}
    spec = {"class_path": "lightning_bce.metrics.NDCGAtK", "init_args": {"k": 2, "empty_target_action": "skip"}}
    given = PrecisionAtK(7)
    made = metrics_at_k([given, spec], num_labels=5)  # what is asked for is not left out
    assert set(made) == {"PrecisionAt7", "NDCGAt2"}
    assert made["PrecisionAt7"] is not given and made["NDCGAt2"].empty_target_action == "skip"


def test_metrics_of_a_collection_whose_first_values_are_equal_stay_apart():
    made = metrics_at_k([PrecisionAtK(1), NDCGAtK(1), PrecisionAtK(2)])
    ranked = torch.tensor([[0, 1], [2, 1]])
    made.update(ranked[:1], SparseTarget.of([[0, 1]], 3))
    made.update(ranked[1:], SparseTarget.of([[1]], 3))
    assert {name: found.item() for name, found in made.compute().items()} == {
        "PrecisionAt1": 0.5,
        "NDCGAt1": 0.5,
        "PrecisionAt2": 0.75,
    }


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ("AUROC", ValueError, "^`metrics` holds 'AUROC'; with a head .* such as `PrecisionAtK.k=5.`: others need"),
        (BinaryAccuracy(), TypeError, r"^`metrics` holds BinaryAccuracy\(\); .* were expected, such as"),
        ({"class_path": "torchmetrics.classification.BinaryAccuracy"}, TypeError, "holds {'class_path': 'torchmetrics"),
        (PrecisionAtK(3), ValueError, "^`metrics` holds PrecisionAt3 twice"),
    ],
)
def test_a_collection_refuses_what_needs_all_scores_or_comes_twice(given, kind, said):
    with pytest.raises(kind, match=said):
        metrics_at_k([PrecisionAtK(3), given])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PrecisionAtK(0), "`k` is 0"),
        (lambda: PrecisionAtK(True), "`k` is True; a whole number"),
        (lambda: NDCGAtK(1.5), "`k` is 1.5; a whole number"),
        (lambda: NDCGAtK(1, empty_target_action="pos"), "neg, skip"),
        (lambda: PropensityScoredPrecisionAtK([0.0, 1.0]), r"outside \(0, 1\]"),
        (lambda: PropensityScoredPrecisionAtK([1.0, 1.5]), r"one probability .* `propensities\(counts, num_samples\)`"),
        (lambda: PropensityScoredPrecisionAtK([1.0], empty_target_action="skip"), "^`empty_target_action` has no eff"),
        (lambda: PropensityScoredPrecisionAtK([1.0], a=0.5), "^`a` and `b` would have no .* to `propensities`"),
        (lambda: PropensityScoredPrecisionAtK([1.0], b=0.4), "no effect beside `propensity`"),
        (
            lambda: PropensityScoredPrecisionAtK().update(
                torch.zeros(1, 2, dtype=torch.int64), SparseTarget.of([[]], 5)
            ),
            r"^PropensityScoredPrecisionAtK has no .* `propensities\(counts, num_samples\)`, or call `resolve`; "
            r"BinaryClassifier does where its data module has `occurrences\(\)`, as ManyLabelDataModule",
        ),
        (lambda: propensities([-1.0], 10), "^`counts` holds negative numbers or NaN; how often"),
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
    with pytest.raises(TypeError, match=r"`target` is Tensor; .* Use `SparseTarget\.of\(target, num_labels\)`"):
        PrecisionAtK().update(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 5))
