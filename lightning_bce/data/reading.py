"""Read a table file as it was written: no guessing of types, no silent repair."""

from __future__ import annotations

import io
import zlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bce.data.cells import listed, require, shown
from lightning_bce.data.delimited import read_delimited

if TYPE_CHECKING:
    import polars

SEPARATORS = {".csv": ",", ".txt": ",", ".tsv": "\t"}
"""The separator of a text table by its suffix."""

Fingerprint = dict[str, int]


def read_table(
    path: str, *, header: bool = True, separator: str | None = None, quote_char: str | None = '"'
) -> tuple[polars.DataFrame, Fingerprint]:
    r"""Return the table in a file, and the file's fingerprint.

    Text tables (.csv, .tsv, .txt) come as text, cell by cell; Parquet (.parquet) and ARFF (.arff) with the types they
    declare. The whole file is read into memory, at a cost of a few times its size.

    Args:
        path: The file; its suffix says what it is.
        header: Whether the first line of a text table holds the names. Without, columns are ``column_0``, ...
        separator: The character between cells. None is a comma, and a tab for .tsv.
        quote_char: The character around cells that contain separators. None takes every character as it is.

    Returns:
        The table and ``{"size": bytes, "crc32": checksum}``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a table.
        ImportError: If a package for the format is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "few.csv")
        >>> _ = path.write_text("age,income\n39,<=50K\n52,>50K\n")
        >>> table, _ = read_table(str(path))
        >>> table.rows()
        [('39', '<=50K'), ('52', '>50K')]
    """
    require("polars")
    file = regular_file(path)
    suffix = file.suffix.lower()
    if suffix not in (*SEPARATORS, ".parquet", ".arff"):
        raise ValueError(
            f"{path} ends in {suffix!r}: tables are read from .csv, .tsv, .txt, .parquet and .arff. "
            + ("Unpack it first." if suffix in (".gz", ".zip", ".bz2", ".xz", ".zst") else "Convert or rename it.")
        )
    data = file.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty: there is nothing to learn from.")
    if suffix == ".parquet":
        table = _parquet(data, path)
    elif suffix == ".arff":
        table = _arff(data, path)
    else:
        if quote_char is not None and len(quote_char.encode()) != 1:
            raise ValueError(f"`quote_char` is {quote_char!r}: it must be one ASCII character, or None for no quoting.")
        separator = SEPARATORS[suffix] if separator is None else separator
        if len(separator.encode()) != 1 or separator == quote_char:
            raise ValueError(
                f"`separator` is {separator!r} and `quote_char` {quote_char!r}: the separator must be one ASCII "
                'character, and another than the quote. For a tab give "\\t".'
            )
        table = read_delimited(data, path, header=header, separator=separator, quote_char=quote_char)
    if not table.height:
        raise ValueError(f"{path} has no rows below its column names: there is nothing to learn from.")
    return _with_clean_names(table, path), {"size": len(data), "crc32": zlib.crc32(data)}


def regular_file(path: str) -> Path:
    """Return the path of a file that can be read more than once.

    Raises:
        IsADirectoryError: If it is a directory.
        FileNotFoundError: If there is none.
        ValueError: If it is a pipe or a device.

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "few.csv")
        >>> _ = path.write_text("age,income")
        >>> regular_file(str(path)).name
        'few.csv'
    """
    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"{path} is a directory: give the path of a file inside it.")
    if not file.exists():
        raise FileNotFoundError(f"There is no file {path} (looked for from {Path.cwd()}). Check the path.")
    if not file.is_file():
        raise ValueError(f"{path} is not a regular file but a pipe or a device: save it to a file first.")
    return file


def _parquet(data: bytes, path: str) -> polars.DataFrame:
    import polars

    try:
        return polars.read_parquet(io.BytesIO(data))
    except polars.exceptions.PolarsError as error:
        raise ValueError(f"{path} is not a Parquet file, or is damaged: {str(error)[:200]}") from error


def _arff(data: bytes, path: str) -> polars.DataFrame:
    require("scipy")
    import polars
    from scipy.io import arff

    try:
        records, meta = arff.loadarff(io.StringIO(data.decode("utf-8-sig")))
    except (arff.ArffError, NotImplementedError, ValueError, StopIteration, IndexError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as ARFF: {shown(str(error))}. Dense numeric and nominal attributes in UTF-8 are "
            "read; convert sparse files and text or date attributes to CSV."
        ) from error
    columns: list[Any] = []
    for name in meta.names():
        if records.dtype[name].kind == "S":
            # Nominal cells come as bytes, a missing one as b"?".
            columns.append(polars.Series(name, [cell.decode() for cell in records[name]], dtype=polars.String))
        else:
            columns.append(polars.Series(name, records[name]))
    return polars.DataFrame(columns)


def _with_clean_names(table: polars.DataFrame, path: str) -> polars.DataFrame:
    names = [name.strip() or f"column_{position}" for position, name in enumerate(table.columns)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has columns of the same name: {listed(twice)}. Rename them; columns go by name.")
    return table.rename(dict(zip(table.columns, names, strict=True)))
