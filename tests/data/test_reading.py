"""Files in all states: what is read, what is refused and with which words."""

import gzip
import os
import sys

import polars
import pytest
import scipy.io.arff  # noqa: F401  # sets environment variables on its first import: not within a test

from lightning_bce.data.cells import listed, numbers, require, shown, words
from lightning_bce.data.columns import find_columns
from lightning_bce.data.reading import read_table

GOOD = b"age,income\n39,no\n52,yes\n"


@pytest.fixture
def written(tmp_path):
    def write(data, name="table.csv"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    "data",
    [
        GOOD.rstrip(),
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + GOOD,
        b"\n" + GOOD + b"\n  \n",
        GOOD.replace(b"\n52", b"\n\n52"),
        b'"age","income"\n"39","no"\n52,"yes"\n',
        b" age ,income\n39,no\n52,yes\n",
    ],
    ids=["no last newline", "CRLF", "CR", "BOM", "blank ends", "blank inside", "quoted", "blank in a name"],
)
def test_harmless_differences_do_not_matter(written, data):
    assert read_table(written(data))[0].equals(read_table(written(GOOD, "good.csv"))[0])


def test_cells_stay_text_with_their_commas_newlines_and_quotes(written):
    table, _ = read_table(written(b'a,b\n007,"x,""y""\nz"\n'))
    assert table.rows() == [("007", 'x,"y"\nz')]


def test_without_quoting_a_quote_is_a_character(written):
    path = written(b'a,b\n5",x\n6,y\n')
    assert read_table(path, quote_char=None)[0]["a"].to_list() == ['5"', "6"]


def test_unicode_names_survive(written):
    assert read_table(written("Größe,標籤\n1,0\n".encode()))[0].columns == ["Größe", "標籤"]


def test_without_header_columns_are_numbered(written):
    table, _ = read_table(written(b"1,2\n3,4\n"), header=False)
    assert table.columns == ["column_0", "column_1"] and table.height == 2


def test_tab_separated_and_other_separators(written):
    assert read_table(written(GOOD.replace(b",", b"\t"), "t.tsv"))[0].columns == ["age", "income"]
    assert read_table(written(GOOD.replace(b",", b"|")), separator="|")[0].columns == ["age", "income"]


def test_parquet_keeps_its_types(tmp_path):
    polars.DataFrame({"a": [1.5, 2.5], "b": ["x", None]}).write_parquet(tmp_path / "t.parquet")
    table, _ = read_table(str(tmp_path / "t.parquet"))
    assert table.rows() == [(1.5, "x"), (2.5, None)]


def test_arff_numbers_and_words(written):
    arff = b"@relation r\n@attribute a numeric\n@attribute b {x,y}\n@data\n1.5,x\n?,?\n"
    table, _ = read_table(written(arff, "t.arff"))
    assert table["b"].to_list() == ["x", "?"]
    assert numbers(table["a"])[0].to_list() == [1.5, None]


def test_another_byte_is_another_fingerprint(written):
    prints = [read_table(written(data))[1] for data in (GOOD, GOOD, GOOD.replace(b"39", b"38"))]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"  \n\n", "is empty"),
        (b"age,income\n", "no rows below its column names"),
        (b"age,income\n39,no\n52,yes,7\n", "line 3: this row has 3 cells and the first has 2"),
        (b"age,income\n39,no\n52\n", "line 3: this row has 1 cells and the first has 2"),
        (b'age,income\n39,"no\n52,yes\n', "line 3: unexpected end of data.*quote that is not closed"),
        (b"age,age\n1,2\n", "column names that occur more than once: 'age'"),
        (b"age, age\n1,2\n", "more than once: 'age'"),
        (b"age;income\n39;no\n", "single column.*`separator=';'`"),
        (b"age\tincome\n39\tno\n", r"`separator='\\t'`"),
        (b"a;b;c,d\n1;2,5;3,4\n", "`separator=';'`"),
        (b"0.5,1\n0.7,0\n", "looks like data, not like column names.*`header=False`"),
        (b"39, Private,no\n52, Private,no\n40,Private,yes\n", "looks like data"),
        (GOOD.decode().encode("utf-16"), "looks like UTF-16"),
        (GOOD.decode().encode("utf-16-le"), "looks like UTF-16"),
        ("age,größe\n1,2\n".encode("latin-1"), "not UTF-8 .byte 6.*Latin-1"),
        (gzip.compress(GOOD, mtime=0), "looks like gzip"),
        (GOOD + b"\0", "NUL"),
    ],
)
def test_faulty_files_are_refused(written, data, message):
    with pytest.raises(ValueError, match=rf"(?s)table\.csv.*{message}"):
        read_table(written(data))


