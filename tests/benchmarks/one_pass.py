"""Time and peak memory of value and gradient, ours and others', side by side: the table of docs/speed.md, CSV and plot.

python tests/benchmarks/one_pass.py --output docs

Forward and backward of a mean over elements. In one process for each number of threads and dtype, all contenders are
checked against the formula in float64, and then take turns; the table holds the medians. Peers that are not installed
say so. The physical limit reads logits and target and writes the gradient once, at the bandwidth of a copy that takes
its turn with the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import FAMILIES, headline, print_tables, write_csv, write_plot

SIZES = [1_000, 2**14, 2**17, 2**20, 2**24, 2**26]
MOST_SIZES = 8  # as often torch.compile begins anew


def main(arguments: list[str]) -> None:
    """Measure in fresh processes, write and print."""
    options = parser().parse_args(arguments)
    if len(options.sizes) > MOST_SIZES:
        raise SystemExit(f"--sizes has {len(options.sizes)} sizes; at most {MOST_SIZES} can be compiled in one run.")
    if options.worker:
        from rounds import measure  # only here, because it loads torch

        options.worker.write_text(json.dumps(measure(options)))
        return
    if options.quick:
        options.sizes, options.threads, options.dtypes, options.seconds = SIZES[:4], [1], ["float32"], 2.0
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        for dtype in options.dtypes:
            print(f"{threads} thread{'s' * (threads > 1)}, {dtype} ...", file=sys.stderr, flush=True)
            rows += in_a_process(options, threads, dtype)
            rows.sort(key=lambda row: (FAMILIES.index(row["family"]), row["status"] != "measured"))
            write_csv(rows, options.output / "one_pass.csv")  # what there is, in case the next process is stopped
    if importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no plot.", file=sys.stderr)
    else:
        write_plot(rows, options.output / "one_pass.png")
    print_tables(rows)
    print(headline(rows))


def parser() -> argparse.ArgumentParser:
    """Return what the command line takes."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of elements")
    made.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of logits and target")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads")
    made.add_argument("--repeats", type=int, default=5, help="rounds at least")
    made.add_argument("--seconds", type=float, default=20.0, help="more rounds of a size while it took less than this")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--output", type=Path, default=Path("."), help="folder of one_pass.csv and one_pass.png")
    made.add_argument("--quick", action="store_true", help="a minute: one thread, float32, up to 2^20 elements")
    made.add_argument("--only", nargs="+", metavar="NAME", help="contenders, by their names in the table")
    made.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return made


def in_a_process(options: argparse.Namespace, threads: int, dtype: str) -> list[dict[str, Any]]:
    """Return the rows that a process of its own measures, which never had another number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, __file__, "--worker", str(found), "--threads", str(threads), "--dtypes", dtype]
        command += ["--sizes", *map(str, options.sizes), "--device", options.device]
        command += ["--repeats", str(options.repeats), "--seconds", str(options.seconds)]
        command += ["--only", *options.only] if options.only else []
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        measured: list[dict[str, Any]] = json.loads(found.read_text())
    return measured


if __name__ == "__main__":
    main(sys.argv[1:])
