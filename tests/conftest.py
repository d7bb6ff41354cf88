"""What every test gets: a seed, a guard against leaks, and a way to run a function on two ranks.

This file is also the program that each rank runs, because test modules cannot import one another, nor can a fresh
interpreter import them by name: it loads the test's file by its path.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would wait for one another
    os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start
    torch.set_num_threads(1)

RANKS = 2
SECONDS = 120

# pytest writes the name of the running test, inductor where it keeps its cache and where an object lies, Lightning the
# seed it was given.
WRITTEN_BY_TOOLS = {
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "TORCHINDUCTOR_CACHE_DIR",
    "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
}

# What hypothesis tries: the same few examples each time, or by `HYPOTHESIS_PROFILE=long pytest` others each time and
# many. No time limit for one example, which a busy machine would miss.
settings.register_profile("ci", max_examples=8, derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=500, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# -- the guard against leaks ------------------------------------------------------------------------------------------


def global_state() -> dict[str, Any]:
    """Return what a test has to leave as it was."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "process group": torch.distributed.is_available() and torch.distributed.is_initialized(),
        "environment": {name: value for name, value in os.environ.items() if name not in WRITTEN_BY_TOOLS},
    }


def restore(state: dict[str, Any]) -> None:
    """Put the global state back, so that one leak fails one test."""
    torch.set_grad_enabled(state["grad mode"])
    torch.set_default_dtype(state["default dtype"])
    torch.use_deterministic_algorithms(state["deterministic algorithms"])
    if not state["process group"] and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    kept = {name: os.environ[name] for name in WRITTEN_BY_TOOLS if name in os.environ}
    os.environ.clear()
    os.environ.update(state["environment"] | kept)


def leaks(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs, of the environment each variable."""
    names = [name for name in before if name != "environment" and before[name] != after[name]]
    old, new = before["environment"], after["environment"]
    return names + [f"${name}" for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """Seed torch, and fail a test that leaves a global switch turned."""
    torch.manual_seed(0)
    before = global_state()
    yield
    found = leaks(before, global_state())
    restore(before)
    if found:
        pytest.fail(f"The test left behind: {', '.join(found)}.")


@pytest.fixture
def leaks_of() -> Callable[[Callable[[], object]], list[str]]:
    """What a function leaves behind; the state is put back."""

    def run(function: Callable[[], object]) -> list[str]:
        before = global_state()
        try:
            function()
            return leaks(before, global_state())
        finally:
            restore(before)

    return run


# -- two ranks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Callable[..., list[Any]]:
    """Run a module-level ``function(rank, *arguments)`` on two ranks, of gloo, and return both results.

    Arguments and results travel through ``torch.save``. Each call costs the start of two interpreters, so one function
    does well to look at several things.
    """

    def run(function: Callable[..., Any], *arguments: Any, backend: str = "gloo") -> list[Any]:
        assert "<locals>" not in function.__qualname__, "a rank can only find a function at the top of its module"
        torch.save(arguments, tmp_path / "arguments.pt")
        call = [sys.executable, __file__, function.__code__.co_filename, function.__name__, str(tmp_path), backend]
        # One thread each: two ranks with all cores to themselves slow each other down.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        ranks = [
            subprocess.Popen(
                [*call, str(rank)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for rank in range(RANKS)
        ]
        try:
            told = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        failed = [
            f"rank {number} ended with {rank.returncode}:\n{text}"
            for number, (rank, text) in enumerate(zip(ranks, told, strict=True))
            if rank.returncode
        ]
        assert not failed, "\n".join(failed)  # all of them: one may have failed only because another did
        return [torch.load(tmp_path / f"result{rank}.pt", weights_only=False) for rank in range(RANKS)]

    return run


def run_rank(file: str, name: str, folder: str, backend: str, rank: str) -> None:
    """Call a function of a test file as one rank of a process group on this machine."""
    module_spec = importlib.util.spec_from_file_location("on_this_rank", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules["on_this_rank"] = module
    module_spec.loader.exec_module(module)
    arguments = torch.load(Path(folder) / "arguments.pt", weights_only=False)
    store = torch.distributed.FileStore(str(Path(folder) / "store"), RANKS)
    torch.distributed.init_process_group(backend, store=store, rank=int(rank), world_size=RANKS)
    try:
        torch.save(getattr(module, name)(int(rank), *arguments), Path(folder) / f"result{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_rank(*sys.argv[1:])
    # All is written. Some ranks abort at the interpreter's own end ("terminate called without an active exception"),
    # probably because a thread of gloo that lets go of a tensor waits for the lock that is gone.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
