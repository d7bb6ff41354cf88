"""Time and peak memory of a last layer with its loss, ours and others', for many labels.

python tests/benchmarks/heads.py --output docs

Forward and backward of the mean, float32, from lists of positive labels: the dense target is made in each step, as the
logits are, and the gradients are made anew. All contenders of a shape are checked against each other and take turns in
one process; the table holds the minima. Peak memory is that of a process of its own: the highest resident set above
what it held before the step, inputs and weights apart. The floor are the three matrix products, in chunks of labels.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders import ALPHA, CLIP, GAMMA, GAMMA_NEG, GAMMA_POS, compile_, published_asl, torch_bce, torchvision_focal
from measuring import VISIBLE, in_turns, peak_extra
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_bce import AsymmetricLoss, BCEWithLogitsLoss, FocalLoss
from lightning_bce.engine.memory import large_buffer
from lightning_bce.heads import ChunkSGD, MultiLabelHead, SparseTarget

SHAPES = ["4096x256", "32768x64", "32768x256", "131072x64", "131072x256", "131072x768", "670091x64", "670091x256"]
QUICK = ["4096x64", "32768x64"]
POSITIVES = 5
FLOOR = "floor: three matrix products"
BATCH_CHUNKS = (16, 32, 64, 128)
AGREE = 1e-4

Step = Callable[[], object]


class Problem:
    """Inputs, weights and positive labels of a shape."""

    def __init__(self, labels: int, width: int, batch: int) -> None:
        random = torch.Generator().manual_seed(0)
        self.labels, self.width, self.batch = labels, width, batch
        self.inputs = torch.randn(batch, width, generator=random).requires_grad_()
        self.weight = (torch.randn(labels, width, generator=random) / width**0.5).requires_grad_()
        self.bias = torch.full((labels,), -5.0).requires_grad_()
        self.positives = torch.randint(0, labels, (batch, POSITIVES), generator=random)
        self.target = SparseTarget.from_lists(self.positives, labels)  # as the collate function does

    def forget(self) -> None:
        """Let go of the gradients, as `zero_grad()` does."""
        self.inputs.grad = self.weight.grad = self.bias.grad = None

    def dense(self, rows: slice = slice(None)) -> Tensor:
        """Return the dense target."""
        positives = self.positives[rows]
        return torch.zeros(len(positives), self.labels).scatter_(1, positives, 1.0)


# -- contenders -------------------------------------------------------------------------------------------------------


def ours(problem: Problem, loss: Any) -> Step:
    """Return a step of the head, on the problem's own weights."""
    head = MultiLabelHead(1, problem.labels, loss)
    head.in_features = problem.width
    head.weight, head.bias = torch.nn.Parameter(problem.weight.detach()), torch.nn.Parameter(problem.bias.detach())
    problem.weight, problem.bias = head.weight, head.bias

    def step() -> Tensor:
        problem.forget()
        head.weight.grad = head.bias.grad = None
        value = head(problem.inputs, problem.target)
        value.backward()
        problem.weight.grad = head.weight.grad
        return value

    return step


def stepping(problem: Problem, loss: Any) -> Step:
    """Return a step of a head that moves its weights within the walk; by nothing, so that all rounds are alike."""
    head = MultiLabelHead(1, problem.labels, loss, update=ChunkSGD(lr=0.0))
    head.in_features = problem.width
    head.weight = torch.nn.Parameter(problem.weight.detach(), requires_grad=False)
    head.bias = torch.nn.Parameter(problem.bias.detach(), requires_grad=False)

    def step() -> Tensor:
        problem.forget()
        value = head(problem.inputs, problem.target)
        value.backward()
        return value

    return step


def dense(problem: Problem, loss: Any) -> Step:
    """Return a step of nn.Linear's formula with a dense target."""

    def step() -> Tensor:
        problem.forget()
        value: Tensor = loss(F.linear(problem.inputs, problem.weight, problem.bias), problem.dense())
        value.backward()
        return value

    return step


