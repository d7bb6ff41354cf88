"""Memory for a gradient: what was asked for, and an advice that stays within it."""

import mmap
import sys

import pytest
import torch

from lightning_bce.engine import memory
from lightning_bce.engine.memory import HUGE, WORTHWHILE, large_buffer

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(0,), (7, 3), (WORTHWHILE // 4 + 5,)], ids=str)
def test_a_buffer_is_contiguous_and_can_be_written(shape):
    buffer = large_buffer(torch.Size(shape), torch.float32, CPU)
    assert buffer.shape == shape and buffer.is_contiguous()
    assert buffer.fill_(1.5).sum() == 1.5 * buffer.numel()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages to ask for")
def test_only_whole_huge_pages_of_a_large_buffer_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_advise", lambda: lambda *given: asked.append(given) or 0)
    large_buffer(torch.Size([WORTHWHILE // 4 - 1]), torch.float32, CPU)
    assert asked == []
    buffer = large_buffer(torch.Size([WORTHWHILE // 2 + 7]), torch.float32, CPU)
    ((begin, size, advice),) = asked
    assert begin % HUGE == size % HUGE == 0 and size > 0 and advice == mmap.MADV_HUGEPAGE
    assert buffer.data_ptr() <= begin and begin + size <= buffer.data_ptr() + 4 * buffer.numel()


def test_another_system_is_not_asked(monkeypatch):
    memory._advise.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    assert memory._advise() is None
    memory._advise.cache_clear()
