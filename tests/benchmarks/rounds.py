"""All contenders at one number of threads and one dtype: checked, then measured in turns."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from contenders import Contender, Mean, others, ours
from measuring import batch, check, errors, free_gigabytes, in_turns, one_call, peak_extra, reference

LARGEST_FOR_MEMORY = 2**24  # which shows it well; beyond, a call takes its time and an element no more than here
MULTIPLICATION, LIMIT = "one multiplication", "physical limit"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of one process."""
    threads, dtype = options.threads[0], getattr(torch, options.dtypes[0])
    torch.set_num_threads(threads)
    made, rows = [], []
    for contender in ours() + others():
        if options.only and contender.name not in options.only:
            continue
        try:
            made.append((contender, contender.make()))
        except ImportError as error:
            rows.append({"family": contender.family, "contender": contender.name, "status": f"not installed: {error}"})
    for elements in sorted(options.sizes):
        print(f"  {elements:,} elements", file=sys.stderr, flush=True)
        need = {row["contender"]: row["extra_bytes_per_element"] for row in rows if row.get("extra_bytes_per_element")}
        fitting = []
        for contender, function in made:
            gigabytes = need.get(contender.name, 0) * elements / 1e9  # as at smaller sizes
            if gigabytes < free_gigabytes(options.device):
                fitting.append((contender, function))
            else:
                status = f"not run: needs {gigabytes:.0f} GB"
                rows.append(
                    {"family": contender.family, "contender": contender.name, "batch": elements, "status": status}
                )
        rows += of_size(elements, fitting, dtype, options)
    common = {"dtype": options.dtypes[0], "threads": threads, "device": options.device}
    return [found | common for found in rows]


def of_size(
    elements: int, made: list[tuple[Contender, Mean]], dtype: torch.dtype, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return the rows of one size: check each contender, measure its memory, then let all take turns."""
    logits, target = batch(elements, dtype, options.device)
    exact = {family: reference(family, logits, target) for family in {c.family for c, _ in made}}
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, dict[str, Any]] = {}
    for contender, function in made:
        if contender.labels > elements:
            continue
        leaf, labels = contender.of_logits(logits, target)
        off = errors(*one_call(function, leaf, labels), exact[contender.family])
        check(contender.name, off, dtype)

        def call(function: Mean = function, leaf: Any = leaf, labels: Any = labels) -> object:
            return one_call(function, leaf, labels)

        calls[contender.name] = call
        extra = peak_extra(call, options.device, elements) if elements <= LARGEST_FOR_MEMORY else None
        found[contender.name] = {
            "family": contender.family,
            "labels": contender.labels,
            "elements": leaf.numel(),
            "extra_bytes_per_element": None if extra is None else extra / leaf.numel(),
            "value_error": off[0],
            "gradient_error": off[1],
        }
    exact.clear()
    into = torch.empty_like(logits)
    floor = {"family": "floor", "elements": elements}
    found[MULTIPLICATION], calls[MULTIPLICATION] = dict(floor), lambda: logits * target
    found[LIMIT], calls[LIMIT] = dict(floor), lambda: into.copy_(logits)
    times = in_turns(calls, options.device, options.repeats, options.seconds)
    # A copy reads one and writes one; a loss reads two and writes one.
    times[LIMIT] = [1.5 * seconds for seconds in times[LIMIT]]
    rows = [
        {"contender": name, "batch": elements, **found[name], **_summary(times[name], found[name]["elements"])}
        for name in calls
    ]
    return _with_ratios(rows)


def _summary(times: list[float], elements: int) -> dict[str, Any]:
    median = statistics.median(times)
    return {
        "status": "measured",
        "rounds": len(times),
        "median_s": median,
        "min_s": min(times),
        "ns_per_element": 1e9 * median / elements,
    }


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their time over that of our fused loss of the same family, for the floor the focal loss."""
    fused = {row["family"]: row["ns_per_element"] for row in rows if row["contender"].endswith(", fused")}
    fused["floor"] = fused.get("focal")
    for row in rows:
        ours = fused.get(row["family"])
        row["ratio_to_fused"] = row["ns_per_element"] / ours if ours else None
    return rows
