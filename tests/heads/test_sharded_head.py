"""A head whose labels are sharded over ranks has the numbers of a whole one, and each rank only its labels."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from discovery import concrete_losses
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.testing import assert_close

from lightning_bce import (
    BCEWithLogitsLoss,
    FocalLoss,
    LogitAdjustedLoss,
    MarginBCELoss,
    MultiLabelHead,
    SparseTarget,
)
from lightning_bce.heads import ChunkAdafactor, ChunkAdamW, ChunkSGD, walk
from lightning_bce.heads.formula import reason_against
from lightning_bce.metrics import NDCGAtK, PrecisionAtK

ROWS, WIDTH, LABELS = 33, 7, 257  # 129 labels and 128
WHOLE = StateDictOptions(full_state_dict=True)
REQUIRED = {
    "LogitAdjustedLoss": {"prior": 0.2},
    "MarginBCELoss": {"counts": 40},
    "PositiveUnlabeledLoss": {"prior": 0.2},
    "DistributionBalancedLoss": {"counts": 40, "total": LABELS},
}


def batches(number, dtype=torch.float64):
    """Yield inputs and targets, which are partly soft and partly unknown."""
    random = torch.Generator().manual_seed(1)
    for _ in range(number):
        target = (torch.rand(ROWS, LABELS, generator=random) < 0.05).double()
        target *= torch.rand(ROWS, LABELS, generator=random).double().clamp(min=0.2)
        target[torch.rand(ROWS, LABELS, generator=random) < 0.1] = -1
        inputs = torch.randn(ROWS, WIDTH, generator=random, dtype=torch.float64).to(dtype)
        yield inputs, SparseTarget.from_sparse(target.to_sparse(), ignore_index=-1)


def a_pair(loss=None, update=None, dtype=torch.float64, **options):
    """Return a whole head and the same one sharded."""
    torch.manual_seed(0)
    chunk = None if isinstance(update, ChunkAdafactor) else 32
    whole = MultiLabelHead(WIDTH, LABELS, loss, chunk_labels=chunk, update=update, dtype=dtype, **options)
    sharded = copy.deepcopy(whole)
    sharded.shard_labels(init_device_mesh("cpu", (2,)))
    return whole, sharded


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def same_parameters(sharded, whole, **tolerance):
    assert sharded.weight.to_local().shape == (len(sharded.own_labels), WIDTH)
    for (name, found), (_, expected) in zip(sharded.named_parameters(), whole.named_parameters(), strict=True):
        assert_close(
            full(found.detach()), expected.detach(), msg=lambda told, name=name: f"{name}: {told}", **tolerance
        )


# -- loss and gradients -----------------------------------------------------------------------------------------------


def losses_that_live_in_a_head():
    torch.manual_seed(0)
    made = [cls(**REQUIRED.get(cls.__name__, {})) for cls in concrete_losses() if cls.per_element]
    kinds = [type(loss) for loss in made if reason_against(loss, LABELS) is None]
    losses = [kind(fused=False, ignore_index=-1, **REQUIRED.get(kind.__name__, {})) for kind in kinds]
    losses += [
        BCEWithLogitsLoss(pos_weight=torch.rand(LABELS) + 0.5, fused=False),
        LogitAdjustedLoss(prior=0.1 + 0.8 * torch.rand(LABELS), fused=False),
        MarginBCELoss(counts=1 + torch.arange(LABELS), fused=False),
        0.5 * BCEWithLogitsLoss(fused=False) + FocalLoss(gamma=2.0, fused=False),
    ]
    factors = {"class_weight": torch.rand(LABELS), "weight": torch.rand(LABELS), "fused": False}
    return losses + [
        BCEWithLogitsLoss(reduction=kind, **factors) for kind in ("mean", "weighted_mean", "batchmean", "sum")
    ]


def compare_gradients(loss, number):
    whole, sharded = a_pair(loss, per_label=number % 2 == 0, bias=number % 3 > 0)
    ((inputs, target),) = batches(1)
    weight = [None, torch.rand(ROWS).double(), torch.rand(1, LABELS).double()][number % 3]
    results = []
    for head in (whole, sharded):
        leaf = inputs.clone().requires_grad_()
        value, sums = head.loss_and_sums(leaf, target, weight)
        (2 * value).backward()
        gradients = [full(p.grad) for p in head.parameters()]
        with torch.no_grad():
            evaluated = head.loss_and_sums(leaf, target, weight)
        results.append(
            [value, *sums, leaf.grad, *gradients, evaluated[0], *evaluated[1], *head.log_loss_sums(leaf, target)]
        )
    for expected, found in zip(*results, strict=True):
        scale = expected.detach().abs().max().clamp(min=1e-30)
        assert_close(
            found / scale, expected / scale, rtol=1e-10, atol=1e-10, msg=lambda told: f"{type(loss).__name__}: {told}"
        )


def all_losses(rank):
    _, sharded = a_pair()
    assert sharded.own_labels == (range(0, 129) if rank == 0 else range(129, 257))
    for parameter in sharded.parameters():
        assert parameter.to_local().untyped_storage().nbytes() <= 129 * parameter.shape[1:].numel() * 8
    losses = losses_that_live_in_a_head()
    for number, loss in enumerate(losses):
        compare_gradients(loss, number)
    return [type(loss).__name__ for loss in losses]


def test_loss_sums_and_gradients_of_every_loss_are_those_of_the_whole_head(on_two_ranks):
    for names in on_two_ranks(all_losses):
        assert {"BCEWithLogitsLoss", "FocalLoss", "AsymmetricLoss", "HillLoss", "PolyLoss", "BCELoss"} <= set(names)


# -- training, prediction, metrics ------------------------------------------------------------------------------------


def train(head, optimizer=None, number=5, dtype=torch.float64):
    torch.manual_seed(1)
    backbone = nn.Linear(WIDTH, WIDTH, dtype=dtype)
    own = [p for p in head.parameters() if p.requires_grad]
    optimizer = (optimizer or (lambda p: torch.optim.SGD(p, 0.1)))([*backbone.parameters(), *own])
    values = []
    for inputs, target in batches(number, dtype):
        optimizer.zero_grad()
        value = head(backbone(inputs).tanh(), target)
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return torch.stack(values), backbone.weight.detach()


def steps(rank):
    optimizers = [
        lambda p: torch.optim.SGD(p, 0.5, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    ]
    for optimizer in optimizers:
        whole, sharded = a_pair()
        for found, expected in zip(train(sharded, optimizer), train(whole, optimizer), strict=True):
            assert_close(found, expected)
        same_parameters(sharded, whole)
    momentum = ChunkSGD(0.5, momentum=0.9, weight_decay=0.01)
    for update in (momentum, ChunkAdamW(0.01), ChunkAdafactor(0.1, chunk_labels=43)):  # three chunks a rank
        whole, sharded = a_pair(update=update)
        for found, expected in zip(train(sharded), train(whole), strict=True):
            assert_close(found, expected)
        same_parameters(sharded, whole)
    lossy = {"dtype": torch.bfloat16}
    whole, sharded = a_pair(update=ChunkSGD(0.5, rounding="kahan"), **lossy)
    train(sharded, dtype=torch.float32), train(whole, dtype=torch.float32)
    exact = [full(h.weight.float()) + full(h.update.weight_lost.float()) for h in (sharded, whole)]
    assert_close(*exact, rtol=1e-4, atol=1e-4)
    _, sharded = a_pair(update=ChunkSGD(0.5, rounding="stochastic"), **lossy)
    train(sharded, dtype=torch.float32)
    return torch.rand(()), sharded.weight.to_local()[:3]


def prediction(rank):
    whole, sharded = a_pair()
    ((inputs, target),) = batches(1)
    metrics = [PrecisionAtK(3), NDCGAtK(5)], [PrecisionAtK(3), NDCGAtK(5)]
    for k in (1, 5, 200, LABELS):  # 200 are more than a rank has
        (expected, right), (found, labels) = whole.topk(inputs, k), sharded.topk(inputs, k)
        assert_close(found, expected)
        assert torch.equal(labels, right)
        if k == 5:
            for one, other in zip(*metrics, strict=True):
                one.update(right, target), other.update(labels, target)
                assert one.compute() == other.compute() > 0
    for chosen in (torch.tensor([0, 128, 129, 256]), torch.randint(0, LABELS, (ROWS, 6)), torch.empty(0).long()):
        assert_close(sharded.probability(inputs, chosen), whole.probability(inputs, chosen))
    with pytest.raises(ValueError, match="0 to 256 were"):
        sharded.probability(inputs, torch.tensor([LABELS]))


def no_copy(rank):
    _, sharded = a_pair()
    places, made = [], walk.large_buffer

    def noted(*shape):
        buffer = made(*shape)
        if buffer.ndim == 2:  # the others are for the logits of a chunk
            places.append(buffer.data_ptr())
        return buffer

    walk.large_buffer = noted
    ((inputs, target),) = batches(1)
    sharded(inputs, target).backward()
    walk.large_buffer = made
    assert [sharded.weight.grad.to_local().data_ptr()] == places


def train_and_predict(rank):
    no_copy(rank)
    prediction(rank)
    return steps(rank)


def test_steps_predictions_and_metrics_are_those_of_the_whole_head(on_two_ranks):
    (first, rows), (second, others) = on_two_ranks(train_and_predict)
    assert first == second  # stochastic rounding leaves the ranks' sources of random numbers, and dropout, in step
    assert not torch.equal(rows, others)


# -- checkpoints, and what cannot be ----------------------------------------------------------------------------------


def checkpoints(rank, folder):
    update = ChunkAdamW(0.01)
    whole, sharded = a_pair(update=update)
    train(sharded), train(whole)
    state = get_model_state_dict(sharded, options=WHOLE)
    if rank == 0:  # which alone gets it
        again = MultiLabelHead(WIDTH, LABELS, update=ChunkAdamW(0.01), dtype=torch.float64)
        again.load_state_dict(state)
        for name, value in whole.state_dict().items():
            assert_close(again.state_dict()[name], value)
        assert again.update.steps == 5
    _, other = a_pair(update=update)
    set_model_state_dict(other, whole.state_dict(), options=WHOLE)
    same_parameters(other, whole)
    assert torch.equal(other.update.weight_square.full_tensor(), whole.update.weight_square)
    dcp.save(sharded.state_dict(), checkpoint_id=folder)
    _, third = a_pair(update=update)
    found = third.state_dict()
    dcp.load(found, checkpoint_id=folder)
    third.load_state_dict(found)
    for name, value in sharded.state_dict().items():
        assert torch.equal(full(third.state_dict()[name]), full(value)), name
    plain = MultiLabelHead(WIDTH, LABELS, update=ChunkAdamW(0.01), dtype=torch.float64)
    found = plain.state_dict()
    dcp.load(found, checkpoint_id=folder)  # which a head that is not sharded reads too
    assert_close(found["weight"], full(sharded.weight))


def on_no_device(rank):
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)  # the same on both ranks, whose labels yet begin differently
    head = MultiLabelHead(WIDTH, LABELS, prior=0.01, update=ChunkSGD(0.1, momentum=0.9), device="meta")
    head.shard_labels(mesh)
    weight = head.weight.full_tensor()
    assert weight.unique().numel() > 0.99 * weight.numel()
    assert weight.abs().max() <= WIDTH**-0.5 < 1.1 * weight.abs().max()
    assert_close(head.bias.full_tensor().sigmoid(), torch.full((LABELS,), 0.01))
    assert head.update.weight_momentum.full_tensor().abs().sum() == 0
    again = copy.deepcopy(head)
    ((inputs, target),) = batches(1, torch.float32)
    assert torch.equal(again(inputs, target), head(inputs, target))
    return head.spec()


def refused(rank):
    mesh, square = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2), mesh_dim_names=("rows", "labels"))
    head = MultiLabelHead(WIDTH, 3)
    with pytest.raises(TypeError, match=r"`mesh` is int; a DeviceMesh .*configure_model"):
        head.shard_labels(2)
    with pytest.raises(ValueError, match=r"2 dimensions, .*'labels'"):
        head.shard_labels(square)
    with pytest.raises(ValueError, match="1 labels over 2 ranks"):
        MultiLabelHead(WIDTH, 1).shard_labels(mesh)
    head.shard_labels(square["labels"])
    head.shard_labels(square["labels"])  # again, as Lightning does before every run
    with pytest.raises(RuntimeError, match="sharded already, over another"):
        head.shard_labels(square["rows"])
    with pytest.raises(ValueError, match="chunks of 2 labels, and 3 labels"):
        MultiLabelHead(WIDTH, 6, update=ChunkAdafactor(chunk_labels=2)).shard_labels(mesh)
    lists = [[0], [2]]
    with pytest.raises(ValueError, match=r"different batches: \[2, 1\] samples with \[2, 1\] labels"):
        head(torch.zeros(2 - rank, WIDTH), lists[: 2 - rank])
    head.loss.validate = "always"
    with pytest.raises(ValueError, match="different batches"):
        head(torch.zeros(1, WIDTH), [[rank]])
    head.weight = nn.Parameter(head.weight.full_tensor())
    with pytest.raises(RuntimeError, match="register_fsdp_forward_method"):
        head(torch.zeros(1, WIDTH), [[1]])


def save_load_and_refuse(rank, folder):
    checkpoints(rank, folder)
    refused(rank)
    return on_no_device(rank)


def test_state_of_a_sharded_head_fits_a_whole_one_and_mistakes_are_refused(on_two_ranks, tmp_path):
    first, second = on_two_ranks(save_load_and_refuse, str(tmp_path / "head"))
    assert first == second and "ChunkSGD" in str(first) and "mesh" not in str(first)
