"""A model that is sharded over ranks trains like a whole one: by FSDP2, by tensor parallelism and, on GPUs, by FSDP."""

from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from cuts import (
    CASES,
    FEATURES,
    LABELS,
    NAN,
    OPTIMIZERS,
    Gradients,
    SmallSteps,
    Unknown,
    a_classifier,
    a_trainer,
    as_a_rank,
    batches_of,
    by_hand,
    check,
    flat,
    samples,
)
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier
from lightning_bce.callbacks import FiniteGuard
from lightning_bce.callbacks.finite_guard import NotFiniteError
from lightning_bce.checkpoints import AtomicCheckpointIO


class Sharded(BinaryClassifier):
    """Each rank holds a part of every weight, and has batches of its own."""

    sizes = 2, 1
    hidden = 7, 6  # rows that two ranks cannot share evenly
    cut = "2 ranks, 2 uneven"

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for layer in self.model.modules():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class Split(BinaryClassifier):
    """Each rank computes a part of two layers, and all of the third, on the same batches."""

    sizes = 1, 2
    hidden = 8, 7
    cut = "2 uneven"

    def configure_model(self):
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        plan = {"layers.0": ColwiseParallel(), "layers.3": RowwiseParallel()}
        parallelize_module(self.model, self.device_mesh["tensor_parallel"], plan)


KINDS = {"FSDP2": Sharded, "tensor parallel": Split}


def options_of(kind, distributed_checkpoint=False):
    strategy = ModelParallelStrategy(*kind.sizes, save_distributed_checkpoint=distributed_checkpoint)
    options = {"strategy": strategy, "devices": 2, "plugins": [TorchElasticEnvironment(), AtomicCheckpointIO()]}
    return options | {"accumulate_grad_batches": 2, "use_distributed_sampler": False}


def trained(kind, rank, case="half unknown", double=True, *callbacks, optimizer=None, rows=None, **options):
    """Return what `check` takes, with the trainer and the classifier, of a training on this rank."""
    make, parts, _ = CASES[case]
    dtype = torch.float64 if double else torch.float32  # Lightning has no "64-true" here, and leaves a model its type
    optimizer = optimizer or (SmallSteps if case == "sum" else None)
    classifier = a_classifier(make(), optimizer, dtype, kind.hidden, kind)
    watch = Gradients()
    trainer = a_trainer(watch, *callbacks, **(options_of(kind) | options))
    trainer.fit(classifier, batches_of(kind.cut, rank % kind.sizes[0], samples(parts, dtype) if rows is None else rows))
    return watch.found, watch.shown, flat(classifier.model.parameters()), trainer, classifier


# -- the gradient, and evaluation -------------------------------------------------------------------------------------


def with_a_step_of_nothing():
    """Return rows, of which those of the second step are unknown."""
    rows = samples()
    rows["target"][64:128] = NAN
    return rows


