"""Where a library has the same definition, it gives the same numbers and gradients at ordinary logits."""

import pytest
import torch
from peers.functions import FUNCTIONS
from peers.libraries import Missing, load
from torch.testing import assert_close

import lightning_bce

CASES = [(f, "hard") for f in FUNCTIONS] + [(f, "soft") for f in FUNCTIONS if f.soft]


def batch(function, soft):
    """Return seven samples with positives and negatives of each label, and of each sample."""
    logits = 2 * torch.randn(7, function.labels, dtype=torch.float64)
    target = torch.rand(7, function.labels, dtype=torch.float64)
    target[0], target[1] = 1, 0
    target[2:, :2], target[3, 1:] = 1, 0
    target = target if soft else target.round()
    if function.shows == "mask":
        target[4, 0] = target[6, -1] = -1
    return logits, target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("peer", "labels"), CASES, ids=str)
def test_a_library_with_the_same_definition_gives_the_same(peer, labels, dtype):
    try:
        library = load(peer.library)
    except Missing as reason:
        pytest.skip(str(reason))
    logits, target = (t.to(dtype) for t in batch(peer, labels == "soft"))
    logits.requires_grad_()
    theirs, ours = peer.theirs(library, logits, target), peer.ours(logits, target)
    # Some compute in float32 whatever comes.
    coarse = torch.float32 in (theirs.dtype, dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if coarse else {"rtol": 1e-7 + peer.slack, "atol": 1e-9}
    assert theirs.numel() == ours.numel()
    theirs, ours = (t.reshape(-1).double() for t in (theirs, ours))
    assert_close(theirs, ours, **tolerance)
    upstream = torch.randn_like(ours)  # a sum would hide a wrong row
    gradients = [torch.autograd.grad(t, logits, upstream)[0] for t in (theirs, ours)]
    assert_close(*gradients, **tolerance)


def test_every_entry_names_a_loss_of_ours_and_a_plain_form_comes_first():
    seen = set()
    for peer in FUNCTIONS:
        assert hasattr(lightning_bce, peer.loss), peer
        if (peer.library, peer.loss) not in seen:
            assert not peer.shows and not peer.options, f"{peer}: the plain form comes first"
        seen.add((peer.library, peer.loss))
