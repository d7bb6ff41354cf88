"""A classifier with a head trains, validates and predicts as the dense one does, and holds no logits of all labels."""

import os
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from lightning_bce import BCEWithLogitsLoss, BinaryClassifier, FocalLoss, MultiLabelHead, SparseTarget
from lightning_bce.heads import ChunkAdamW
from lightning_bce.metrics import NDCGAtK, PrecisionAtK, PropensityScoredPrecisionAtK

pytestmark = [
    # Lightning asks torch's pytree in a way that torch has deprecated; nothing that we could change.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated"),
    # The data are in memory: worker processes would only cost.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
]

FEATURES, WIDTH, LABELS = 5, 7, 33
ADAMW = partial(torch.optim.AdamW, lr=0.05, weight_decay=0.1)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 3,
}
# Accumulated batches, and the rows of each batch on each rank: the same rows in every step.
CUTS = {"whole": (1, [[16, 16]]), "uneven": (2, [[3, 13, 10, 6]]), "ranks": (1, [[5, 9], [11, 7]])}


def backbone():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh())


def with_head(loss=None, kind=BinaryClassifier, update=None, **options):
    model = backbone()
    loss = FocalLoss(gamma=2.0, ignore_index=-1) if loss is None else loss
    head = MultiLabelHead(WIDTH, LABELS, loss, chunk_labels=8, update=update)
    return kind(model, head=head, optimizer=ADAMW, **options)


def dense(loss=None):
    model = nn.Sequential(*backbone(), nn.Linear(WIDTH, LABELS))
    loss = FocalLoss(gamma=2.0, ignore_index=-1) if loss is None else loss
    return BinaryClassifier(model, loss, num_labels=LABELS, optimizer=ADAMW, metrics=[])


def rows():
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, FEATURES, generator=random).double()
    target = (torch.rand(32, LABELS, generator=random) < 0.1).double()
    target[torch.rand(32, LABELS, generator=random) < 0.1] = -1
    return inputs, target, torch.rand(32, generator=random).double()


def loader(cut, sparse, rank=0):
    accumulated, ranks = CUTS[cut]
    inputs, target, weight = rows()
    batches, start = [], 0
    for first in range(0, len(ranks[0]), accumulated):
        for other, sizes in enumerate(ranks):
            for size in sizes[first : first + accumulated]:
                some = slice(start, start + size)
                made = SparseTarget.from_sparse(target[some].to_sparse(), -1) if sparse else target[some]
                if other == rank:
                    batches.append({"inputs": inputs[some], "target": made, "weight": weight[some]})
                start += size
    return DataLoader(batches, batch_size=None)


def weights(classifier):
    parts = [classifier.model] if classifier.head is None else [classifier.model, classifier.head]
    return torch.cat([p.detach().flatten() for part in parts for p in part.parameters()])


