"""A model trains with a generated kernel as it does with the formula: clipped, accumulated, in half, on two ranks."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import lightning_bce.engine.kernel as kernel
from lightning_bce import BinaryClassifier, FocalLoss
from lightning_bce.callbacks import PerClassLossMonitor
from lightning_bce.engine import reason_against

LABELS = 3


@pytest.fixture
def traced(monkeypatch):
    """Kernels run by torch operation by operation: all but the code generator."""
    monkeypatch.setattr(kernel, "HOW", {"backend": "aot_eager"})
    yield
    torch.compiler.reset()


def trained(fused, folder, rows=slice(None), **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(264, 5, generator=generator)
    target = (x[:, :LABELS] > 0.3).float()
    model = torch.nn.Linear(5, LABELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    classifier = BinaryClassifier(
        model,
        FocalLoss(fused=fused),
        num_labels=LABELS,
        optimizer=partial(torch.optim.SGD, lr=2.0),
        metrics=[],
    )
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[PerClassLossMonitor(print_table=False)],
        **options,
    )
    loader = DataLoader(TensorDataset(x[rows], target[rows]), batch_size=66)
    trainer.fit(classifier, loader, loader)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    return [p.detach().clone() for p in classifier.parameters()], logged


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
    ],
    ids=str,
)
def test_a_model_trains_as_with_the_formula(traced, tmp_path, options):
    (weights, logged), (others, expected) = (trained(fused, tmp_path, **options) for fused in (True, False))
    loose = {"rtol": 2e-2, "atol": 1e-3} if options.get("precision") == "bf16-mixed" else {"rtol": 1e-5, "atol": 1e-6}
    assert_close(weights, others, **loose)
    assert_close(logged, expected, **loose)
    assert not torch.equal(weights[0], torch.full_like(weights[0], 0.1))


def on_this_rank(rank, folder):
    rows = slice(0, 132) if rank == 0 else slice(132, 264)
    return [trained(fused, folder, rows, strategy="ddp", devices=1, num_nodes=2) for fused in (True, False)]


@pytest.mark.skipif(reason_against("cpu") is not None, reason=str(reason_against("cpu")))
def test_on_two_ranks_it_trains_as_with_the_formula(on_two_ranks, tmp_path):
    results = on_two_ranks(on_this_rank, str(tmp_path))
    for (weights, _), (others, _) in results:
        assert_close(weights, others, rtol=1e-5, atol=1e-6)
    assert_close(results[0][0][0], results[1][0][0], rtol=0, atol=0)
