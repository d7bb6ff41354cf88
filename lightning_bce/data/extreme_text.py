r"""The text format of the extreme classification repository: labels and sparse features, a row on each line.

The first line is ``num_points num_features num_labels``; each further line is ``l1,l2,... f1:v1 f2:v2 ...``, all
counted from 0, and begins with a blank where a row has no label.
"""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from lightning_bce.data.cells import shown
from lightning_bce.data.label_lists import Lists, ManyLabelTable
from lightning_bce.data.reading import regular_file

Numbers = npt.NDArray[np.int64]

_BLOCK = 2**22
"""Bytes that are parsed at a time: the arrays that this takes are some ten times as large."""

_DIGIT, _BLANK, _END, _COMMA, _COLON, _OTHER = range(6)
_KIND = np.full(256, _OTHER, dtype=np.uint8)
_KIND[[*b"0123456789+-.eE"]] = _DIGIT
_KIND[[*b" \t\r"]] = _BLANK
_KIND[ord("\n")], _KIND[ord(",")], _KIND[ord(":")] = _END, _COMMA, _COLON
_NOT_WHOLE = np.isin(np.arange(256), [*b"+-.eE"])
_TO_BLANKS = bytes.maketrans(b"\n,:\t\r", b"     ")
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Header(NamedTuple):
    """The first line.

    Args:
        rows: Number of rows.
        features: Number of features.
        labels: Number of labels.
    """

    rows: int
    features: int
    labels: int


def read_header(path: str) -> Header:
    r"""Return the first line of a file, without reading more of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the line is no header.

    Example:
        >>> file = getfixture("tmp_path") / "few.txt"
        >>> _ = file.write_text("1 5 3\n0,2 1:0.5 4:2\n")
        >>> read_header(str(file))
        Header(rows=1, features=5, labels=3)
    """
    with _opened(path) as file:
        return _header(file, path)


def read_extreme_text(path: str) -> ManyLabelTable:
    r"""Return the rows of a file, plain or packed (.gz), read in one pass.

    In memory are then 8 bytes for each label and 12 for each feature of a row at most, of which 4 and 8 stay.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is faulty, with the number of the line, or its counts are not those of its header.

    Warns:
        UserWarning: If rows name a label twice, which then counts once.

    Example:
        >>> file = getfixture("tmp_path") / "few.txt"
        >>> _ = file.write_text("2 5 3\n0,2 1:0.5 4:2\n 3:1\n")
        >>> table = read_extreme_text(str(file))
        >>> table.labels.start, table.labels.indices
        (tensor([0, 2, 2]), tensor([0, 2], dtype=torch.int32))
    """
    checksum = size = twice = 0
    first_twice: int | None = None
    blocks: list[_Block] = []
    with _opened(path) as file:
        header = _header(file, path)
        line = 2
        for data in _whole_lines(file, path):
            checksum, size = zlib.crc32(data, checksum), size + len(data)
            block = _parsed(data, path, line, header)
            if block.twice and first_twice is None:
                first_twice = line + block.first_twice
            line, twice = line + len(block.labels_in_row), twice + block.twice
            blocks.append(block)
    rows = line - 2
    if rows != header.rows:
        raise ValueError(
            f"{path} has {rows} rows below its header, which says {header.rows}. "
            + (
                "It was cut off, or the header is"
                if rows < header.rows
                else "Blank lines count as rows, or the header is"
            )
            + " that of another file: get it again, or correct its first number."
        )
    if not rows:
        raise ValueError(f"{path} has a header and no rows: there is nothing to learn from.")
    if twice:
        warnings.warn(
            f"{path} names {twice} label(s) twice in a row, first on line {first_twice}: they count once.", stacklevel=2
        )
    labels = Lists(_starts(blocks, "labels_in_row"), _joined(blocks, "labels"))
    inputs = Lists(_starts(blocks, "features_in_row"), _joined(blocks, "features"), _joined(blocks, "values"))
    fingerprint = {"size": size, "crc32": checksum}
    return ManyLabelTable(inputs, labels, header.features, header.labels, torch.arange(rows), None, fingerprint)


class _Block:
    """What some lines hold; a column is let go as soon as it is joined with the others."""

    def __init__(self, labels: Numbers, labels_in_row: Numbers, index: Numbers, index_in_row: Numbers) -> None:
        self.labels = labels.astype(np.int32)
        self.labels_in_row = labels_in_row
        self.features = index.astype(np.int32)
        self.features_in_row = index_in_row
        self.values = np.empty(0, np.float32)
        self.twice = 0
        self.first_twice = 0


def _joined(blocks: list[_Block], name: str) -> torch.Tensor:
    whole = np.concatenate([getattr(block, name) for block in blocks])
    for block in blocks:
        delattr(block, name)
    return torch.from_numpy(whole)


def _starts(blocks: list[_Block], name: str) -> torch.Tensor:
    size = _joined(blocks, name)
    return torch.cat([size.new_zeros(1), size.cumsum(0)])


# -- the file ---------------------------------------------------------------------------------------------------------


def _opened(path: str) -> BinaryIO:
    file = regular_file(path)
    if file.suffix.lower() == ".gz":
        return gzip.open(file)  # type: ignore[return-value]
    return file.open("rb")


def _read(file: BinaryIO, path: str, size: int) -> bytes:
    try:
        return file.read(size)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}. It was cut off or damaged: get it again.") from error


