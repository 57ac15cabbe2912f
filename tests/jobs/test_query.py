"""SQL over an artifact: the views, the formats, and what is refused."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import query_selections
from pipeline.errors import UserError
from pipeline.report.query import ask, connect
from pipeline.report.summary import summarise

REPO = Path(__file__).resolve().parents[2]


def one(db, sql):
    return [tuple(row.values()) for row in ask(db, sql).to_pylist()]


def test_tokens_view_has_every_token_and_its_pick(pruned_64):
    db = connect(pruned_64)
    assert one(db, "select count(*), count(pick), count(distinct image_id) from tokens") == [(307 * 256, 307 * 64, 307)]
    assert one(db, "select min(row), max(row), min(col), max(col), min(pick), max(pick) from tokens") == [
        (0, 15, 0, 15, 0, 63)
    ]
    wrong = """
        select count(*) from tokens t join images i using (image_id)
        where t.sensitivity <> i.sensitivity[t.token + 1] or t.token <> t.row * 16 + t.col
           or (t.pick is not null and (i.ranking[t.pick + 1] <> t.token or i.gain[t.pick + 1] <> t.gain))"""
    assert one(db, wrong) == [(0,)]


def test_shards_prompts_and_errors(pruned_64):
    db = connect(pruned_64)
    assert one(db, "select count(*), sum(images), sum(samples) from shards") == [(5, 307, 312)]
    assert one(db, "select count(*) filter (status = 'ok') from prompts")[0][0] > 1600
    assert one(db, "select count(*) from errors") == [(4,)]
    assert one(db, "select count(*) from answers") == [(0,)]
    assert set(summarise(db).tables) == {"images", "selections per image", "prompts", "errors", "seconds per stage"}


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("delete from images", "not delete"),
        ("create table x as select 1", "not create"),
        ("copy (select 1) to 'x.csv'", "not copy"),
        ("attach 'x.db'", "not attach"),
        ("select 1; select 2", "2 SQL statements"),
        ("set threads = 1", "not set"),
        ("selec 1", "can't be read"),
        ("select nonsense from images", "nonsense"),
        ("select * from read_csv('/etc/passwd')", "disabled"),
        ("select * from read_text('pyproject.toml')", "disabled"),
    ],
)  # fmt: skip
def test_only_reading_is_allowed_and_only_of_the_artifact(pruned_64, sql, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(connect(pruned_64), sql)
    assert "\n" not in str(caught.value)


def test_unfinished_runs_show_their_committed_shards(pruned_64, tmp_path):
    (tmp_path / "_commits").mkdir()
    (tmp_path / "_job.json").write_bytes((pruned_64 / "_job.json").read_bytes())
    assert one(connect(tmp_path), "select count(*) from images") == [(0,)]
    for name in ("_commits/00000001.json", "selections/part-00000001.parquet", "selections/part-00000002.parquet",
                 "prompts/part-00000001.parquet", "errors/part-00000001.parquet"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((pruned_64 / name).read_bytes())
    assert one(connect(tmp_path), "select distinct shard from images") == [(1,)]


def test_formats(pruned_64, capfdbinary):
    def run(form: str, sql: str) -> bytes:
        assert query_selections.main(["--pruned", str(pruned_64), "--format", form, sql]) == 0
        return capfdbinary.readouterr().out

    sql = "select shard, count(*) as images, [1, 2] as list from images group by shard order by shard"
    rows = list(csv.DictReader(io.StringIO(run("csv", sql).decode())))
    assert rows[0] == {"shard": "0", "images": "61", "list": "[1, 2]"}
    assert json.loads(run("json", sql).splitlines()[0]) == {"shard": 0, "images": 61, "list": [1, 2]}
    assert pq.read_table(io.BytesIO(run("parquet", sql))).num_rows == 5
    command = [sys.executable, "-m", "jobs.query_selections", "--pruned", str(pruned_64), "--format", "parquet", sql]
    assert subprocess.run(command, cwd=REPO, capture_output=True, check=True).stdout == run("parquet", sql)
    dates = "select {'day': date '2026-01-02', 'share': 1.5::decimal(3, 2)} as pair"
    assert run("csv", dates).decode().splitlines()[1] == '"{""day"": ""2026-01-02"", ""share"": ""1.50""}"'
    twice = "select image_id, p.image_id from images join prompts p using (image_id) limit 1"
    assert json.loads(run("json", twice)).keys() == {"image_id", "image_id_1"}
    assert "images" in run("table", sql).decode().splitlines()[0]
