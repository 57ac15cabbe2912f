"""What no statement may do: change a file, or show what lies beside the artifact's tables."""

import hashlib
import itertools
import json
import os
import random
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.report.query import VIEWS, ask, connect
from pipeline.report.summary import summarise

SECRET = "the-secret-in-the-file"
VARIABLE = "the-secret-in-the-environment"
STATEMENTS = 400

READERS = (
    *("read_csv('{secret}')", "read_csv_auto('{secret}')", "read_text('{secret}')", "read_blob('{secret}')"),
    *("read_json('{secret}')", "read_json_objects('{secret}')", "read_ndjson_auto('{secret}')", "glob('{folder}/*')"),
    *("parquet_scan('{other}')", "read_parquet('{other}')", "read_parquet(['{own}', '{other}'])", "'{other}'"),
    *("sniff_csv('{secret}')", "parquet_metadata('{other}')", "parquet_schema('{other}')", "'{secret}'"),
    *("parquet_file_metadata('{other}')", "parquet_kv_metadata('{other}')", "parquet_bloom_probe('{other}', 'a', 1)"),
    *("read_duckdb('{folder}/x.db')", "read_parquet('{folder}/**')", "duckdb_secrets()", "query_table(['{other}'])"),
    *("query('from read_text(''{secret}'')')", "query('select * from ''{other}''')", "SECRET_ROWS"),
    *("(select getenv('ZOO_TEST_VARIABLE') as g)", "query('select getenv(''ZOO_TEST_VARIABLE'')')"),
)
WRITERS = (
    "copy (select 1 as a) to '{own}' (format parquet, use_tmp_file false)",
    "copy (select 1 as a) to '{own}'",
    "copy images to '{new}' (format csv)",
    "copy (select 1 as a, 2 as b) to '{folder}/parts' (format parquet, partition_by (a), overwrite_or_ignore)",
    "copy (select 1 as a, 2 as b) to '{spill}' (format csv, partition_by (a))",
    "copy answers from '{secret}'",
    "create table x as select 1",
    "create table x as from read_text('{secret}')",
    "create or replace temp view images as select 7",
    "create macro m() as table select 1",
    "create secret s (type s3, key_id 'a', secret 'b')",
    "insert into prompts select * from prompts",
    "insert into errors values (1)",
    "update images set num_kept = 0",
    "delete from images",
    "drop view tokens",
    "alter table images rename to x",
    "truncate images",
    "merge into images using prompts on true when matched then delete",
    "attach '{new}'",
    "attach '{folder}/x.db' as y (read_only)",
    "detach memory",
    "export database '{folder}/export'",
    "import database '{folder}/export'",
    "copy from database memory to y",
    "install httpfs",
    "load '{folder}/x.duckdb_extension'",
    "set threads = 1",
    "set enable_external_access = true",
    "set allowed_paths = ['{own}']",
    "set allowed_directories = ['{folder}']",
    "set temp_directory = '{folder}/spill'",
    "set variable v = (select content from read_text('{secret}'))",
    "reset lock_configuration",
    "pragma enable_profiling",
    "pragma profiling_output = '{new}'",
    "pragma database_list",
    "call pragma_version()",
    "call enable_logging('QueryLog', storage = 'file', storage_path = '{folder}/log')",
    "checkpoint",
    "force checkpoint",
    "vacuum",
    "analyze",
    "begin",
    "commit",
    "use temp",
    "prepare p as copy (select 1) to '{own}'",
    "execute p",
    "deallocate p",
)
SHELLS = (
    "{}",
    "explain {}",
    "explain analyze {}",
    "explain (analyze) {}",
    "explain (analyze, format json) {}",
    "explain(format json){}",
    "explain analyze explain analyze {}",
    "with w as ({}) select * from w",
    "with w as materialized ({}) select * from w",
    "explain analyze with w as materialized ({}) select 1",
    "explain analyze with w as (select 1) {}",
    "select * from ({})",
    "select ({}) as v",
    "select 1 union all ({})",
    "create macro m() as table {}",
    "prepare p as {}",
    "select 1; {}",
    "{}; select 1",
    "explain analyze select 1; {}",
    "-- hello\n{}",
    "/* a */ explain /* b */ analyze -- c\n {}",
    "explain /* /* */ select 1 -- */ analyze {}",
    "explain /* ' */ analyze {} -- '",
    "explain\u00a0analyze\u2003{}",
    "\ufeffexplain analyze {}",
    "select * from query('{quoted}')",
    "from query('with w as ({quoted}) from w')",
    "select json_execute_serialized_sql(json_serialize_sql('{quoted}'))",
    "(({}))",
    "/*{}*/ {}",
)


