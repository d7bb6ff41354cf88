"""Fit a preprocessor to rows that come piece by piece and are never all in memory."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_bce.data.cells import listed, numbers, plain_numbers, shown, words
from lightning_bce.data.preprocessing import TablePreprocessor

if TYPE_CHECKING:
    import polars

MOST_WORDS = 100_000
"""Different words in a column from which on it is refused: they would have to be counted in memory, all of them."""


@dataclass
class _RunningNumbers:
    """Count, mean and sum of squares about the mean, in float64."""

    name: str
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    greatest: float = 0.0
    missing: bool = False

    def add(self, cells: polars.Series, rows: Sequence[int] | None, missing_values: Sequence[str]) -> None:
        known = plain_numbers(cells, missing_values)
        if known is None:
            values, wrong = numbers(cells, missing_values)
            if wrong.any():
                row = int(wrong.arg_true()[0])
                raise ValueError(
                    f"Row {row if rows is None else int(rows[row])} (counted from 0), column {shown(self.name)}: "
                    f"{shown(cells[row])} is not a finite number. Mend the cell, or leave the column out with "
                    f"`drop_columns=[{shown(self.name)}]`."
                )
            self.missing = self.missing or values.null_count() > 0
            known = values.drop_nulls().to_numpy()
        if not len(known):
            return
        # Pieces are merged by the difference of their means (Chan et al., 1983): sums of squares would cancel.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(known.mean())
            apart = mean - self.mean
            total = self.count + len(known)
            self.squares += float(np.square(known - mean).sum()) + apart * apart * self.count * (len(known) / total)
            self.mean += apart * len(known) / total
        self.count = total
        self.greatest = max(self.greatest, float(np.abs(known).max()))

    def column(self, notes: dict[str, list[str]]) -> dict[str, Any] | None:
        if not self.count:
            notes.setdefault("are empty in the training rows and not used", []).append(self.name)
            return None
        scale = math.sqrt(self.squares / self.count) if math.isfinite(self.squares) else math.inf
        if not math.isfinite(self.mean) or not math.isfinite(scale):
            raise ValueError(
                f"Column {shown(self.name)} has numbers up to {self.greatest:.3g}, too large to take a standard "
                "deviation of. Rescale the column, or write such codes into `missing_values`."
            )
        if scale <= 10 * np.finfo(np.float64).eps * self.greatest:
            notes.setdefault("are constant in the training rows, so that they say nothing", []).append(self.name)
            scale = 1.0
        return {"kind": "numeric", "name": self.name, "mean": self.mean, "scale": scale, "indicator": self.missing}


@dataclass
class _RunningWords:
    """How often each word came."""

    name: str
    asked: bool
    counts: Counter[str] = field(default_factory=Counter)
    missing: bool = False

    def add(self, cells: polars.Series, rows: Sequence[int] | None, missing_values: Sequence[str]) -> None:
        text = words(cells, missing_values)
        self.missing = self.missing or text.null_count() > 0
        counts = text.drop_nulls().alias("word").value_counts()
        self.counts.update(dict(zip(counts["word"].to_list(), counts["count"].to_list(), strict=True)))
        if len(self.counts) > MOST_WORDS:
            some = listed(sorted(self.counts)[:3])
            raise ValueError(
                f"Column {shown(self.name)} has more than {MOST_WORDS} different words, such as {some}. If they are "
                "numbers, write them as numbers; if they name the rows, use `id_column` or `drop_columns`."
            )

    def column(self, max_categories: int, notes: dict[str, list[str]]) -> dict[str, Any] | None:
        import polars

        if not self.counts:
            notes.setdefault("are empty in the training rows and not used", []).append(self.name)
            return None
        if not self.asked and not numbers(polars.Series(list(self.counts), dtype=polars.String), ())[1].any():
            raise ValueError(
                f"Column {shown(self.name)} is text, and all its words are numbers, such as "
                f"{listed(sorted(self.counts)[:3])}: write it as numbers, or take them as words with "
                f"`categorical=[{shown(self.name)}]`."
            )
        ordered = [word for word, _ in sorted(self.counts.items(), key=lambda pair: (-pair[1], pair[0]))]
        if len(ordered) > max_categories:
            notes.setdefault(
                f"have more than `max_categories={max_categories}` different words; the most frequent are kept, the "
                "rest counts as one. If they are names or numbers of rows, use `id_column` or `drop_columns`",
                [],
            ).append(self.name)
        kept = ordered[:max_categories]
        return {"kind": "categorical", "name": self.name, "categories": kept, "missing": self.missing}


class RunningFit:
    """Makes the :class:`TablePreprocessor` of rows that come in pieces, each row once.

    The result is that of ``TablePreprocessor.fit`` on all rows at once, up to rounding in float64, with one difference:
    what is a number is decided by the type of the column and not by its cells, which may be yet to come.

    Args:
        columns: The feature columns in order, and for each whether it holds ``"numbers"``, ``"words"`` or
            ``"nothing"``.
        categorical: Columns to take as words though they hold numbers.
        max_categories: Most words kept in a column.
        missing_values: What a missing cell may say.

    Example:
        >>> import polars
        >>> fit = RunningFit({"age": "numbers"})
        >>> fit.add(polars.DataFrame({"age": [20, 30]}))
        >>> fit.add(polars.DataFrame({"age": [40, 50, None]}))
        >>> fit.preprocessor().transform(polars.DataFrame({"age": [35]}))
        tensor([[0., 0.]])
    """

    def __init__(
        self,
        columns: dict[str, str],
        *,
        categorical: Sequence[str] = (),
        max_categories: int = 64,
        missing_values: Sequence[str] = (),
    ) -> None:
        self.categorical = list(categorical)
        self.max_categories = max_categories
        self.missing_values = list(missing_values)
        self._columns = [
            _RunningWords(name, name in categorical)
            if kind == "words" or name in categorical
            else _RunningNumbers(name)
            for name, kind in columns.items()
        ]

    def add(self, table: polars.DataFrame, rows: Sequence[int] | None = None) -> None:
        """Add rows.

        Args:
            table: Training rows with all feature columns.
            rows: Their numbers in the row group, for messages. None counts from 0.

        Raises:
            ValueError: If a number is not finite, or a column has too many words.
        """
        for column in self._columns:
            column.add(table[column.name], rows, self.missing_values)

    def preprocessor(self) -> TablePreprocessor:
        """Return the preprocessor of all rows that were added.

        Raises:
            ValueError: If no column is left, a column's numbers are too large, or it holds numbers as text.

        Warns:
            UserWarning: If columns are constant or empty, or have more words than are kept.
        """
        notes: dict[str, list[str]] = {}
        made = [
            column.column(self.max_categories, notes) if isinstance(column, _RunningWords) else column.column(notes)
            for column in self._columns
        ]
        for note, names in notes.items():
            warnings.warn(f"{len(names)} columns {note}: {listed(names)}.", stacklevel=2)
        if not any(made):
            raise ValueError("No column is left to learn from: all are empty in the training rows. Check the files.")
        preprocessor = TablePreprocessor()
        preprocessor.load_state_dict(
            {
                "categorical": self.categorical,
                "max_categories": self.max_categories,
                "missing_values": self.missing_values,
                "inputs": [column.name for column in self._columns],
                "columns": [column for column in made if column is not None],
            }
        )
        return preprocessor
