"""Each metric on two gloo ranks with uneven batches, one of them empty, is that of one process."""

import torch
from torch.testing import assert_close

from lightning_bce import (
    FocalLoss,
    LossProfile,
    MultilabelBrierScore,
    MultilabelCalibrationError,
    MultilabelLogLoss,
    MultilabelReliabilityCurve,
    ScoreHistogram,
)

LABELS = 3


def metrics():
    """Each metric with one of its values as a flat list of tensors."""
    yield LossProfile(FocalLoss(), LABELS), lambda m: [*m.compute().hardness, *m.compute()[1], *m.shares().values()]
    yield ScoreHistogram(LABELS, threshold=0.4), lambda m: [*m.compute().scores, m.compute().confusion]
    options = {"from_logits": True, "ignore_index": -1}
    yield MultilabelLogLoss(LABELS, **options), lambda m: [m.compute()]
    yield MultilabelBrierScore(LABELS, "none", **options), lambda m: [m.compute(), *m.decomposition()]
    yield MultilabelCalibrationError(LABELS, **options), lambda m: [m.compute()]
    yield MultilabelReliabilityCurve(LABELS, **options), lambda m: [*m.compute()]


def batches():
    generator = torch.Generator().manual_seed(7)
    for size in (33, 7, 5):
        logits = 3 * torch.randn(size, LABELS, generator=generator)
        yield logits, torch.randint(0, 2, (size, LABELS), generator=generator)


def values(share):
    found = []
    for metric, value in metrics():
        for part in share:
            metric.update(*part)
        found.append(value(metric))
        metric.update(*next(batches()))  # the states are those of the rank again
    return found


def of_a_rank(rank):
    """Uneven ranks, and one whose batches are empty."""
    first, second, third = batches()
    nothing = tuple(t[:0] for t in first)
    uneven = values([(first, second), (third,)][rank])
    return uneven, values([(first, second, third), (nothing,)][rank])


def test_ranks_add_up(on_two_ranks):
    expected = values(list(batches()))
    for uneven, empty in on_two_ranks(of_a_rank):
        assert_close(uneven, expected)
        assert_close(empty, expected)
