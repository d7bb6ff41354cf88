"""All runs of a plan: those that are there already are kept, the others go to processes with one thread each."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from lightning_bce.comparison import store
from lightning_bce.comparison.running import make
from lightning_bce.comparison.store import Run, Task

Report = Callable[[Task, Run], None]

_THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def run_all(tasks: Sequence[Task], folder: Path, jobs: int, report: Report) -> None:
    """Make the runs, each written before it is reported.

    Args:
        tasks: What is missing.
        folder: Where runs and searches lie.
        jobs: How many processes. One is this process itself.
        report: Called after each run, in this process.

    Raises:
        KeyboardInterrupt: After the processes were ended; what is finished stays, and nothing is half written.
    """
    if jobs == 1:
        with _one_thread():
            for task in tasks:
                report(task, run_one(task, folder))
        return
    suspects = _in_processes(tasks, folder, jobs, report)
    for task in suspects:  # alone, so that it takes no other one with it
        if _in_processes([task], folder, 1, report):
            said = {"loss": task.label, "data": task.data_name, **task.specification["split"]}
            run = Run({**said, "error": "The process of this run was killed twice, perhaps for its memory."}, {})
            store.write(folder / "runs", task, run)
            report(task, run)


def run_one(task: Task, folder: Path) -> Run:
    """Make a run and write it."""
    run = make(task, folder)
    store.write(folder / "runs", task, run)
    return run


def _in_processes(tasks: Sequence[Task], folder: Path, jobs: int, report: Report) -> list[Task]:
    """Make the runs in processes and return those that were lost when one died."""
    lost: list[Task] = []
    todo = list(reversed(tasks))
    while todo:
        with _environment(_THREADS):
            pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin)
            running: dict[Future[Run], Task] = {}
            try:
                while todo or running:
                    # No more than there are processes: what has begun when one dies is known.
                    while todo and len(running) < jobs:
                        running[pool.submit(run_one, todo[-1], folder)] = todo[-1]
                        todo.pop()  # after it was taken: a pool that has just broken takes none
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        run = future.result()
                        report(running.pop(future), run)
            except BrokenProcessPool:
                for future, task in running.items():
                    if future.done() and future.exception() is None:
                        report(task, future.result())
                    else:
                        lost.append(task)
            except BaseException:
                _end(pool)
                raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    return lost


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()


def _begin() -> None:
    """Prepare a process: one thread, deaf to Ctrl-C, which the first process answers, and gone when that one is."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    parent = parent_process()
    if parent is not None:
        # After a kill -9 nobody would tell it to end, and it would wait for work for ever.
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that a process reads when it starts."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class TimeLeft:
    """Guesses how long the rest takes, from the runs that are finished.

    Args:
        tasks: All that are to be made.

    Example:
        >>> TimeLeft([]).seconds() is None
        True
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._left: dict[str, int] = {}
        for task in tasks:
            self._left[task.data_name] = self._left.get(task.data_name, 0) + 1
        self._took: dict[str, list[float]] = {}
        self._before = time.perf_counter()

    def add(self, task: Task) -> None:
        """Note that a run is finished."""
        now = time.perf_counter()
        self._left[task.data_name] -= 1
        # Not below 0 on a machine whose clock goes back.
        self._took.setdefault(task.data_name, []).append(max(0.0, now - self._before))
        self._before = now

    def seconds(self) -> float | None:
        """Return the seconds that are left; None as long as nothing is finished.

        The gap between two finished runs counts, whichever process made them; a data set of which none is finished yet
        is taken for as slow as the mean of the others.
        """
        gaps = [gap for took in self._took.values() for gap in took]
        if not gaps:
            return None
        mean = sum(gaps) / len(gaps)
        return sum(
            count * (sum(took) / len(took) if (took := self._took.get(name)) else mean)
            for name, count in self._left.items()
        )
