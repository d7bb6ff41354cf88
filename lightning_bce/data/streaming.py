"""A Parquet folder larger than memory as a data module: row groups in, batches out."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Literal

from lightning_bce.data.base import Loader, Part, fraction_beside, place, whole
from lightning_bce.data.cells import MISSING, listed
from lightning_bce.data.learning import LearningDataModule
from lightning_bce.data.preprocessing import TablePreprocessor
from lightning_bce.data.row_groups import ParquetSource
from lightning_bce.data.row_plan import RowSplit, batch_sizes
from lightning_bce.data.stream_learning import StreamLearnt, learn
from lightning_bce.data.stream_loader import BlockReader, StreamLoader
from lightning_bce.data.tensors import TensorRows
from lightning_bce.losses import LabelCounts


class ParquetStreamDataModule(LearningDataModule):
    r"""A Parquet file or folder of any size, read by row groups, with a few of them in memory at a time.

    Columns, labels and features are those of :class:`TableDataModule`, with these differences:

    - The training files are read once before training, by each rank, to learn means, deviations and words, and to
      check the labels. A checkpoint holds what was learnt, so that testing, predicting and resuming from the command
      line do not read them for it again.
    - Columns of numbers are numbers and columns of text are words; numbers written as text are refused.
    - Every row is dealt to training, validation or test on its own, by seed and row number, not by its label: for
      that all labels would have to be in memory. So each part has rows of all row groups, and a validation part costs
      a pass over all files; files of their own (``val_path``) cost no more than they hold.
    - The length of an epoch is known before it is read, so rows without a label cannot be dropped.

    **Order.** In training the row groups come in an order of their own in each epoch, and rows are shuffled within
    ``shuffle_mib`` of features, or one row group where that is larger. The order follows from seed and epoch, and is
    the same for any number of workers and after a resume; within an epoch, a resumed run goes on behind the batches
    that were trained on. Files that are sorted want more ``shuffle_mib``.
    Evaluation and prediction keep the order of the files (by path) and of their rows; ids count over all files.

    **Ranks.** Each rank reads its own stretch of the row groups; every row comes once an epoch, on one rank, in
    training and in evaluation, and all ranks have the same number of batches. For this the last batch may be smaller
    than on another rank; and where a rank lacks one row for as many batches, its last full batch gives one up.

    **Memory.** It grows with ``shuffle_mib``, the size of a row group and the number of workers, not with the data.
    Resident at most, all processes together, in an epoch over 256 columns of float32: 0.84 GiB for 10 GiB in row groups
    of 64 MiB, 0.7 GiB for 2 GiB in row groups of 8 MiB, and there 1.4 GiB with two workers, half of it their imports.
    Workers are spawned, and a script that has them needs ``if __name__ == "__main__":``.

    Args:
        path: The Parquet file to train on, or a folder of such files with the same columns.
        target: The label column or columns: a name, a position (-1 is the last), a range of positions such as
            ``"-14:"`` (the last 14), or a list of these. The columns' names are the class names.
        positive: The value or values of the positive class; all others are negative. None is for labels that are 0
            and 1, true and false, or between 0 and 1.
        val_path: A file or folder to validate on, all of its rows. None takes the validation rows from ``path``.
        test_path: A file or folder to test on, all of its rows. None takes the test rows from ``path``.
        predict_path: A file or folder to predict; its label columns may be missing. None predicts the rows of
            ``path``.
        id_column: The column whose texts name the rows. None numbers the rows from 0, over all files.
        weight_column: The column with the weight of each row, at least 0.
        drop_columns: Columns to leave out; they are not read.
        categorical: Columns to take as words though they hold numbers.
        missing_values: What a cell says where the value is unknown. Null and NaN always say so.
        max_categories: Most words that a column of words keeps, the most frequent first.
        missing_targets: What to do with an unknown label: "error" refuses, "ignore" makes the target NaN.
        val_fraction: Share of the rows of ``path`` to validate on, in [0, 1). None is 0.15 without ``val_path``.
        test_fraction: Share of the rows of ``path`` to test on, in [0, 1). None is 0.2 without ``test_path``.
        positive_share: None. Rows are read as they lie in the files, so that none can be drawn by its label.
        seed: Decides the parts and the order of the training rows.
        shuffle_mib: MiB of features that are in memory and shuffled together, at least 1.
        batch_size: Rows in a batch, at least 1.
        num_workers: Processes that read row groups; 0 reads in the main process.

    Raises:
        ValueError: If an argument is out of range or would have no effect, or, once they are read, if files are faulty.
        FileNotFoundError: Once they are read, if the files are not there.
        ImportError: Once they are read, if polars or pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile, polars
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> table = polars.DataFrame({"age": [20, 51, 33, 64] * 9, "sick": [0, 1, 0, 1] * 9})
        >>> table.write_parquet(folder / "a.parquet", row_group_size=10)
        >>> data = ParquetStreamDataModule(folder, batch_size=16, val_fraction=0.0, test_fraction=0.0)
        >>> [len(batch["target"]) for batch in data.train_dataloader()]
        [16, 16, 4]
    """

    _knowledge = StreamLearnt

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        target: int | str | list[int | str] = -1,
        positive: str | bool | int | float | list[str | bool | int | float] | None = None,
        val_path: str | os.PathLike[str] | None = None,
        test_path: str | os.PathLike[str] | None = None,
        predict_path: str | os.PathLike[str] | None = None,
        id_column: int | str | None = None,
        weight_column: int | str | None = None,
        drop_columns: int | str | list[int | str] | None = None,
        categorical: int | str | list[int | str] | None = None,
        missing_values: Sequence[str] = MISSING,
        max_categories: int = 64,
        missing_targets: Literal["error", "ignore"] = "error",
        val_fraction: float | None = None,
        test_fraction: float | None = None,
        positive_share: None = None,
        seed: int = 0,
        shuffle_mib: int = 32,
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
        if positive_share is not None:
            raise ValueError(
                f"`positive_share` is {positive_share}, and a stream cannot draw rows by their labels: they are read "
                "as they lie in the files, each once. Weigh the positives instead, `pos_weight: auto` of the loss, or "
                "use TableDataModule where the rows fit into memory."
            )
        if missing_targets not in ("error", "ignore"):
            raise ValueError(
                f'`missing_targets` is {missing_targets!r}: it must be "error" or "ignore". Rows cannot be dropped '
                "while they stream, because an epoch's length is known before its labels are: write the files without "
                "them."
            )
        if isinstance(missing_values, str):
            raise TypeError(f"`missing_values` is the text {missing_values!r}: give a list, [{missing_values!r}].")
        # Plain values, so that a checkpoint with them loads under `weights_only=True`.
        path, missing_values = os.fspath(path), list(missing_values)
        val_path = None if val_path is None else os.fspath(val_path)
        test_path = None if test_path is None else os.fspath(test_path)
        predict_path = None if predict_path is None else os.fspath(predict_path)
        self.save_hyperparameters()
        self.path, self.val_path, self.test_path, self.predict_path = path, val_path, test_path, predict_path
        self.target, self.positive, self.missing_targets = target, positive, missing_targets
        self.id_column, self.weight_column = id_column, weight_column
        self.drop_columns, self.categorical = drop_columns, categorical
        self.missing_values, self.max_categories = missing_values, max_categories
        self.shuffle_mib = whole("shuffle_mib", shuffle_mib, least=1)
        TablePreprocessor(max_categories=max_categories)  # refuses a wrong number now, not after reading
        self._sources: dict[str, ParquetSource] = {}

    def use_fold(self, fold: int, folds: int) -> None:
        """Refuse: a stream deals its rows to the parts as they come, and has no folds."""
        raise ValueError("A stream has no folds: its rows are dealt to the parts as they come. Compare over seeds.")

    def rows(self, part: Part) -> TensorRows | None:
        """Return the rows of a part in memory, all at once; the loaders stream them.

        Args:
            part: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            The dataset, in the order of the files, or None if its fraction is 0.
        """
        reader = self._reader(part)
        if reader is None:
            return None
        batches = list(StreamLoader(reader, batch_size=max(sum(reader.sizes()), 1), rows_in_block=self._rows_in_block))
        return TensorRows(batches[0])

    def label_counts(self) -> LabelCounts:
        """Return the counts of the training labels, with the weights of the rows, from the pass that learns."""
        counts = self._known().label_counts
        return super().label_counts() if counts is None else LabelCounts.from_plain(counts)

    def train_dataloader(self) -> Loader:
        """Return the loader of the training rows, shuffled anew in each epoch."""
        reader = self._reader("train")
        assert reader is not None
        # What is overfitted has to be the same rows each time.
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._stream(reader, seed=None if overfit else self.seed)

    def _in_order(self, part: Part) -> Loader | list[Loader]:
        reader = self._reader(part)
        return [] if reader is None else self._stream(reader, seed=None)

    @property
    def _rows_in_block(self) -> int:
        return max(1, self.shuffle_mib * 2**20 // (4 * self.num_features))

    def _stream(self, reader: BlockReader, seed: int | None) -> StreamLoader:
        rank, ranks = place(self.trainer)
        rows = sum(reader.sizes())
        lengths = {len(batch_sizes(rows, self.batch_size, r, ranks)) for r in range(ranks)}
        if rows < ranks or (seed is not None and len(lengths) > 1):
            raise ValueError(
                f"{rows} {reader.part} rows cannot be dealt to {ranks} ranks in batches of {self.batch_size} so that "
                "all have as many batches and none an empty one. Use fewer devices, or a `batch_size` of at least 2."
            )
        return StreamLoader(
            reader,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            rows_in_block=self._rows_in_block,
            rank=rank,
            world_size=ranks,
            seed=seed,
        )

    def _known(self) -> StreamLearnt:
        if self._learnt is None:
            self._learnt = learn(
                self._source(self.path),
                RowSplit(self.fractions, self.seed),
                target=self.target,
                positive=self.positive,
                id_column=self.id_column,
                weight_column=self.weight_column,
                drop_columns=self.drop_columns,
                categorical=self.categorical,
                missing_values=self.missing_values,
                max_categories=self.max_categories,
                missing_targets=self.missing_targets,
            )
        assert isinstance(self._learnt, StreamLearnt)
        return self._learnt

    def _restored(self) -> None:
        if self.path in self._sources:
            self._compare_with(self._sources[self.path])

    def _compare_with(self, source: ParquetSource) -> None:
        self._compare(list(source.columns), source.fingerprint)

    # -- reading ------------------------------------------------------------------------------------------------------

    def _source(self, path: str) -> ParquetSource:
        if path not in self._sources:
            self._sources[path] = ParquetSource(path)
            if path == self.path and self._learnt is not None:
                self._compare_with(self._sources[path])
        return self._sources[path]

    def _reader(self, part: Part) -> BlockReader | None:
        """Return the reader of a part, or None if its fraction is 0."""
        own = {"val": self.val_path, "test": self.test_path, "predict": self.predict_path or self.path}.get(part)
        if own is None and self.fractions[part] == 0:
            return None
        known = self._known()
        source = self._source(self.path if own is None else own)
        wanted = {name: known.columns[name] for name in known.features}
        source.require(wanted, "columns the model was trained on")
        targets = [] if part == "predict" else known.targets
        weight_column = None if part == "predict" else known.weight_column
        others = [*targets, *(name for name in (weight_column, known.id_column) if name is not None)]
        absent = [name for name in others if name not in source.columns]
        if absent:
            raise ValueError(f"{source.path} lacks the columns {listed(absent)}, of labels, weights or ids: add them.")
        extra = [name for name in source.columns if name not in known.columns]
        if extra:
            warnings.warn(f"Columns the training files did not have are not used: {listed(extra)}.", stacklevel=2)
        reader = BlockReader(
            source,
            part,
            RowSplit({part: 1.0} if own is not None else self.fractions, self.seed),
            known.preprocessor,
            targets,
            self.positive,
            known.label_words,
            self.missing_targets,
            weight_column,
            known.id_column,
            known.features,
        )
        if not sum(reader.sizes()):
            raise ValueError(
                f"The part {part!r} is to hold {self.fractions[part]:.3g} of {source.rows} rows, and got none. Bring "
                "more rows, or give this part a larger fraction, or 0 to do without it."
            )
        return reader
