"""Losses and tracker in loops of one's own: plain torch, and Lightning Fabric on one process and on two.

    python examples/own_loops.py

No Trainer and no LightningModule. Labels are unknown here and there and the batches uneven, so that a mean of the
means of batches and ranks would be another number than the mean over all known labels; `Window` makes it that mean.
Printed is how far each cut is from the plain loop, which takes all rows of a step at once.
"""

from __future__ import annotations

import math

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_bce import FocalLoss, LossTracker
from lightning_bce.window import Window

LABELS, STEP, EPOCHS = 3, 13, 4


def rows() -> tuple[Tensor, Tensor]:
    """Return 37 samples, of whose labels two in five are unknown."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(37, 5, dtype=torch.float64, generator=generator)
    target = (inputs[:, :LABELS] > 0.5).double()
    return inputs, target.where(torch.rand(target.shape, generator=generator) > 0.4, math.nan)


def parts_of_a_loop() -> tuple[nn.Module, torch.optim.Optimizer, FocalLoss, LossTracker]:
    """Return what every loop begins with."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, LABELS)).double()
    loss = FocalLoss(gamma=1.5, ignore_index=math.nan)
    return model, torch.optim.SGD(model.parameters(), lr=0.5), loss, LossTracker(loss, num_labels=LABELS)


def plain() -> tuple[list[float], float]:
    """Train with torch alone; return the weights and the exact loss over all rows."""
    model, optimizer, loss, tracker = parts_of_a_loop()
    inputs, target = rows()
    for _ in range(EPOCHS):
        for step in torch.arange(len(inputs)).split(STEP):
            loss(model(inputs[step]), target[step]).backward()
            optimizer.step()
            optimizer.zero_grad()
    for step in torch.arange(len(inputs)).split(STEP):
        tracker.update(model(inputs[step]).detach(), target[step])
    return weights_of(model), tracker.compute()["loss"].item()


def with_fabric(fabric: Fabric, accumulate: int) -> tuple[list[float], float]:
    """Train the same with Fabric, in so many batches a step on each rank; return the same."""
    model, optimizer, loss, tracker = parts_of_a_loop()
    model, optimizer = fabric.setup(model, optimizer)
    inputs, target = rows()
    window, parts = Window(), accumulate * fabric.world_size

    def over_ranks(value: Tensor) -> Tensor:
        summed = fabric.all_reduce(value, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def own(step: Tensor) -> list[Tensor]:  # uneven: 13 rows in 4 parts
        return list(torch.tensor_split(step, parts))[fabric.global_rank :: fabric.world_size]

    for _ in range(EPOCHS):
        for step in torch.arange(len(inputs)).split(STEP):
            window.reset()
            for number, batch in enumerate(own(step)):
                waits = number < accumulate - 1 and fabric.world_size > 1
                with fabric.no_backward_sync(model, enabled=waits):
                    sums = loss.sums(model(inputs[batch]), target[batch])
                    window.note(loss, sums.detach(), target[batch], mask=None)
                    fabric.backward(window.weigh(sums.mean() / accumulate, parts, over_ranks))
            window.close(parts, over_ranks, [optimizer])
            optimizer.step()
            optimizer.zero_grad()
    for step in torch.arange(len(inputs)).split(STEP):
        for batch in own(step):
            tracker.update(model(inputs[batch]).detach(), target[batch])
    return weights_of(model), tracker.compute()["loss"].item()  # over all ranks


def weights_of(model: nn.Module) -> list[float]:
    """Return all weights as numbers, which outlive the process that computed them."""
    return torch.cat([weight.detach().flatten() for weight in model.parameters()]).tolist()


def main(cuts: tuple[tuple[int, int], ...] = ((1, 1), (1, 3), (2, 2))) -> None:
    """Print how far each cut, of so many processes and batches a step, is from the plain loop."""
    weights, loss = plain()
    print(f"{'a step of 13 rows in':<28}{'weights':>10}{'loss':>10}")
    for processes, accumulate in cuts:
        strategy = "ddp_spawn" if processes > 1 else "auto"
        fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
        found, found_loss = fabric.launch(with_fabric, accumulate)
        away = max(abs(a - b) for a, b in zip(found, weights, strict=True))
        name = f"{processes} process{'es' * (processes > 1)} x {accumulate} batch{'es' * (accumulate > 1)}"
        print(f"{name:<28}{away:>10.1e}{abs(found_loss - loss):>10.1e}")


if __name__ == "__main__":
    main()
