"""Data of very many labels as a data module: lists of labels in, batches with sparse targets out."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_bce.data.base import BinaryDataModule, Part, fraction_beside
from lightning_bce.data.cells import listed
from lightning_bce.data.extreme_text import read_extreme_text, read_header
from lightning_bce.data.label_lists import ManyLabelRows, ManyLabelTable
from lightning_bce.data.list_columns import Columns, is_parquet, read_list_columns
from lightning_bce.data.ranks import check_same_on_every_rank
from lightning_bce.data.splits import refuse_empty_parts
from lightning_bce.losses import LabelCounts


class ManyLabelDataModule(BinaryDataModule):
    r"""Rows with lists of labels, for a :class:`MultiLabelHead`: the extreme classification text format, and Parquet.

    **Text** (any suffix but .parquet; .gz is unpacked on the way): a header ``num_points num_features num_labels``,
    then a row on each line, ``l1,l2,... f1:v1 f2:v2 ...``, which begins with a blank where it has no label. Labels and
    features are counted from 0. Features stay sparse: ``inputs`` of a batch are :class:`SparseInputs`, for
    :class:`SparseMLP` or an ``EmbeddingBag``; with ``dense`` float32 (N, F), made for each batch.

    **Parquet**: a column of list<int> with the labels, an empty list where a row has none, and features in columns of
    numbers or of equally long lists of numbers. They are taken as they are: ``inputs`` are float32 (N, F). Other files
    than ``path`` have the columns of the same names, in any order.

    ``target`` of a batch is a :class:`SparseTarget`, sorted by label in the process that loads it; ``id`` is the row's
    number from 0, or what ``id_column`` says. Rows are split by seed alone: most of so many labels are too rare for
    each part to get its share. The files are read whole, once in each process: in memory stay 4 bytes a label and 8 a
    feature of a row, and 4 an element of dense features. What a checkpoint needs of the training rows (the numbers of
    features and labels, and how often each label occurs) goes into it.

    Args:
        path: The file to train on.
        val_path: A file to validate on, all of its rows. None takes the validation rows from ``path``.
        test_path: A file to test on, all of its rows. None takes the test rows from ``path``.
        predict_path: A file to predict; its labels are not looked at. None predicts the rows of ``path``.
        names_path: A file with the name of each label on a line of its own, in their order. None leaves them unnamed.
        dense: Whether the sparse features of text become (N, F) in each batch.
        total_labels: The number of labels C of Parquet. None is one more than the largest in ``path``.
        label_column: The column of labels of Parquet, list<int>. None is "labels".
        value_column: A column of Parquet with lists as long as those of the labels: what each label says, in [0, 1],
            NaN if it is unknown. None means that all that are listed are positive.
        feature_columns: The columns of features of Parquet. None takes all that have no other role.
        id_column: The column of Parquet that names the rows. None numbers them from 0.
        weight_column: The column of Parquet with the weight of each row, at least 0.
        val_fraction: Share of the rows of ``path`` to validate on, in [0, 1). None is 0.15 without ``val_path``.
        test_fraction: Share of the rows of ``path`` to test on, in [0, 1). None is 0.2 without ``test_path``.
        seed: Decides the split and the order of the training rows.
        batch_size: Rows in a batch, at least 1.
        num_workers: Processes that make batches; 0 makes them in the main process.

    Raises:
        ValueError: If an argument is out of range or would have no effect, or, once it is read, if a file is faulty.
        FileNotFoundError: Once it is read, if a file is not there.
        ImportError: Once it is read, if polars is not installed and the file is Parquet.

    Example:
        >>> file = getfixture("tmp_path") / "train.txt"
        >>> _ = file.write_text("3 5 10\n7,2 1:0.5 4:2\n 0:1\n9 3:1 4:0.1\n")
        >>> data = ManyLabelDataModule(file, val_fraction=0.0, test_fraction=0.0)
        >>> batch = next(iter(data.predict_dataloader()))
        >>> data.num_features, data.num_labels, batch["inputs"].offsets
        (5, 10, tensor([0, 2, 3]))
        >>> next(iter(data.train_dataloader()))["target"]
        SparseTarget(shape=(3, 10), entries=3, device='cpu')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        val_path: str | os.PathLike[str] | None = None,
        test_path: str | os.PathLike[str] | None = None,
        predict_path: str | os.PathLike[str] | None = None,
        names_path: str | os.PathLike[str] | None = None,
        dense: bool = False,
        total_labels: int | None = None,
        label_column: str | None = None,
        value_column: str | None = None,
        feature_columns: list[str] | None = None,
        id_column: str | None = None,
        weight_column: str | None = None,
        val_fraction: float | None = None,
        test_fraction: float | None = None,
        seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            val_fraction=fraction_beside("val", val_path, val_fraction, 0.15),
            test_fraction=fraction_beside("test", test_path, test_fraction, 0.2),
        )
        # Plain values, so that a checkpoint with them loads under `weights_only=True`.
        path = os.fspath(path)
        val_path = None if val_path is None else os.fspath(val_path)
        test_path = None if test_path is None else os.fspath(test_path)
        predict_path = None if predict_path is None else os.fspath(predict_path)
        names_path = None if names_path is None else os.fspath(names_path)
        self.files: dict[Part, str] = {"train": path, "predict": predict_path or path}
        self.files |= {"val": val_path or path, "test": test_path or path}
        kinds = {is_parquet(file) for file in self.files.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"Some of {listed(self.files.values())} are Parquet and some text: give files of one kind."
            )
        self.is_parquet = kinds.pop()
        of_parquet = {
            "total_labels": total_labels,
            "label_column": label_column,
            "value_column": value_column,
            "feature_columns": feature_columns,
            "id_column": id_column,
            "weight_column": weight_column,
        }
        idle = [name for name, value in of_parquet.items() if value is not None]
        if idle and not self.is_parquet:
            raise ValueError(
                f"`{idle[0]}` would have no effect on {path}: it is of Parquet files, and a text file says this itself."
            )
        if dense and self.is_parquet:
            raise ValueError("`dense` would have no effect: the features of Parquet files are dense. Leave it out.")
        if total_labels is not None and not 1 <= total_labels < 2**31:
            raise ValueError(f"`total_labels` is {total_labels}; a number from 1 to 2^31 - 1 was expected.")
        if isinstance(feature_columns, str):
            raise TypeError(f"`feature_columns` is the text {feature_columns!r}: give a list, [{feature_columns!r}].")
        self.save_hyperparameters()
        self.dense, self.names_path, self._given_labels = dense, names_path, total_labels
        self.val_path, self.test_path = val_path, test_path
        self._columns = Columns(label_column or "labels", value_column, feature_columns, id_column, weight_column)
        self._sizes: dict[str, Any] | None = None
        self._names: list[str] | None = None
        self._training: ManyLabelTable | None = None
        self._parts: dict[str, Tensor] = {}
        self._ready: dict[Part, ManyLabelRows | None] = {}

    @property
    def num_features(self) -> int:
        """Features F. Reads the header of a text file, or a Parquet file, unless a state was restored."""
        return int(self._known()["num_features"])

    @property
    def num_labels(self) -> int:
        """Labels C. Reads the header of a text file, or a Parquet file, unless a state was restored."""
        return int(self._known()["num_labels"])

    @property
    def class_names(self) -> list[str]:
        """The names of the labels, or none of them: a name for each of a million would be in every checkpoint."""
        if self.names_path is None:
            return []
        if self._names is None:
            with open(self.names_path, encoding="utf-8") as file:
                try:
                    names = [line.strip() for line in file]
                except UnicodeDecodeError as error:
                    raise ValueError(f"{self.names_path} is not UTF-8: {error}. Convert it.") from error
            if len(names) != self.num_labels:
                raise ValueError(
                    f"{self.names_path} has {len(names)} lines and there are {self.num_labels} labels: a name "
                    "for each was expected, on a line of its own."
                )
            self._names = names
        return list(self._names)

    def use_fold(self, fold: int, folds: int) -> None:
        """Refuse: most of so many labels would be missing in a fold."""
        raise ValueError("Data of very many labels has no folds by label. Compare over seeds.")

    def setup(self, stage: str) -> None:
        """Read the training file if it is to be trained on.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """
        if stage == "fit":
            split = {"seed": self.seed, "fractions": self.fractions}
            check_same_on_every_rank("training file", {"file": self._labelled().fingerprint, **split})

    def rows(self, part: Part) -> ManyLabelRows | None:  # type: ignore[override]  # batches of another form
        """Return the rows of a part as a dataset.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The dataset, or None if its fraction is 0.
        """
        if part not in self._ready:
            self._ready[part] = self._make(part)
        return self._ready[part]

    def label_counts(self) -> LabelCounts:
        """Return the counts of the training labels, with the weights of the rows; counted once."""
        if self._counts is None:
            table, rows = self._labelled(), self._parts["train"]
            assert table.labels is not None
            labels = table.labels.of_rows(rows)
            weight = torch.ones(len(rows)) if table.weight is None else table.weight[rows]
            of_entry = weight.double()[labels.row_of_each()]
            index = labels.indices.long()
            zeros = torch.zeros(table.num_labels, dtype=torch.float64)
            if labels.value is None:
                positives, gone = zeros.index_add(0, index, of_entry), zeros
                known = zeros + len(rows)
            else:
                unknown = labels.value.isnan()
                positives = zeros.index_add(0, index, of_entry * labels.value.nan_to_num())
                gone = zeros.index_add(0, index, of_entry * unknown)
                known = len(rows) - zeros.index_add(0, index, unknown.double())
            negatives = (weight.double().sum() - gone - positives).clamp(min=0)  # a rounded difference can be below
            self._counts = LabelCounts(positives, negatives, known)
        return self._counts

    def occurrences(self) -> tuple[Tensor, int]:
        """Return in how many training rows each label is positive, (C,), and how many rows there are.

        What :func:`lightning_bce.metrics.propensities` are made of; a checkpoint brings it.
        """
        known = self._known()
        if "occurrences" not in known:
            table, rows = self._labelled(), self._parts["train"]
            assert table.labels is not None
            labels = table.labels.of_rows(rows)
            index = labels.indices if labels.value is None else labels.indices[labels.value > 0.5]
            known["occurrences"] = torch.bincount(index, minlength=table.num_labels).to(torch.int32)
            known["rows"] = len(rows)
        return known["occurrences"], int(known["rows"])

    # -- what is kept in a checkpoint ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs of the training rows; empty if they were not read."""
        if self._training is None:
            return {} if self._sizes is None or "rows" not in self._sizes else dict(self._sizes)
        self.occurrences()
        return dict(self._known())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what an earlier run has read.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If the training file was read already and has other numbers of features or labels.

        Warns:
            UserWarning: If the training file was read already and is not the file of that run.
        """
        if not state_dict:
            return
        if self._training is not None:
            self._compare(self._training, state_dict)
        self._sizes = dict(state_dict)
        self._ready.clear()

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state before anything is read: sizes are then known without the training file.

        Args:
            state: What :meth:`state_dict` returned; in a checkpoint it lies under ``"ManyLabelDataModule"``.
        """
        self.load_state_dict(state)

    def _known(self) -> dict[str, Any]:
        if self._sizes is None:
            if self.is_parquet:
                self._labelled()
            else:
                header = read_header(self.files["train"])
                self._sizes = {"num_features": header.features, "num_labels": header.labels}
        assert self._sizes is not None
        return self._sizes

    def _labelled(self) -> ManyLabelTable:
        """Return the training file, read and split once."""
        if self._training is None:
            given = self._given_labels if self._sizes is None else self._sizes["num_labels"]
            table = self._read(self.files["train"], given, labelled=True)
            if self._sizes is not None and "rows" in self._sizes:
                self._compare(table, self._sizes)
            sizes: dict[str, Any] = {"num_features": table.num_features, "num_labels": table.num_labels}
            sizes |= {"file": table.fingerprint, "feature_columns": table.feature_columns}
            self._sizes = {**sizes, **(self._sizes or {})}
            self._parts = self._split(len(table))
            self._training = table
        return self._training

    def _split(self, rows: int) -> dict[str, Tensor]:
        """Return the rows of each part, in ascending order, drawn by the seed."""
        self._is_cut = True
        order = torch.from_numpy(np.random.default_rng(self.seed).permutation(rows))
        val, test = (round(self.fractions[part] * rows) for part in ("val", "test"))
        refuse_empty_parts({"val": val, "test": test, "train": rows - val - test}, self.fractions)
        cut = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
        return {part: chosen.sort().values for part, chosen in cut.items()}

    def _make(self, part: Part) -> ManyLabelRows | None:
        file, labelled = self.files[part], part != "predict"
        if labelled and not self._own_file(part):
            table, rows = self._labelled(), self._parts[part]
            if not len(rows):
                return None
        else:
            num_labels = self.num_labels
            same = file == self.files["train"] and self._training is not None
            table = self._labelled() if same else self._read(file, num_labels, labelled=labelled)
            self._check_sizes(table, file)
            rows = torch.arange(len(table))
        return ManyLabelRows(table, rows, dense=self.dense, labelled=labelled)

    def _own_file(self, part: Part) -> bool:
        return (part == "val" and self.val_path is not None) or (part == "test" and self.test_path is not None)

    def _read(self, file: str, num_labels: int | None, *, labelled: bool) -> ManyLabelTable:
        if self.is_parquet:
            # By their names in the training file: another file may have them in another order.
            features = self._columns.features or (self._sizes or {}).get("feature_columns")
            columns = self._columns._replace(features=features)
            return read_list_columns(file, columns, num_labels, labelled=labelled)
        return read_extreme_text(file)

    def _check_sizes(self, table: ManyLabelTable, file: str) -> None:
        here = (table.num_features, table.num_labels)
        there = (self.num_features, self.num_labels)
        if here != there:
            raise ValueError(
                f"{file} has {here[0]} features and {here[1]} labels, and the training file {there[0]} and {there[1]}: "
                "both have to be the same."
            )

    def _compare(self, table: ManyLabelTable, known: dict[str, Any]) -> None:
        for name in ("num_features", "num_labels"):
            if getattr(table, name) != known[name]:
                raise ValueError(
                    f"{self.files['train']} has {getattr(table, name)} {name[4:]} and the checkpoint was trained with "
                    f"{known[name]}: give the file of that run."
                )
        if table.fingerprint != known["file"]:
            warnings.warn(
                f"{self.files['train']} is not the file of the checkpoint: rows that it was trained on may be tested "
                "on.",
                stacklevel=3,
            )
