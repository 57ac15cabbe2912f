"""Asking an artifact questions in SQL, through DuckDB views that only read its committed files."""

import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.artifact.artifact import Artifact, made_from
from pipeline.artifact.tables import dataset_of
from pipeline.budget import AnswerBudget, parse_answer_budget
from pipeline.errors import UserError
from pipeline.report.forms import storable
from pipeline.report.grades import grades_of
from pipeline.storage import Store
from schemas.columns import table_of
from schemas.records import CommitRecord
from schemas.tables import ANSWERS, ERRORS, PROMPTS, SELECTIONS
from schemas.views import STAGES, ShardRow, quoted, tokens_view

_TABLES = (("images", "selections", SELECTIONS), ("prompts", "prompts", PROMPTS), ("errors", "errors", ERRORS))
VIEWS = ("images", "tokens", "prompts", "errors", "shards", "answers", "grades")
_BLANK = r"(?:\s|--[^\n]*|/\*.*?\*/)*+"
_EXPLAIN = re.compile(
    rf"{_BLANK}explain\b{_BLANK}(analyze\b|\(\s*(?:analyze|format)\b[\w\s,]*\)|)(.*)", re.DOTALL | re.IGNORECASE
)


def connect(
    pruned: Path | str, answers: Sequence[Path | str] = (), grades: Sequence[Path | str] = ()
) -> duckdb.DuckDBPyConnection:
    """A connection with the views that `VIEWS` names, and nothing else.

    The committed files are read by Arrow; DuckDB itself may open no file at all, so that no statement, however it is
    put, reads or writes one. What it can't hold in memory it spills into a temporary folder of its own. Works on
    unfinished runs.

    Args:
        pruned: output of a prune job.
        answers: outputs of answer jobs over it, any number; the column `budget` of the view tells them apart.
        grades: outputs of grade jobs over these answers.

    Raises:
        UserError: a folder is no sound artifact of that kind, or the answers are not about what `pruned` holds.
    """
    artifact = Artifact(pruned)
    artifact.require_job("prune", "--pruned")
    files: dict[str, list[str]] = {table: [] for _, table, _ in _TABLES}
    listed = artifact.listing()
    shards: list[ShardRow] = []
    hashes: dict[str, str] = {}
    for record in artifact.checked_commits():
        for table, keys in files.items():
            keys.append(artifact.file_of(record, table, listed).path)
        shards.append(_shard_row(record))
        hashes.update((entry.path, entry.sha256) for entry in record.files.values())
    db = duckdb.connect()
    for view, table, schema in _TABLES:
        db.register(view, dataset_of(artifact.store, files[table], schema))
    db.register("answers", _answers(artifact, hashes, answers))
    db.register("grades", grades_of(grades, answers))
    db.register("shards", table_of(ShardRow, shards))
    db.execute(tokens_view())
    db.execute(f"set temp_directory = {quoted(str(Path(tempfile.gettempdir()) / f'zoo-prune-{uuid.uuid4().hex}'))}")
    db.execute("set python_enable_replacements = false")
    db.execute("set enable_external_access = false")
    db.execute("set lock_configuration = true")
    return db


def _answers(artifact: Artifact, hashes: Mapping[str, str], answers: Sequence[Path | str]) -> ds.Dataset:
    """All answers, with the budget that was asked for beside what each row saw of its image.

    The number of tokens alone does not say which answers a row belongs to: where an image has 64 tokens stored, those
    at `64` and those at `all` have seen the same ones.
    """
    schema = ANSWERS.append(pa.field("budget", pa.string()))
    return ds.UnionDataset(
        schema,
        [
            dataset_of(store, keys, schema, ds.field("budget") == budget)
            for budget, store, keys in _answer_files(artifact, hashes, answers)
        ],
    )