def test_names_that_are_years_or_positions_are_names(written):
    assert read_table(written(b"id,2019,2020\na,1,2\nb,3,4\n"))[0].height == 2
    assert read_table(written(b"0,1,2\n5,6,7\n5,6,7\n"))[0].height == 2


def test_paths_that_lead_to_no_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.csv"):
        read_table(str(tmp_path / "absent.csv"))
    with pytest.raises(IsADirectoryError, match="is a directory"):
        read_table(str(tmp_path))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.csv")
        with pytest.raises(ValueError, match="pipe or a device"):
            read_table(str(tmp_path / "pipe.csv"))


@pytest.mark.parametrize("name", ["secrets", "table.csv.gz", "table.xlsx", "broken.parquet", "broken.arff", "one.csv"])
def test_what_is_no_table_is_refused_without_its_content(written, name):
    with pytest.raises(ValueError) as refused:
        read_table(written(b"root:x:0:0:hunter2:/root:/bin/sh\nme:x:1:1::/home/me:/bin/sh\n", name))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("options", [{"separator": ""}, {"separator": ",,"}, {"separator": '"'}, {"quote_char": "''"}])
def test_separators_that_cannot_be_are_refused(written, options):
    with pytest.raises(ValueError, match="must be one ASCII character"):
        read_table(written(GOOD), **options)


def test_a_number_is_an_ascii_finite_decimal():
    good = ["1", "-0.5", "+5", ".5", "5.", "1e5", "1E-5", " 7 "]
    bad = ["1_000", "inf", "-Infinity", "1e400", "0x10", "\uff11\uff12", "1,5", "1 000", "True", "1d5", "--1"]
    values, wrong = numbers(polars.Series(good + bad))
    assert values.to_list()[: len(good)] == [float(word) for word in good]
    assert wrong.to_list() == [False] * len(good) + [True] * len(bad)


def test_missing_cells_are_null_in_every_type():
    assert words(polars.Series(["?", " NA ", "", None, "x"])).to_list() == [None, None, None, None, "x"]
    assert numbers(polars.Series([1.0, float("nan"), None]))[0].to_list() == [1.0, None, None]
    assert numbers(polars.Series([1, -999]), ["-999"])[0].to_list() == [1.0, None]
    assert numbers(polars.Series([1.0, float("inf")]))[1].to_list() == [False, True]


def test_dates_are_refused_with_a_way_out():
    with pytest.raises(TypeError, match=r"'when' has the type Date.*drop_columns=\['when'\]"):
        words(polars.Series("when", [None], dtype=polars.Date))


def test_untrusted_cells_are_cut_and_escaped():
    assert shown("a\x1b[31m") == r"'a\x1b[31m'"
    assert len(shown("x" * 10_000)) == 80
    assert listed(range(12), most=2) == "0, 1 and 10 more"


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning_bce\[data\]'"):
        require("polars")


NAMES = ["age", "sex", "income"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (-1, ["income"]),
        (0, ["age"]),
        ("sex", ["sex"]),
        (" sex ", ["sex"]),
        ("-2:", ["sex", "income"]),
        (":1", ["age"]),
        ("0:2", ["age", "sex"]),
        (["sex", -1], ["sex", "income"]),
        (None, []),
    ],
)
def test_columns_are_found_by_name_position_and_range(wanted, found):
    assert find_columns(NAMES, wanted, "target") == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Income", "Did you mean 'income'.*'age', 'sex', 'income'"),
        ("label", "not there. The columns are"),
        (3, "asks for column 3, and there are 3.*from -3 to 2"),
        (-4, "asks for column -4"),
        ("3:", "which is empty"),
        (["sex", 1], "more than once"),
    ],
)
def test_columns_that_are_not_there_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        find_columns(NAMES, wanted, "target")


def test_a_column_is_no_truth_value():
    with pytest.raises(TypeError, match="column names, positions"):
        find_columns(NAMES, True, "target")
