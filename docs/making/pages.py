"""Hooks of the site's build: MathML instead of a script, the public names of a room, links that leave the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
NAMES = re.compile(r"^<!-- names of ([\w.]+) -->$", re.M)
LEAVING = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """Let ```` ```math ```` and `` `#!math ...` `` become MathML while the site is built."""
    formats = config.mdx_configs
    formats.setdefault("pymdownx.superfences", {})["custom_fences"] = [
        {"name": "math", "class": "formula", "format": _block}
    ]
    formats.setdefault("pymdownx.inlinehilite", {})["custom_inline"] = [
        {"name": "math", "class": "formula", "format": _inline}
    ]
    return config


def _block(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="formula">{convert(source, display="block")}</div>'


def _inline(source: str, *_: Any, **__: Any) -> str:
    return convert(source)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Write out the names of a room, and name the files that are not pages instead of linking to them."""
    here = Path(page.file.src_path).parent
    return NAMES.sub(_room, LEAVING.sub(lambda found: _link(found, here), markdown))


def _room(found: re.Match[str]) -> str:
    return "\n\n".join(f"::: {path}" for path in public_names(found[1]))


def public_names(module: str) -> list[str]:
    """Return what a room hands out, by where it is defined: a function may share its name with its file."""
    path = ROOT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    handed = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in body
        if isinstance(node, ast.ImportFrom) and path.name == "__init__.py"
        for alias in node.names
    }
    own = {node.name: f"{module}.{node.name}" for node in body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    found = {name: path for name, path in (handed | own).items() if not name.startswith("_")}
    return [found[name] for name in sorted(found, key=str.lower)]


def _link(found: re.Match[str], here: Path) -> str:
    """Return a link to a page as it is, and one to a file of the repository as that file's name."""
    text, target = found[1], found[2]
    path = (ROOT / "docs" / here / target).resolve()
    if path.is_relative_to(ROOT / "docs"):
        return found[0]
    if not path.exists():
        raise FileNotFoundError(f"`{here}` links to {target}, which is not in the repository.")
    name = path.relative_to(ROOT).as_posix()
    return f"`{name}`" if text.strip("`") in name else f"{text} (`{name}`)"
