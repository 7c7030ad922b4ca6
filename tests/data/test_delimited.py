"""Reading .csv and .tsv: every way to write the same table, and one line for what is wrong with one."""

import csv
import gzip
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmodel.data.delimited import Format, is_table, read_table
from jaxmodel.errors import InputError

TABLE = {"age": ["31", "7"], "name": ["Ann, the first", "Bo"], "y": ["a", ""]}


def cells(columns):
    return {name: list(column) for name, column in columns.columns.items()}


SPELLINGS = [
    ("t.csv", 'age,name,y\n31,"Ann, the first",a\n7,Bo,\n'),
    ("t.csv", 'age, name , y\n31, "Ann, the first", a\n\n7, Bo ,\n\n'),  # blanks and blank lines are nothing
    ("t.csv", 'age;name;y\r\n31;Ann, the first;a\r\n7;"Bo";\r\n'),
    ("t.tsv", "age\tname\ty\n31\tAnn, the first\ta\n7\tBo\t\n"),
    ("t.csv", '\ufeffage,name,y\n31,"Ann, the first",a\n7,Bo,\n'),
    ("t.csv", ',age,name,y\n0,31,"Ann, the first",a\n1,7,Bo,\n'),  # with an index, as pandas writes it
    ("t.data", 'age,name,y\r31,"Ann, the first",a\r7,Bo,'),
]


@pytest.mark.parametrize(("name", "text"), SPELLINGS)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_spelling_of_a_table(tmp_path, name, text, zipped):
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    columns = read_table(path)
    assert cells(columns) == TABLE
    assert columns.unnamed == ((1,) if text.startswith(",") else ())
    assert len(columns) == 2 and columns.title == f"'{path}'"


def test_rows_know_their_lines(tmp_path):
    (tmp_path / "t.csv").write_text('# made by hand\na,b\n1,"two\nlines"\n\n3,4\n')
    columns = read_table(tmp_path / "t.csv", Format(skip_rows=1))
    assert cells(columns) == {"a": ["1", "3"], "b": ["two\nlines", "4"]}
    assert [columns.where(row) for row in (0, 1)] == [f"line {n} of '{tmp_path / 't.csv'}'" for n in (3, 6)]
    assert columns.take(np.array([1])).where(0).startswith("line 6")


def test_without_a_header_columns_are_numbered(tmp_path):
    (tmp_path / "t.csv").write_text("569,30\n1,2,3\n4,5,6\n")
    columns = read_table(tmp_path / "t.csv", Format(header=False, skip_rows=1))
    assert cells(columns) == {"0": ["1", "4"], "1": ["2", "5"], "2": ["3", "6"]}


@pytest.mark.parametrize(
    ("text", "delimiter", "names"),
    [
        ("a;b,c\n1;2,3\n", None, ["a", "b,c"]),  # as often as the comma: decimal commas are likelier
        ("a;b,c\n1,2\n", "comma", ["a;b", "c"]),
        ("only\n1\n2\n", None, ["only"]),
        ("a,b;\n1,2\n", None, ["a", "b;"]),
    ],
)
def test_delimiters(tmp_path, text, delimiter, names):
    (tmp_path / "t.csv").write_text(text)
    assert list(read_table(tmp_path / "t.csv", Format(delimiter=delimiter)).columns) == names


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["C", "Z"])), min_size=2, max_size=2), min_size=1))
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, rows):
    file = io.StringIO()
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([["a", "b"], *rows])
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_bytes(file.getvalue().encode())
    assert cells(read_table(path, Format(delimiter="comma"))) == {
        "a": [row[0] for row in rows],
        "b": [row[1] for row in rows],
    }


def test_a_folder_is_one_table_in_the_order_of_its_names(tmp_path):
    for name, text in {"b.csv": "x,y\n3,4\n", "a.csv": "x,y\n1,2\n", "c.txt": "no", ".d.csv": "no"}.items():
        (tmp_path / name).write_text(text)
    columns = read_table(tmp_path)
    assert cells(columns) == {"x": ["1", "3"], "y": ["2", "4"]}
    assert columns.where(1) == f"line 2 of '{tmp_path / 'b.csv'}'"
    assert cells(read_table(tmp_path, pattern="b*")) == {"x": ["3"], "y": ["4"]}
    assert is_table(tmp_path, "*.csv") and not is_table(tmp_path)
    assert columns.digest != read_table(tmp_path, pattern="b*").digest == read_table(tmp_path / "b.csv").digest


