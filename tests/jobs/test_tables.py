"""Result tables as programs read them."""

import json
import math

import pyarrow as pa

from jobs.tables import write_result

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
