"""Memory that is used again: never while a tensor lies in it, and not for ever."""

import gc
import mmap
import threading

import pytest
import torch
from torch import nn

from lightning_bce import BCEWithLogitsLoss
from lightning_bce.engine import memory
from lightning_bce.engine.memory import KEPT, POOL, WORTHWHILE, BufferPool, large_buffer
from lightning_bce.heads import MultiLabelHead

CPU = torch.device("cpu")
SIZE = 4 * WORTHWHILE

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="this system has no mappings to reuse")


@pytest.fixture(autouse=True)
def an_own_pool(monkeypatch):
    pool = BufferPool()
    monkeypatch.setattr(memory, "POOL", pool)
    return pool


def a_buffer(size=SIZE, dtype=torch.float32):
    return large_buffer(torch.Size([size // dtype.itemsize]), dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0,), (7, 3), (3, WORTHWHILE // 4 + 5)], ids=str)
def test_a_buffer_is_contiguous_and_can_be_written(shape, dtype):
    buffer = large_buffer(torch.Size(shape), dtype, CPU)
    assert buffer.shape == shape and buffer.is_contiguous() and buffer.dtype == dtype
    assert buffer.fill_(1.5).double().sum() == 1.5 * buffer.numel()
    assert buffer.untyped_storage().nbytes() == buffer.numel() * dtype.itemsize


def test_what_is_freed_is_handed_out_again():
    first = a_buffer()
    place = first.data_ptr()
    del first
    assert a_buffer().data_ptr() == place
    assert a_buffer(SIZE // 2).data_ptr() == place  # half as large at least
    assert a_buffer(SIZE // 2 - 4).data_ptr() != place


@pytest.mark.parametrize(
    "keep",
    [lambda t: t, lambda t: t[5:7], lambda t: t.view(2, -1).t(), lambda t: t.detach(), lambda t: t.numpy()],
    ids=["itself", "a slice", "a view", "an alias", "an array"],
)
def test_no_block_is_shared_while_anything_lies_in_it(keep):
    kept = keep(a_buffer().fill_(3.0))
    a_buffer().fill_(4.0)
    assert (kept == 3.0).all()


def test_gradients_that_somebody_keeps_stay_what_they_are():
    loss = BCEWithLogitsLoss(fused=None, reduction="sum")
    target = torch.zeros(2 * WORTHWHILE)
    kept = []
    for at in (-1.0, 0.0, 1.0):
        logits = torch.full_like(target, at, requires_grad=True)
        loss(logits, target).backward()
        kept.append(logits.grad)
        del logits
    for gradient, at in zip(kept, (-1.0, 0.0, 1.0), strict=True):
        torch.testing.assert_close(gradient, torch.full_like(target, at).sigmoid())


def test_a_training_of_a_head_goes_round_in_the_same_blocks(an_own_pool):
    head = MultiLabelHead(64, 2048, BCEWithLogitsLoss(fused=False))
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    places = []
    for _ in range(6):
        loss = head(torch.randn(64, 64), [[1]] * 64)
        optimizer.zero_grad()  # after the forward pass, as Lightning does: two gradients are alive at once
        loss.backward()
        optimizer.step()
        places.append(head.weight.grad.data_ptr())
        del loss
    assert places[2:] == 2 * places[:2] and places[0] != places[1]
    head.zero_grad()
    assert an_own_pool.release() == 2 * head.weight.nbytes + 4 * 64 * 2048
    assert an_own_pool.release() == 0


def test_a_gradient_is_handed_over_and_not_copied():
    leaf = nn.Parameter(torch.zeros(WORTHWHILE))
    places = []

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, upstream):
            gradient = large_buffer(leaf.shape, leaf.dtype, CPU)
            places.append(gradient.data_ptr())
            return gradient.fill_(2.0)

    Given.apply(leaf).backward()
    assert [leaf.grad.data_ptr()] == places and (leaf.grad == 2.0).all()


def test_a_block_that_serves_nobody_goes_back(an_own_pool):
    del_me = a_buffer(8 * SIZE)
    del del_me
    for _ in range(KEPT + 1):
        a_buffer()
    assert an_own_pool.release() == SIZE


def test_growing_requests_leave_nothing_behind(an_own_pool):
    for size in range(SIZE, 2 * SIZE, SIZE // 8):
        a_buffer(size)
    assert an_own_pool.release() == 2 * SIZE - SIZE // 8


def test_taken_blocks_are_not_released(an_own_pool):
    kept = a_buffer().fill_(1.0)
    assert an_own_pool.release() == 0
    del kept
    assert an_own_pool.release() == SIZE


def test_a_collection_of_garbage_gives_free_blocks_back(an_own_pool):
    kept = a_buffer().fill_(2.0)
    a_buffer(8 * SIZE)
    gc.collect(1)
    gc.collect()
    assert an_own_pool.release() == 0 and (kept == 2.0).all()


def test_a_collection_in_the_middle_of_a_request_waits_for_no_lock(an_own_pool):
    with an_own_pool._lock:
        gc.collect()


def test_threads_never_get_the_same_block():
    wrong = []

    def work(number):
        for _ in range(200):
            mine = a_buffer(WORTHWHILE).fill_(number)
            if not (mine == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_small_buffers_and_other_devices_are_torch_s_own(an_own_pool):
    small = large_buffer(torch.Size([WORTHWHILE // 4 - 1]), torch.float32, CPU)
    elsewhere = large_buffer(torch.Size([WORTHWHILE]), torch.float32, torch.device("meta"))
    assert elsewhere.is_meta
    del small, elsewhere
    assert an_own_pool.release() == 0


def test_a_system_without_mappings_or_huge_pages_has_buffers_too(monkeypatch, an_own_pool):
    monkeypatch.setattr(memory, "HUGE", 2 * SIZE)  # pages of the ordinary size
    assert a_buffer().fill_(1.0).sum() == SIZE / 4
    assert an_own_pool.release() == SIZE
    monkeypatch.delattr(mmap, "MAP_ANONYMOUS")
    assert a_buffer().fill_(1.0).sum() == SIZE / 4
    assert an_own_pool.release() == 0


def test_an_advice_that_fails_is_no_error(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *given):
            raise OSError("no huge pages here")

    monkeypatch.setattr(memory.mmap, "mmap", Refusing)
    assert a_buffer(memory.HUGE).fill_(1.0).sum() == memory.HUGE / 4


def test_the_process_has_one_pool_which_collections_reach_once():
    assert isinstance(POOL, BufferPool)
    assert gc.callbacks.count(memory._after_collection) == 1
