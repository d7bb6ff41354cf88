"""The best labels and chosen labels, without all scores."""

import pytest
import torch
from torch.testing import assert_close

from lightning_bce.heads import MultiLabelHead

LABELS = 257


@pytest.mark.parametrize("k", [1, 5, 100, LABELS])
@pytest.mark.parametrize("bias", [True, False])
def test_the_best_labels_are_those_of_all_scores(k, bias):
    head = MultiLabelHead(7, LABELS, chunk_labels=64, bias=bias, dtype=torch.float64)
    x = torch.randn(33, 7, dtype=torch.float64)
    scores = x @ head.weight.t() + (head.bias if bias else 0)
    expected, where = scores.sigmoid().topk(k)
    probability, labels = head.topk(x, k)
    assert_close(probability, expected.detach())
    assert torch.equal(labels, where)
    assert not probability.requires_grad


@pytest.mark.parametrize("shape", [(5,), (33, 5), (33, 0), (0,)])
def test_chosen_labels_get_their_probability(shape, monkeypatch):
    head = MultiLabelHead(7, LABELS, dtype=torch.float64)
    monkeypatch.setattr("lightning_bce.heads.prediction.GATHERED", 7 * 8 * 5 * 4)  # four samples at a time
    x, labels = torch.randn(33, 7, dtype=torch.float64), torch.randint(0, LABELS, shape)
    every = (x @ head.weight.t() + head.bias).sigmoid()
    assert_close(head.probability(x, labels), every.gather(1, labels.expand(33, shape[-1])).detach())


def test_half_precision_and_autocast_predict_in_float32():
    head = MultiLabelHead(7, LABELS).bfloat16()
    x = torch.randn(3, 7).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        probability, labels = head.topk(x, 4)
        assert_close(head.probability(x, labels), probability)
    assert probability.dtype == torch.float32


def test_what_cannot_be_predicted_is_refused():
    head = MultiLabelHead(7, 5)
    with pytest.raises(ValueError, match="from 1 to the head's 5"):
        head.topk(torch.zeros(2, 7), 6)
    with pytest.raises(ValueError, match=r"\(N, 7\)"):
        head.topk(torch.zeros(2, 3), 1)
    with pytest.raises(ValueError, match=r"or \(2, K\)"):
        head.probability(torch.zeros(2, 7), torch.zeros(3, 1, dtype=torch.int64))
