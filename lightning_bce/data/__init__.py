"""Data modules for binary and multi-label targets: table files, larger ones too, and two bundled samples.

- :class:`TableDataModule` reads CSV, TSV, Parquet and ARFF files; :class:`TablePreprocessor` makes their features.
- :class:`ParquetStreamDataModule` streams Parquet files that are larger than memory.
- :class:`ManyLabelDataModule` reads lists of labels, text and Parquet, for a :class:`MultiLabelHead`.
- :class:`DigitsDataModule` and :class:`BreastCancerDataModule` need no file and no download.
- :class:`BinaryDataModule` is the base of all, for data modules of your own; :class:`TensorRows` and
  :func:`stratified_split` are its tools.

Everything here but the base needs the extra: ``pip install 'lightning_bce[data]'``, and streaming ``[stream]`` too.
"""

from lightning_bce.data.base import BinaryDataModule
from lightning_bce.data.many_labels import ManyLabelDataModule
from lightning_bce.data.preprocessing import TablePreprocessor
from lightning_bce.data.samples import BreastCancerDataModule, DigitsDataModule
from lightning_bce.data.splits import stratified_split
from lightning_bce.data.streaming import ParquetStreamDataModule
from lightning_bce.data.table import TableDataModule
from lightning_bce.data.tensors import TensorRows

__all__ = [
    "BinaryDataModule",
    "BreastCancerDataModule",
    "DigitsDataModule",
    "ManyLabelDataModule",
    "ParquetStreamDataModule",
    "TableDataModule",
    "TablePreprocessor",
    "TensorRows",
    "stratified_split",
]
