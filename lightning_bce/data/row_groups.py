"""Row groups of Parquet files: how many rows they have, and one of them at a time."""

from __future__ import annotations

import functools
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_bce.data.cells import listed, require, shown
from lightning_bce.data.reading import Fingerprint

if TYPE_CHECKING:
    import polars

LARGE = 256 * 2**20
"""Bytes from which on a row group is warned of: it is read whole, and several copies of it exist for a moment."""

Kind = str
"""What a column holds: ``"numbers"``, ``"words"``, ``"nothing"`` (null in all rows), or the name of another type."""


@dataclass(frozen=True)
class RowGroup:
    """One row group: where it is, how many rows it has, and how many rows of the files before it."""

    file: str
    index: int
    rows: int
    start: int

    def __str__(self) -> str:
        """Return what a message calls it."""
        return f"{self.file}, row group {self.index}"


@dataclass
class ParquetSource:
    """The row groups of a Parquet file or folder, known from the files' footers.

    Files of a folder are taken in the order of their paths, subfolders included; names that begin with ``.`` or ``_``
    are passed over.

    Args:
        path: The file, or the folder.

    Raises:
        FileNotFoundError: If it is not there, or a folder has no Parquet file.
        ValueError: If a file is no Parquet file, files differ in their columns, or there is no row.
        ImportError: If pyarrow or polars is not installed.

    Warns:
        UserWarning: If a row group is large, or folders are named after a column, such as ``year=2024``.

    Example:
        >>> import pathlib, tempfile, polars
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> polars.DataFrame({"x": range(7)}).write_parquet(folder / "a.parquet", row_group_size=4)
        >>> source = ParquetSource(str(folder))
        >>> [group.rows for group in source.groups], source.read(1, ["x"])["x"].to_list()
        ([4, 3], [4, 5, 6])
    """

    path: str
    groups: list[RowGroup] = field(default_factory=list, init=False)
    columns: dict[str, Kind] = field(default_factory=dict, init=False)
    fingerprint: Fingerprint = field(default_factory=dict, init=False)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Read the footers."""
        require("polars")
        require("pyarrow", extra="stream")
        first: Any = None
        checksum, large = 0, (0, "")
        for file in _files(self.path):
            stamp = _stamp(file)
            self._stamps[file] = stamp
            parquet = _open(file, stamp)
            if first is None or not parquet.schema_arrow.equals(first):
                self._add_columns(_columns(parquet.schema_arrow, file), file)
                first = parquet.schema_arrow if first is None else first
            metadata = parquet.metadata
            for index in range(metadata.num_row_groups):
                rows = metadata.row_group(index).num_rows
                size = max(metadata.row_group(index).total_byte_size, 4 * rows * metadata.num_columns)
                large = max(large, (size, f"{file}, row group {index}"))
                if rows:
                    self.groups.append(RowGroup(file, index, rows, self.rows))
                checksum = zlib.crc32(f"{Path(file).name} {stamp[0]} {rows}".encode(), checksum)
        if not self.groups:
            raise ValueError(f"{self.path} has no rows: there is nothing to learn from.")
        if large[0] > LARGE:
            warnings.warn(
                f"{large[1]} has {large[0] / 2**20:.0f} MiB. A row group is read whole, so memory will be several "
                "times that. Write the files with smaller ones, such as "
                "`pyarrow.parquet.write_table(table, file, row_group_size=65536)`.",
                stacklevel=2,
            )
        self.fingerprint = {"files": len(self._stamps), "rows": self.rows, "crc32": checksum}

    @property
    def rows(self) -> int:
        """Rows of all row groups."""
        return self.groups[-1].start + self.groups[-1].rows if self.groups else 0

    def read(self, number: int, columns: Sequence[str]) -> polars.DataFrame:
        """Return these columns of a row group.

        Args:
            number: Which one, counted over all files.
            columns: Their names, without blanks around them.

        Raises:
            ValueError: If the file changed since its footer was read, or is damaged.
        """
        import polars
        import pyarrow

        group = self.groups[number]
        if (found := _stamp(group.file)) != self._stamps[group.file]:
            raise ValueError(
                f"{group.file} was changed while it was in use: it had {self._stamps[group.file][0]} bytes and has "
                f"{found[0]}, or is newer. Start again when nobody writes to it."
            )
        parquet = _open(group.file, found)
        spelled = {name.strip(): name for name in parquet.schema_arrow.names}
        try:
            # In a worker, the workers are what runs side by side.
            alone = torch.utils.data.get_worker_info() is None
            table = parquet.read_row_group(group.index, columns=[spelled[name] for name in columns], use_threads=alone)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{group} cannot be read: {str(error)[:200]}. Write the file again.") from error
        frame = polars.DataFrame(polars.from_arrow(table))
        return frame.rename({spelled[name]: name for name in columns}).select(columns)

    def require(self, wanted: dict[str, Kind], purpose: str) -> None:
        """Refuse a source without these columns, or with others of the same name.

        Args:
            wanted: Names and kinds.
            purpose: What they are for, for the message.

        Raises:
            ValueError: If one is missing or of another kind.
        """
        absent = [name for name in wanted if name not in self.columns]
        if absent:
            raise ValueError(
                f"{self.path} lacks {len(absent)} of the {purpose}: {listed(absent)}. It has "
                f"{listed(self.columns, 30)}. Add them, empty where nothing is known."
            )
        for name, kind in wanted.items():
            if "nothing" not in (kind, self.columns[name]) and kind != self.columns[name]:
                raise ValueError(
                    f"Column {shown(name)} of {self.path} holds {self.columns[name]}, and in the training files "
                    f"{kind}: write it with the same type in all files."
                )

    def _add_columns(self, columns: dict[str, Kind], file: str) -> None:
        if not self.columns:
            self.columns = columns
            return
        lacking, extra = self.columns.keys() - columns.keys(), columns.keys() - self.columns.keys()
        if lacking or extra:
            raise ValueError(
                f"{file} has other columns than the files before it: "
                + (f"it lacks {listed(sorted(lacking))}" if lacking else f"{listed(sorted(extra))} are new")
                + ". Write all files of a folder with the same columns, or take the file out."
            )
        for name, kind in columns.items():
            before = self.columns[name]
            if before == "nothing":
                self.columns[name] = kind
            elif kind not in ("nothing", before):
                raise ValueError(
                    f"Column {shown(name)} of {file} holds {kind}, and in the files before it {before}: write it with "
                    "the same type in all files."
                )


def _files(path: str) -> list[str]:
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"There is no file or folder {path} (looked for from {Path.cwd()}). Check the path.")
    if place.is_file():
        if place.suffix.lower() != ".parquet":
            raise ValueError(
                f"{path} ends in {place.suffix!r}: row groups are streamed from .parquet files. `TableDataModule` "
                "reads .csv, .tsv, .txt and .arff into memory."
            )
        return [path]
    if not place.is_dir():
        raise ValueError(f"{path} is neither a file nor a folder but a pipe or a device: write a Parquet file first.")
    found = sorted(
        file.relative_to(place).as_posix()
        for file in place.rglob("*")
        if file.suffix.lower() == ".parquet"
        and file.is_file()
        and not any(part.startswith((".", "_")) for part in file.relative_to(place).parts)
    )
    if not found:
        inside = sorted(entry.name for entry in place.iterdir())
        raise FileNotFoundError(
            f"The folder {path} holds no .parquet file"
            + (f" but {listed(inside)}. Check the path." if inside else ": it is empty. Check the path.")
        )
    if named := [file for file in found if any("=" in part for part in file.split("/")[:-1])]:
        warnings.warn(
            f"Folders of {path} are named after a column, such as {shown(named[0])}: such a column is not read. Write "
            "it into the files if it is wanted.",
            stacklevel=2,
        )
    return [os.path.join(path, file) for file in found]


def _stamp(file: str) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=8)
def _open(file: str, stamp: tuple[int, int]) -> Any:
    """Return an open file; a few stay open, because reading a footer of many columns takes long."""
    import pyarrow
    from pyarrow import parquet

    if not stamp[0]:
        raise ValueError(f"{file} is empty: it is no Parquet file. Write it again, or take it out.")
    try:
        # Not ahead of the reader: that would hold more than the row group asked for.
        return parquet.ParquetFile(file, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is not a Parquet file, or is damaged: {str(error)[:200]}") from error


def _columns(schema: Any, file: str) -> dict[str, Kind]:
    import polars

    twice = [name for name, count in Counter(name.strip() for name in schema.names).items() if count > 1]
    if twice:
        raise ValueError(f"{file} has columns of the same name: {listed(twice)}. Rename them; columns go by name.")
    empty = polars.DataFrame(polars.from_arrow(schema.empty_table()))
    return {name.strip(): _kind(dtype) for name, dtype in empty.schema.items()}


def _kind(dtype: Any) -> Kind:
    import polars

    if dtype.is_numeric() or dtype == polars.Boolean:
        return "numbers"
    if dtype in (polars.String, polars.Categorical, polars.Enum):
        return "words"
    return "nothing" if dtype == polars.Null else str(dtype)
