"""Asking an artifact questions in SQL, through DuckDB views that only read its committed files."""

import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.asked import TABLE, answered_from
from pipeline.budget import AnswerBudget, parse_answer_budget
from pipeline.errors import UserError
from pipeline.report.cache import Part, SummaryCache, cached_columns
from pipeline.report.forms import storable
from pipeline.report.grades import grades_of
from schemas.columns import table_of
from schemas.records import CommitRecord, FileEntry
from schemas.tables import ANSWERS, ERRORS, PROMPTS, SELECTIONS
from schemas.views import STAGES, ShardRow, quoted, sampling_macros, tokens_view

_TABLES = (("images", "selections", SELECTIONS), ("prompts", "prompts", PROMPTS), ("errors", "errors", ERRORS))
VIEWS = ("images", "tokens", "prompts", "errors", "shards", "answers", "grades")
_BLANK = r"(?:\s|--[^\n]*|/\*.*?\*/)*+"
_EXPLAIN = re.compile(
    rf"{_BLANK}explain\b{_BLANK}(analyze\b|\(\s*(?:analyze|format)\b[\w\s,]*\)|)(.*)", re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True)
class _Run:
    """Committed answers at one budget."""

    budget: str
    part: Part  # `answers`, and `prompts` where they were asked those of a file
    file: str | None  # sha256 of that file


def connect(
    pruned: Path | str,
    answers: Sequence[Path | str] = (),
    grades: Sequence[Path | str] = (),
    *,
    memory_gib: float | None = None,
    summaries: SummaryCache | None = None,
) -> duckdb.DuckDBPyConnection:
    """A connection with the views that `VIEWS` names, and nothing else.

    The committed files are read by Arrow; DuckDB itself may open no file at all, so that no statement, however it is
    put, reads or writes one. What it can't hold in memory it spills into a temporary folder of its own. Works on
    unfinished runs. Beside the views there are the macros `sampled_images(share, seed)` and
    `sampled_tokens(share, seed)`.

    Args:
        pruned: output of a prune job.
        answers: outputs of answer jobs over it, any number; the column `budget` of the view tells them apart. Where
            they were asked the prompts of a file, the view `prompts` has these in place of those of the corpus.
        grades: outputs of grade jobs over these answers.
        memory_gib: that DuckDB may hold before it spills; None: its own default, 80 % of the machine's.
        summaries: for statements of our own that read summaries alone. Of a large output they come out of this cache:
            the views then lack the columns that `cached_columns` leaves out, and there are no tokens. Never for
            statements of users: a file that DuckDB has open it can also be told to write.

    Raises:
        UserError: a folder is no sound artifact of that kind, or the answers are not about what `pruned` holds.
    """
    artifact = Artifact(pruned)
    artifact.require_job("prune", "--pruned")
    files: dict[str, list[FileEntry]] = {table: [] for _, table, _ in _TABLES}
    listed = artifact.listing()
    shards: list[ShardRow] = []
    hashes: dict[str, str] = {}
    for record in artifact.checked_commits():
        for table, entries in files.items():
            entries.append(artifact.file_of(record, table, listed))
        shards.append(_shard_row(record))
        hashes.update((entry.path, entry.sha256) for entry in record.files.values())
    runs = list(_runs(artifact, hashes, answers))
    of_a_file = any(run.file is not None for run in runs)
    own = {view: (schema, files[table]) for view, table, schema in _TABLES if not (of_a_file and view == "prompts")}
    part = Part(artifact, own)
    db = duckdb.connect()
    if memory_gib is not None:
        db.execute(f"set memory_limit = '{memory_gib:f}GiB'")
    db.register("shards", table_of(ShardRow, shards))
    if summaries is None or not _attach(db, summaries, part, runs, memory_gib):
        _register(db, part, runs)
    db.register("grades", grades_of(grades, answers))
    db.execute(f"set temp_directory = {quoted(str(Path(tempfile.gettempdir()) / f'zoo-prune-{uuid.uuid4().hex}'))}")
    db.execute("set enable_progress_bar = false")  # it would stand among the results on standard output
    db.execute("set python_enable_replacements = false")
    db.execute("set enable_external_access = false")
    db.execute("set lock_configuration = true")
    return db


