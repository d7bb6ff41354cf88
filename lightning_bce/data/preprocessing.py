"""Turn the columns of a table into numbers, by what the training rows were like."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lightning_bce.data.cells import MISSING, listed, numbers, plain_numbers, require, shown, words

if TYPE_CHECKING:
    import polars

FEW = 0.05
"""A column with a smaller share of words than this among numbers is refused: they are more likely faults."""


@dataclass
class _Numeric:
    """A column of numbers: standardised, missing at the mean, with an indicator if training rows had missing."""

    name: str
    mean: float
    scale: float
    indicator: bool

    def features(self) -> list[str]:
        return [self.name, f"{self.name} (missing)"] if self.indicator else [self.name]


@dataclass
class _Categorical:
    """A column of words: a slot for each one kept, one for others, one for missing if training rows had missing."""

    name: str
    categories: list[str] = field(default_factory=list)
    missing: bool = False

    def features(self) -> list[str]:
        kept = [f"{self.name}={category}" for category in self.categories]
        return [*kept, f"{self.name} (other)", *([f"{self.name} (missing)"] if self.missing else [])]


class TablePreprocessor:
    r"""Numbers and words in, float32 features out; fitted on training rows only.

    A column is numeric if every known cell of the training rows is a finite number. Numbers are standardised,

    .. math:: x' = \frac{x - \operatorname{mean}(x)}{\operatorname{std}(x)},

    by the training rows (standard deviation over N). A missing number becomes the mean, 0, and where training rows had
    missing numbers a second feature says so. Words become one feature each; words not among the kept go to "(other)",
    missing ones to "(missing)" if training rows had missing, else also to "(other)". A column that is empty in all
    training rows is left out.

    Args:
        categorical: Columns to take as words even if they look like numbers.
        max_categories: Most words kept in a column, the most frequent first; at least 1.
        missing_values: What a missing cell may say. The empty cell always does.

    Raises:
        ValueError: If ``max_categories`` is below 1.

    Example:
        >>> import polars
        >>> train = polars.DataFrame({"age": ["20", "40", "?"], "sex": ["F", "M", "F"]})
        >>> preprocessor = TablePreprocessor().fit(train)
        >>> preprocessor.feature_names
        ['age', 'age (missing)', 'sex=F', 'sex=M', 'sex (other)']
        >>> preprocessor.transform(polars.DataFrame({"sex": ["X"], "age": ["50"]}))
        tensor([[2., 0., 0., 0., 1.]])
    """

    def __init__(
        self, *, categorical: Sequence[str] = (), max_categories: int = 64, missing_values: Sequence[str] = MISSING
    ) -> None:
        if isinstance(max_categories, bool) or max_categories < 1:
            raise ValueError(
                f"`max_categories` is {max_categories!r}: at least 1 word must be kept. The default is 64."
            )
        self.categorical = list(categorical)
        self.max_categories = max_categories
        self.missing_values = list(missing_values)
        self._columns: list[_Numeric | _Categorical] = []
        self._inputs: list[str] = []
        self._warned: set[str] = set()

    @property
    def input_names(self) -> list[str]:
        """The columns :meth:`fit` saw, in their order."""
        return list(self._inputs)

    @property
    def feature_names(self) -> list[str]:
        """A name for each feature, such as ``"age"``, ``"age (missing)"``, ``"sex=F"`` or ``"sex (other)"``."""
        return [feature for column in self._columns for feature in column.features()]

    @property
    def num_features(self) -> int:
        """The number of features."""
        return len(self.feature_names)

    def fit(self, table: polars.DataFrame, rows: Sequence[int] | None = None) -> TablePreprocessor:
        """Learn what the columns are like.

        Args:
            table: The training rows, feature columns only.
            rows: Their numbers in the file, for messages. None counts from 0.

        Returns:
            Itself.

        Raises:
            ValueError: If there is no row or no usable column, if a few words stand among numbers, or if numbers are
                written with decimal commas.

        Warns:
            UserWarning: If columns are constant or empty, or have more words than are kept.
        """
        require("polars")
        if not table.height:
            raise ValueError("There are no training rows to fit on. Bring more rows or smaller fractions.")
        unknown = [name for name in self.categorical if name not in table.columns]
        if unknown:
            raise ValueError(f"`categorical` names {listed(unknown)}; the features are {listed(table.columns, 30)}.")
        self._inputs = table.columns
        self._columns = []
        notes: dict[str, list[str]] = {}
        for name in table.columns:
            column = self._fit_column(table[name], rows, notes)
            if column is not None:
                self._columns.append(column)
        for note, names in notes.items():
            warnings.warn(f"{len(names)} columns {note}: {listed(names)}.", stacklevel=2)
        if not self._columns:
            raise ValueError("No column is left to learn from: all are empty in the training rows. Check the file.")
        return self

    def transform(self, table: polars.DataFrame, rows: Sequence[int] | None = None) -> Tensor:
        """Return the features of a table, whose columns are found by name, in any order.

        Args:
            table: The rows.
            rows: Their numbers in the file, for messages. None counts from 0.

        Returns:
            Features (N, num_features), float32 and finite.

        Raises:
            RuntimeError: If the preprocessor was never fitted.
            ValueError: If a column is missing, or a number is wanted and a cell is none, or too large for float32.

        Warns:
            UserWarning: Once for each column that the training table did not have.
        """
        require("polars")
        if not self._columns:
            raise RuntimeError("This preprocessor knows no columns yet: call `fit` or `load_state_dict` first.")
        absent = [column.name for column in self._columns if column.name not in table.columns]
        if absent:
            raise ValueError(
                f"The table lacks {len(absent)} of the columns the model was trained on: {listed(absent)}. It has "
                f"{listed(table.columns, 30)}. Add them, empty where nothing is known."
            )
        extra = [name for name in table.columns if name not in self._inputs and name not in self._warned]
        if extra:
            self._warned.update(extra)
            warnings.warn(f"Columns the training table did not have are not used: {listed(extra)}.", stacklevel=2)
        features = np.zeros((table.height, self.num_features), dtype=np.float32)
        start = 0
        for column in self._columns:
            cells = table[column.name]
            for place, values in self._features(column, cells, rows):
                if not np.isfinite(values).all():
                    row = int(np.flatnonzero(~np.isfinite(values))[0])
                    raise ValueError(
                        f"{_at(rows, row, cells)} is too large for float32 after standardising, with the mean "
                        f"{column.mean:.3g} and the standard deviation {column.scale:.3g} of the training rows. Mend "
                        "the cell, or write its code into `missing_values` if it stands for an unknown."
                        if isinstance(column, _Numeric)
                        else f"{_at(rows, row, cells)} has no finite feature."
                    )
                features[:, start + place] = values
            start += len(column.features())
        return torch.from_numpy(features)

    def state_dict(self) -> dict[str, Any]:
        """Return all that was learnt as plain lists, texts and numbers, for ``torch.load(weights_only=True)``."""
        return {
            "categorical": list(self.categorical),
            "max_categories": self.max_categories,
            "missing_values": list(self.missing_values),
            "inputs": list(self._inputs),
            "columns": [
                {"kind": type(column).__name__.strip("_").lower(), **asdict(column)} for column in self._columns
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what another preprocessor learnt.

        Args:
            state: What :meth:`state_dict` returned.
        """
        kinds: dict[str, type[_Numeric] | type[_Categorical]] = {"numeric": _Numeric, "categorical": _Categorical}
        self.categorical = list(state["categorical"])
        self.max_categories = int(state["max_categories"])
        self.missing_values = list(state["missing_values"])
        self._inputs = list(state["inputs"])
        self._columns = [
            kinds[column["kind"]](**{key: value for key, value in column.items() if key != "kind"})
            for column in state["columns"]
        ]

    def _fit_column(
        self, cells: polars.Series, rows: Sequence[int] | None, notes: dict[str, list[str]]
    ) -> _Numeric | _Categorical | None:
        if cells.name in self.categorical:
            return self._fit_words(cells, notes)
        values, wrong = numbers(cells, self.missing_values)
        faults, fine = int(wrong.sum()), len(values) - values.null_count()
        if not faults and not fine:
            notes.setdefault("are empty in the training rows and not used", []).append(cells.name)
            return None
        if not faults:
            return _fit_numbers(cells.name, values, notes)
        if faults < FEW * (faults + fine):
            raise ValueError(
                f"{_at(rows, int(wrong.arg_true()[0]), cells)} is not a finite number, and nearly all others of the "
                f"column are ({faults} of {faults + fine} known cells are not). Mend the cells, or add what they say "
                f"to `missing_values`, or leave the column out with `drop_columns=[{shown(cells.name)}]`, or take it "
                f"as words with `categorical=[{shown(cells.name)}]`."
            )
        text = words(cells, self.missing_values).drop_nulls()
        if text.str.contains(r"^[+-]?[0-9]+(,[0-9]+)+$|^[+-]?[0-9]+([.][0-9]{3})*,[0-9]+$").all():
            raise ValueError(
                f"{_at(rows, int(wrong.arg_true()[0]), cells)}, like all others of the column, has decimal commas or "
                "commas between thousands: write numbers as 1234.5. If these are words, say so with "
                f"`categorical=[{shown(cells.name)}]`."
            )
        return self._fit_words(cells, notes)

    def _fit_words(self, cells: polars.Series, notes: dict[str, list[str]]) -> _Categorical:
        text = words(cells, self.missing_values)
        counts = text.drop_nulls().alias("word").value_counts()
        pairs = zip(counts["count"].to_list(), counts["word"].to_list(), strict=True)
        ordered = [word for _, word in sorted(pairs, key=lambda pair: (-pair[0], pair[1]))]
        if len(ordered) > self.max_categories:
            notes.setdefault(
                f"have more than `max_categories={self.max_categories}` different words; the most frequent are kept, "
                "the rest counts as one. If they are names or numbers of rows, use `id_column` or `drop_columns`",
                [],
            ).append(cells.name)
        return _Categorical(cells.name, ordered[: self.max_categories], missing=text.null_count() > 0)

    def _features(
        self, column: _Numeric | _Categorical, cells: polars.Series, rows: Sequence[int] | None
    ) -> Iterator[tuple[int, Any]]:
        """Yield each feature of a column with its place."""
        import polars

        if isinstance(column, _Numeric):
            plain = plain_numbers(cells, self.missing_values)
            if plain is not None:
                with np.errstate(over="ignore"):
                    yield 0, ((plain - column.mean) / column.scale).astype(np.float32)
                return  # the indicator is 0 already
            values, wrong = numbers(cells, self.missing_values)
            if wrong.any():
                raise ValueError(
                    f"{_at(rows, int(wrong.arg_true()[0]), cells)} is not a finite number, and in the training rows "
                    "the column had only such. Mend the cell or empty it"
                    + (" (if row 0 is a line of names, pass `header=True`)." if wrong[0] else ".")
                )
            # Overflow to inf is found by `transform`, which then names the cell.
            with np.errstate(over="ignore"):
                yield 0, ((values.fill_null(column.mean).to_numpy() - column.mean) / column.scale).astype(np.float32)
            if column.indicator:
                yield 1, values.is_null().to_numpy()
            return
        text = words(cells, self.missing_values)
        slots = {word: place for place, word in enumerate(column.categories)}
        place_of = text.replace_strict(slots, default=len(slots), return_dtype=polars.Int64).to_numpy().copy()
        if column.missing:
            place_of[text.is_null().to_numpy()] = len(slots) + 1
        for place in range(len(column.features())):
            yield place, place_of == place


def _fit_numbers(name: str, values: polars.Series, notes: dict[str, list[str]]) -> _Numeric:
    known = values.drop_nulls().to_numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(known.mean()), float(known.std())
    if not (np.isfinite(mean) and np.isfinite(scale)):
        raise ValueError(
            f"Column {shown(name)} has numbers up to {float(np.abs(known).max()):.3g}, too large to take a standard "
            "deviation of. Rescale the column, or write such codes into `missing_values`."
        )
    # Below this the deviation is rounding of the mean, and dividing by it would blow the rounding up.
    if scale <= 10 * np.finfo(np.float64).eps * float(np.abs(known).max()):
        notes.setdefault("are constant in the training rows, so that they say nothing", []).append(name)
        scale = 1.0
    return _Numeric(name, mean, scale, indicator=values.null_count() > 0)


def _at(rows: Sequence[int] | None, row: int, cells: polars.Series) -> str:
    number = row if rows is None else int(rows[row])
    return f"Row {number} (counted from 0), column {shown(cells.name)}: {shown(cells[row])}"