def _answer_files(
    artifact: Artifact, hashes: Mapping[str, str], answers: Sequence[Path | str]
) -> Iterator[tuple[str, Store, list[str]]]:
    """Budget, store and files of each artifact of answers, made from files that the pruned one holds now."""
    owner_of: dict[AnswerBudget, Path | str] = {}
    for path in answers:
        answered = Artifact(path)
        tokens = str(answered.require_job("answer", "--answers").settings["tokens"])
        other = owner_of.setdefault(parse_answer_budget(tokens, "--tokens"), path)
        if other is not path:
            raise UserError(
                f"--answers {other} and {path} both hold answers at --tokens {tokens}, which could not be told apart; "
                "name one of them"
            )
        listed = answered.listing()
        keys = []
        for record in answered.checked_commits():
            if not made_from(record, hashes):
                raise UserError(
                    f"--answers {path}: shard {record.shard:08d} was not answered from what --pruned "
                    f"{artifact.address} holds: they belong to another artifact, or its shards were redone since; name "
                    "the other one, or run the answer job again"
                )
            keys.append(answered.file_of(record, "answers", listed).path)
        yield tokens, answered.store, keys


def ask(db: duckdb.DuckDBPyConnection, sql: str, *, as_texts: bool = False) -> pa.Table:
    """The result of one reading statement, in which a column name that comes again gets a number.

    Args:
        db: a connection of `connect`.
        sql: the statement.
        as_texts: give times and blobs as the texts that DuckDB has for them.

    Raises:
        UserError: not SQL, a statement that would write, or several statements.
    """
    reading = _reading(sql)
    try:
        table = storable(db.sql(reading), as_texts=as_texts).to_arrow_table()
    except duckdb.CatalogException as error:
        message = _message(error).partition(" Did you mean ")[0]  # its guess is among tables that are not ours
        raise UserError(f"the SQL can't be run: {message} The views are {', '.join(VIEWS)}") from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise UserError(f"the SQL can't be run: {_message(error)}") from error
    return table.rename_columns(_told_apart(table.column_names))


def _reading(sql: str) -> str:
    """The one statement in `sql`, which must be a SELECT or the EXPLAIN of one.

    Raises:
        UserError: it is neither.
    """
    kind = _only_kind(sql)
    if kind == "SELECT":
        return sql
    parts = _EXPLAIN.match(sql) if kind == "EXPLAIN" else None
    if parts is not None:
        mode, explained = parts.groups()
        kind = f"explain {_only_kind(explained)}"
        if kind == "explain SELECT":
            return f"explain {mode} {explained}"  # as it was taken apart, so that what runs is what was judged
    raise UserError(
        f"only statements that read are run (select, explain select), not {kind.lower()}; the artifact never changes"
    )


def _only_kind(sql: str) -> str:
    try:
        sql.encode()
    except UnicodeEncodeError as error:  # a shell hands over any bytes
        raise UserError("the SQL is no UTF-8 text; write it in UTF-8") from error
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(f"the SQL can't be read: {_message(error)}") from error
    if len(statements) != 1:
        raise UserError(f"{len(statements)} SQL statements were given, expected one")
    return str(statements[0].type.name).upper()


def _told_apart(names: Sequence[str]) -> list[str]:
    unique: dict[str, None] = {}
    for name in names:
        number, candidate = 0, name
        while candidate in unique or (number and candidate in names):
            number += 1
            candidate = f"{name}_{number}"
        unique[candidate] = None
    return list(unique)


def _shard_row(record: CommitRecord) -> ShardRow:
    return ShardRow(
        shard=record.shard,
        images=record.files["selections"].rows,
        samples=record.counts.get("samples", 0),
        prompts=record.files["prompts"].rows,
        errors=record.files["errors"].rows,
        size_bytes=sum(entry.size_bytes for entry in record.files.values()),
        batch_size=record.batch_size,
        seconds={stage: record.seconds.get(stage, 0.0) for stage in STAGES},
    )


def _message(error: Exception) -> str:
    """What DuckDB says, on one line and without its picture of the statement."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())
