"""Find columns by name, position or range."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import cast

from lightning_bce.data.cells import listed, shown

Columns = int | str | list[int | str]


def find_columns(names: Sequence[str], wanted: Columns | None, argument: str) -> list[str]:
    """Return the names of the columns that an argument asks for.

    Args:
        names: All columns of the table, in order.
        wanted: A name, a position (negative ones count from the end), a range of positions as Python writes it
            (``"-14:"`` is the last 14), or a list of these. None asks for nothing. A name wins over a range.
        argument: The argument's name, for messages.

    Returns:
        The names asked for, in the order asked.

    Raises:
        ValueError: If there is no such column, or one is asked for twice.
        TypeError: If something else than a name or position is given.

    Example:
        >>> find_columns(["age", "sex", "income"], -1, "target")
        ['income']
        >>> find_columns(["age", "sex", "income"], ["1:", "age"], "target")
        ['sex', 'income', 'age']
    """
    found: list[str] = []
    if wanted is None:
        return found
    several = isinstance(wanted, Sequence) and not isinstance(wanted, str)  # a list, or one of omegaconf's
    for item in cast("list[int | str]", wanted if several else [wanted]):
        found += _find_one(names, item, argument)
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"`{argument}` names {listed(twice)} more than once: name each column once.")
    return found


def _find_one(names: Sequence[str], item: int | str, argument: str) -> list[str]:
    if isinstance(item, bool) or not isinstance(item, (int, str)):
        raise TypeError(
            f"`{argument}` holds {shown(item)}, a {type(item).__name__}: give column names, positions such as -1, "
            'or ranges such as "-14:".'
        )
    if isinstance(item, int):
        if not -len(names) <= item < len(names):
            raise ValueError(
                f"`{argument}` asks for column {item}, and there are {len(names)}: "
                f"give a position from {-len(names)} to {len(names) - 1}."
            )
        return [names[item]]
    if item in names:
        return [item]
    if item.strip() in names:
        return [item.strip()]
    if re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", item):
        start, stop = (int(end) if end.strip() else None for end in item.split(":"))
        if chosen := list(names[start:stop]):
            return chosen
        raise ValueError(f"`{argument}` asks for the range {item!r}, which is empty: there are {len(names)} columns.")
    nearest = difflib.get_close_matches(item.lower(), [name.lower() for name in names], n=1, cutoff=0.6)
    guess = next((name for name in names if nearest and name.lower() == nearest[0]), None)
    raise ValueError(
        f"`{argument}` asks for the column {shown(item)}, which is not there. "
        + (f"Did you mean {shown(guess)}? " if guess is not None else "")
        + f"The columns are {listed(names, most=30)}."
    )
