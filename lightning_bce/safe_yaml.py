"""Look at a YAML file before it is parsed: a few lines can stand for billions of values, or for themselves."""

from __future__ import annotations

from pathlib import Path

import yaml

MOST = 1_000_000  # values that a configuration may have when its aliases are written out


def check_yaml(path: str | Path) -> None:
    """Refuse a YAML file whose aliases contain themselves or unfold into more values than a configuration has.

    Files that cannot be read, or are no YAML, are left to the parser, which says so better.

    Args:
        path: The file.

    Raises:
        ValueError: With what was found.
    """
    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    except RecursionError:
        raise ValueError(f"{str(path)!r} is nested too deeply to be a configuration.") from None
    size = 0 if root is None else _size(root, {}, set(), str(path))
    if size > MOST:
        raise ValueError(
            f"{str(path)!r} stands for more than {MOST:,} values once its aliases (*name) are written out: that is no "
            "configuration. Write the values that are meant."
        )


def _size(node: yaml.Node, known: dict[int, int], above: set[int], path: str) -> int:
    """Return how many values a node stands for, each alias counted wherever it is used, in one walk over the nodes."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in above:
        line = node.start_mark.line + 1
        raise ValueError(f"{path!r} contains itself: the value at line {line} has an alias to itself inside.")
    if id(node) not in known:
        above.add(id(node))
        pairs = isinstance(node, yaml.MappingNode)
        inner = [part for pair in node.value for part in pair] if pairs else node.value
        known[id(node)] = 1 + sum(_size(part, known, above, path) for part in inner)
        above.remove(id(node))
    return known[id(node)]
