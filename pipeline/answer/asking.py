"""New questions to an old artifact: prompts of a file, or those of the artifact for which a condition holds.

They are joined with the pruned images in DuckDB, which spills what it can't hold in memory, and go to the shards that
hold their images. Whatever can't be posed stays a row with its reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.answer.checks import Survey
from pipeline.answer.settings import AnswerSettings
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.asked import TABLE, Asked, digest_of, drop_asked, read_record, write_asked, write_record
from pipeline.artifact.index import read_index
from pipeline.artifact.tables import dataset_of
from pipeline.corpus.asking import PromptsFile
from pipeline.errors import UserError
from pipeline.grading.survey import most_references, references_among
from pipeline.report.query import ask, connect
from schemas.records import FileEntry
from schemas.statuses import OK, AskedStatus, PromptStatus, why_not_posed
from schemas.tables import ASKED, ASKED_FILE, INDEX
from schemas.wording import counted

_ROWS = 1 << 16  # of a batch on its way to files, and of prompts without an image in one shard

# Images by what a source is the whole of, or the end from a "/" on, as the name of a file is.
_NAMED = """
create table named as
select asked, count(distinct coalesce(image_id, source)) as images, min(image_id) as image_id,
       min(source) as one, max(source) as other
from matches group by asked
"""
_FAILED = """
create table failed as
select key, min(reason) as reason, min(message) as message
from (select unnest([image_id, source]) as key, reason, message from errors where prompt_id is null)
where key is not null group by key
"""
# The prompts of a file with the images that they name. One row a row of the file.
_JOINED = """
create table joined as
with meant as (
    select r.*, coalesce(n.images, 0) as images, n.one, n.other,
           coalesce(r.image_id, case when n.images = 1 then n.image_id end) as wanted,
           coalesce(r.image_id, case when n.images = 1 then coalesce(n.image_id, n.one) end) as key
    from asked_rows r left join named n on n.asked = r.source
)
select m.*, i.shard as image_shard, i.source as image_source,
       case when m.status <> '{ok}' then m.status
            when m.images > 1 then '{ambiguous}'
            when i.image_id is null then '{unknown}'
            else '{ok}' end as found,
       case when m.status <> '{ok}' then m.message
            when m.images > 1 then format(
                'the sources of {{}} images end in {{}}, {{}} and {{}} for example; write more of the one meant',
                m.images, m.source, m.one, m.other)
            when i.image_id is not null then null
            when e.reason is not null then
                format('its image could not be pruned: {{}}', concat_ws(', ', e.reason, e.message))
            when m.source is not null then format('no image of the pruned corpus has the source {{}}', m.source)
            else format('no image of the pruned corpus has the image_id {{}}', m.wanted) end as why
