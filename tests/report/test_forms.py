"""Types that Arrow or the output formats hold in another way, or not at all, have one form: DuckDB's own text."""

import csv
import io
import json
import sys

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs.tables import write_result
from pipeline.errors import UserError
from pipeline.report.query import ask

# An SQL value, and its text.
EVERYWHERE = [
    ("'101'::bit", "101"),
    ("123456789012345678901234567890::bignum", "123456789012345678901234567890"),
    ("interval '3 days 4 hours'", "3 days 04:00:00"),
    ("time with time zone '12:00:00+02'", "12:00:00+02"),
    ("'x'::enum('x', 'y')", "x"),
    ("union_value(n := 1)", "1"),
]
IN_TEXTS = [
    (r"'\xAB\x00c'::blob", r"\xAB\x00c"),
    ("date 'infinity'", "infinity"),
    ("date '2026-01-02'", "2026-01-02"),
    ("date '-290307-01-01'", "290308-01-01 (BC)"),
    ("timestamp '-infinity'", "-infinity"),
    ("timestamptz 'infinity'", "infinity"),
    ("timestamp_ns '2020-01-01 00:00:00.123456789'", "2020-01-01 00:00:00.123456789"),
    ("time '01:02:03'", "01:02:03"),
]


def written(sql: str, form: str, capfdbinary) -> bytes:
    table = ask(duckdb.connect(), sql, as_texts=form != "parquet")
    write_result(table, form)
    sys.stdout.flush()
    return capfdbinary.readouterr().out


@pytest.mark.parametrize(("value", "text"), EVERYWHERE + IN_TEXTS)
def test_csv_json_and_tables_have_the_text(value, text, capfdbinary):
    nested = f"select {value} as v, [{value}] as list, {{'a b': {value}}} as struct, map([1], [{value}]) as map"
    assert json.loads(written(nested, "json", capfdbinary)) == {
        "v": text, "list": [text], "struct": {"a b": text}, "map": [[1, text]]
    }  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(written(nested, "csv", capfdbinary).decode()))
    assert (row["v"], json.loads(row["list"])) == (text, [text])
    assert text in written(f"select {value} as v", "table", capfdbinary).decode()


@pytest.mark.parametrize(("value", "text"), EVERYWHERE)
def test_parquet_has_the_text_of_what_arrow_can_not_hold(value, text, capfdbinary):
    data = written(f"select {value} as v, row(7, {value}) as r, [{value}]::varchar[1] as a", "parquet", capfdbinary)
    (row,) = pq.read_table(io.BytesIO(data)).to_pylist()
    assert row == {"v": text, "r": {"element1": 7, "element2": text}, "a": [text]}


def test_parquet_keeps_the_types_that_it_has(capfdbinary):
    data = written(r"select '\xAB'::blob as b, date '2026-01-02' as d", "parquet", capfdbinary)
    assert [str(kind) for kind in pq.read_schema(io.BytesIO(data)).types] == ["binary", "date32[day]"]


def test_columns_of_one_name_stay_apart_beside_such_a_value():
    table = ask(duckdb.connect(), "select 1 as a, interval 1 day as a, 3 as a_1")
    assert table.to_pylist() == [{"a": 1, "a_2": "1 day", "a_1": 3}]


def test_an_unknown_view_is_answered_with_those_that_there_are():
    with pytest.raises(
        UserError,
        match=r"nosuch does not exist! The views are images, tokens, prompts, errors, shards, answers, grades$",
    ):
        ask(duckdb.connect(), "select * from nosuch")


def test_sql_that_is_no_text_is_one_sentence():
    with pytest.raises(UserError, match="the SQL is no UTF-8 text"):
        ask(duckdb.connect(), b"select '\xff'".decode("utf-8", "surrogateescape"))
