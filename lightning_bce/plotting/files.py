"""Figures as the bytes of a file."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_DATES = {"svg": "Date", "pdf": "CreationDate"}


def rendered(figure: Figure, kind: str = "png", text_as_text: bool = False) -> bytes:
    """Return a figure as a file; the same figure gives the same bytes.

    Args:
        figure: matplotlib's.
        kind: "png", "svg" or "pdf".
        text_as_text: Whether an SVG keeps letters as text, for the fonts of a browser, instead of as outlines.
    """
    import matplotlib

    file = io.BytesIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none" if text_as_text else "path", "svg.hashsalt": "lightning_bce"}
    metadata = {_DATES[kind]: None} if kind in _DATES else {}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        if text_as_text:  # the browser has other fonts
            warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
    return file.getvalue()
