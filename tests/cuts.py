"""One training in different cuts, and what it has to come to: the gradients, losses and weights of a plain loop.

On the path of the tests (`pythonpath` in pyproject.toml) and of the ranks that they start, unlike the test modules.
"""

import os
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from torch.utils.data import DataLoader

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, FocalLoss, TabularMLP, ZLPRLoss

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


def a_classifier(loss=None, optimizer=None, dtype=torch.float32, hidden=(7,), kind=BinaryClassifier):
    torch.manual_seed(3)
    net = TabularMLP(FEATURES, LABELS, hidden=hidden, dropout=0.0)
    optimizer = optimizer or partial(torch.optim.SGD, **RATE)
    return kind(net, loss, num_labels=LABELS, optimizer=optimizer, metrics=[]).to(dtype)


def by_hand(formula, parts, windows=WINDOWS * EPOCHS, optimizer=None, before_step=None, hidden=(7,)):
    """Return the gradient and the loss of each step and the weights after all, by a plain loop over whole windows."""
    net = a_classifier(dtype=torch.float64, hidden=hidden).model
    rows = samples(parts, torch.float64)
    target = rows["target"]
    valid = rows.get("mask", ~target.isnan())
    weight = rows.get("weight", torch.ones(ROWS).double()).reshape(ROWS, -1).expand(ROWS, LABELS)
    optimizer = (optimizer or partial(torch.optim.SGD, **RATE))(net.parameters())
    gradients, losses, start = [], [], 0
    for size in windows:
        window = slice(start % ROWS, start % ROWS + size)
        start += size
        optimizer.zero_grad()
        labels = torch.where(valid, target, 0.0)[window]
        loss = formula(net(rows["inputs"][window]), labels, valid[window], weight[window])
        loss.backward()
        losses.append(loss.item())
        gradients.append(flat(p.grad for p in net.parameters()))
        if before_step:
            before_step(list(net.parameters()))
        optimizer.step()
    return gradients, losses, flat(net.parameters())


def whole(tensor):
    """Return a tensor with the parts that other ranks hold."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def flat(tensors):
    return torch.cat([whole(t.detach()).double().flatten() for t in tensors])


class Gradients(pl.Callback):
    """Keeps the gradient of each step, as all other callbacks see it, and what the step showed."""

    def __init__(self):
        self.found, self.shown = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.found.append(flat(torch.zeros_like(p) if p.grad is None else p.grad for p in pl_module.parameters()))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if len(self.found) > len(self.shown):
            self.shown.append(trainer.callback_metrics["train_loss_step"].item())


def as_a_rank(rank):
    """Tell Lightning that torchrun has started this process, with its group."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # the group is there already


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
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": EPOCHS,
    }
    return pl.Trainer(callbacks=list(callbacks), **(quiet | options))


def trained(cut, case, precision="64-true", rank=0, *callbacks, classifier=None, **options):
    make, parts, _ = CASES[case]
    accumulated, ranks = CUTS[cut]
    dtype = torch.float64 if precision == "64-true" else torch.float32
    if len(ranks) == 2:
        options |= {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    watch = Gradients()
    options = {"accumulate_grad_batches": accumulated, "use_distributed_sampler": False} | options
    trainer = a_trainer(watch, *callbacks, precision=precision, **options)
    classifier = classifier or a_classifier(make(), SmallSteps if case == "sum" else None)
    trainer.fit(classifier, batches_of(cut, rank, samples(parts, dtype)))
    return watch.found, watch.shown, flat(classifier.model.parameters())


def check(result, case, precision, **options):
    """Hold what a training gave against the plain loop; options as in `by_hand`."""
    found, shown, weights = result
    gradients, losses, after = by_hand(CASES[case][2], CASES[case][1], **options)
    tolerance, scale = 1e-12 if precision == "64-true" else 1e-6, 100 if case == "sum" else 1
    assert len(found) == EPOCHS * len(WINDOWS)
    for gradient, right in zip(found, gradients, strict=True):
        assert (gradient / scale - right).norm() <= tolerance * right.norm()
    assert (weights - after).norm() <= tolerance * after.norm()
    assert shown == pytest.approx([scale * loss for loss in losses], rel=1e-6)  # Lightning keeps it in float32


# -- nothing to learn -------------------------------------------------------------------------------------------------


class Unknown(pl.Callback):
    """Keeps the weights and the optimizer's state around steps of which nothing is known."""

    def __init__(self):
        self.before, self.moved, self.shown = None, [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 2 == 0:
            self.before = self.state(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx % 2:
            after = self.state(trainer, pl_module)
            same = len(self.before) == len(after) and all(map(torch.equal, self.before, after))
            self.moved.append(not same)
            self.shown.append(trainer.callback_metrics["train_loss_step"].item())

    def state(self, trainer, pl_module):
        kept = [t for state in trainer.optimizers[0].state.values() for t in state.values()]
        return [whole(t.detach()).clone() for t in [*pl_module.parameters(), *kept]]


OPTIMIZERS = {
    "AdamW": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "AdamW, fused": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1, fused=True),
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def with_nothing_known(where):
    """Return the rows with these batches of 16 unknown."""
    rows = samples()
    for batch in where:
        rows["target"][16 * batch :][:16] = NAN
    return rows
