"""The notebooks of examples/ run from an empty kernel, and are stored without what they print."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="nbclient and ipykernel are not installed: pip install -e '.[dev]'",
)


def read(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def test_the_notebooks_run(tmp_path):
    from nbclient import NotebookClient
    from traitlets.config import Config

    async def run(path):
        sockets = Config(KernelManager={"transport": "ipc", "ip": str(tmp_path / path.stem)})  # no port is opened
        notebook = read(path)
        resources = {"metadata": {"path": str(tmp_path)}}
        await NotebookClient(notebook, timeout=120, resources=resources, config=sockets).async_execute()
        return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]

    async def run_all():  # together: most of the time goes into imports
        return await asyncio.gather(*map(run, NOTEBOOKS))

    printed = dict(zip([path.stem for path in NOTEBOOKS], asyncio.run(run_all()), strict=True))
    assert all(printed.values()) and len(printed) == 2
    assert any("image/png" in output.get("data", {}) for output in printed["what_a_loss_does"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_what_it_prints(path):
    cells = read(path).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
