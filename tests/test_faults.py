"""The page of faults names tests that exist: what it promises is held by something."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| fault |", "| --- |"))
]


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_is_there():
    assert len(ROWS) == 140


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_fault_has_its_test(row):
    _, behaviour, tests = row
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert named or "as [the limits](limits.md) say" in behaviour
    for file, name in named:
        assert f"test_{name}" in functions(ROOT / "tests" / file), f"{file} has no test_{name}"
