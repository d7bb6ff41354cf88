"""Data modules for binary and multi-label targets: table files and two bundled samples.

- :class:`TableDataModule` reads CSV, TSV, Parquet and ARFF files; :class:`TablePreprocessor` makes their features.
- :class:`DigitsDataModule` and :class:`BreastCancerDataModule` need no file and no download.
- :class:`BinaryDataModule` is the base of all three, for data modules of your own; :class:`TensorRows` and
  :func:`stratified_split` are its tools.

Everything here but the base needs the extra: ``pip install 'lightning_bce[data]'``.
"""

from lightning_bce.data.base import BinaryDataModule
from lightning_bce.data.preprocessing import TablePreprocessor
from lightning_bce.data.samples import BreastCancerDataModule, DigitsDataModule
from lightning_bce.data.splits import stratified_split
from lightning_bce.data.table import TableDataModule
from lightning_bce.data.tensors import TensorRows

__all__ = [
    "BinaryDataModule",
    "BreastCancerDataModule",
    "DigitsDataModule",
    "TableDataModule",
    "TablePreprocessor",
    "TensorRows",
    "stratified_split",
]