def train(classifier, cut, rank=0, **options):
    if len(CUTS[cut][1]) == 2:
        options |= {"strategy": "ddp", "devices": 2, "plugins": [TorchElasticEnvironment()]}
    trainer = pl.Trainer(
        **QUIET,
        precision="64-true",
        gradient_clip_val=0.05,
        accumulate_grad_batches=CUTS[cut][0],
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(classifier, loader(cut, classifier.head is not None, rank))
    return weights(classifier), trainer.callback_metrics


def dense_result():
    classifier = dense()
    reference = with_head()
    with torch.no_grad():  # begin with the head's weights
        classifier.model[2].weight.copy_(reference.head.weight)
        classifier.model[2].bias.copy_(reference.head.bias)
    return train(classifier, "whole")


@pytest.mark.parametrize("cut", ["whole", "uneven"])
def test_any_cut_trains_like_the_dense_classifier(cut):
    found, logged = train(with_head(), cut)
    expected, right = dense_result()
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert_close(logged["train_loss"], right["train_loss"])
    assert_close(logged["train_loss_step"], right["train_loss_step"])


def as_a_rank(rank):
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # the group is there already


def on_a_rank(rank):
    as_a_rank(rank)
    return train(with_head(), "ranks", rank)[0]


def test_two_ranks_train_like_the_dense_classifier_on_one(on_two_ranks):
    expected, _ = dense_result()
    for found in on_two_ranks(on_a_rank):
        assert_close(found, expected, rtol=1e-9, atol=1e-11)


# -- labels over ranks ------------------------------------------------------------------------------------------------


class LabelsOverRanks(BinaryClassifier):
    """Each rank has a slice of the labels; ranks that have the same slice have batches of their own."""

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        if self.head.is_sharded:  # by the run before
            return
        self.head.shard_labels(self.device_mesh["tensor_parallel"])
        rows = self.device_mesh["data_parallel"]
        if rows.size() > 1:
            fully_shard(self.model, mesh=rows)
            fully_shard(self.head, mesh=rows)
            for name in ("loss_and_sums", "log_loss_sums", "topk"):
                register_fsdp_forward_method(self.head, name)


class NotExchanged(BinaryClassifier):
    def configure_model(self):
        self.head.shard_labels(self.device_mesh["tensor_parallel"])


def whole_weights(classifier):
    parameters = [*classifier.model.parameters(), *classifier.head.parameters()]
    return torch.cat([(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().flatten() for p in parameters])


def a_run(classifier, batches, folder, options=dict):
    """Return weights after a training that was resumed, what validation logs, and a prediction."""
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2}, use_distributed_sampler=False, **options())
    trainer.fit(classifier.double(), batches)
    trainer.save_checkpoint(folder)
    trainer = pl.Trainer(**QUIET, use_distributed_sampler=False, **options())
    again = with_head(kind=type(classifier), update=None if classifier.head.update is None else ChunkAdamW(0.05))
    trainer.fit(again.double(), batches, ckpt_path=folder)
    (logged,) = trainer.validate(again, batches, verbose=False)
    inputs = rows()[0]
    (found,) = trainer.predict(again, DataLoader(inputs, batch_size=len(inputs)))
    return whole_weights(again), logged, found["probability"], found["label"]


def by_mesh(*sizes, cut="whole", distributed=False):
    strategy = ModelParallelStrategy(*sizes, save_distributed_checkpoint=distributed)
    options = {"strategy": strategy, "devices": 2, "plugins": [TorchElasticEnvironment()]}
    return options | {"accumulate_grad_batches": CUTS[cut][0]}


def over_ranks(rank, folder):
    as_a_rank(rank)
    batches = loader("whole", True)
    for update, said in ((None, "fully_shard"), (ChunkAdamW(), "2 ranks with the same labels")):
        with pytest.raises(ValueError, match=said):
            pl.Trainer(**QUIET, **by_mesh(2, 1)).fit(with_head(kind=NotExchanged, update=update), batches)
    results = []
    for number, (sizes, cut, update, distributed) in enumerate(OVER_RANKS):
        options = partial(by_mesh, *sizes, cut=cut, distributed=distributed)
        classifier = with_head(kind=LabelsOverRanks, update=ChunkAdamW(0.05) if update else None)
        batches = loader(cut, True, rank if sizes[0] == 2 else 0)
        results.append(a_run(classifier, batches, f"{folder}/{number}", options))
    return results


# Ranks with batches and ranks with labels of their own; how batches are cut; whether the head steps by chunks, and each
# rank writes its part of the checkpoint.
OVER_RANKS = [
    ((1, 2), "uneven", False, False),
    ((1, 2), "whole", True, True),
    ((1, 2), "whole", True, False),
    ((2, 1), "ranks", False, True),
]


def test_labels_over_ranks_train_resume_validate_and_predict_like_one_process(on_two_ranks, tmp_path):
    by_rank = on_two_ranks(over_ranks, str(tmp_path))
    for number, (_, _, update, distributed) in enumerate(OVER_RANKS):
        classifier = with_head(update=ChunkAdamW(0.05) if update else None)
        weights, logged, probability, labels = a_run(classifier, loader("whole", True), tmp_path / f"alone{number}")
        for results in by_rank:
            found, also, probable, best = results[number]
            assert_close(found, weights, rtol=1e-9, atol=1e-11)
            assert torch.equal(best, labels)
            assert_close(probable, probability, rtol=1e-6, atol=0)
            for name in ("val_loss", "val_log_loss", "val_PrecisionAt5", "val_NDCGAt5"):
                assert also[name] == pytest.approx(logged[name], rel=1e-6)
        if not distributed:
            alone = BinaryClassifier.load_from_checkpoint(tmp_path / str(number))
            assert alone.head.weight.shape == (LABELS, WIDTH) and not alone.head.is_sharded


