"""Files that are whole or not there: tables as CSV and Parquet, and whatever else a run leaves."""

from __future__ import annotations

import contextlib
import csv
import importlib
import importlib.util
import io
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

Columns = dict[str, list[Any]]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def checked_paths(output: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> list[Path]:
    """Return the paths of ``output``.

    Raises:
        ValueError: If one has a suffix that is not ``.csv`` or ``.parquet``, or occurs twice.
        ImportError: If Parquet is asked for and polars is not there.
    """
    given = [] if output is None else [output] if isinstance(output, (str, os.PathLike)) else list(output)
    paths = [Path(path) for path in given]
    for path in paths:
        if path.suffix.lower() not in _WRITERS:
            raise ValueError(
                f"`output` is {str(path)!r}; a name that ends in {' or '.join(_WRITERS)} was expected, which decides "
                "the format."
            )
        if path.suffix.lower() == ".parquet" and importlib.util.find_spec("polars") is None:
            raise ImportError("Parquet files need polars: `pip install 'lightning_bce[data]'`. CSV files need nothing.")
    if len({os.path.abspath(path) for path in paths}) < len(paths):
        raise ValueError(f"`output` names a file twice: {[str(path) for path in paths]}.")
    return paths


def check_place(path: Path, overwrite: bool) -> None:
    """Refuse a file that cannot or shall not be written, as far as that can be known before.

    Raises:
        OSError: A subclass of it, with what to do.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; the name of a file was expected, such as {path / 'p.csv'}.")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file; give another `output`.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Give another `output`, or `overwrite=True` to replace it.")
    above = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is a file, not a directory.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written: there is no permission to write in {above}.")


def write_table(columns: Columns, path: Path, *, overwrite: bool, escape_formulas: bool) -> None:
    """Write a table, in the format of its suffix. The file is there as a whole or, after an error, not at all.

    Args:
        columns: Columns of equal length.
        path: Where to; missing directories are created, and a link keeps pointing to the file.
        overwrite: Whether a file that is there is replaced.
        escape_formulas: Whether text that a spreadsheet takes for a formula gets a ``'`` in front, in CSV.

    Raises:
        OSError: If it cannot be written.
    """
    check_place(path, overwrite)
    with whole_file(path) as file:
        _WRITERS[path.suffix.lower()](columns, file, escape_formulas)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that is there as a whole at the end of the block or, after an error, as it was before.

    Args:
        path: Where to; missing directories are created, and a link keeps pointing to the file.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with whole_file(folder / "note.txt") as file:
        ...     _ = file.write(b"all of it")
        >>> (folder / "note.txt").read_bytes(), len(list(folder.iterdir()))
        (b'all of it', 1)
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not from `tempfile`, whose files nobody else may read, and which may lie on another file system: only in one is a
    # file renamed in one step. This one gets the rights that the umask leaves.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.partial")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the name could be on the disk before the content
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A disk that is full says no name. An error without a number would lose its text to one.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    with contextlib.suppress(OSError):  # the new name too, where the system can; Windows does without
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append_line(path: Path, line: str) -> None:
    r"""Add a line to a text file, or leave the file as it was.

    Args:
        path: The file, which is made if it is not there.
        line: Without its end.

    Raises:
        OSError: If it cannot be written, such as on a full disk, which takes the first half of a line.

    Example:
        >>> append_line(getfixture("tmp_path") / "log.txt", "one")
        >>> (getfixture("tmp_path") / "log.txt").read_text()
        'one\n'
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(f"{line}\n".encode())
    except OSError as error:
        with contextlib.suppress(OSError):  # not opened, and so not changed
            os.truncate(path, size)
        if error.errno is not None:
            error.filename = str(path)
        raise


def defused(text: str) -> str:
    """Return text that no spreadsheet takes for a formula: with a ``'`` in front where it would. Numbers stay numbers.

    Example:
        >>> defused("=1+2"), defused("-5"), defused("a=b")
        ("'=1+2", '-5', 'a=b')
    """
    return f"'{text}" if text.startswith(_STARTS_A_FORMULA) and not _NUMBER.fullmatch(text) else text


def _write_csv(columns: Columns, file: BinaryIO, escape_formulas: bool) -> None:
    def cell(value: Any) -> Any:
        return defused(value) if escape_formulas and isinstance(value, str) else value

    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.writer(_Lines(text), lineterminator="\r\n")
    writer.writerow([cell(name) for name in columns])
    # Python writes a float with the digits that it takes to read back the same float.
    writer.writerows([cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    text.detach()  # flushes, and leaves the file open for whoever opened it


class _Lines:
    """Ends lines in a line feed alone, for a csv writer that ends them in both and therefore quotes a lone return."""

    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, line: str) -> int:
        return self.file.write(line.removesuffix("\r\n") + "\n")


def _write_parquet(columns: Columns, file: BinaryIO, escape_formulas: bool) -> None:
    polars = importlib.import_module("polars")  # takes a second, and CSV does not need it
    frame = polars.DataFrame(
        [polars.Series(name, values, dtype=getattr(polars, _kind(name, values))) for name, values in columns.items()]
    )
    frame.write_parquet(file)


def _kind(name: str, values: Sequence[Any]) -> str:
    if name.startswith("probability"):
        return "Float32"
    if name.startswith("decision"):
        return "UInt8"
    return "String" if any(isinstance(value, str) for value in values) else "Int64"


_BINARY = getattr(os, "O_BINARY", 0)  # Windows
_WRITERS: Mapping[str, Any] = {".csv": _write_csv, ".parquet": _write_parquet}
