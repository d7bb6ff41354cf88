"""Each test has a folder with a table and with losses of a user's own, which worker processes can import too."""

import sys
from pathlib import Path

import polars  # noqa: F401  these two set variables of the environment when first imported, which is no test's leak
import pytest
import sklearn.datasets  # noqa: F401
from comparing import LOSSES, OWN, write_table


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, from which own losses are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / f"{OWN}.py").write_text(LOSSES)
    write_table(tmp_path / "table.csv", 0)
    return tmp_path
