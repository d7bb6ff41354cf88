"""A step of the optimizer follows the mean over all that its batches and ranks count, whatever the cut."""

import os
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch.utils.data import DataLoader

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, FocalLoss, TabularMLP, ZLPRLoss
from lightning_bce.engine import reason_against

pytestmark = [
    # Lightning asks torch's pytree in a way that torch has deprecated; nothing that we could change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]

FEATURES, LABELS, EPOCHS = 5, 3, 3
NAN = float("nan")
ROWS = 160  # of an epoch
WINDOWS = [64, 64, 32]  # rows of each step of the optimizer; the last one is cut short by the end of the epoch
RATE = {"lr": 0.2, "momentum": 0.9}

# Accumulated batches, and the rows of each batch on each rank.
CUTS = {
    "64": (1, [[64, 64, 32]]),
    "4 of 16": (4, [[16] * 10]),
    "2 uneven": (2, [[40, 24, 7, 57, 32]]),
    "2 ranks of 32": (1, [[32, 32, 16], [32, 32, 16]]),
    "2 ranks, 2 uneven": (2, [[20, 5, 1, 30, 7], [9, 30, 32, 1, 25]]),
}
ONE_RANK = [name for name, (_, ranks) in CUTS.items() if len(ranks) == 1]
TWO_RANKS = [name for name in CUTS if name not in ONE_RANK]


# -- cases and their formulas -----------------------------------------------------------------------------------------


def cross_entropy(logits, target):
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def focal(logits, target):
    p = torch.sigmoid(logits)
    return torch.where(target == 1, (1 - p) ** 2, p**2) * cross_entropy(logits, target)


def mean(losses, valid, weight):
    return (losses * weight)[valid].sum() / valid.sum()


def zlpr(logits, target, valid):
    negative = torch.where(valid & (target == 0), logits, -torch.inf).exp().sum(1)
    positive = torch.where(valid & (target == 1), -logits, -torch.inf).exp().sum(1)
    return negative.log1p() + positive.log1p()


def of_class(losses):
    return losses * torch.tensor([0.3, 1.0, 2.5], dtype=losses.dtype)


# How the loss is made, what the batches have besides inputs and target, and the loss of a whole window.
CASES = {
    "plain": (BCEWithLogitsLoss, (), lambda x, y, v, w: cross_entropy(x, y).mean()),
    "half unknown": (
        partial(BCEWithLogitsLoss, ignore_index=NAN),
        ("unknown",),
        lambda x, y, v, w: mean(cross_entropy(x, y), v, w),
    ),
    "weights": (
        partial(BCEWithLogitsLoss, ignore_index=NAN, class_weight=[0.3, 1.0, 2.5]),
        ("unknown", "weight"),
        lambda x, y, v, w: mean(of_class(cross_entropy(x, y)), v, w),
    ),
    "weighted mean": (
        partial(BCEWithLogitsLoss, reduction="weighted_mean"),
        ("weight", "mask"),
        lambda x, y, v, w: mean(cross_entropy(x, y), v, w) * v.sum() / w[v].sum(),
    ),
    "batchmean": (
        partial(BCEWithLogitsLoss, reduction="batchmean", ignore_index=NAN),
        ("unknown",),
        lambda x, y, v, w: mean(cross_entropy(x, y), v, w) * v.sum() / v.any(1).sum(),
    ),
    "sum": (
        partial(BCEWithLogitsLoss, reduction="sum", ignore_index=NAN),
        ("unknown",),
        lambda x, y, v, w: 0.01 * mean(cross_entropy(x, y), v, w) * v.sum(),
    ),
    "focal, fused": (
        partial(FocalLoss, fused=True, ignore_index=NAN),
        ("unknown",),
        lambda x, y, v, w: mean(focal(x, y), v, w),
    ),
    "combined": (
        lambda: 0.5 * BCEWithLogitsLoss(ignore_index=NAN) + FocalLoss(ignore_index=NAN),
        ("unknown",),
        lambda x, y, v, w: mean(0.5 * cross_entropy(x, y) + focal(x, y), v, w),
    ),
    "ranking": (
        partial(ZLPRLoss, ignore_index=NAN),
        ("unknown", "row weight"),
        lambda x, y, v, w: (zlpr(x, y, v) * w[:, 0])[v.any(1)].sum() / v.any(1).sum(),
    ),
    "elements beside rows": (
        lambda: BCEWithLogitsLoss() + ZLPRLoss(),
        (),
        lambda x, y, v, w: cross_entropy(x, y).mean() + zlpr(x, y, v).mean(),
    ),
}


class SmallSteps(torch.optim.SGD):
    """For a sum, whose gradient is a hundred times larger."""

    def __init__(self, params, lr=RATE["lr"] / 100, momentum=0.9):
        super().__init__(params, lr=lr, momentum=momentum)


def samples(parts=(), dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    random = partial(torch.rand, generator=generator, dtype=torch.float64)
    rows = {
        "inputs": torch.randn(ROWS, FEATURES, generator=generator, dtype=torch.float64).to(dtype),
        "target": (random(ROWS, LABELS) > 0.6).to(dtype),
    }
    # How much is known grows with the rows: the batches of a window differ in it.
    known = random(ROWS, LABELS) < torch.linspace(0.1, 0.9, ROWS)[:, None]
    if "unknown" in parts:
        rows["target"][~known] = NAN
    if "mask" in parts:
        rows["mask"] = known
    if "weight" in parts:
        rows["weight"] = (3 * random(ROWS, LABELS)).to(dtype)
    if "row weight" in parts:
        rows["weight"] = (3 * random(ROWS)).to(dtype)
    return rows


def a_classifier(loss=None, optimizer=None, dtype=torch.float32, **options):
    torch.manual_seed(3)
    net = TabularMLP(FEATURES, LABELS, hidden=(7,), dropout=0.0, **options)
    optimizer = optimizer or partial(torch.optim.SGD, **RATE)
    return BinaryClassifier(net, loss, num_labels=LABELS, optimizer=optimizer, metrics=[]).to(dtype)


def by_hand(formula, parts, dtype=torch.float64):
    """Return the gradient and the loss of each step and the weights after all, by a plain loop over whole windows."""
    net = a_classifier(dtype=dtype).model
    rows = samples(parts, dtype)
    target = rows["target"]
    valid = rows.get("mask", ~target.isnan())
    weight = rows.get("weight", torch.ones(ROWS, dtype=dtype)).reshape(ROWS, -1).expand(ROWS, LABELS)
    optimizer, gradients, losses = torch.optim.SGD(net.parameters(), **RATE), [], []
    for _ in range(EPOCHS):
        for window in torch.arange(ROWS).split(WINDOWS):
            optimizer.zero_grad()
            labels = torch.where(valid, target, 0.0)[window]
            loss = formula(net(rows["inputs"][window]), labels, valid[window], weight[window])
            loss.backward()
            losses.append(loss.item())
            gradients.append(flat(p.grad for p in net.parameters()))
            optimizer.step()
    return gradients, losses, flat(net.parameters())


def flat(tensors):
    return torch.cat([t.detach().double().flatten() for t in tensors])


class Gradients(pl.Callback):
    """Keeps the gradient of each step, as all other callbacks see it, and what the step showed."""

    def __init__(self):
        self.found, self.shown = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found.append(flat(torch.zeros_like(p) if p.grad is None else p.grad for p in pl_module.parameters()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.found) > len(self.shown):
            self.shown.append(trainer.callback_metrics["train_loss_step"].item())


def batches_of(cut, rank, rows):
    """Return the batches of a rank, such that every cut has the same rows in a window."""
    accumulated, ranks = CUTS[cut]
    batches, start = [], 0
    for first in range(0, len(ranks[0]), accumulated):
        for other, sizes in enumerate(ranks):
            for size in sizes[first : first + accumulated]:
                if other == rank:
                    batches.append({name: t[start : start + size] for name, t in rows.items()})
                start += size
    assert start == ROWS
    return DataLoader(batches, batch_size=None)


def a_trainer(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": EPOCHS,
    }
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), **(quiet | options))


def trained(cut, case, precision, rank=0, **options):
    make, parts, _ = CASES[case]
    accumulated, ranks = CUTS[cut]
    dtype = torch.float64 if precision == "64-true" else torch.float32
    if len(ranks) == 2:
        options |= {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    watch = Gradients()
    trainer = a_trainer(
        watch, precision=precision, accumulate_grad_batches=accumulated, use_distributed_sampler=False, **options
    )
    classifier = a_classifier(make(), SmallSteps if case == "sum" else None)
    trainer.fit(classifier, batches_of(cut, rank, samples(parts, dtype)))
    return watch.found, watch.shown, flat(classifier.model.parameters())


def check(result, case, precision):
    found, shown, weights = result
    gradients, losses, after = by_hand(CASES[case][2], CASES[case][1])
    tolerance, scale = 1e-12 if precision == "64-true" else 1e-6, 100 if case == "sum" else 1
    assert len(found) == EPOCHS * len(WINDOWS)
    for gradient, right in zip(found, gradients, strict=True):
        assert (gradient / scale - right).norm() <= tolerance * right.norm()
    assert (weights - after).norm() <= tolerance * after.norm()
    assert shown == pytest.approx([scale * loss for loss in losses], rel=1e-6)  # Lightning keeps it in float32


# -- the same in every cut --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("cut", ONE_RANK)
def test_accumulated_batches_train_like_one(cut, case, precision):
    if "fused" in case and (reason := reason_against("cpu")):
        pytest.skip(f"no kernel can be generated: {reason}")
    check(trained(cut, case, precision), case, precision)


def on_a_rank(rank, wanted):
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # the group is there already
    return [trained(*arguments, rank=rank) for arguments in wanted]


def test_two_ranks_train_like_one(on_two_ranks):
    cases = [case for case in CASES if "fused" not in case]
    wanted = [(cut, case, precision) for cut in TWO_RANKS for case in cases for precision in ("64-true", "32-true")]
    found = on_two_ranks(on_a_rank, wanted)
    for results in found:
        for (_, case, precision), result in zip(wanted, results, strict=True):
            check(result, case, precision)
    for one, other in zip(*found, strict=True):
        assert one[1] == other[1]  # what is shown is the mean over both ranks
