"""Text and Parquet tables: what was found out is told, and an error has its line and column."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppvae import data
from ppvae.data.delimited import read_delimited
from ppvae.data.tables import with_labels
from ppvae.errors import DataError


def table(folder, text, name="t.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "names", "numbers", "how"),
    [
        ("a,b\n1,2.5\n3,4\n", ["a", "b"], [[1, 2.5], [3, 4]], "delimiter comma, a header"),
        ("1,2.5\n3,4\n", ["0", "1"], [[1, 2.5], [3, 4]], "delimiter comma, no header"),
        ("a;b\r\n1;2\r\n", ["a", "b"], [[1, 2]], "delimiter semicolon, a header"),
        ("1\t2\n3\t4", ["0", "1"], [[1, 2], [3, 4]], "delimiter tab, no header"),
        ("1 2\n3 4\n", ["0", "1"], [[1, 2], [3, 4]], "delimiter blank, no header"),
        ("1|2\n\n3|4\n", ["0", "1"], [[1, 2], [3, 4]], "delimiter bar, no header"),
        ('"a, b","c"\n"1","-2e3"\n', ["a, b", "c"], [[1, -2000]], "delimiter comma, a header"),
        ("0,1,2\n5,6,7\n", ["0", "1", "2"], [[5, 6, 7]], "delimiter comma, a header"),
        (",a,b\n0,5,6\n1,7,8\n", ["", "a", "b"], [[5, 6], [7, 8]], "delimiter comma, a header, row numbers left out"),
        ("\ufeffa\n1.5\n", ["a"], [[1.5]], "delimiter comma, a header"),
        ("a,1x\n1,2\n", ["a", "1x"], [[1, 2]], "delimiter comma, a header"),
    ],
    ids=["header", "none", "semicolons", "tabs", "blanks", "bars", "quotes", "counting header", "row numbers", "mark", "odd names"],
)
def test_delimiter_and_header_are_found_out(tmp_path, text, names, numbers, how):
    found = read_delimited(table(tmp_path, text))
    assert (found.names, found.numbers.tolist(), found.how) == (names, numbers, how)


def test_empty_cells_are_nan(tmp_path):
    found = read_delimited(table(tmp_path, "a,b\n1,\nNA,2\n?,nan\n")).numbers
    assert np.array_equal(found, [[1, np.nan], [np.nan, 2], [np.nan, np.nan]], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "dtype"), [("1,2\n", np.int64), ("1,2.5\n", np.float32), ("1,\n", np.float32), ("1e300,2\n", np.float64)], ids=str
)
def test_numbers_have_the_type_that_networks_want(tmp_path, text, dtype):
    assert read_delimited(table(tmp_path, text)).numbers.dtype == dtype


@pytest.mark.parametrize("label", ["kind", -1, 2])
def test_a_column_of_texts_numbers_its_classes(tmp_path, label):
    path = table(tmp_path, "a,b,kind\n1,2,b\n3,4,a\n5,6,b\n")
    x, labels, how = with_labels(read_delimited(path), label, path)
    assert (x.tolist(), labels.tolist()) == ([[1, 2], [3, 4], [5, 6]], [1, 0, 1])
    assert how == "delimiter comma, a header, labels from 'kind': 0 a, 1 b"


def test_load_reads_splits_and_tells(tmp_path):
    rows = "\n".join(f"{i},{i / 8},{'xy'[i % 2]}" for i in range(20))
    splits = data.load(table(tmp_path, f"n,v,kind\n{rows}\n"), labels="kind")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [16, 2, 2]
    assert torch.equal(splits.train.labels, splits.train.x[:, 0].long() % 2)
    assert splits.train.x.dtype == torch.float32
    assert "values as they stand (Lebesgue); split by seed 0; delimiter comma, a header, labels from 'kind': 0 x, 1 y" in str(splits)


def test_a_hole_is_refused_and_the_option_named(tmp_path):
    path = table(tmp_path, "a,b\n" + "\n".join(f"{i},{i}.5" for i in range(20)) + "\n1,\n")
    with pytest.raises(DataError) as caught:
        data.load(path)
    assert f"and 1 value that is not finite came; the first is nan\n  where: {path}, row 20, column 1\n" in str(caught.value)
    assert 'missing="mask"' in str(caught.value)
    splits = data.load(path, missing="mask")
    assert sum(part.num_missing for part in (splits.train, splits.validation, splits.test)) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\n1,2\n3\n",
            "needed 2 columns, as in line 1, and 1 came\n  where: {path}, line 3\n  mend:  mend the line\n     or: name the delimiter, if it is another: delimiter=';'",
        ),
        (
            'a,"b\nc"\n1,2\n3,4x\n',
            "needed a number, and '4x' came\n  where: {path}, line 4, column 1 ('b\\nc')\n  mend:  mend the cell; an empty one, NA or nan is missing",
        ),
        (
            "a;b\n1,5;2\n",
            "needed numbers, and column 0 ('a') holds text, first '1,5'\n  where: {path}\n  mend:  write decimal points, not commas",
        ),
        ("a,b\n", "needed rows below the header, and there are none\n  where: {path}"),
        ("", "needed a table, and the file has no rows\n  where: {path}"),
        (b"a,b\n1,\xff\n", "needed text in UTF-8, and byte 0xff came\n  where: {path}, line 2\n  mend:  save the table as UTF-8"),
        ('1,"2\n3', "needed a table, and it cannot be read (unexpected end of data)\n  where: {path}, line 2"),
        ("1,inf\n2,3\n", None),
    ],
    ids=["short line", "no number", "decimal comma", "header alone", "empty", "not text", "open quote", "infinite"],
)
def test_a_table_that_cannot_be_read_is_told_by_line_and_column(tmp_path, text, message):
    path = table(tmp_path, text)
    with pytest.raises(DataError) as caught:
        data.load(path)
    if message is None:
        assert "the first is inf" in str(caught.value)
    else:
        assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (
            "kinds",
            r"needed the name or number of a column for labels, and 'kinds' came\n.*\n  mend:  did you mean 'kind'\?\n     or: columns: a, kind",
        ),
        (7, "needed the name or number of a column for labels, and 7 came"),
        ("kind", "needed a label in each row, and 1 are empty\n  where: .*, row 1, column 1"),
        ("a", "column 1 .'kind'. holds text, first 'x'"),
    ],
)
def test_labels_that_are_none_are_told(tmp_path, labels, problem):
    with pytest.raises(DataError, match=problem):
        data.load(table(tmp_path, "a,kind\n1,x\n2,\n"), labels=labels)


def test_a_table_of_labels_alone_is_told(tmp_path):
    with pytest.raises(DataError, match="needed a column of numbers beside the labels"):
        data.load(table(tmp_path, "kind\nx\ny\n"), labels="kind")


def test_a_delimiter_can_be_named(tmp_path):
    path = table(tmp_path, "a;b\n1,5;2,5\n3,5;4,5\n")
    with pytest.raises(DataError, match="holds text, first '1,5'"):
        data.load(path, delimiter=";")
    with pytest.raises(DataError, match="needed a delimiter, one character of .*, and 'x' came"):
        data.load(path, delimiter="x")


def test_a_hundred_thousand_columns_are_read(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 100_000)).astype(np.float32)
    path = tmp_path / "wide.csv"
    np.savetxt(path, x, fmt="%.9g", delimiter=",")
    assert np.array_equal(read_delimited(path).numbers, x)


cells = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=2, max_size=6)),
    header=st.booleans(),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_was_written_is_read(tmp_path, rows, header, delimiter, quoting):
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
        if header:
            writer.writerow([f"column {i}{delimiter}" for i in range(len(rows[0]))])
        writer.writerows(rows)
    found = read_delimited(path).numbers
    assert np.array_equal(found.astype(np.float32), np.array(rows, dtype=np.float32)) or rows[0] == list(range(len(rows[0])))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=60), st.text(alphabet='0123456789.,;"\n\r\t -eEnaN|', max_size=60).map(str.encode)))
def test_any_bytes_are_a_table_or_a_told_error(tmp_path, content):
    path = table(tmp_path, content)
    try:
        found = read_delimited(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert found.numbers.shape == (len(found.numbers), len(found.of))
        assert sorted([*found.of, *found.texts]) == list(range("row numbers left out" in found.how, len(found.names)))


def parquet(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return path


def test_a_parquet_table_keeps_its_types(tmp_path):
    bytes_ = {"a": np.arange(20, dtype=np.uint8), "b": np.arange(20, dtype=np.uint8) + 200}
    splits = data.load(parquet(tmp_path / "t.parquet", **bytes_, kind=["x", "y"] * 10), labels="kind")
    assert splits.train.raw.dtype == torch.uint8
    assert torch.equal(splits.train.labels, splits.train.x[:, 0].long() % 2)
    assert str(splits).splitlines()[0].endswith("uint8 columns, labels from 'kind': 0 x, 1 y")


def test_an_empty_cell_of_a_parquet_table_is_missing(tmp_path):
    path = parquet(tmp_path / "t.parquet", a=[1.5, None, 3.5, *range(12)], b=[True, False, True] * 5)
    with pytest.raises(DataError, match='missing="mask"'):
        data.load(path)
    assert data.load(path, missing="mask").train.event_shape == {"x": (2,), "observed": (2,)}


def test_a_parquet_column_of_something_else_is_told(tmp_path):
    with pytest.raises(DataError, match="needed columns of numbers or text, and 'a' holds list"):
        data.load(parquet(tmp_path / "t.parquet", a=[[1], [2]]))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"], ids=["empty", "head", "hollow"])
def test_a_damaged_parquet_file_is_told(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match="needed a Parquet file, and it cannot be read"):
        data.load(tmp_path / "t.parquet")


def test_pyarrow_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'ppvae\[parquet\]'"):
        data.load(table(tmp_path, b"", "t.parquet"))
