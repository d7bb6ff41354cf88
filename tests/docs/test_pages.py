"""What the pages of docs/ and the README show is run: each page from top to bottom, in one process and one folder.

A block that is not run says why in a comment before it: `<!-- not run: why -->`. A block of text after
`<!-- printed -->` is what the blocks before it print, but for numbers, which differ between machines, and "...".
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import sklearn.datasets  # noqa: F401  sets a variable of the environment when first imported, which is no test's leak
import torch

from lightning_bce.cli import main

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if re.search(r"^ *```(python|bash)\n", path.read_text(), re.M))
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<source>.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


@dataclass
class Block:
    """A block of a page: its language, its source, and what the comment before it says."""

    language: str
    source: str
    mark: str


def blocks_of(text: str) -> list[Block]:
    return [Block(found["language"], found["source"], found["mark"] or "") for found in BLOCK.finditer(text)]


def quick(source: str) -> str:
    """Return Python that trains one epoch on the CPU where it would train twenty."""
    return source.replace("max_epochs=20", "max_epochs=1, accelerator='cpu', logger=False")


def commands_of(source: str) -> list[str]:
    lines = source.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def run_command(line: str, short: bool) -> None:
    """Run a line of a shell; our own command within this process, which has all imported already."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "lightning-bce":
        subprocess.run(["bash", "-euc", line], check=True)
        return
    if short and arguments[0] == "fit":
        arguments.append(f"--trainer.max_epochs={2 if '--ckpt_path' in line else 1}")
    if short and arguments[0] == "compare":
        arguments.append("--dry_run")  # the plan and every argument; tests/comparison runs what is planned
    try:
        main(arguments)
    except SystemExit as stopped:  # what a command does that has nothing more to say
        assert not stopped.code, f"{line} ended with {stopped.code}"
    if arguments[0] == "fit":  # the pages write best.ckpt for the reader's own
        shutil.copy(max(Path("runs").glob("**/best.ckpt"), key=lambda path: path.stat().st_mtime), "best.ckpt")


def run_page(text: str, short: bool, printed_so_far) -> dict[str, object]:
    """Run the blocks of a page and return the names of its Python."""
    names: dict[str, object] = {}
    shown = ""
    for block in blocks_of(text):
        if block.mark.startswith("not run: "):
            continue
        if block.language == "python":
            exec(quick(block.source) if short else block.source, names)
        elif block.language == "bash":
            for line in commands_of(block.source):
                run_command(line, short)
        elif block.language == "text" and block.mark == "printed":
            shown += printed_so_far()
            for line in block.source.splitlines():
                assert line.strip() in ("", "...") or like(line) in map(like, shown.splitlines()), line
    return names


def like(line: str) -> str:
    """Return a line without its numbers, the bars that show them, and the spaces that they need."""
    return re.sub(r"[\s#-]+", " ", NUMBER.sub("0", line)).strip()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the pages speak of, small, and the variables that Lightning would leave."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("examples").symlink_to(DOCS.parent / "examples")
    Path("my_file.py").write_text(
        "from lightning_bce import BCEWithLogitsLoss\n\n\nclass MyLoss(BCEWithLogitsLoss):\n    pass\n"
    )
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(240, 4, generator=random)
    labels = (inputs @ torch.randn(4, 14, generator=random) > 1.0).int()
    columns = {f"x{i}": inputs[:, i].numpy() for i in range(4)}
    pl.DataFrame(columns | {"fraud": labels[:, 0].numpy()}).write_csv("fraud.csv")
    pl.DataFrame(columns).write_csv("new.csv")
    pl.DataFrame(columns | {"fraud": labels[:, 0].numpy()}).with_columns(
        pl.when(pl.col("fraud") == 1).then(pl.lit(">50K")).otherwise(pl.lit("<=50K")).alias("fraud")
    ).write_csv("adult.csv", include_header=False)
    tags = {f"tag{i}": labels[:, i].numpy() for i in range(3)}
    pl.DataFrame(columns | tags).write_csv("tags.csv")
    unknown = (torch.rand(240, 3, generator=random) < 0.3).numpy()
    pl.DataFrame(
        columns
        | {
            name: [None if u else int(v) for u, v in zip(unknown[:, i], tags[name], strict=True)]
            for i, name in enumerate(tags)
        }
    ).write_csv("gaps.csv")
    Path("folder").mkdir()
    pl.DataFrame(columns | {"fraud": labels[:, 0].numpy()}).write_parquet("folder/part.parquet", row_group_size=60)
    for name in ("train.arff", "test.arff"):
        names = [f"@attribute x{i} numeric" for i in range(4)] + [f"@attribute t{i} {{0,1}}" for i in range(14)]
        rows = [",".join(map(str, [*row.tolist(), *marks.tolist()])) for row, marks in zip(inputs, labels, strict=True)]
        Path(name).write_text("\n".join(["@relation tags", *names, "@data", *rows]) + "\n")


@pytest.fixture
def printed_so_far(capsys):
    return lambda: capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*recall_at_precision")  # out of reach after one epoch, which is told
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_runs(page, printed_so_far):
    run_page(page.read_text(encoding="utf-8"), page.name != "tutorial.md", printed_so_far)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_is_not_run_says_why(page):
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.language in ("python", "bash") and block.mark:
            assert len(block.mark.removeprefix("not run: ").split()) > 2, block.mark


@pytest.mark.parametrize(
    "page",
    [
        "```python\nassert False\n```",
        "```bash\nfalse\n```",
        "```bash\nlightning-bce fit --data.path missing.csv\n```",
        "```python\nprint('loss 0.5')\n```\n<!-- printed -->\n```text\nloss of 0.5\n```",
    ],
)
def test_a_wrong_block_is_found(page, printed_so_far):
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        run_page(page, True, printed_so_far)


def test_numbers_may_differ_and_blocks_share_their_names(printed_so_far):
    page = "```python\nx = 3\n```\n<!-- not run: there is none -->\n```bash\nfalse\n```\n"
    page += "```python\nprint('loss', x)\n```\n"
    names = run_page(page + "<!-- printed -->\n```text\nloss 4.5e-3\n...\n```", True, printed_so_far)
    assert names["x"] == 3
