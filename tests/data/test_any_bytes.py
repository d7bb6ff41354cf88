"""Readers of tables and of YAML under any bytes: they load, or say one clear thing of the documented type."""

import csv
import io

import polars
import pytest
import scipy.io.arff  # noqa: F401  # sets environment variables on its first import: not within a test
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lightning_bce.data.delimited import read_delimited
from lightning_bce.data.reading import read_table
from lightning_bce.safe_yaml import check_yaml

# Each example writes the one file anew.
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
# What tables are made of, so that examples come past the first check.
PIECES = st.sampled_from([b"a", b"b", b"1", b"0.5", b"-", b"e", b",", b";", b"\t", b"\n", b"\r\n", b"\r", b'"', b'""'])
PIECES |= st.sampled_from(
    [b"'", b" ", b"?", b"\0", b"\xff", b"\xef\xbb\xbf", "\xfc\u2028".encode(), b"\x0b", b"\x1c", b"#"]
)
TEXTS = st.lists(PIECES, max_size=24).map(b"".join)
ARFF = st.lists(
    st.sampled_from([b"@relation r\n", b"@attribute a numeric\n", b"@attribute b {x,y}\n", b"@attribute c date\n"])
    | st.sampled_from([b"@data\n", b"1,x\n", b"?,?\n", b"{0 1}\n", b"%\n", b"@attribute\n", b"'", b",", b"\xff"]),
    max_size=12,
).map(b"".join)
# A carriage return alone ends a line for some readers and not for others.
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(same_folder, max_examples=settings().max_examples * 10)
@given(st.sampled_from([".csv", ".tsv", ".txt", ".arff", ".parquet"]), TEXTS | ARFF | st.binary(max_size=64))
@example(".csv", b'a,b\n"1,2\n')
@example(".csv", b'a,b\n1,"x"y\n')
@example(".parquet", b"PAR1" + bytes(8) + b"PAR1")
@example(".arff", b"@relation r\n@attribute a numeric\n@data\nx\n")
def test_any_bytes_are_a_table_or_a_value_error_that_names_the_file(tmp_path, suffix, data):
    path = tmp_path / f"any{suffix}"
    path.write_bytes(data)
    try:
        table, fingerprint = read_table(str(path))
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 1500
    else:
        assert table.height > 0 and fingerprint["size"] == len(data)


@settings(max_examples=settings().max_examples * 10)
@given(TEXTS, st.booleans(), st.sampled_from([",", ";", "\t"]), st.sampled_from(['"', "'", None]))
def test_a_table_that_is_read_has_the_cells_that_pythons_reader_sees(data, header, separator, quote_char):
    try:
        table = read_delimited(data, "any.csv", header=header, separator=separator, quote_char=quote_char)
    except ValueError as error:
        assert "any.csv" in str(error)
        return
    assert set(table.dtypes) == {polars.String}
    text = data.decode("utf-8-sig")
    text = text.replace("\r", "\n") if "\n" not in text else text
    quoting = csv.QUOTE_NONE if quote_char is None else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quotechar=quote_char, quoting=quoting)
    rows = [row for row in reader if len(row) > 1][int(header) :]
    assert [[cell or "" for cell in row] for row in table.rows()] == rows


@settings(max_examples=settings().max_examples * 5)
@given(st.data(), st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_pythons_writer_wrote_is_read_cell_by_cell(data, separator, line_end, quote_all):
    width = data.draw(st.integers(2, 4))
    rows = data.draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), min_size=1, max_size=5))
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=separator, lineterminator=line_end, quoting=quoting)
    writer.writerow([f"name {i}" for i in range(width)])
    writer.writerows(rows)
    table = read_delimited(file.getvalue().encode(), "written.csv", separator=separator)
    assert [[cell or "" for cell in row] for row in table.rows()] == rows


# -- YAML -------------------------------------------------------------------------------------------------------------

MARKS = st.sampled_from(
    ["a", "1", ":", ": ", "- ", "\n", "\n  ", "[", "]", "{", "}", ",", "&a ", "*a", "*a ", "<<", "|\n"]
)
MARKS |= st.sampled_from(
    [">", '"', "'", "#", "%YAML 9\n", "---\n", "...\n", "\t", "\0", "!!binary x", "~", "? ", "!!x "]
)


@settings(same_folder, max_examples=settings().max_examples * 10)
@given(st.lists(MARKS, max_size=30).map("".join).map(str.encode) | st.binary(max_size=64))
@example(b"a: &a [*a]")
@example(b"[" * 3000)
@example(b"- " * 3000)
@example(b"a: &a {*a : 1}")
@example(b"\xff\xfea\0")
def test_any_bytes_pass_the_look_at_yaml_or_are_refused_by_a_value_error(tmp_path, data):
    path = tmp_path / "any.yaml"
    path.write_bytes(data)
    try:
        check_yaml(path)
    except ValueError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("depth", [50, 100])
def test_towers_of_aliases_are_measured_and_not_built(tmp_path, depth):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, depth)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="more than 1,000,000 values"):
        check_yaml(tmp_path / "bomb.yaml")
