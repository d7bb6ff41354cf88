"""Docstrings as the site's Markdown: formulas, references and examples, which are written for Sphinx and doctest."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod):`~?([\w.]+)`", re.S)
INLINE_FORMULA = re.compile(r":math:`([^`]+)`", re.S)
FORMULA = re.compile(r"^( *)\.\. math::[ \n](.*?)(?=\n *\n|\Z)", re.S | re.M)
# One heading of Google's style that griffe does not know in the singular.
EXAMPLE = re.compile(r"^( *)Example:$", re.M)


class FromSphinx(griffe.Extension):
    """Bring each docstring of the package into Markdown before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite what an object says of itself; griffe calls it for each."""
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(obj.docstring.value, obj)


def markdown_of(text: str, scope: griffe.Object) -> str:
    """Return a docstring as Markdown; names are looked up where the object stands."""
    text = FORMULA.sub(_fenced, text)
    text = INLINE_FORMULA.sub(lambda found: f"`#!math {_one_line(found[1])}`", text)
    text = ROLE.sub(lambda found: _reference(found[1], scope), text)
    return EXAMPLE.sub(r"\1Examples:", text)


def _one_line(formula: str) -> str:
    return " ".join(formula.split())


def _fenced(found: re.Match[str]) -> str:
    return textwrap.indent(f"```math\n{_one_line(found[2])}\n```", found[1])


def _reference(name: str, scope: griffe.Object) -> str:
    """Return a link that is plain code where no page has the object."""
    shown = name.removeprefix("lightning_bce.")
    try:
        path = scope.resolve(name)
    except griffe.NameResolutionError:
        path = name
    try:  # to where it is defined, because that is what every page of it answers to
        path = scope.modules_collection[path].canonical_path
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        pass
    return f'<autoref optional identifier="{path}"><code>{shown}</code></autoref>'