def _header(file: BinaryIO, path: str) -> Header:
    try:
        line = file.readline(200).removeprefix(b"\xef\xbb\xbf")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}. It was cut off or damaged: get it again.") from error
    if not re.fullmatch(rb"\s*\d{1,18}\s+\d{1,18}\s+\d{1,18}\s*", line):
        raise ValueError(
            f"{path}, line 1 is {shown(line.decode('utf-8', 'backslashreplace').rstrip())}; the header "
            "`num_points num_features num_labels` was expected, three whole numbers. Write it in front of the rows."
        )
    found = Header(*map(int, line.split()))
    if min(found.features, found.labels) < 1 or max(found.features, found.labels) >= 2**31:
        raise ValueError(
            f"{path}, line 1 says {found.features} features and {found.labels} labels; from 1 to 2^31 - 1 of both were "
            "expected."
        )
    return found


def _whole_lines(file: BinaryIO, path: str) -> Iterator[bytes]:
    """Yield the file in blocks that end with a line."""
    rest = b""
    while data := _read(file, path, _BLOCK):
        end = data.rfind(b"\n") + 1
        if end:
            yield rest + data[:end]
            rest = data[end:]
        else:
            rest += data
    if rest:
        yield rest + b"\n"


# -- lines ------------------------------------------------------------------------------------------------------------


def _parsed(data: bytes, path: str, line: int, header: Header) -> _Block:
    """Return what whole lines hold, the first of which has the number ``line``."""

    def fault(position: int, what: str) -> NoReturn:
        _fault(data, path, line, int(position), what)

    text = np.frombuffer(data, np.uint8)
    kind = _KIND[text]
    wrong = np.flatnonzero(kind == _OTHER)
    if len(wrong):
        fault(wrong[0], "only digits, blanks, commas and colons were expected, in UTF-8")
    edges = np.diff((kind == _DIGIT).astype(np.int8), prepend=np.int8(0))
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    before = np.where(begins > 0, kind[begins - 1], _END)
    after = kind[ends]
    is_label = ((before == _END) | (before == _COMMA)) & (after != _COLON)
    is_index = ((before == _END) | (before == _BLANK)) & (after == _COLON)
    is_value = (before == _COLON) & ((after == _BLANK) | (after == _END))
    # A comma or colon stands between two numbers.
    marks = np.flatnonzero((kind == _COMMA) | (kind == _COLON))
    alone = marks[(np.where(marks > 0, kind[marks - 1], _END) != _DIGIT) | (kind[marks + 1] != _DIGIT)]
    astray = np.concatenate([alone, begins[~(is_label | is_index | is_value)]])
    if len(astray):
        fault(astray.min(), "`l1,l2,... f1:v1 f2:v2 ...` was expected")
    numbers = _numbers(data, begins, ends, fault)
    odd = np.searchsorted(begins, np.flatnonzero(_NOT_WHOLE[text] & (kind == _DIGIT)), "right") - 1
    odd = odd[~is_value[odd]]
    if len(odd):
        fault(begins[odd[0]], "labels and features are whole numbers from 0 on, as they were expected to be")
    for chosen, limit, name in ((is_label, header.labels, "label"), (is_index, header.features, "feature")):
        beyond = begins[chosen & (numbers >= limit)]
        if len(beyond):
            fault(beyond[0], f"a {name} from 0 to {limit - 1} was expected, because the header says {limit}")
    with np.errstate(over="ignore"):
        values = numbers[is_value].astype(np.float32)
    infinite = np.flatnonzero(~np.isfinite(values))
    if len(infinite):
        fault(begins[is_value][infinite[0]], "a value that float32 can hold was expected")
    newlines = np.flatnonzero(kind == _END)
    row = np.searchsorted(newlines, begins)
    labels, of_row = numbers[is_label].astype(np.int64), row[is_label]
    key = np.unique(of_row * header.labels + labels)
    twice = len(labels) - len(key)
    first_twice = 0
    if twice:
        ordered = np.sort(of_row * header.labels + labels)
        first_twice = int(ordered[1:][ordered[1:] == ordered[:-1]][0] // header.labels)
    block = _Block(
        key % header.labels,
        np.bincount(key // header.labels, minlength=len(newlines)),
        numbers[is_index].astype(np.int64),
        np.bincount(row[is_index], minlength=len(newlines)),
    )
    block.values, block.twice, block.first_twice = values, twice, first_twice
    return block


def _numbers(data: bytes, begins: Numbers, ends: Numbers, fault: object) -> npt.NDArray[np.float64]:
    """Return the numbers that stand between ``begins`` and ``ends``."""
    if not len(begins):
        return np.empty(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of numpy, where something is no number
            numbers = np.fromstring(data.translate(_TO_BLANKS), sep=" ")
    except (DeprecationWarning, ValueError):
        numbers = np.empty(0)
    # 1-2 is read as two numbers.
    if len(numbers) != len(begins):
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if not _NUMBER.fullmatch(data, begin, end):
                fault(begin, "a number was expected")  # type: ignore[operator]
    found: npt.NDArray[np.float64] = numbers
    return found


def _fault(data: bytes, path: str, line: int, position: int, what: str) -> NoReturn:
    """Raise with the number of the line and what stands there."""
    begin = data.rfind(b"\n", 0, position) + 1
    end = data.find(b"\n", position)
    # Of the word that is wrong, not of the line, which may have thousands.
    begin = max(begin, data.rfind(b" ", begin, position) + 1)
    word = data[begin : min(end, *(place for place in [data.find(b" ", position), end] if place > begin))]
    where = line + data.count(b"\n", 0, position)
    raise ValueError(
        f"{path}, line {where} has {shown(word.decode('utf-8', 'backslashreplace'))}: {what}. Correct this line."
    )
