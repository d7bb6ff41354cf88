"""Text of users that is shown without doing harm."""

from __future__ import annotations


def visible(text: str) -> str:
    r"""Return text with control and invisible characters written out, so that it cannot steer a terminal.

    Args:
        text: Anything, such as a column name of a file.

    Returns:
        The text; printable characters, blanks and non-ASCII letters stay as they are.

    Example:
        >>> visible("caf\u00e9\x1b[31m")
        'café\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