from meant m
left join images i on i.image_id = m.wanted
left join failed e on e.key = m.key
"""
# An id stays with the first prompt that has it and can be posed; other prompts are called by a hash of what they ask,
# numbered behind the prompts that have such a hash for their own id.
_PLAN = """
create table plan as
with told as (
    select *, left(sha256(concat_ws(chr(10), coalesce(wanted, source, ''), prompt, messages::varchar)), 16) as content,
           row_number() over (partition by prompt_id order by found <> '{ok}', position) as turn,
           row_number() over (partition by image_shard is null order by position) as place
    from joined
), again as (
    select *, prompt_id is not null and turn = 1 as is_own,
           prompt_id is not null and turn > 1 and found = '{ok}' as late,
           row_number() over (
               partition by content, prompt_id is not null and turn = 1 order by prompt_id is not null, position
           ) as copy
    from told
), taken as (
    select regexp_extract(prompt_id, '^([0-9a-f]{{16}})(-[0-9]{{1,9}})?$', 1) as hash,
           max(coalesce(try_cast(regexp_extract(prompt_id, '-([0-9]+)$', 1) as bigint), 1)) as copies
    from again where is_own group by 1
), numbered as (
    select again.*, copy + case when is_own then 0 else coalesce(copies, 0) end as turn_of_hash
    from again left join taken on taken.hash = content
)
select position,
       case when is_own then prompt_id
            when turn_of_hash = 1 then content else content || '-' || turn_of_hash end as prompt_id,
       wanted as image_id, prompt, messages, "references", type, coalesce(image_source, source, '') as source,
       case when late then '{duplicate}' else found end as status,
       coalesce(image_shard, ((place - 1) // {rows}) % {shards})::integer as shard, image_shard,
       format('row {{}}: {{}}', position,
              case when late then format('its id, {{}}, is that of another prompt', prompt_id) else why end) as message
from numbered
"""
# What a condition of `--where` is about: the prompt, and its image as the view `images` has it.
_ASKED = """
create view asked as
select p.prompt_id, p.prompt, p.messages, p."references", p.type, i.*
from {prompts} p left join images i on i.image_id = p.image_id
"""
_OF_THE_ARTIFACT = f"(select *, null::varchar as message from prompts where status = '{OK}')"
_COLUMNS = ", ".join(f'"{name}"' for name in ASKED.names)


@dataclass(frozen=True)
class Asking:
    """What the user asks in place of all prompts of the artifact."""

    file: PromptsFile | None
    where: str | None
    sha256: str | None  # of the file

    @classmethod
    def of(cls, settings: AnswerSettings) -> "Asking | None":
        """None where all prompts of the artifact are asked. Raises UserError where the file can't be read."""
        if settings.prompts is None and settings.where is None:
            return None
        file = None if settings.prompts is None else PromptsFile(settings.prompts, settings.reading)
        return cls(file, settings.where, None if file is None else file.sha256())

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the prompts, as the record of a job holds it."""
        columns = {} if self.file is None else {"columns": self.file.columns}
        return {"prompts_sha256": self.sha256, "where": self.where, **columns}

    def known(self, artifact: Artifact, found: Survey) -> Asked | None:
        """The prompts that lie in the output already, if they are whole and made from the pruned files in force."""
        asked = read_record(artifact.store)
        if asked is None or asked.made_from != digest_of(found.hashes):
            return None
        listed = {entry.key: entry for entry in artifact.store.walk(f"{TABLE}/")}
        return asked if artifact.problem_among(asked.files.values(), listed) is None else None

    def refuse_others(self, artifact: Artifact) -> None:
        """Refuse an output that answers another file.

        Raises:
            UserError: it does.
        """
        job = artifact.read_job()
        if job is None or job.kind != "answer" or self.file is None:
            return
        if (job.settings.get("asked") or {}).get("prompts_sha256") == self.sha256:
            return
        there = job.environment.get("prompts")
        others = f"{there}, as that file was then" if there else "the corpus"
        raise UserError(
            f"--output {artifact.address} holds answers to the prompts of {others}; those of {self.file.location} are "
            "others: choose another --output, or name the file that it answers"
        )

    def plan(self, pruned: Artifact, found: Survey, say: Callable[[str], None]) -> "Plan":
        """Find the images of all prompts, and which prompts are asked; nothing is written.

        Raises:
            UserError: the file can't be read, the condition is no SQL, or there is nothing that can be posed.
        """
        db = connect(pruned.address)
        for view in ("answers", "grades"):  # of which there are none here: a condition on them is a mistake
            db.execute(f"drop view if exists {view}")
        named, prompts, order = "--where", _OF_THE_ARTIFACT, "prompt_id"
        if self.file is not None:
            named, prompts, order = f"--prompts {self.file.location}", "plan", "position"
            _read(db, self.file)
            _name_images(db, pruned)
            told = {"ok": OK, "ambiguous": AskedStatus.AMBIGUOUS, "unknown": AskedStatus.UNKNOWN}
            db.execute(_JOINED.format(**told))
            shards = max(1, found.num_shards)
            db.execute(_PLAN.format(ok=OK, duplicate=PromptStatus.DUPLICATE_ID, rows=_ROWS, shards=shards))
        if self.where is not None:
            _choose(db, prompts, self.where)
            prompts = f"(select * from {prompts} where prompt_id in (select prompt_id from chosen))"
        plan = Plan(db, prompts, digest_of(found.hashes), order)
        plan.check(named, say)
        return plan


@dataclass(frozen=True)
class Chosen:
    """The prompts that are asked."""

    db: duckdb.DuckDBPyConnection
    prompts: str  # as SQL's `from` has it

    @classmethod
    def before(cls, artifact: Artifact, asked: Asked) -> "Chosen":
        """Those that lie in the output already."""
        db = duckdb.connect()
        db.register("asked", dataset_of(artifact.store, [entry.path for entry in asked.files.values()], ASKED))
        return cls(db, "asked")

    def most_references(self) -> dict[str | None, int]:
        """The types of prompts, with the largest number of references that one prompt of the type has."""
        return most_references(self.db, self.prompts)

    def references_of(self, kind: str | None) -> Iterator[list[str]]:
        """The references of each prompt of a type that has some."""
        return references_among(self.db, self.prompts, kind)

    def images_of(self, shard: int) -> pa.Array:
        """Ids of the images of a pruned shard that prompts ask about which can be posed."""
        self.db.execute(  # once: the prompts may have to be read from the artifact
            "create table if not exists asked_images as "
            f"select distinct image_shard, image_id from {self.prompts} where status = '{OK}' order by all"
        )
        found = self.db.sql(f"select image_id from asked_images where image_shard = {shard}")
        return found.to_arrow_table()["image_id"].combine_chunks()


@dataclass(frozen=True)
class Plan(Chosen):
    """Which prompts are asked about which shards, before anything of it is written."""

    made_from: str
    order: str  # column by which they go in a shard

    def check(self, named: str, say: Callable[[str], None]) -> None:
        """Say what is asked.

        Args:
            named: how the user named the prompts.
            say: takes one line.

        Raises:
            UserError: there is nothing that can be posed.
        """
        statuses = dict(
            self.db.sql(f"select status, count(*) from {self.prompts} group by 1 order by 2 desc, 1").fetchall()
        )
        refused = why_not_posed(statuses)
        if OK not in statuses:
            ((why,),) = self.db.sql(f"select message from {self.prompts} order by {self.order} limit 1").fetchall()
            number = counted(sum(statuses.values()), "prompts")
            raise UserError(f"{named}: none of {number} can be posed: {refused}; {why}")
        ((images, shards),) = self.db.sql(
            f"select count(distinct image_id), count(distinct image_shard) from {self.prompts} where status = '{OK}'"
        ).fetchall()
        about = f"{counted(images, 'images')} in {counted(shards, 'shards')}"
        also = f"; refused without being posed: {refused}" if refused else ""
        say(f"{named}: {counted(statuses[OK], 'prompts')} about {about}{also}")

    def write(self, artifact: Artifact) -> Asked:
        """Write the prompts into the output, which the caller holds. Answers to others than these are taken back."""
        before = read_record(artifact.store)
        known = before.files if before is not None else {}
        files: dict[int, FileEntry] = {}
        for shard, rows in self._shards():
            files[shard] = write_asked(artifact, shard, rows, known.get(shard))
        for shard in known.keys() - files.keys():
            drop_asked(artifact, shard)
        asked = Asked(self.made_from, files)
        if asked != before:
            write_record(artifact.store, asked)
        return asked

    def _shards(self) -> Iterator[tuple[int, pa.Table]]:
        """The prompts of each shard that has any, in the order of their numbers."""
        ordered = self.db.sql(f"select {_COLUMNS} from {self.prompts} order by shard, {self.order}")
        held: list[pa.RecordBatch] = []
        for batch in ordered.to_arrow_reader(_ROWS):
            for shard in pc.unique(batch["shard"]).to_pylist():
                if held and held[0]["shard"][0].as_py() != shard:
                    yield _together(held)
                    held = []
                held.append(batch.filter(pc.equal(batch["shard"], shard)))
        if held:
            yield _together(held)


def _together(batches: list[pa.RecordBatch]) -> tuple[int, pa.Table]:
    return batches[0]["shard"][0].as_py(), pa.Table.from_batches(batches).cast(ASKED).combine_chunks()


def _choose(db: duckdb.DuckDBPyConnection, prompts: str, where: str) -> None:
    """Make the table of the ids of those prompts for which a condition holds."""
    db.execute(_ASKED.format(prompts=prompts))
    try:
        kind = ask(db, f"select typeof({where}\n) from asked limit 1").column(0).to_pylist()
        if kind != ["BOOLEAN"]:
            raise UserError(f"it gives {kind[0]}, not true or false")
        chosen = ask(db, f"select prompt_id from asked where ({where}\n)")
    except UserError as error:
        raise UserError(
            f"--where {where}: {error}; expected a condition on the columns of a prompt or image"
        ) from error
    if not len(chosen):
        ((number,),) = db.sql(f"select count(*) from {prompts}").fetchall()
        raise UserError(f"--where {where}: it holds for none of {counted(number, 'prompts')}; mend it")
    db.register("chosen", chosen)


def _read(db: duckdb.DuckDBPyConnection, file: PromptsFile) -> None:
    """Make the table of the rows of a file."""
    db.register("read_rows", ASKED_FILE.empty_table())
    db.execute("create table asked_rows as select * from read_rows")
    for table in file.tables():
        db.register("read_rows", table)
        db.execute("insert into asked_rows select * from read_rows")
    db.unregister("read_rows")


def _name_images(db: duckdb.DuckDBPyConnection, pruned: Artifact) -> None:
    """Make the tables of the images that sources name, by the index, and of why images failed."""
    db.execute("create table named_sources as select distinct source as asked from asked_rows where source is not null")
    index = read_index(pruned.store)
    assert index is not None, "without an index the job is refused"
    db.register("samples", dataset_of(pruned.store, index.parts(), INDEX))
    found = "select asked, image_id, source from {} join samples on {} = asked"
    db.execute(f"create table matches as {found.format('named_sources', 'source')} limit 0")
    if db.sql("select 1 from named_sources limit 1").fetchall():
        db.execute(f"insert into matches {found.format('named_sources', 'source')}")
        db.execute(
            "create table left_over as select asked, len(string_split(asked, '/')) as parts "
            "from named_sources anti join matches using (asked)"
        )
        for (parts,) in db.sql("select distinct parts from left_over order by 1").fetchall():
            end = f"array_to_string(string_split(source, '/')[-{parts}:], '/')"
            db.execute(f"insert into matches {found.format('left_over', end)} where parts = {parts}")
    db.execute(_NAMED)
    db.execute(_FAILED)