def evaluated(kind, hidden, **options):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(37, FEATURES, generator=generator).double()
    target = (torch.rand(37, LABELS, generator=generator) > 0.6).double()
    target[torch.rand(37, LABELS, generator=generator) > 0.8] = NAN
    classifier = kind(a_classifier(hidden=hidden).model, BCEWithLogitsLoss(ignore_index=NAN), LABELS).double()
    trainer = a_trainer(**options)
    trainer.validate(classifier, DataLoader(TensorDataset(inputs, target), 4), verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def train_and_evaluate(rank, cases):
    as_a_rank(rank)
    results = {}
    for name, kind in KINDS.items():
        found = [trained(kind, rank, case, double)[:3] for case, double in cases]
        # torch itself neither clips nor moves, in one launch, sharded weights beside whole ones, which Split has.
        clipped = trained(kind, rank, gradient_clip_val=0.05)[2] if kind is Sharded else None
        steps = []
        for optimizer in (make for name, make in OPTIMIZERS.items() if kind is Sharded or "fused" not in name):
            watch = Unknown()
            rows = with_a_step_of_nothing()
            trained(kind, rank, "half unknown", False, watch, optimizer=optimizer, rows=rows, max_epochs=1)
            steps.append((watch.moved, watch.shown))
        logged = evaluated(kind, kind.hidden, **(options_of(kind) | {"use_distributed_sampler": True}))
        results[name] = found, clipped, steps, logged
    return results


def test_a_sharded_model_trains_and_is_evaluated_like_a_whole_one(on_two_ranks):
    names = ["half unknown", "weighted mean", "batchmean", "sum", "ranking"]
    cases = [(case, True) for case in names] + [("half unknown", False)]
    by_rank = on_two_ranks(train_and_evaluate, cases)
    for name, kind in KINDS.items():
        clip = partial(nn.utils.clip_grad_norm_, max_norm=0.05)
        hidden = {"hidden": kind.hidden}
        _, _, after = by_hand(CASES["half unknown"][2], ("unknown",), before_step=clip, **hidden)
        expected = evaluated(BinaryClassifier, kind.hidden)
        assert {"val_loss", "val_log_loss", "val_AveragePrecision"} <= expected.keys()
        for found, clipped, steps, logged in (results[name] for results in by_rank):
            for (case, double), result in zip(cases, found, strict=True):
                check(result, case, "64-true" if double else "32-true", **hidden)
            assert clipped is None or (clipped - after).norm() <= 1e-12 * after.norm()
            for moved, shown in steps:
                assert moved == [True, False] and shown[1] == 0
            assert logged == pytest.approx(expected, rel=1e-7)


# -- checkpoints ------------------------------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Makes a number of the first weight none, in the part that the second rank holds."""

    def on_train_end(self, trainer, pl_module):
        if trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.model.layers[0].weight.to_local()[-1] = NAN


def saved(kind, rank, path, distributed, *callbacks):
    """Train for an epoch, write a checkpoint and return the weights."""
    options = options_of(kind, distributed) | {"max_epochs": 1}
    *_, trainer, classifier = trained(kind, rank, "half unknown", True, *callbacks, **options)
    trainer.save_checkpoint(path)
    return flat(classifier.model.parameters())


def resumed(kind, rank, path, distributed):
    """Return the weights after a second epoch, from a checkpoint."""
    classifier = a_classifier(CASES["half unknown"][0](), None, torch.float64, kind.hidden, kind)
    with torch.no_grad():
        classifier.model.layers[0].weight.zero_()  # which the checkpoint brings back
    trainer = a_trainer(**(options_of(kind, distributed) | {"max_epochs": 2}))
    batches = batches_of(kind.cut, rank % kind.sizes[0], samples(("unknown",), torch.float64))
    trainer.fit(classifier, batches, ckpt_path=path)
    return flat(classifier.model.parameters())


def save_and_go_on(rank, folder):
    as_a_rank(rank)
    results = {}
    for name, kind in KINDS.items():
        straight, same, said = trained(kind, rank, max_epochs=2)[2], [], []
        for distributed in (True, False):
            path = str(Path(folder) / f"{name} {distributed}.ckpt")
            weights = saved(kind, rank, path, distributed)
            same.append(torch.equal(resumed(kind, rank, path, distributed), straight))
        try:
            trained(kind, rank, "half unknown", True, Spoil(), FiniteGuard(), max_epochs=1)
        except NotFiniteError as error:
            said.append(str(error))
        for distributed in (True, False):
            path = str(Path(folder) / f"spoilt {name} {distributed}.ckpt")
            saved(kind, rank, path, distributed, Spoil())
            try:
                resumed(kind, rank, path, distributed)
            except ValueError as error:
                said.append(str(error))
        results[name] = weights, same, said
    return results


def test_a_sharded_model_goes_on_from_its_checkpoint_and_all_ranks_refuse_one_with_nan(on_two_ranks, tmp_path):
    for results in on_two_ranks(save_and_go_on, str(tmp_path)):
        for name, (weights, same, said) in results.items():
            assert same == [True, True]
            alone = BinaryClassifier.load_from_checkpoint(tmp_path / f"{name} False.ckpt").double()
            assert torch.equal(flat(alone.model.parameters()), weights.float().double())
            assert len(said) == 3  # of the weights before they are written, and of both kinds of checkpoint
            assert all("'model.layers.0.weight'" in message for message in said)


# -- on GPUs ----------------------------------------------------------------------------------------------------------


def train_by_fsdp(rank, path):
    as_a_rank(rank)
    strategy = FSDPStrategy(auto_wrap_policy={nn.Linear}, state_dict_type="full")
    own = {"strategy": strategy, "accelerator": "cuda", "plugins": [TorchElasticEnvironment()]}
    classifier = a_classifier(CASES["half unknown"][0](), hidden=Sharded.hidden)
    trainer = a_trainer(FiniteGuard(), **(options_of(Sharded) | own))
    trainer.fit(classifier, batches_of(Sharded.cut, rank, samples(("unknown",))))
    trainer.save_checkpoint(path)


@pytest.mark.skipif(
    torch.cuda.device_count() < 2,
    reason="Two GPUs are needed: torch has no FSDP for CPUs, where `fully_shard` is tested above.",
)
def test_fsdp_trains_like_one_process(on_two_ranks, tmp_path):
    on_two_ranks(train_by_fsdp, str(tmp_path / "fsdp.ckpt"), backend="cpu:gloo,cuda:nccl")
    alone = BinaryClassifier.load_from_checkpoint(tmp_path / "fsdp.ckpt", map_location="cpu")
    _, _, after = by_hand(CASES["half unknown"][2], ("unknown",), hidden=Sharded.hidden)
    assert (flat(alone.model.parameters()) - after).norm() <= 1e-6 * after.norm()
