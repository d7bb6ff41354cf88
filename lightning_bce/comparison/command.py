"""lightning-bce compare: many losses, one verdict."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from lightning_bce.comparison.compare import Comparison, check_jobs, compare, cores, judged, make_missing, settings_of
from lightning_bce.comparison.planning import Plan, plan
from lightning_bce.comparison.progress import duration
from lightning_bce.comparison.report import require_all, write_report
from lightning_bce.comparison.rows import SplitRows
from lightning_bce.comparison.store import read
from lightning_bce.comparison.tables import markdown, plan_table, shown
from lightning_bce.comparison.training import train
from lightning_bce.spec import SpecError
from lightning_bce.suggest import nearest_flag, nearest_name, shortened

DONE, FAILED, USAGE, NOT_BETTER, INTERRUPTED = 0, 1, 2, 3, 130


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Print what is wrong and what may have been meant, and exit with status 2."""
        if (
            not self.exit_on_error
        ):  # a try, by jsonargparse itself: whether --data is one data module, a list or a mapping
            super().error(message, ex)
        loss = re.match(r"'lightning_bce\.losses\.(\w+)' should name", message)
        hint = nearest_flag(message, self) or nearest_name(f"Given value: {loss[1]}" if loss else message)
        sys.stderr.write(f"error: {shortened(message)}\n")
        if hint:
            sys.stderr.write(f"Did you mean {hint}?\n")
        sys.stderr.write("For all options: lightning-bce compare --help\n")
        raise SystemExit(USAGE)


