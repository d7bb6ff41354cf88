"""A comparison as one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

from lightning_bce._version import __version__
from lightning_bce.comparison.compare import Comparison
from lightning_bce.comparison.pictures import draw_critical_difference, draw_differences
from lightning_bce.comparison.tables import all_scores, differences, markdown, over_all, ranked, write_runs
from lightning_bce.data.cells import require
from lightning_bce.files import whole_file

_DPI = 150
_PAGE = Path(__file__).with_name("page.html")


def write_report(compared: Comparison, folder: Path) -> list[Path]:
    """Write everything that a comparison leaves.

    Args:
        compared: What it came to.
        folder: Where ``report.html``, ``summary.md``, ``runs.csv``, ``runs.parquet`` and the pictures go.

    Returns:
        The paths.

    Raises:
        ImportError: If polars or matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {name: _png(figure) for name, figure in _figures(compared).items()}
    paths = write_runs(compared, folder)
    for name, content in pictures.items():
        paths.append(_written(folder / f"{name}.png", content))
    paths.append(_written(folder / "summary.md", markdown(compared).encode()))
    return [_written(folder / "report.html", html(compared, pictures).encode()), *paths]


def require_all() -> None:
    """Refuse what :func:`write_report` would miss at the end of a long comparison.

    Raises:
        ImportError: With what to install.
    """
    require("polars")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The pictures of a comparison need matplotlib: pip install 'lightning_bce[compare]'.")


def _figures(compared: Comparison) -> dict[str, Any]:
    figures = {"differences": draw_differences(compared), "critical_difference": draw_critical_difference(compared)}
    return {name: figure for name, figure in figures.items() if figure is not None}


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def _written(path: Path, content: bytes) -> Path:
    with whole_file(path) as file:
        file.write(content)
    return path


def html(compared: Comparison, pictures: dict[str, bytes]) -> str:
    """Return the report.

    Args:
        compared: What is reported.
        pictures: "differences" and, over several data sets, "critical_difference", as PNG.
    """
    from jinja2 import Environment  # which torch needs too

    settings = compared.plan.settings
    encoded = {name: base64.b64encode(content).decode() for name, content in pictures.items()}
    return (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(_PAGE.read_text(encoding="utf-8"))
        .render(
            version=__version__,
            settings=settings,
            losses=[candidate.label for candidate in compared.plan.losses],
            data=compared.plan.data,
            verdicts=compared.verdicts,
            over=compared.verdict_over_data,
            summary=over_all(compared),
            ranks=ranked(compared),
            tables={j.name: [differences(j, compared), all_scores(j, compared)] for j in compared.judgements},
            pictures=encoded,
            failures=[
                (f"{task.data_name}, {task.label}, {task.specification['split']}", e) for task, e in compared.failures
            ],
            splits=compared.judgements[0].splits,
            spaces=_spaces(compared),
        )
    )


def _spaces(compared: Comparison) -> list[tuple[str, str]]:
    """Return what was searched for each loss."""
    found: dict[str, str] = {}
    for task in compared.plan.tasks:
        search = task.specification["search"]
        if search is not None:
            found[task.label] = ", ".join(
                f"{name} {low:g} to {high:g}{' (log)' if log else ''}"
                for name, (low, high, log) in search["space"].items()
            )
    return list(found.items())
