"""A head that steps chunk by chunk moves as an ordinary optimizer moves it, without a gradient of all weights."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, MultiLabelHead, SparseTarget
from lightning_bce.heads import ChunkAdafactor, ChunkAdamW, ChunkSGD, HeadBackwardError
from lightning_bce.heads.updates import stochastically_rounded

WIDTH, LABELS, ROWS = 7, 257, 33


def a_head(update=None, **options):
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "chunk_labels": 64 if update is None else update.chunk_labels or 64} | options
    return MultiLabelHead(WIDTH, LABELS, BCEWithLogitsLoss(fused=False), update=update, **options)


def batches(number, dtype=torch.float64):
    random = torch.Generator().manual_seed(1)
    for _ in range(number):
        x = torch.randn(ROWS, WIDTH, generator=random).to(dtype)
        yield x, SparseTarget.of(torch.randint(0, LABELS, (ROWS, 3), generator=random), LABELS)


@pytest.mark.parametrize(
    ("update", "optimizer"),
    [
        (ChunkSGD(0.5), lambda p: torch.optim.SGD(p, 0.5)),
        (
            ChunkSGD(0.5, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.5, momentum=0.9, weight_decay=0.01),
        ),
        (ChunkAdamW(0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)),
        (ChunkAdamW(0.01, betas=(0.5, 0.9), eps=1e-3), lambda p: torch.optim.AdamW(p, 0.01, (0.5, 0.9), 1e-3)),
    ],
    ids=["SGD", "momentum", "AdamW", "AdamW, other options"],
)
def test_every_step_is_that_of_torchs_optimizer(update, optimizer):
    stepping, ordinary = a_head(copy.deepcopy(update)), a_head()
    outside = optimizer(ordinary.parameters())
    for x, target in batches(5):
        found, expected = (x.clone().requires_grad_() for _ in range(2))
        value, right = stepping(found, target), ordinary(expected, target)
        value.backward()
        outside.zero_grad()
        right.backward()
        outside.step()
        assert_close(value, right)
        assert_close(found.grad, expected.grad)  # by the weights before the step
        assert_close(stepping.weight, ordinary.weight, check_dtype=False)
        assert_close(stepping.bias, ordinary.bias)
    assert stepping.weight.grad is None and not stepping.weight.requires_grad


@pytest.mark.parametrize("size", [64, LABELS], ids=["four chunks and a label", "the whole head"])
@pytest.mark.parametrize(
    "options",
    [{}, {"weight_decay": 0.1, "d": 1.2, "beta2_decay": -0.5, "eps": (1e-3, 1.0)}],
    ids=["defaults", "other options"],
)
def test_adafactor_steps_each_chunk_as_torchs_steps_a_parameter(size, options):
    stepping, ordinary = a_head(ChunkAdafactor(0.5, chunk_labels=size, **options)), a_head()
    parts = [nn.Parameter(part.clone()) for p in ordinary.parameters() for part in p.detach().split(size)]
    outside = torch.optim.Adafactor(parts, 0.5, **options)
    for number, (x, target) in enumerate(batches(5)):
        rows = ROWS if number % 2 else ROWS // 2  # the chunks stay what they are
        x, target = x[:rows], target.first_rows(rows)
        stepping(x, target)
        ordinary.zero_grad()
        ordinary(x, target).backward()
        gradients = [part for p in ordinary.parameters() for part in p.grad.split(size)]
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient
        outside.step()
        with torch.no_grad():
            ordinary.weight.copy_(torch.cat([part for part in parts if part.ndim == 2]))
            ordinary.bias.copy_(torch.cat([part for part in parts if part.ndim == 1]))
        assert_close(stepping.weight, ordinary.weight, check_dtype=False)
        assert_close(stepping.bias, ordinary.bias, check_dtype=False)
    assert sum(b.numel() for b in stepping.update.buffers()) == 2 * LABELS + -(-LABELS // size) * WIDTH + 1


def test_nothing_moves_without_gradients_or_in_evaluation():
    head = a_head(ChunkSGD(1.0))
    before = head.weight.clone()
    ((x, target),) = batches(1)
    with torch.no_grad():
        head(x, target)
    head.eval()
    head(x.requires_grad_(), target).backward()
    assert torch.equal(head.weight, before)


def test_state_travels_with_the_checkpoint():
    head = a_head(ChunkAdamW(0.01))
    for x, target in batches(2):
        head(x, target)
    again = a_head(ChunkAdamW(0.01))
    again.load_state_dict(head.state_dict())
    ((x, target),) = batches(1)
    head(x, target), again(x, target)
    assert torch.equal(head.weight, again.weight) and again.update.steps == 3


def test_state_goes_to_float64_with_the_weights_and_never_loses_digits():
    head = a_head(ChunkAdamW(0.01), dtype=torch.float32)
    ((x, target),) = batches(1)
    head(x.float(), target)
    squares = head.update.weight_square.clone()
    head.bfloat16()
    assert torch.equal(head.update.weight_square, squares)
    head.double()(x, target)
    assert head.update.weight_square.dtype == torch.float64 and head.update.steps == 2


def test_stochastic_rounding_is_right_on_average():
    value = torch.full((100_000,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next number in bfloat16
    rounded = stochastically_rounded(value)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2**-7}
    assert_close(rounded.float().mean(), value.mean(), rtol=0, atol=1e-4)
    exact = torch.tensor([1.5, -2.0, 0.0])
    assert torch.equal(stochastically_rounded(exact).float(), exact)


def test_small_steps_in_bfloat16_are_lost_to_the_nearest_and_kept_by_the_others():
    moved = {}
    exact = a_head(ChunkSGD(0.02, weight_decay=0.0), dtype=torch.float32)
    start = exact.weight.bfloat16().float()
    exact.weight.data.copy_(start)
    for x, target in batches(200, torch.float32):
        exact(x, target)
    for rounding in ("nearest", "stochastic", "kahan"):
        head = a_head(ChunkSGD(0.02, rounding=rounding), dtype=torch.bfloat16)
        for x, target in batches(200, torch.float32):
            head(x, target)
        whole = head.weight.float() + (head.update.weight_lost.float() if rounding == "kahan" else 0)
        way = exact.weight - start
        moved[rounding] = float(((whole - start) * way).sum() / way.square().sum())
    assert moved["nearest"] < 0.2  # of the way; what is nearer to 0 takes its steps
    assert moved["kahan"] == pytest.approx(1, abs=0.01)
    assert moved["stochastic"] == pytest.approx(1, abs=0.1)


def test_bfloat16_weights_train_digits_as_float32_does_unless_they_round_to_the_nearest():
    pixels, digit = load_digits(return_X_y=True)
    x, lists = torch.tensor(pixels / 16).float(), [[label] for label in digit.tolist()]
    target = SparseTarget.from_lists(lists, 10)

    def trained(dtype, rounding):
        head = MultiLabelHead(64, 10, update=ChunkSGD(0.02, rounding=rounding), dtype=dtype)
        torch.manual_seed(0)
        with torch.no_grad():
            head.weight.copy_(0.1 * torch.randn(10, 64).bfloat16())
            head.bias.zero_()
        for epoch in range(10):
            for some in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
                head(x[some], SparseTarget.from_lists([lists[i] for i in some], 10))
        with torch.no_grad():
            return float(head(x, target))

    exact = trained(torch.float32, "nearest")
    assert trained(torch.bfloat16, "kahan") == pytest.approx(exact, rel=1e-3)
    assert trained(torch.bfloat16, "stochastic") == pytest.approx(exact, rel=1e-2)
    assert trained(torch.bfloat16, "nearest") > 1.05 * exact


def test_the_bias_stays_in_float32():
    made, cast = a_head(dtype=torch.bfloat16), a_head(dtype=torch.float32)
    ((x, target),) = batches(1, torch.float32)
    cast(x, target).backward()
    exact = cast.bias.detach().clone()
    cast.bfloat16()
    assert made.bias.dtype == cast.bias.dtype == cast.bias.grad.dtype == torch.float32
    assert made.weight.dtype == cast.weight.dtype == torch.bfloat16 and torch.equal(cast.bias, exact)
    assert cast.double().bias.dtype == torch.float64


def test_a_factor_of_the_loss_is_refused():
    head = a_head(ChunkSGD(1.0))
    ((x, target),) = batches(1)
    with pytest.raises(HeadBackwardError, match="2 came"):
        (2 * head(x.requires_grad_(), target)).backward()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ChunkSGD(-1.0), "`lr` is -1"),
        (lambda: ChunkSGD(1.0, momentum=1.0), "`momentum`"),
        (lambda: ChunkSGD(1.0, rounding="up"), "nearest, stochastic, kahan"),
        (lambda: ChunkAdamW(eps=0.0), "`eps`"),
        (lambda: a_head(ChunkSGD(1.0, rounding="kahan")), "bfloat16 only"),
        (lambda: ChunkAdafactor(chunk_labels=0), "`chunk_labels` is 0"),
        (lambda: ChunkAdafactor(beta2_decay=0.8), "`beta2_decay`"),
        (lambda: ChunkAdafactor(eps=(0.0, 1e-3)), "`eps`"),
        (lambda: ChunkAdafactor(d=0.5), "`d`"),
        (lambda: a_head(ChunkAdafactor(chunk_labels=32), chunk_labels=64), "chunks of 32 labels"),
    ],
)
def test_options_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`", "ignore:.*does not have many workers")
@pytest.mark.parametrize(
    ("options", "said"),
    [({"gradient_clip_val": 1.0}, "norm"), ({"accumulate_grad_batches": 2}, "each batch"), ({}, None)],
    ids=["clipping", "accumulation", "neither"],
)
def test_a_trainer_that_needs_the_whole_gradient_is_refused(options, said):
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, enable_model_summary=False, **quiet, **options)
    classifier = BinaryClassifier(nn.Linear(5, WIDTH), head=a_head(ChunkSGD(1.0), dtype=torch.float32))
    before = classifier.head.weight.clone()
    data = DataLoader([(torch.randn(4, 5), SparseTarget.of([[1], [2], [], [3]], LABELS))], batch_size=None)
    if said is None:
        trainer.fit(classifier, data)
        assert not torch.equal(classifier.head.weight, before)
        return
    with pytest.raises(ValueError, match=said):
        trainer.fit(classifier, data)
    assert torch.equal(classifier.head.weight, before)