@pytest.mark.parametrize("loss", [BCEWithLogitsLoss(ignore_index=-1), FocalLoss(ignore_index=-1)], ids=["BCE", "focal"])
def test_validation_logs_the_loss_the_log_loss_and_the_first_labels(loss):
    classifier, reference = with_head(loss), dense(loss)
    with torch.no_grad():
        reference.model[2].weight.copy_(classifier.head.weight)
        reference.model[2].bias.copy_(classifier.head.bias)
    trainer = pl.Trainer(**QUIET, precision="64-true")
    (logged,) = trainer.validate(classifier, loader("uneven", True), verbose=False)
    (right,) = pl.Trainer(**QUIET, precision="64-true").validate(reference, loader("whole", False), verbose=False)
    for name in ("val_loss", "val_log_loss"):
        assert logged[name] == pytest.approx(right[name], rel=1e-6)
    inputs, target, _ = rows()
    best = reference.model(inputs).topk(5)[1]
    hits = (target.gather(1, best) == 1).double()
    assert logged["val_PrecisionAt5"] == pytest.approx(float(hits.mean()))
    assert {"val_PrecisionAt1", "val_PrecisionAt3", "val_NDCGAt5"} <= set(logged)


def test_a_checkpoint_rebuilds_head_loss_and_metrics(tmp_path):
    metrics = [PropensityScoredPrecisionAtK(torch.full((LABELS,), 0.5), k=3), NDCGAtK(2), PrecisionAtK(2)]
    classifier = with_head(metrics=metrics, top_k=3)
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 1}, precision="64-true")
    trainer.fit(classifier, loader("whole", True), loader("whole", True))
    assert "val_PropensityScoredPrecisionAt3" in trainer.callback_metrics
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = BinaryClassifier.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.head.loss.gamma == 2.0 and again.loss is again.head.loss and again.top_k == 3
    assert torch.equal(weights(again).double(), weights(classifier).float().double())
    assert list(again._metrics) == list(classifier._metrics)


def test_prediction_gives_the_best_labels():
    classifier = with_head(top_k=4)
    inputs = torch.randn(6, FEATURES)
    (found,) = pl.Trainer(**QUIET).predict(classifier, DataLoader(inputs, batch_size=6))
    scores = classifier.head.weight @ classifier.model(inputs).t() + classifier.head.bias[:, None]
    probability, labels = scores.t().sigmoid().topk(4)
    assert torch.equal(found["label"], labels)
    assert_close(found["probability"], probability.detach())


def test_lists_of_labels_are_targets_too():
    classifier = with_head()
    outputs = classifier.training_step((torch.randn(2, FEATURES), [[1, 2], []]), 0)
    assert outputs["sums"].weight.tolist() == [[2 * LABELS - 2.0, 2.0]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": FocalLoss()}, "has a loss already"),
        ({"num_labels": 3}, "33 labels"),
        ({"threshold": 0.3}, "`threshold` has no effect"),
        ({"top_k": 34}, "from 1 to the head's 33"),
    ],
)
def test_options_that_a_head_has_itself_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        BinaryClassifier(backbone(), head=MultiLabelHead(WIDTH, LABELS), **options)


def test_what_needs_all_scores_is_refused():
    with pytest.raises(ValueError, match="without a `head`"):
        BinaryClassifier(backbone(), top_k=3)
    with pytest.raises(ValueError, match="first k labels"):
        with_head(metrics=["AUROC"])
    with pytest.raises(TypeError, match="no probabilities of all labels"):
        with_head().exportable()
    batch = {"inputs": torch.randn(1, FEATURES), "target": [[1]], "mask": torch.ones(1, LABELS, dtype=torch.bool)}
    with pytest.raises(ValueError, match="unknown"):
        with_head().training_step(batch, 0)
    with pytest.raises(TypeError, match="MultiLabelHead was expected"):
        BinaryClassifier(backbone(), head=nn.Linear(3, 4))
