"""What docs/howto/from-libraries.md says is the same, is: every row is evaluated, value and gradient."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from peers.libraries import Missing, load
from torch.testing import assert_close

import lightning_bce

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "from-libraries.md"
CASES = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", PAGE.read_text(encoding="utf-8"), re.M)
IMPORTS = {
    "torch": "torch",
    "torchvision": "torchvision",
    "kornia": "kornia",
    "monai": "MONAI",
    "smp": "segmentation-models",
    "timm": "timm",
    "keras": "keras",
}


def batch():
    """Return logits, hard and soft targets of seven samples; each label and each sample has both sides."""
    logits = 2 * torch.randn(7, 3)
    target = torch.rand(7, 3).round()
    target[:, 0], target[:, 1] = torch.arange(7) % 2, (torch.arange(7) + 1) % 2
    target[0, 2], target[1, 2] = 1, 0
    return {"logits": logits.requires_grad_(), "target": target, "soft": torch.rand(7, 3)}


@pytest.mark.parametrize(("theirs", "ours"), CASES, ids=[left for left, _ in CASES])
def test_both_calls_give_the_same(theirs, ours):
    name = theirs.partition(".")[0]
    try:
        modules = {name: load(IMPORTS[name])} if name in IMPORTS else {}
    except Missing as reason:
        pytest.skip(str(reason))
    names = vars(lightning_bce) | {"torch": torch} | modules | batch()
    left, right = eval(theirs, dict(names)), eval(ours, dict(names))
    assert left.shape == right.shape
    assert_close(left.detach(), right.detach(), rtol=1e-5, atol=2e-6)
    upstream = torch.randn(left.shape)  # a sum would hide a wrong row
    gradients = [torch.autograd.grad(loss, names["logits"], upstream)[0] for loss in (left, right)]
    assert_close(*gradients, rtol=1e-4, atol=2e-6)


def test_every_library_has_its_rows():
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(CASES)  # a row that is not read would not be tested
    assert {left.partition(".")[0] for left, _ in CASES} >= set(IMPORTS)
