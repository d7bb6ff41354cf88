"""Turn label columns into targets in [0, 1], and refuse to guess which word means yes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from lightning_bce.data.cells import MISSING, canonical, listed, numbers, shown, words

if TYPE_CHECKING:
    import polars

Value = str | bool | int | float
MissingTargets = Literal["error", "ignore", "drop"]
Labels = npt.NDArray[np.float32]


def parse_labels(
    table: polars.DataFrame,
    columns: Sequence[str],
    *,
    positive: Value | list[Value] | None = None,
    missing_values: Sequence[str] = MISSING,
    known: Sequence[str] | None = None,
) -> tuple[Labels, list[str]]:
    """Return the targets of a table, and the label words they were made from.

    Without ``positive`` a column must hold numbers in [0, 1] (0 and 1, or soft labels between them) or the words true
    and false. With ``positive`` its values are 1 and all others 0: one against the rest. Words are compared without
    the blanks and quotes around them, and numbers by value, so ``positive=1`` finds ``'1'`` and ``1.0``.

    Args:
        table: The table.
        columns: The C label columns.
        positive: The value or values of the positive class, or None.
        missing_values: What an unknown label may say.
        known: The label words of the training table, if this is another one; others are then refused.

    Returns:
        The targets (N, C) with NaN for unknown labels, and the sorted label words (empty without ``positive``).

    Raises:
        ValueError: If the values need ``positive`` to be understood, or ``positive`` does not occur, or a value is not
            among the known.

    Example:
        >>> import polars
        >>> parse_labels(polars.DataFrame({"income": ["<=50K", " >50K", "?"]}), ["income"], positive=">50K")[0]
        array([[ 0.],
               [ 1.],
               [nan]], dtype=float32)
    """
    target = np.full((table.height, len(columns)), np.nan, dtype=np.float32)
    if positive is None:
        for c, name in enumerate(columns):
            target[:, c] = _as_they_are(table[name], missing_values)
        return target, []

    asked = asked_for(positive)
    occurring: dict[str, int] = {}
    for c, name in enumerate(columns):
        spelled, counts = _counted(words(table[name], missing_values))
        label_of = dict(zip(spelled, canonical(spelled), strict=True))
        for word in spelled:
            occurring[label_of[word]] = occurring.get(label_of[word], 0) + counts[word]
        meaning = {word: float(label in asked) for word, label in label_of.items()}
        target[:, c] = _replaced(words(table[name], missing_values), meaning)
    absent = [word for word in asked if word not in occurring]
    if known is None and absent:
        raise ValueError(
            f"`positive` asks for {listed(asked)}, and {listed(absent)} does not occur in {_named(columns)}, which "
            f"has {table_of(occurring)}. Give a value that occurs."
        )
    strange = {word: count for word, count in occurring.items() if known is not None and word not in known}
    if strange and known is not None:
        raise ValueError(
            f"{_named(columns)} has labels that the training table has not: {table_of(strange)}; there it was "
            f"{listed(known)}. Spell the labels of both tables alike."
        )
    return target, sorted(occurring)


def without_unknown(target: Labels, columns: Sequence[str], missing_targets: MissingTargets) -> npt.NDArray[np.int64]:
    """Return the rows to keep, by what is to happen to unknown labels.

    Args:
        target: The targets (N, C), NaN for unknown.
        columns: The C label columns, for the message.
        missing_targets: ``"error"`` refuses, ``"ignore"`` keeps NaN, ``"drop"`` leaves out each row with an unknown.

    Returns:
        Row numbers in ascending order.

    Raises:
        ValueError: Under ``"error"`` if a label is unknown, with its row; or if every row would be dropped.

    Example:
        >>> without_unknown(np.array([[1.0], [np.nan]], dtype=np.float32), ["sick"], "drop")
        array([0])
    """
    unknown = np.isnan(target)
    if missing_targets == "ignore" or not unknown.any():
        return np.arange(len(target))
    if missing_targets == "error":
        row, c = (int(first) for first in np.argwhere(unknown)[0])
        raise ValueError(
            f"Row {row} (counted from 0) has no label in column {shown(columns[c])}, one of {int(unknown.sum())} "
            'missing labels. Pass `missing_targets="drop"` to leave such rows out, or "ignore" to keep them with '
            "the target NaN for a loss that ignores NaN."
        )
    kept = np.flatnonzero(~unknown.any(axis=1))
    if not len(kept):
        raise ValueError('Every row lacks a label, so `missing_targets="drop"` leaves none. Check `target`.')
    return kept


def refuse_unknown(target: Labels, columns: Sequence[str], rows: npt.NDArray[np.int64]) -> None:
    """Refuse unknown labels of a row group, whose rows cannot be dropped.

    Args:
        target: The targets (N, C), NaN for unknown.
        columns: The C label columns.
        rows: The N rows' numbers, for the message.

    Raises:
        ValueError: If a label is unknown, with its row.

    Example:
        >>> refuse_unknown(np.zeros((1, 1), dtype=np.float32), ["sick"], np.arange(1))
    """
    unknown = np.isnan(target)
    if unknown.any():
        row, c = (int(first) for first in np.argwhere(unknown)[0])
        raise ValueError(
            f"Row {rows[row]} (counted from 0) has no label in column {shown(columns[c])}, one of {int(unknown.sum())} "
            'missing labels of the row group. Pass `missing_targets="ignore"` to keep such rows with the target NaN '
            "for a loss that ignores NaN, or write the files without them."
        )


def _as_they_are(column: polars.Series, missing_values: Sequence[str]) -> Labels:
    import polars

    text = words(column, missing_values)
    values, wrong = numbers(column, missing_values)
    if not wrong.any() and not ((values < 0) | (values > 1)).any():
        soft: Labels = values.cast(polars.Float32).to_numpy().copy()
        return soft
    spelled, counts = _counted(text)
    if {word.lower() for word in spelled} <= {"true", "false"}:
        return _replaced(text, {word: float(word.lower() == "true") for word in spelled})
    likely = "1" if set(canonical(spelled)) == {"1.0", "-1.0"} else "VALUE"
    raise ValueError(
        f"The label column {shown(column.name)} has {table_of(counts)}: without `positive` labels must be 0 and 1, "
        f"true and false, or numbers between 0 and 1. Say which value is the positive class: `positive={likely}` "
        f"(`--data.positive {likely}`). If this is not the label column, choose another with `target` "
        "(`--data.target`)."
    )


def asked_for(positive: Value | list[Value]) -> list[str]:
    """Return the values of ``positive`` in the spelling in which labels are compared.

    Args:
        positive: A value or a list of them.

    Raises:
        ValueError: If the list is empty.

    Example:
        >>> asked_for([True, 1])
        ['true', '1.0']
    """
    values = [positive] if isinstance(positive, str) or not isinstance(positive, Sequence) else positive
    if not values:
        raise ValueError("`positive` is an empty list: give at least one value, or None for labels that are 0 and 1.")
    # polars writes booleans in small letters.
    return canonical([str(value).lower() if isinstance(value, bool) else str(value) for value in values])


def _counted(text: polars.Series) -> tuple[list[str], dict[str, int]]:
    """Return the distinct words of a column, most frequent first, and their counts."""
    counts = text.drop_nulls().alias("word").value_counts()
    pairs = sorted(zip(counts["word"].to_list(), counts["count"].to_list(), strict=True), key=lambda p: (-p[1], p[0]))
    return [word for word, _ in pairs], dict(pairs)


def _replaced(text: polars.Series, meaning: dict[str, float]) -> Labels:
    import polars

    replaced: Labels = text.replace_strict(meaning, default=None, return_dtype=polars.Float32).to_numpy().copy()
    return replaced


def _named(columns: Sequence[str]) -> str:
    return ("column " if len(columns) == 1 else "one of the columns ") + listed(columns, most=3)


def table_of(counts: Mapping[str, int]) -> str:
    """Return labels and how often each came, for a message.

    Args:
        counts: The counts.

    Example:
        >>> table_of({"no": 5, "yes": 2})
        "'no' 5 times, 'yes' 2 times"
    """
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    rest = f" and {len(ordered) - 10} other values" if len(ordered) > 10 else ""
    return ", ".join(f"{shown(word)} {count} times" for word, count in ordered[:10]) + rest
