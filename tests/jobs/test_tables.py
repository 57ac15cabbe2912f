"""Tables as people see them: aligned whatever the text, a line a row, and no byte of the data acts on the terminal."""

import io
import json
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from rich.cells import cell_len

from jobs.tables import MAX_WIDTH, print_table, write_result

REPO = Path(__file__).resolve().parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(table: pa.Table, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None = None) -> list[str]:
    out = stream or io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    print_table(table)
    assert out.getvalue().endswith("\n\n")
    return out.getvalue()[:-2].split("\n")


def test_numbers_to_the_right_and_null_as_a_dash(monkeypatch):
    columns = {
        "name": ["a", None],
        "count": [1234567, None],
        "share": [0.123456, 12345.67],
        "sum": [Decimal(78592), Decimal(-3)],
        "sure": [True, None],
    }
    assert printed(pa.table(columns), monkeypatch) == [
        "  name      count     share     sum  sure",
        "  a     1,234,567    0.1235  78,592  true",
        "  -             -  12,345.7      -3  -",
    ]


def test_wide_characters_take_two_columns(monkeypatch):
    texts = ["plain", "漢字かな", "👩‍👩‍👧 family", "🇩🇪", "cafe\u0301", "한글 text"]
    lines = printed(pa.table({"答え": texts, "n": list(range(len(texts)))}), monkeypatch)
    assert len({cell_len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines[1:3]] == ["plain", "漢字かな"]


def test_nothing_in_the_data_acts(monkeypatch):
    texts = ["[red]not markup[/red]", "two\nlines\r\n", "\x1b[31mred\x07", "\u202eturned", "a\u2028b\x85", ":smile:"]
    lines = printed(pa.table({"text\n": texts}), monkeypatch)
    assert [line.strip() for line in lines] == [
        r"text\n", "[red]not markup[/red]", r"two\nlines\r\n", r"\x1b[31mred\x07", r"\u202eturned", r"a\u2028b\x85",
        ":smile:",
    ]  # fmt: skip


def test_only_a_terminal_cuts_cells(monkeypatch):
    table = pa.table({"a": ["x" * 200, "漢" * 100], "b": ["y" * 30] * 2})
    assert printed(table, monkeypatch)[1:] == [f"  {'x' * 200}  {'y' * 30}", f"  {'漢' * 100}  {'y' * 30}"]
    cut = printed(table, monkeypatch, Terminal())
    assert cut[1] == f"  {'x' * (MAX_WIDTH - 3)}...  {'y' * 30}"
    assert cut[2] == f"  {'漢' * 28}...   {'y' * 30}"


def test_no_rows_and_no_columns(monkeypatch):
    assert printed(pa.table({"a": pa.array([], pa.int64())}), monkeypatch) == ["  a"]
    assert printed(pa.table({"a": pa.nulls(1)}), monkeypatch) == ["  a", "  -"]


def test_json_keeps_what_tables_escape(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    write_result(pa.table({"a": ["漢\n\x1b"]}), "json")
    assert json.loads(out.getvalue()) == {"a": "漢\n\x1b"}
    assert out.getvalue().count("\n") == 1


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_a_reader_that_stops_early_is_no_error(pruned_64, form):
    query = [sys.executable, "-m", "jobs.query_selections", "--pruned", str(pruned_64), "--format", form]
    with subprocess.Popen(
        [*query, "select * from tokens"], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as asked:
        assert asked.stdout is not None
        assert asked.stderr is not None
        asked.stdout.readline()
        asked.stdout.close()
        assert asked.stderr.read() == b""
    assert asked.returncode == 0


ODD = [math.nan, math.inf, -math.inf, 1.5, None]


def strict(text: str) -> object:
    """JSON as the standard has it."""

    def refuse(word: str) -> object:
        raise ValueError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_has_null_for_what_is_no_finite_number(capsys):
    table = pa.table({"x": ODD, "list": [ODD] * 5, "pair": [{"y": value} for value in ODD]})
    write_result(table, "json")
    rows = [strict(line) for line in capsys.readouterr().out.splitlines()]
    finite = [None, None, None, 1.5, None]
    assert rows == [{"x": value, "list": finite, "pair": {"y": value}} for value in finite]


def test_json_within_csv_too(capsysbinary):
    write_result(pa.table({"list": [ODD]}), "csv")
    assert capsysbinary.readouterr().out.splitlines()[1] == b'"[null, null, null, 1.5, null]"'
