"""A table file as a data module: CSV, TSV, Parquet or ARFF in, batches out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from lightning_bce.data.base import Part, fraction_beside
from lightning_bce.data.cells import MISSING, listed, shown
from lightning_bce.data.columns import find_columns
from lightning_bce.data.labels import Labels, MissingTargets, parse_labels, without_unknown
from lightning_bce.data.learning import LearningDataModule, Learnt
from lightning_bce.data.preprocessing import TablePreprocessor
from lightning_bce.data.ranks import check_same_on_every_rank
from lightning_bce.data.reading import SEPARATORS, Fingerprint, read_table
from lightning_bce.data.roles import ids, refuse_two_roles, warn_of_row_numbers, weights
from lightning_bce.data.splits import Rows, warn_about_labels
from lightning_bce.data.tensors import TensorRows

if TYPE_CHECKING:
    import polars


@dataclass(kw_only=True)
class _Learnt(Learnt):
    columns: list[str]


@dataclass
class _Labelled:
    """Labelled rows of one file, before any feature is made of them."""

    table: polars.DataFrame
    target: Labels
    numbers: Rows


class TableDataModule(LearningDataModule):
    r"""A table file with features and labels, split, cleaned and batched.

    Numbers are standardised and words one-hot encoded by :class:`TablePreprocessor`, which sees training rows only.
    Labels are never guessed: see ``positive``. The split keeps every label's share, see :func:`stratified_split`.
    Batches are described at :class:`BinaryDataModule`; without ``predict_path`` all rows of ``path`` are predicted,
    in file order, with row numbers from 0 as ids.

    The files are read whole, once in each process; memory is a few times the size of the file. What the training rows
    taught goes into the checkpoint, so that prediction and a test with ``test_path`` need no training file. If the
    training file is no longer the one of the checkpoint, a warning says so.

    Args:
        path: The table to train on: .csv, .tsv, .txt, .parquet or .arff.
        target: The label column or columns: a name, a position (-1 is the last), a range of positions such as
            ``"-14:"`` (the last 14), or a list of these. The columns' names are the class names.
        positive: The value or values of the positive class; all others are negative. None is for labels that are 0
            and 1, true and false, or between 0 and 1. Quotes and blanks around labels do not count.
        header: Whether the first line of a text table holds the column names. Without, they are column_0, column_1
            and so on, and files to predict may leave the label columns out.
        test_path: A table to test on, all of its rows. None takes the test rows from ``path``.
        predict_path: A table to predict; its label columns may be missing. None predicts the rows of ``path``.
        id_column: The column whose texts name the rows. None numbers the rows from 0.
        weight_column: The column with the weight of each row, at least 0.
        drop_columns: Columns to leave out.
        categorical: Columns to take as words even if they look like numbers.
        missing_values: What a cell says where the value is unknown. The empty cell always says so.
        separator: The character between cells of a text table. None is a comma, and a tab for .tsv.
        quote_char: The character around cells of a text table that contain separators. None if there is none.
        max_categories: Most words that a column of words keeps, the most frequent first.
        missing_targets: What to do with an unknown label: "error" refuses, "ignore" makes the target NaN, "drop"
            leaves the row out.
        val_fraction: Share of the rows to validate on, in [0, 1). With 0 there is no validation loader.
        test_fraction: Share of the rows to test on, in [0, 1). None is 0.2 without ``test_path``.
        positive_share: Share of positives among the rows that an epoch draws, in (0, 1); 0.5 is a balanced draw. None
            takes each row once. See :class:`BinaryDataModule`.
        seed: Decides the split and the order of the training rows.
        batch_size: Rows in a batch, at least 1.
        num_workers: Processes that load batches; 0 loads in the main process, which is fast enough.

    Raises:
        ValueError: If an argument is out of range or would have no effect, or, once it is read, if the file is faulty.
        FileNotFoundError: Once it is read, if the file is not there.
        ImportError: Once it is read, if polars (or scipy for ARFF) is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "income.csv")
        >>> lines = [f"{20 + i},{'FM'[i % 2]},{'>50K' if i % 3 else '<=50K'}" for i in range(30)]
        >>> _ = path.write_text("age,sex,income\n" + "\n".join(lines))
        >>> data = TableDataModule(path, positive=">50K", batch_size=4)
        >>> batch = next(iter(data.train_dataloader()))
        >>> data.class_names, data.num_features, batch["inputs"].shape, batch["target"].shape
        (['income'], 4, torch.Size([4, 4]), torch.Size([4, 1]))
    """

    _knowledge = _Learnt

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target: int | str | list[int | str] = -1,
        positive: str | bool | int | float | list[str | bool | int | float] | None = None,
        header: bool = True,
        test_path: str | os.PathLike[str] | None = None,
        predict_path: str | os.PathLike[str] | None = None,
        id_column: int | str | None = None,
        weight_column: int | str | None = None,
        drop_columns: int | str | list[int | str] | None = None,
        categorical: int | str | list[int | str] | None = None,
        missing_values: Sequence[str] = MISSING,
        separator: str | None = None,
        quote_char: str | None = '"',
        max_categories: int = 64,
        missing_targets: MissingTargets = "error",
        val_fraction: float = 0.15,
        test_fraction: float | None = None,
        positive_share: float | None = None,
        seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=val_fraction,
            test_fraction=fraction_beside("test", test_path, test_fraction, 0.2),
            positive_share=positive_share,
        )
        if missing_targets not in get_args(MissingTargets):
            raise ValueError(f'`missing_targets` is {missing_targets!r}: it must be "error", "ignore" or "drop".')
        if isinstance(missing_values, str):
            raise TypeError(f"`missing_values` is the text {missing_values!r}: give a list, [{missing_values!r}].")
        # Plain values, so that a checkpoint with them loads under `weights_only=True`.
        path, missing_values = os.fspath(path), list(missing_values)
        test_path = None if test_path is None else os.fspath(test_path)
        predict_path = None if predict_path is None else os.fspath(predict_path)
        files = [file for file in (path, test_path, predict_path) if file is not None]
        if not any(_is_text(file) for file in files) and (not header or separator is not None or quote_char != '"'):
            raise ValueError(
                f"`header`, `separator` and `quote_char` describe text tables and would have no effect on "
                f"{listed(files)}: leave them as they are."
            )
        self.save_hyperparameters()
        self.path, self.test_path, self.predict_path = path, test_path, predict_path
        self.target, self.positive, self.missing_targets = target, positive, missing_targets
        self.header, self.separator, self.quote_char = header, separator, quote_char
        self.id_column, self.weight_column = id_column, weight_column
        self.drop_columns, self.categorical = drop_columns, categorical
        self.missing_values, self.max_categories = missing_values, max_categories
        TablePreprocessor(max_categories=max_categories)  # refuses a wrong number now, not after reading
        self._training: _Labelled | None = None
        self._read_fingerprint: Fingerprint | None = None
        self._parts: dict[str, Rows] = {}
        self._ready: dict[Part, TensorRows | None] = {}

    def setup(self, stage: str) -> None:
        """Read the training file if it is to be trained on; all else waits until a checkpoint may have been restored.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        if stage == "fit":
            self._labelled()
            split = {"seed": self.seed, "fractions": self.fractions}
            check_same_on_every_rank("training table", {"file": self._read_fingerprint, **split})

    def rows(self, part: Part) -> TensorRows | None:
        """Return the rows of a part as a dataset.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The dataset, or None if its fraction is 0.
        """
        if part not in self._ready:
            self._ready[part] = self._make(part)
        return self._ready[part]

    def _known(self) -> _Learnt:
        if self._learnt is None:
            self._labelled()
        assert isinstance(self._learnt, _Learnt)
        return self._learnt

    def _labelled(self) -> _Labelled:
        """Return the labelled rows of the training file, read once; learn from them unless a state was restored."""
        if self._training is not None:
            return self._training
        table, self._read_fingerprint = self._read(self.path)
        names = table.columns
        targets = find_columns(names, self.target, "target")
        if not targets:
            raise ValueError("`target` is an empty list: name at least one label column.")
        id_column = next(iter(find_columns(names, self.id_column, "id_column")), None)
        weight_column = next(iter(find_columns(names, self.weight_column, "weight_column")), None)
        roles = {
            "target": targets,
            "id_column": [id_column] if id_column is not None else [],
            "weight_column": [weight_column] if weight_column is not None else [],
            "drop_columns": find_columns(names, self.drop_columns, "drop_columns"),
        }
        categorical = find_columns(names, self.categorical, "categorical")
        refuse_two_roles({**roles, "categorical": categorical})
        features = [name for name in names if not any(name in columns for columns in roles.values())]
        if not features:
            raise ValueError(f"{self.path} has no column left to learn from: all are {', '.join(roles)}.")

        target, label_words = parse_labels(table, targets, positive=self.positive, missing_values=self.missing_values)
        kept = without_unknown(target, targets, self.missing_targets)
        training = _Labelled(table[kept], target[kept], kept)
        self._parts = self.cut(training.target)
        warn_about_labels({part: training.target[rows] for part, rows in self._parts.items()}, targets)
        if self._learnt is None:
            train = self._parts["train"]
            warn_of_row_numbers(table[features[0]])
            preprocessor = TablePreprocessor(
                categorical=categorical, max_categories=self.max_categories, missing_values=self.missing_values
            ).fit(training.table.select(features)[train], training.numbers[train].tolist())
            self._learnt = _Learnt(
                preprocessor=preprocessor,
                columns=names,
                targets=targets,
                id_column=id_column,
                weight_column=weight_column,
                label_words=label_words,
                fingerprint=self._read_fingerprint,
            )
        else:
            self._compare(names, self._read_fingerprint)
        self._training = training
        return training

    def _restored(self) -> None:
        self._ready.clear()
        if self._training is not None:
            self._compare(self._training.table.columns, self._read_fingerprint)

    def _make(self, part: Part) -> TensorRows | None:
        if part == "predict":
            return self._unlabelled(self.predict_path if self.predict_path is not None else self.path)
        if part == "test" and self.test_path is not None:
            known = self._known()
            table = self._as_in_training(*self._read(self.test_path)[:1], self.test_path)
            absent = [name for name in known.targets if name not in table.columns]
            if absent:
                raise ValueError(f"{self.test_path} lacks the label columns {listed(absent)}: a test needs labels.")
            target, _ = parse_labels(
                table,
                known.targets,
                positive=self.positive,
                missing_values=self.missing_values,
                known=known.label_words,
            )
            kept = without_unknown(target, known.targets, self.missing_targets)
            labelled = _Labelled(table[kept], target[kept], kept)
            warn_about_labels({"test": labelled.target}, known.targets)
        else:
            labelled = self._labelled()
            kept = self._parts[part]
            if not len(kept):
                return None
            labelled = _Labelled(labelled.table[kept], labelled.target[kept], labelled.numbers[kept])
        return self._dataset(labelled.table, labelled.numbers, labelled.target)

    def _unlabelled(self, path: str) -> TensorRows:
        self._known()
        table = self._as_in_training(self._read(path)[0], path)
        return self._dataset(table, np.arange(table.height), None)

    def _dataset(self, table: polars.DataFrame, row_numbers: Rows, target: Labels | None) -> TensorRows:
        known = self._known()
        # Columns of the training file that are no features are passed over in silence; strange ones are warned of.
        unused = [name for name in known.columns if name not in known.preprocessor.input_names]
        columns: dict[str, Any] = {
            "inputs": known.preprocessor.transform(table.drop(unused, strict=False), row_numbers.tolist())
        }
        if target is not None:
            columns["target"] = torch.from_numpy(target)
            if known.weight_column is not None:
                columns["weight"] = weights(self._column(table, known.weight_column, "weight_column"), row_numbers)
        columns["id"] = (
            torch.from_numpy(row_numbers)
            if known.id_column is None
            else ids(self._column(table, known.id_column, "id_column"), row_numbers)
        )
        return TensorRows(columns)

    def _read(self, path: str) -> tuple[polars.DataFrame, Fingerprint]:
        return read_table(path, header=self.header, separator=self.separator, quote_char=self.quote_char)

    def _as_in_training(self, table: polars.DataFrame, path: str) -> polars.DataFrame:
        """Return a table that has no names of its own under the names of the training table."""
        known = self._known()
        if self.header or not _is_text(path) or table.width == len(known.columns):
            return table
        unlabelled = [name for name in known.columns if name not in known.targets]
        if table.width != len(unlabelled):
            raise ValueError(
                f"{path} has {table.width} columns without names: there must be {len(known.columns)}, as in the "
                f"training table, or {len(unlabelled)}, the same without the labels."
            )
        return table.rename(dict(zip(table.columns, unlabelled, strict=True)))

    def _column(self, table: polars.DataFrame, name: str, argument: str) -> polars.Series:
        if name not in table.columns:
            raise ValueError(
                f"The table lacks the column {shown(name)}, the `{argument}` of the training table: add it."
            )
        return table[name]


def _is_text(path: str) -> bool:
    return Path(path).suffix.lower() in SEPARATORS
