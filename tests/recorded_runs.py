"""Records of small trainings, for what draws them: the numbers are counted here, element by element."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lightning_bce import BinaryLoss, FocalLoss
from lightning_bce.record import Evaluation, Hardness, LossDistribution, Reliability, Scores, write_evaluation

P_EDGES = torch.linspace(0, 1, 21, dtype=torch.float64)
LOSS_EDGES = torch.cat([torch.zeros(1), torch.logspace(-6, 1.5, 76), torch.tensor([math.inf])]).double()
SCORE_EDGES = torch.cat([torch.tensor([-math.inf]), torch.linspace(-12, 12, 241), torch.tensor([math.inf])]).double()
R_EDGES = torch.linspace(0, 1, 16, dtype=torch.float64)


def _histogram(values: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    """Return the sums of weights, (N, C), by the bin of a value, (C, B)."""
    bins, labels = len(edges) - 1, values.shape[1]
    at = (torch.bucketize(values.contiguous(), edges, right=True) - 1).clamp(0, bins - 1) + bins * torch.arange(labels)
    sums = torch.zeros(labels * bins, dtype=torch.float64).index_add(0, at.flatten(), weights.double().flatten())
    return sums.reshape(labels, bins)


def evaluation_of(
    logits: Tensor, target: Tensor, loss: BinaryLoss, names: list[str], stage: str, epoch: int, threshold: float = 0.5
) -> Evaluation:
    """Count everything that a record holds, of logits and 0/1 targets, (N, C)."""
    logits = logits.detach().double().requires_grad_()
    losses = loss.elementwise(logits, target.double())
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    logits, losses = logits.detach(), losses.detach()
    sides = [target == 0, target == 1]
    p = logits.sigmoid()
    p_t = torch.where(target == 1, p, 1 - p)
    decided = p > threshold

    def by_side(values: Tensor) -> Tensor:
        return torch.stack([torch.where(side, values, 0.0).sum(0) for side in sides], dim=1)

    def binned(at: Tensor, edges: Tensor, values: Tensor) -> Tensor:
        return torch.stack([_histogram(at, edges, torch.where(side, values, 0.0)).sum(0) for side in sides])

    ones = torch.ones_like(losses)
    return Evaluation(
        stage=stage,
        epoch=epoch,
        step=7 * (epoch + 1),
        loss_name=repr(loss),
        labels=names,
        loss=by_side(losses),
        weight=by_side(ones),
        gradient=by_side(gradient),
        metrics={
            f"{stage}_loss": float(losses.mean()),
            f"{stage}_Accuracy": float((decided == (target == 1)).double().mean()),
        },
        hardness=Hardness(P_EDGES, *(binned(p_t, P_EDGES, v) for v in (ones, losses, gradient.abs()))),
        distribution=LossDistribution(LOSS_EDGES, *(binned(losses, LOSS_EDGES, v) for v in (ones, losses))),
        scores=Scores(
            SCORE_EDGES,
            torch.stack([_histogram(logits, SCORE_EDGES, side.double()) for side in sides], dim=1),
        ),
        reliability=Reliability(R_EDGES, *(_histogram(p, R_EDGES, v) for v in (ones, p, target.double()))),
        threshold=torch.full((len(names),), threshold, dtype=torch.float64),
        confusion=torch.stack(
            [torch.stack([(side & (decided == d)).sum(0) for d in (False, True)], dim=-1) for side in sides], dim=1
        ).double(),
    )


@functools.cache
def trained(labels: int = 1, epochs: int = 6, samples: int = 600) -> tuple[Evaluation, tuple[Evaluation, ...]]:
    """Train a small network on labels of falling frequency, and return its last validation and the history."""
    generator = torch.Generator().manual_seed(labels)
    samples = samples if labels < 100 else samples // 2
    x = torch.randn(2 * samples, 8, generator=generator)
    direction = torch.randn(8, labels, generator=generator)
    noise = torch.randn(2 * samples, labels, generator=generator) * torch.linspace(0.3, 2.5, labels)
    rare = torch.linspace(0.75, 0.98, labels)
    scores = x @ direction + noise + (x[:, :1] * x[:, 1:2])
    target = (scores > torch.stack([scores[:, c].quantile(float(rare[c])) for c in range(labels)])).float()
    names = ["fraud"] if labels == 1 else [f"label {i}" for i in range(labels)]
    if labels >= 5:
        target[:, -1] = 0  # a label that nobody has
        names[-1] = "never"
    loss = FocalLoss(gamma=2.0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, labels))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in model[::2]:
            layer.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    history = []
    for epoch in range(epochs):
        for batch in range(0, samples, 60):
            rows = slice(batch, batch + 60)
            optimizer.zero_grad()
            loss(model(x[rows]), target[rows]).backward()
            optimizer.step()
        for stage, rows in (("train", slice(0, samples)), ("val", slice(samples, None))):
            history.append(evaluation_of(model(x[rows]), target[rows], loss, names, stage, epoch))
    return history[-1], tuple(history)


def write_run(folder, labels: int = 1, epochs: int = 3) -> Evaluation:
    """Write the record of such a training, and return its last validation."""
    evaluation, history = trained(labels, epochs)
    for line in history:
        write_evaluation(folder, line)
    return evaluation
