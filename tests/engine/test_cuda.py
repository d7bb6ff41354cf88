"""What only a GPU can show: the same numbers, no wait for the device in a step, and the memory of one gradient."""

import pytest
import torch
from torch.testing import assert_close

from lightning_bce import BCEWithLogitsLoss, FocalLoss, LossTracker

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def sync_allowed_again():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(4096,), (259, 3), (512, 1000), (4, 3, 32, 32)], ids=str)
def test_a_kernel_gives_the_formulas_numbers(shape, dtype):
    logits, target = torch.randn(shape).to("cuda", dtype), torch.randint(0, 2, shape).to("cuda")
    gradients, values = [], []
    for fused in (True, False):
        leaf = logits.clone().requires_grad_()
        sums = FocalLoss(fused=fused).sums(leaf, target)
        gradients.append(torch.autograd.grad(sums.mean(), leaf)[0])
        values.append((sums.loss.detach(), sums.weight))
    assert_close(*values)
    assert_close(*gradients)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_does_not_wait_for_the_device(fused):
    loss, tracker = BCEWithLogitsLoss(fused=fused).cuda(), LossTracker(num_labels=7).cuda()
    logits, target = torch.randn(4096, 7, device="cuda").requires_grad_(), torch.ones(4096, 7, device="cuda")
    for checked in ("default", "error"):  # the first batch is looked at, and waits for the compiler
        torch.cuda.set_sync_debug_mode(checked)
        sums = loss.sums(logits, target)
        (sums.mean() / 2).backward()
        tracker.update(sums.detach())


def test_the_memory_of_a_pass_is_that_of_one_gradient():
    loss = FocalLoss(fused=True)
    logits, target = torch.randn(2**24, device="cuda").requires_grad_(), torch.ones(2**24, device="cuda")
    for _ in range(2):
        logits.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss(logits, target).backward()
    assert torch.cuda.max_memory_allocated() - before < 1.1 * 4 * 2**24
