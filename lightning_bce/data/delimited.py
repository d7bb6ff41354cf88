"""Text tables: each cell as text, each fault with its line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import TYPE_CHECKING

from lightning_bce.data.cells import listed, numbers, words

if TYPE_CHECKING:
    import polars

MAGIC = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive", b"PAR1": "Parquet", b"%PDF": "PDF", b"BZh": "bzip2"}


def read_delimited(
    data: bytes, path: str, *, header: bool = True, separator: str = ",", quote_char: str | None = '"'
) -> polars.DataFrame:
    r"""Return a text table with every cell as text, an empty one as null.

    Lines may end in LF, CRLF or CR; a byte-order mark and blank lines are passed over. Everything else that is out
    of order is refused.

    Args:
        data: The bytes of the file.
        path: Where they came from, for the messages.
        header: Whether the first line holds the names. Without, columns are ``column_0``, ``column_1``, ...
        separator: The character between cells.
        quote_char: The character around cells that contain separators, or None.

    Returns:
        The table; all columns are ``polars.String``.

    Raises:
        ValueError: If the bytes are not UTF-8 text, rows differ in length, a quote is not closed, there is a single
            column, names are used twice, or the first row looks like data although ``header`` says it holds names.

    Example:
        >>> read_delimited(b"a;b\n1;'x'\n\n", "a.csv", separator=";").rows()
        [('1', "'x'")]
    """
    import polars

    data = _utf8(data, path)
    blank, rows = _check_records(data, path, header, separator, quote_char)
    try:
        table = polars.read_csv(
            data, has_header=header, separator=separator, quote_char=quote_char, infer_schema_length=0
        )
    except polars.exceptions.PolarsError as error:
        raise ValueError(
            f"{path} cannot be taken apart into cells, most likely because of a quote inside a cell. If "
            f"{quote_char!r} has no special meaning in this file, pass `quote_char=None`."
        ) from error
    if table.height != rows:
        raise ValueError(
            f"{path} has {rows} rows by one reader and {table.height} by another, so its quotes are ambiguous. If "
            f"{quote_char!r} has no special meaning in this file, pass `quote_char=None`."
        )
    if not header:  # polars counts from 0 or from 1, by its version
        table.columns = [f"column_{position}" for position in range(table.width)]
    if blank:
        table = table.with_row_index("\0row").filter(~polars.col("\0row").is_in(blank)).drop("\0row")
    if header:
        _refuse_data_as_names(table, path)
    return table


def _utf8(data: bytes, path: str) -> bytes:
    """Return the text as UTF-8 with LF or CRLF and without a byte-order mark, or refuse it."""
    kind = next((name for magic, name in MAGIC.items() if data.startswith(magic)), None)
    if kind:
        raise ValueError(f"{path} is not text but looks like {kind}: unpack or convert it, or give it its own suffix.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:2000].count(0) > len(data[:2000]) // 4:
        raise ValueError(f"{path} looks like UTF-16: save it as UTF-8, for example `iconv -f UTF-16 -t UTF-8`.")
    if b"\0" in data:
        raise ValueError(f"{path} is not text: its byte {data.index(0)} is NUL. The file may be damaged or binary.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); it may be Latin-1 or Windows-1252. Save it as UTF-8, for "
            "example `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from error
    if "\r" in text and "\n" not in text:
        text = text.replace("\r", "\n")
    return text.lstrip("\r\n").encode()


def _check_records(
    data: bytes, path: str, header: bool, separator: str, quote_char: str | None
) -> tuple[list[int], int]:
    """Return which rows are blank lines and how many rows there are; refuse ragged rows and open quotes.

    polars fills short rows with nulls in silence, so the records are counted here, by Python's own reader.
    """
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="")
    records = csv.reader(
        lines,
        delimiter=separator,
        quotechar=quote_char,
        quoting=csv.QUOTE_NONE if quote_char is None else csv.QUOTE_MINIMAL,
        strict=True,
    )
    first: list[str] = []
    blank, row = [], -1 if header else 0
    try:
        for record in records:
            if not "".join(record).strip() and len(record) < 2:
                blank.append(row)
            elif not first:
                first = record
                _check_first(first, path, header, separator)
            elif len(record) != len(first):
                raise ValueError(
                    f"{path}, line {records.line_num}: this row has {len(record)} cells and the first has "
                    f"{len(first)}. Mend the row{_or_separator(first, separator)}."
                )
            row += 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {records.line_num}: {error}. Look for a quote that is not closed; if {quote_char!r} has no "
            "special meaning in this file, pass `quote_char=None`."
        ) from error
    return blank, row


def _check_first(first: list[str], path: str, header: bool, separator: str) -> None:
    if len(first) == 1:
        raise ValueError(
            f"{path} has a single column when cut at {separator!r}: a label and features are at least two. "
            f"Check that this is the right file{_or_separator(first, separator)}."
        )
    twice = [name for name, count in Counter(name.strip() for name in first).items() if count > 1]
    if header and twice:
        raise ValueError(
            f"{path} has column names that occur more than once: {listed(twice)}. Rename them; columns go by name. "
            "If the first line is data already, pass `header=False` (`--data.header false`)."
        )


def _or_separator(first: list[str], separator: str) -> str:
    """Return advice on the separator if another one is more common in the first record."""
    counts = {mark: sum(cell.count(mark) for cell in first) for mark in ";\t|," if mark != separator}
    likely = max(counts, key=lambda mark: counts[mark])
    return f", or pass `separator={likely!r}`, which the first line suggests" if counts[likely] >= len(first) else ""


def _refuse_data_as_names(table: polars.DataFrame, path: str) -> None:
    """Refuse a first line in which every name is a number or also a cell of its own column."""
    import polars

    names = table.columns
    counted = [str(position) for position in range(len(names))]
    if names[:-1] == counted[:-1]:  # what pandas writes for columns without names
        return
    no_number = numbers(polars.Series(names))[0].is_null().to_list()
    strange = [name for name, is_word in zip(names, no_number, strict=True) if is_word]
    if not table.height or any(not (words(table[name], ()) == name.strip()).any() for name in strange):
        return
    raise ValueError(
        f"The first line of {path} looks like data, not like column names: {listed(names, most=4)}. "
        "If the file has no names, pass `header=False` (`--data.header false`); otherwise name its columns by words."
    )