def _register(db: duckdb.DuckDBPyConnection, part: Part, runs: Sequence[_Run]) -> None:
    """The views over the committed files.

    Answers have the budget that was asked for beside what each row saw of its image: the number of tokens alone does
    not say which answers a row belongs to. Where an image has 64 tokens stored, those at `64` and those at `all` have
    seen the same ones.
    """
    for view in part.tables:
        db.register(view, part.dataset(view))
    schema = ANSWERS.append(pa.field("budget", pa.string()))
    children = [run.part.dataset("answers", schema, ds.field("budget") == run.budget) for run in runs]
    db.register("answers", ds.UnionDataset(schema, children))
    if "prompts" not in part.tables:
        asked = ds.UnionDataset(PROMPTS, [run.part.dataset("prompts") for run in runs])
        db.register("asked_prompts", asked)
        db.execute("create view prompts as select distinct on (prompt_id) * from asked_prompts")
    db.execute(tokens_view())
    for macro in sampling_macros():
        db.execute(macro)


def _attach(
    db: duckdb.DuckDBPyConnection,
    summaries: SummaryCache,
    part: Part,
    runs: Sequence[_Run],
    memory_gib: float | None,
) -> bool:
    """The views over cached summaries, made where there are none yet; False where there is to be no cache."""
    attached = summaries.attach(db, [part, *(run.part for run in runs)], memory_gib)
    if attached is None:
        return False
    own, *others = attached
    for view in part.tables:
        db.execute(f"create view {view} as select * from {own}.{view}")
    if others:
        union = " union all ".join(
            f"select *, {quoted(run.budget)} as budget from {name}.answers"
            for run, name in zip(runs, others, strict=True)
        )
        db.execute(f"create view answers as {union}")
        if "prompts" not in part.tables:
            prompts = " union all ".join(f"select * from {name}.prompts" for name in others)
            db.execute(f"create view prompts as select distinct on (prompt_id) * from ({prompts})")
    else:
        nothing = [ANSWERS.field(name) for name in cached_columns(ANSWERS)]
        db.register("answers", pa.schema([*nothing, pa.field("budget", pa.string())]).empty_table())
    return True


def _runs(artifact: Artifact, hashes: Mapping[str, str], answers: Sequence[Path | str]) -> Iterator[_Run]:
    """The answers of each folder, made from files that the pruned artifact holds now."""
    owner_of: dict[AnswerBudget, Path | str] = {}
    files: dict[str | None, Path | str] = {}
    for path in answers:
        answered = Artifact(path)
        settings = answered.require_job("answer", "--answers").settings
        tokens, file = str(settings["tokens"]), (settings.get("asked") or {}).get("prompts_sha256")
        files.setdefault(file, path)
        if len(files) > 1:
            one, other = files.values()
            raise UserError(
                f"--answers {one} and {other} answer prompts of different files, or of a file and of the corpus; name "
                "answers to the same prompts"
            )
        other = owner_of.setdefault(parse_answer_budget(tokens, "--tokens"), path)
        if other is not path:
            raise UserError(
                f"--answers {other} and {path} both hold answers at --tokens {tokens}, which could not be told apart; "
                "name one of them"
            )
        listed = answered.listing()
        entries, prompts = [], []
        for record in answered.checked_commits():
            if not answered_from(record, hashes):
                raise UserError(
                    f"--answers {path}: shard {record.shard:08d} was not answered from what --pruned "
                    f"{artifact.address} holds: they belong to another artifact, or its shards were redone since; name "
                    "the other one, or run the answer job again"
                )
            entries.append(answered.file_of(record, "answers", listed))
            if file is not None:
                prompts.append(answered.file_of(record, TABLE, listed))
        tables = {"answers": (ANSWERS, entries), **({} if file is None else {"prompts": (PROMPTS, prompts)})}
        yield _Run(tokens, Part(answered, tables), file)


def ask(
    db: duckdb.DuckDBPyConnection, sql: str, *, as_texts: bool = False, parameters: Mapping[str, Any] | None = None
) -> pa.Table:
    """The result of one reading statement, in which a column name that comes again gets a number.

    Args:
        db: a connection of `connect`.
        sql: the statement.
        as_texts: give times and blobs as the texts that DuckDB has for them.
        parameters: values of what stands in the statement as `$name`.

    Raises:
        UserError: not SQL, a statement that would write, or several statements.
    """
    reading = _reading(sql)
    try:
        table = storable(db.sql(reading, params=parameters), as_texts=as_texts).to_arrow_table()
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
        features_bytes=sum(entry.size_bytes for name, entry in record.files.items() if name.startswith("features.")),
        batch_size=record.batch_size,
        seconds={stage: record.seconds.get(stage, 0.0) for stage in STAGES},
    )


def _message(error: Exception) -> str:
    """What DuckDB says, on one line and without its picture of the statement."""
    return " ".join(str(error).split("\n\nLINE ")[0].split())