@pytest.mark.parametrize(
    ("name", "table"), [("a.csv", True), ("A.TSV.gz", True), ("a.txt", False), ("a.csv.txt", False), ("csv", False)]
)
def test_what_is_called_a_table(tmp_path, name, table):
    assert is_table(tmp_path / name) is table


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that fails when it is imported."""
    folder = tmp_path / "site" / "tables_of_mine"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "data" / "t.csv").write_text("x,y\n1,2\n")
    (tmp_path / "site" / "single_of_mine.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def test_a_file_of_a_package_is_found_without_importing_it(package):
    path = "package:tables_of_mine/data/t.csv"
    columns = read_table(path)
    assert cells(columns) == {"x": ["1"], "y": ["2"]}
    assert columns.title == f"'{path}'" and is_table(path)
    assert cells(read_table("package:tables_of_mine/data")) == cells(columns)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("package:no_such/t.csv", "the package no_such is not installed: pip install no_such"),
        ("package:/t.csv", "write package:NAME/FILE"),
        ("package:tables_of_mine/data/u.csv", "holds no data/u.csv; did you mean '.*t.csv'"),
        ("package:tables_of_mine/else/t.csv", "holds no else/t.csv; look into .*tables_of_mine$"),
        ("package:single_of_mine/t.csv", "it is a single module"),
    ],
)
def test_words_about_packages(package, path, words):
    with pytest.raises(InputError, match=f"^input(=|: ).*{words}"):
        read_table(path, flag="input")


def test_a_missing_package_is_named_as_pip_knows_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^data\.path=package:sklearn/a\.csv: .* pip install scikit-learn$"):
        read_table("package:sklearn/a.csv")


ERRORS = [
    (b"", "'.*t.csv' is empty"),
    (b"\n \n", "is empty"),
    (b"a,b\n", "holds a header and no rows"),
    (b"a,b\n1,2\n3\n", "line 3 of '.*t.csv' has 1 fields, not 2 as the first line: mend it, or put quotes"),
    (b"a,b\n1,2\n1,2,3\n", "line 3 of '.*t.csv' has 3 fields, not 2"),
    (b'a,b\n1,"2\n3,4\n', r"line 2 of '.*t.csv' cannot be read as fields \(unexpected end of data\): look for"),
    (b'a,b\n1,"2"3\n', "line 2 of '.*t.csv' cannot be read"),
    (b'a,b\n1,"' + b"x" * 200_000, "line 1 of '.*t.csv' cannot be read as fields .field larger"),
    (b"a,b,a\n1,2,3\n", "'.*t.csv' has two columns called a: rename"),
    (b"a,b\n1,\xff\n", r"'.*t.csv' is not UTF-8 \(byte 6 is 0xff\)"),
    (b"PK\0\0", "'.*t.csv' is binary"),
    ("a,b\n1,2\n".encode("utf-16"), "UTF-16, not UTF-8"),
]


@pytest.mark.parametrize(("data", "words"), ERRORS, ids=[words[:30] for _, words in ERRORS])
def test_words_of_the_errors(tmp_path, data, words):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(InputError, match=f"^data.eval_path: .*{words}") as error:
        read_table(tmp_path / "t.csv", flag="data.eval_path")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "path", "words"),
    [
        ({"test.csv": "a\n1\n"}, "tets.csv", "does not exist; did you mean '.*test.csv'"),
        ({}, "t.csv", "does not exist; give a .csv or .tsv file"),
        ({"t.txt": "a"}, ".", r"the folder '.*' holds no tables \(.csv, .tsv"),
        ({"a.csv": "x,y\n1,2\n", "b.csv": "y,x\n1,2\n"}, ".", r"b.csv' has other columns \(y, x\) than '.*a.csv'"),
        ({"t.csv.gz": "a,b\n"}, "t.csv.gz", "is no gzip file, or a damaged one"),
    ],
)
def test_words_about_files(tmp_path, files, path, words):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / path)


def test_a_damaged_gzip_file_is_said_to_be_one(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 99)[:-9])
    with pytest.raises(InputError, match="is no gzip file, or a damaged one"):
        read_table(tmp_path / "t.csv.gz")


def test_a_column_that_is_not_there_is_looked_for(tmp_path):
    (tmp_path / "t.csv").write_text(",".join(["label", *"abcdefgh"]) + "\n" + ",".join("123456789"))
    columns = read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="has no column lable: did you mean label"):
        columns["lable"]
    with pytest.raises(InputError, match=r"has no column xyz: it has label, a, b, c, d, e, …$"):
        columns["xyz"]
