"""A target that holds what is not 0, sorted by label."""

import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bce.heads import SparseTarget

LISTS = [[2, 0], [], [2], [6, 2, 0]]
DENSE = torch.tensor(
    [[1, 0, 1, 0, 0, 0, 0], [0] * 7, [0, 0, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 1]], dtype=torch.float32
)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")  # torch says so of every CSR tensor
@pytest.mark.parametrize(
    "given",
    [
        LISTS,
        torch.tensor([[2, 0, -1], [-1, -1, -1], [-1, 2, -1], [6, 2, 0]]),
        torch.tensor([[2, 0, -1], [-1, -1, -1], [-1, 2, -1], [6, 2, 0]], dtype=torch.int32),
        DENSE.to_sparse(),
        DENSE.double().to_sparse_csr,  # called in the test, which the warning's filter covers
    ],
    ids=["lists", "padded", "padded int32", "COO", "CSR"],
)
def test_every_form_is_the_same_target(given):
    target = SparseTarget.of(given() if callable(given) else given, 7)
    assert torch.equal(target.to_dense(), DENSE)
    assert target.values is None and len(target) == 4 and target.numel() == 28
    assert torch.equal(target.labels, target.labels.sort()[0])


def test_a_label_named_twice_counts_once():
    assert torch.equal(SparseTarget.from_lists([[3, 3, 1]], 4).labels, torch.tensor([1, 3]))


def test_unknown_labels_are_nan():
    target = SparseTarget.from_lists([[0], [1]], 3, unknown=[[2], []])
    expected = torch.tensor([[1, 0, torch.nan], [0, 1, 0]])
    torch.testing.assert_close(target.to_dense(), expected, equal_nan=True)
    marked = torch.tensor([[1.0, 0, -1], [0, 1, 0]]).to_sparse()
    torch.testing.assert_close(SparseTarget.of(marked, 3, ignore_index=-1).to_dense(), expected, equal_nan=True)


def test_soft_labels_keep_their_values_and_stored_zeros_go():
    target = SparseTarget.from_sparse(
        torch.sparse_coo_tensor([[0, 1, 1], [2, 0, 1]], [0.25, 0.0, 1.0], (2, 3), check_invariants=True)
    )
    assert target.values.tolist() == [1.0, 0.25] and target.labels.tolist() == [1, 2]


def test_a_slice_of_labels_is_a_slice_of_memory():
    target = SparseTarget.of(LISTS, 7)
    part = target.of_labels(1, 5)
    assert torch.equal(part.to_dense(), DENSE[:, 1:5])
    assert part.rows.data_ptr() == target.rows[2:].data_ptr()
    assert torch.equal(target.first_rows(3).to_dense(), DENSE[:3])


def test_nothing_is_a_target_too():
    for empty in (SparseTarget.of([[], []], 5), SparseTarget.of([], 5)):
        assert len(empty.labels) == 0 and empty.to_dense().sum() == 0
    assert len(SparseTarget.of([], 5)) == 0


def test_it_travels_through_workers_and_to_devices():
    loader = DataLoader([[1], [0, 2]], batch_size=2, num_workers=1, collate_fn=Collate())
    (target,) = loader
    assert torch.equal(target.to_dense(), torch.tensor([[0.0, 1, 0], [1, 0, 1]]))
    moved = target.to("meta", non_blocking=True)
    assert moved.device.type == "meta" and moved.host_labels.tolist() == [0, 1, 2]
    assert target.to(torch.float16) is target
    assert torch.equal(pickle.loads(pickle.dumps(target)).rows, target.rows)


class Collate:
    def __call__(self, lists):
        return SparseTarget.of(lists, 3)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (torch.rand(3, 5), TypeError, "to_sparse_csr"),
        (torch.zeros(3, 5, dtype=torch.int64), TypeError, "looks like"),
        ([[5]], ValueError, r"from 0 to 4; got \[5\]"),
        (torch.tensor([[-2]]), ValueError, r"got \[-2\]"),
        (7, TypeError, "int"),
        (torch.zeros(2, 4).to_sparse(), ValueError, r"\(N, 5\)"),
        (torch.tensor([[0, 0, 2.0, 0, 0]]).to_sparse(), ValueError, r"outside \[0, 1\]: \[2.0\]"),
        (torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 1.0], (1, 5), check_invariants=True), ValueError, "twice"),
        (SparseTarget.from_lists([[1]], 4), ValueError, "4 labels and the head 5"),
    ],
)
def test_what_is_no_target_is_refused(given, error, said):
    with pytest.raises(error, match=said):
        SparseTarget.of(given, 5)


def test_a_label_is_not_both_positive_and_unknown():
    with pytest.raises(ValueError, match="both positive and unknown"):
        SparseTarget.from_lists([[1, 2]], 4, unknown=[[2]])
    with pytest.raises(ValueError, match="one list for each"):
        SparseTarget.from_lists([[1, 2]], 4, unknown=[[], []])