def parser() -> ArgumentParser:
    """Return the parser, whose help on what :func:`compare` takes is that of its docstring."""
    made = _Parser(
        prog="lightning-bce compare",
        description="Train the same model with several losses on the same splits, and say which one wins, if any.",
        epilog="Status: 0 done, 1 a run failed, 2 wrong usage, 3 no loss is better (--fail_unless_better), 130 "
        "interrupted. The same command goes on with what is missing.",
    )
    made.add_argument("--config", action="config", help="A YAML file with any of these arguments.")
    made.add_argument(
        "--losses",
        nargs="+",
        type=str | dict[str, Any],
        default=[],
        help="Losses beside plain BCE, such as FocalLoss or 'FocalLoss(gamma=0.5)'; of your own by their path; in YAML "
        "also class_path and init_args.",
    )
    modules = pl.LightningDataModule
    made.add_argument(
        "--data",
        type=modules | list[modules] | dict[str, modules],  # type: ignore[valid-type]
        help="A data module, with the arguments of fit: --data TableDataModule --data.path FILE. Several by --data+= "
        "each; in YAML a list, or a mapping from names.",
    )
    made.add_subclass_arguments(
        torch.nn.Module,
        "model",
        skip={"in_features", "out_features"},
        default={"class_path": "lightning_bce.TabularMLP"},
        help="The backbone; in_features and out_features come from the data.",
    )
    made.add_subclass_arguments(
        torch.optim.Optimizer,
        "optimizer",
        skip={"params"},
        default={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        help="The optimizer.",
    )
    made.add_function_arguments(
        compare, as_group=False, skip={"losses", "data", "model", "optimizer", "progress"}, fail_untyped=True
    )
    made.add_argument(
        "--shard",
        help="i/n: make only the i-th of n shares of the runs, counted from 0, and no report. Machines with one folder "
        "in common share the work: --shard $SLURM_ARRAY_TASK_ID/8. Afterwards the same command without it reports.",
    )
    made.add_argument("--dry_run", action="store_true", help="Print what would be run and how long it takes at most.")
    made.add_argument("--markdown", action="store_true", help="Print the summary as Markdown instead of tables.")
    made.add_argument("--fail_unless_better", action="store_true", help="End with status 3 if no loss is better.")
    return made


def command(args: Sequence[str]) -> int:
    """Run ``lightning-bce compare ...``.

    Args:
        args: What stands after ``compare``.

    Returns:
        The status to exit with.

    Raises:
        SystemExit: With status 2 if the arguments are wrong.
    """
    made = parser()
    given = made.parse_args(list(args))
    options = given.as_dict()
    try:
        shard = _shard(options["shard"])
        if shard is not None and (options["dry_run"] or options["markdown"] or options["fail_unless_better"]):
            raise ValueError("`--shard` makes runs and judges nothing: give the other flags without it.")
        require_all()  # now, and not when all runs are made
        check_jobs(options["jobs"])
        planned = _plan(options)
        folder = Path(options["folder"])
        if not options["dry_run"]:
            folder.mkdir(parents=True, exist_ok=True)
    except (ValueError, TypeError, OSError, ImportError, SpecError) as error:
        made.error(str(error), error)
    if options["dry_run"]:
        _dry_run(planned, folder, options["jobs"])
        return DONE
    return _run(planned, folder, options, shard)


def _plan(options: dict[str, Any]) -> Plan:
    names = ("metric", "worth", "alpha", "max_epochs", "patience", "stop_by", "trials", "precision", "accelerator")
    if options["data"] is None:
        raise ValueError(
            "--data is missing. For the bundled digits: --data DigitsDataModule; for a table of yours: "
            "--data TableDataModule --data.path FILE."
        )
    if options["folds"] is not None and options["seeds"] != 5:
        raise ValueError("`--seeds` has no effect with `--folds`: give `--repeats`.")
    settings = settings_of(
        *(options[name] for name in ("model", "optimizer", "seeds", "folds", "repeats")),
        **{name: options[name] for name in names},
    )
    return plan(options["losses"], options["data"], settings)


def _run(planned: Plan, folder: Path, options: dict[str, Any], shard: tuple[int, int] | None) -> int:
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for one in planned.data:
        for remark in one.remarks:
            say(f"{one.name}: {remark}")
    count = len(planned.tasks)
    made = {"jobs": options["jobs"], "retry_failed": options["retry_failed"], "shard": shard, "announce": say}
    try:
        runs = make_missing(planned, folder, **made)
    except KeyboardInterrupt:
        finished = sum(read(folder / "runs", task) is not None for task in planned.tasks)
        say(f"Interrupted: {finished} of {count} runs are finished. The same command goes on from here.")
        return INTERRUPTED
    failed = [run for run in runs.values() if run.result["error"] is not None]
    if shard is not None:
        say(f"Share {shard[0]} of {shard[1]} is finished; {len(runs)} of {count} runs are there.")
        return FAILED if failed else DONE
    compared = judged(planned, runs)
    paths = write_report(compared, folder)
    _print(compared, options["markdown"])
    for task, error in compared.failures:
        say(f"failed: {task.data_name}, {task.specification['split']}, {task.label}: {error}")
    if not options["markdown"]:
        print(f"report: {paths[0]}")
    if failed:
        return FAILED
    return NOT_BETTER if options["fail_unless_better"] and not any(compared.better.values()) else DONE


def _print(compared: Comparison, as_markdown: bool) -> None:
    if as_markdown:
        print(markdown(compared), end="")
        return
    console = Console()
    for table in shown(compared):
        console.print(table.rich())
    print(compared)


def _dry_run(planned: Plan, folder: Path, jobs: int | None) -> None:
    settings = planned.settings
    left = {one.name: 0 for one in planned.data}
    for task in planned.tasks:
        left[task.data_name] += read(folder / "runs", task) is None
    recipe = {**planned.tasks[0].specification["recipe"], "max_epochs": 1}
    took = []
    for one in planned.data:
        rows = SplitRows(one.spec, settings.splits()[0])
        seconds = [train(rows, planned.losses[0].spec, recipe, settings.optimizer, 0).cpu_seconds for _ in range(2)]
        took.append(min(seconds) * settings.max_epochs * max(1, settings.trials))
    console = Console()
    console.print(plan_table(planned, took).rich())
    print("losses: " + ", ".join(candidate.label for candidate in planned.losses))
    whole = sum(seconds * left[one.name] for seconds, one in zip(took, planned.data, strict=True))
    processes = jobs or cores()
    print(
        f"{sum(left.values())} of {len(planned.tasks)} runs are to be made, {processes} at a time: at most "
        f"{duration(whole / processes)}, if every one takes all {settings.max_epochs} epochs."
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and int(first) < int(second)):
        raise ValueError(f"`--shard` is {text!r}; i/n was expected, such as 0/8, with i from 0 to n - 1.")
    return int(first), int(second)