def whole_compiled(problem: Problem, loss: Any) -> Step:
    """Return the same with product and loss in one compiled function."""

    def of_all(inputs: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return loss(F.linear(inputs, weight, bias), target)  # type: ignore[no-any-return]

    compiled = compile_(lambda: of_all)  # type: ignore[arg-type,return-value]

    def step() -> Tensor:
        problem.forget()
        value: Tensor = compiled(problem.inputs, problem.weight, problem.bias, problem.dense())  # type: ignore[call-arg]
        value.backward()
        return value

    return step


def batch_chunks(problem: Problem, loss: Any, size: int) -> Step:
    """Return a step in chunks of samples, as fused softmax losses go."""

    def step() -> Tensor:
        problem.forget()
        total = torch.zeros(())
        for begin in range(0, problem.batch, size):
            rows = slice(begin, begin + size)
            logits = F.linear(problem.inputs[rows], problem.weight, problem.bias)
            value = loss(logits, problem.dense(rows)) * (len(logits) / problem.batch)
            value.backward()
            total += value.detach()
        return total

    return step


def floor(problem: Problem, chunk: int = 2048) -> Step:
    """Return the three matrix products alone."""
    memory = torch.empty(chunk, problem.batch)

    def step() -> Tensor:
        inputs, weight = problem.inputs.detach(), problem.weight.detach()
        of_weight = large_buffer(weight.shape, weight.dtype, weight.device)
        of_inputs = torch.zeros_like(inputs)
        for begin in range(0, problem.labels, chunk):
            some = weight[begin : begin + chunk]
            logits = memory[: len(some)]
            torch.mm(some, inputs.t(), out=logits)
            of_inputs.addmm_(logits.t(), some)
            torch.mm(logits, inputs, out=of_weight[begin : begin + chunk])
        return of_weight

    return step


def contenders(problem: Problem) -> dict[str, tuple[str, Callable[[], Step]]]:
    """Return family and maker of every contender by name; the names of ours come first."""
    focal = partial(FocalLoss, gamma=GAMMA, alpha=ALPHA, validate="off")
    asymmetric = partial(AsymmetricLoss, gamma_neg=GAMMA_NEG, gamma_pos=GAMMA_POS, clip=CLIP, validate="off")
    made: dict[str, tuple[str, Callable[[], Step]]] = {
        "head, BCE": ("bce", lambda: ours(problem, BCEWithLogitsLoss(validate="off"))),
        "head, focal": ("focal", lambda: ours(problem, focal())),
        "head, ASL": ("asl", lambda: ours(problem, asymmetric())),
        "head, BCE, SGD inside": ("stepping", lambda: stepping(problem, BCEWithLogitsLoss(validate="off"))),
        "dense torch BCE": ("bce", lambda: dense(problem, torch_bce)),
        "dense torch BCE, compiled": ("bce", lambda: whole_compiled(problem, torch_bce)),
        "dense torchvision focal": ("focal", lambda: dense(problem, torchvision_focal)),
        "dense torchvision focal, compiled": ("focal", lambda: whole_compiled(problem, torchvision_focal)),
        "dense published ASL": ("asl", lambda: dense(problem, published_asl)),
        "dense published ASL, compiled": ("asl", lambda: whole_compiled(problem, published_asl)),
        FLOOR: ("floor", lambda: floor(problem)),
    }
    for size in BATCH_CHUNKS:
        made[f"batch chunks of {size}, BCE"] = ("bce", partial(batch_chunks, problem, torch_bce, size))
    return made


# -- measuring --------------------------------------------------------------------------------------------------------


def measure(shape: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of a shape: all checked, then timed in turns, then the memory of each in its own process."""
    labels, width = sizes(shape)
    problem = Problem(labels, width, options.batch)
    made = {name: found for name, found in contenders(problem).items() if wanted(name, options)}
    steps = {name: make() for name, (_, make) in made.items()}
    first: dict[str, tuple[float, Tensor]] = {}
    for name, step in steps.items():
        value = step()
        if made[name][0] not in ("floor", "stepping"):  # which leave no gradient of the weights
            check(name, made[name][0], value, problem, first)
    problem.forget()
    times = in_turns(steps, "cpu", options.rounds, options.seconds)
    del steps
    gc.collect()
    least = min(times[FLOOR]) if FLOOR in times else None
    rows = []
    for name, (family, _) in made.items():
        memory = None if options.no_memory else in_a_process(name, shape, options)
        rows.append(
            {
                "shape": shape,
                "family": family,
                "contender": name,
                "rounds": len(times[name]),
                "min_ms": 1e3 * min(times[name]),
                "median_ms": 1e3 * statistics.median(times[name]),
                "times_the_floor": None if least is None else min(times[name]) / least,
                "extra_mib": memory,
                "weight_gradient_mib": labels * width * 4 / 2**20,
                "threads": torch.get_num_threads(),
                "batch": options.batch,
            }
        )
    return rows


def check(name: str, family: str, value: Any, problem: Problem, first: dict[str, tuple[float, Tensor]]) -> None:
    """Refuse a contender that computes something else than the first of its family.

    Raises:
        ValueError: With the difference.
    """
    gradient = problem.weight.grad
    assert gradient is not None
    some = torch.cat([problem.positives.flatten()[:64], torch.arange(64)])
    found = float(value.detach()), gradient[some].clone()
    right = first.setdefault(family, found)
    off = abs(found[0] / right[0] - 1), float((found[1] - right[1]).abs().max() / right[1].abs().max())
    if max(off) > AGREE:
        raise ValueError(
            f"{name} does not compute what its family does: its mean is off by {off[0]:.1e} and the weights' gradient "
            f"by {off[1]:.1e}; at most {AGREE:g} was expected."
        )


def in_a_process(name: str, shape: str, options: argparse.Namespace) -> float | None:
    """Return by how many MiB one step of a contender raises the memory of a fresh process."""
    command = [sys.executable, __file__, "--memory-of", name, "--shapes", shape, "--batch", str(options.batch)]
    run = subprocess.run([*command, "--threads", str(torch.get_num_threads())], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{name} failed in a process of its own:\n{run.stderr}")
    found: float | None = json.loads(run.stdout.splitlines()[-1])
    return found


def memory_of(name: str, shape: str, options: argparse.Namespace) -> float | None:
    """Return the same in this process, after a first step that leaves behind what stays: kernels and libraries."""
    problem = Problem(*sizes(shape), options.batch)
    step = contenders(problem)[name][1]()
    step()
    problem.forget()
    extra = peak_extra(step, "cpu", VISIBLE)
    return None if extra is None else extra / 2**20


def wanted(name: str, options: argparse.Namespace) -> bool:
    """Return whether a contender takes part."""
    return not options.only or any(part in name for part in options.only)


def sizes(shape: str) -> tuple[int, int]:
    """Return labels and width of a shape such as 131072x64."""
    labels, _, width = shape.partition("x")
    return int(labels), int(width)


# -- report -----------------------------------------------------------------------------------------------------------


def tell(rows: list[dict[str, Any]]) -> None:
    """Print the table of one shape."""
    first = rows[0]
    table = Table(title=f"{first['shape']}, batch {first['batch']}, threads: {first['threads']}")
    for column in ("", "least ms", "median", "x floor", "extra MiB"):
        table.add_column(column, justify="right" if table.columns else "left")
    best = min((r["min_ms"] for r in rows if r["contender"].startswith("batch chunks")), default=None)
    for row in rows:
        if row["contender"].startswith("batch chunks") and row["min_ms"] != best:
            continue  # at its best size only; the CSV has all
        ratio = "" if row["times_the_floor"] is None else f"{row['times_the_floor']:.2f}"
        extra = "" if row["extra_mib"] is None else f"{row['extra_mib']:.0f}"
        table.add_row(row["contender"], f"{row['min_ms']:.1f}", f"{row['median_ms']:.1f}", ratio, extra)
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def main(arguments: list[str]) -> None:
    """Measure, print and write."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shapes", nargs="+", default=SHAPES, help="labels x width")
    made.add_argument("--batch", type=int, default=256)
    made.add_argument("--threads", type=int, help="torch's own number if not given")
    made.add_argument("--rounds", type=int, default=8, help="at least")
    made.add_argument("--seconds", type=float, default=20.0, help="of turns for a shape, beyond the rounds")
    made.add_argument("--only", nargs="+", help="parts of the contenders' names")
    made.add_argument("--no-memory", action="store_true", help="time only")
    made.add_argument("--output", type=Path, help="folder for heads.csv")
    made.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}, three rounds: two minutes")
    made.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = made.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, options.shapes[0], options)))
        return
    if options.quick:
        options.shapes, options.rounds, options.seconds = QUICK, 3, 3.0
    rows: list[dict[str, Any]] = []
    for shape in options.shapes:
        print(f"{shape} ...", file=sys.stderr, flush=True)
        found = measure(shape, options)
        tell(found)
        rows += found
        torch.compiler.reset()  # each shape is compiled anew
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            with (options.output / "heads.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="torch")
    main(sys.argv[1:])