def casings(sql: str, random_case: random.Random) -> str:
    """The same SQL with letters outside of quotes in odd case."""
    parts = sql.split("'")
    for n in range(0, len(parts), 2):
        parts[n] = "".join(c.upper() if random_case.random() < 0.5 else c for c in parts[n])
    return "'".join(parts)


def hostile_statements(places: dict[str, str]) -> Iterator[str]:
    """Every reader and writer in every shell, in an order and case that the seed alone decides."""
    chance = random.Random(20260)
    inner = [f"{verb} {reader}" for reader in READERS for verb in ("select * from", "from")] + list(WRITERS)
    pairs = list(itertools.product(SHELLS, inner))
    chance.shuffle(pairs)
    first = [("{}", sql) for sql in inner] + [("explain analyze {}", sql) for sql in WRITERS]
    first += [("with w as materialized ({}) select * from w", sql) for sql in WRITERS[:5]]
    for shell, sql in itertools.islice(first + pairs, STATEMENTS):
        for name, value in places.items():
            sql = sql.replace(f"{{{name}}}", value)
        whole = shell.replace("{quoted}", sql.replace("'", "''")).replace("{}", sql)
        yield casings(whole, chance) if chance.random() < 0.3 else whole


def snapshot(folder: Path) -> dict[str, str]:
    """Every file and folder below, with the hash of its bytes."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in folder.rglob("*")
    }


def spill_folder(db) -> str:
    return str(ask(db, "select current_setting('temp_directory') as t")["t"][0])


def test_no_statement_changes_a_file_or_shows_anything_from_outside(small_pruned, small_answers, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_TEST_VARIABLE", VARIABLE)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temporary").mkdir()
    pruned = small_pruned(tmp_path / "pruned")
    answers = small_answers(tmp_path / "answers", pruned)
    other = small_pruned(tmp_path / "other", value=7.0)
    (pruned / "secret.csv").write_text(f"{SECRET}\n{SECRET}\n")
    places = {
        "own": str(pruned / "selections" / "part-00000000.parquet"),
        "secret": str(pruned / "secret.csv"),
        "other": str(other / "selections" / "part-00000000.parquet"),
        "folder": str(pruned),
        "new": str(pruned / "selections" / "part-00000009.parquet"),
    }
    before = snapshot(tmp_path)
    expected = [table.to_pylist() for table in summarise(connect(pruned, [answers])).tables.values()]
    db = connect(pruned, [answers])
    SECRET_ROWS = ask(db, f"select '{SECRET}' as rows")  # a local variable: DuckDB must not find it  # noqa: F841
    refused = 0
    for sql in hostile_statements({**places, "spill": spill_folder(db)}):
        try:
            shown = str(ask(db, sql).to_pylist())
        except UserError as error:
            refused += 1
            shown = str(error).replace(sql, "")
            assert "\n" not in shown.split(": ")[0]
        assert SECRET not in shown, sql
        assert VARIABLE not in shown, sql
        assert "7.0" not in shown, sql
        assert snapshot(tmp_path) == before, sql
    assert refused > 0.9 * STATEMENTS
    assert [table.to_pylist() for table in summarise(db).tables.values()] == expected


@pytest.mark.parametrize(
    "sql",
    [
        "explain select * from images",
        "EXPLAIN/* why */ANALYZE select count(*) from tokens where pick = 0",
        "explain (analyze, format json) select 1",
        "explain (select 1)",
        "-- first\nexplain\n-- second\nfrom images;",
        "explain with a as (select 1) from a",
        "describe images",
        "summarize images",
        "show tables",
        "values (1), (2)",
        "from prompts",
        "with w as (select 1 as a) select * from w",
        "select * from query_table(['images'])",
    ],
)
def test_what_reads_runs(small_pruned, tmp_path, sql):
    assert len(ask(connect(small_pruned(tmp_path / "out")), sql)) > 0


def test_an_explain_of_something_else_is_named(small_pruned, tmp_path):
    db = connect(small_pruned(tmp_path / "out"))
    with pytest.raises(UserError, match="not explain create"):
        ask(db, "explain analyze create table x(i int)")
    judged_as_select = "explain /* /* */ select 1 -- */ analyze create table x(i int)"  # DuckDB nests comments
    assert "analyze" not in str(ask(db, judged_as_select).to_pylist())
    with pytest.raises(UserError, match="not explain copy"):
        ask(db, "explain analyze copy (select 1) to 'x'")
    assert ask(db, "show tables").num_rows == len(VIEWS)


def test_columns_of_one_name_are_told_apart(small_pruned, tmp_path):
    table = ask(connect(small_pruned(tmp_path / "out")), "select 1 as a, 2 as a, 3 as a_1, 4 as a")
    assert table.to_pylist() == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]


def test_what_does_not_fit_into_memory_has_a_folder_of_its_own(small_pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    db = connect(small_pruned(tmp_path / "out"))
    folder = Path(spill_folder(db))
    assert folder.parent == tmp_path
    db.close()
    assert not folder.exists()


def test_a_long_statement_prints_nothing_of_its_own(small_pruned, tmp_path):
    """DuckDB draws a bar on standard output after two seconds, where the result goes."""
    db = connect(small_pruned(tmp_path / "out"))
    assert ask(db, "select current_setting('enable_progress_bar') as bar").to_pylist() == [{"bar": False}]


def alter(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_damaged_records_are_one_sentence(small_pruned, tmp_path):
    """No commit record is left out, read twice or believed without its files."""

    def lose(root: Path) -> None:
        (root / "_commits/00000001.json").unlink()

    def cut(root: Path) -> None:
        (root / "_commits/00000001.json").write_text('{"shard": 1, "fi')

    def copy(root: Path) -> None:
        (root / "_commits/00000002.json").write_bytes((root / "_commits/00000001.json").read_bytes())

    def add(root: Path) -> None:
        copy(root)
        alter(root / "_commits/00000002.json", shard=2)

    def name_no_prompts(root: Path) -> None:
        (root / "_SUCCESS").unlink()
        record = json.loads((root / "_commits/00000001.json").read_text())
        del record["files"]["prompts"]
        alter(root / "_commits/00000001.json", files=record["files"])

    def count_in_words(root: Path) -> None:
        alter(root / "_commits/00000001.json", counts={"samples": "many"})

    def lose_a_file(root: Path) -> None:
        (root / "errors/part-00000001.parquet").unlink()

    def cut_a_file(root: Path) -> None:
        path = root / "errors/part-00000001.parquet"
        path.write_bytes(path.read_bytes()[:-1])

    def fill_with_garbage(root: Path) -> None:
        path = root / "prompts/part-00000001.parquet"
        path.write_bytes(b"x" * path.stat().st_size)

    def cut_the_manifest(root: Path) -> None:
        (root / "manifest.json").write_text('{"shards": [')

    def alter_the_manifest(root: Path) -> None:
        manifest = json.loads((root / "manifest.json").read_text())
        manifest["shards"][1]["files"]["prompts"]["sha256"] = "0" * 64
        (root / "manifest.json").write_text(json.dumps(manifest))

    for number, (harm, message) in enumerate(
        {
            lose: r"shard 00000001 differ",
            cut: r"00000001\.json is not valid JSON",
            copy: r"is the record of shard 1; it was copied",
            add: r"shard 00000002 differ",
            name_no_prompts: r"shard 00000001 names no file of prompts",
            count_in_words: r"counts\.samples is 'many'",
            lose_a_file: r"errors/part-00000001\.parquet is missing",
            cut_a_file: r"errors/part-00000001\.parquet has \d+ bytes",
            fill_with_garbage: r"the SQL can't be run: .*part-00000001\.parquet",
            cut_the_manifest: r"manifest\.json is missing or damaged",
            alter_the_manifest: r"shard 00000001 differ",
        }.items()
    ):
        root = small_pruned(tmp_path / str(number))
        harm(root)
        with pytest.raises(UserError, match=message) as caught:
            ask(connect(root), "select * from prompts")
        assert "\n" not in str(caught.value), harm


def test_names_that_are_no_commit_records_are_passed_over(small_pruned, tmp_path):
    root = small_pruned(tmp_path / "out")
    for name in ("1.json", "²²²²²²²².json", "0000000x.json", ".00000001.json.tmp"):
        (root / "_commits" / name).write_text("{}")
    assert ask(connect(root), "select count(*) as n from images").to_pylist() == [{"n": 6}]


def test_answers_over_something_else_are_refused(small_pruned, small_answers, tmp_path):
    pruned, other = small_pruned(tmp_path / "a"), small_pruned(tmp_path / "b", value=1.0)
    answers = small_answers(tmp_path / "answers", pruned)
    assert ask(connect(pruned, [answers]), "select count(*) as n from answers").to_pylist() == [{"n": 2}]
    with pytest.raises(UserError, match=r"shard 00000000 was not answered from what --pruned .*/b holds"):
        connect(other, [answers])
    with pytest.raises(UserError, match=r"both hold answers at --tokens all"):
        connect(pruned, [answers, small_answers(tmp_path / "again", pruned)])
    with pytest.raises(UserError, match=r"both hold answers at --tokens all"):
        connect(pruned, [answers, Path(os.fspath(answers))])
    artifact = Artifact(answers)
    (record, *_) = artifact.commits()
    artifact.reopen()
    artifact.commit(replace(record, sources={}))
    with pytest.raises(UserError, match="was not answered from"):
        connect(pruned, [answers])
