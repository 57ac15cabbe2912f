"""The grade job: it scores answers that exist, a shard at a time, in this process, and commits the grades."""

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact, drop_strays
from pipeline.artifact.tables import dataset_of, write_table
from pipeline.cluster.progress import Progress
from pipeline.errors import UserError
from pipeline.grading.grader import Grader
from pipeline.grading.metrics.metric import Corpus
from pipeline.grading.settings import GradeSettings
from pipeline.grading.stage import Given, compared_with, grade_answers, read_answers
from pipeline.grading.summary import COLUMNS, SummaryLine, summary_of
from pipeline.grading.survey import references_in, references_of
from pipeline.settings import deciding
from schemas.columns import table_of
from schemas.grades import GradeRow
from schemas.records import CommitRecord, JobRecord, to_json
from schemas.tables import ANSWERS, SCHEMA_VERSION
from schemas.wording import counted

_PACKAGES = ("numpy", "pyarrow", "zoo-prune")
_ALL_REFERENCES = "references of all shards"  # among the sources of grades that depend on them
_AGAINST = "against/"  # before the paths of the other answers among the sources


@dataclass(frozen=True)
class GradeResult:
    """What a run did, and what the grades come to."""

    shards_done: int
    shards_skipped: int
    answers: int  # of the artifact
    ungraded: int  # of them: refused, without references, or with fewer than the metric takes
    scores: list[SummaryLine]


@dataclass(frozen=True)
class _Answers:
    """The output of an answer job, all of it read to be graded or compared with."""

    option: str
    artifact: Artifact
    job: JobRecord
    records: dict[int, CommitRecord]

    @classmethod
    def at(cls, address: str, option: str) -> "_Answers":
        """Raises UserError where there are none, or not all yet."""
        artifact = Artifact(address)
        job = artifact.require_job("answer", option)
        if not artifact.finished:
            raise UserError(f"{option} {artifact.address} is not finished; run its answer job again to complete it")
        return cls(option, artifact, job, {record.shard: record for record in artifact.checked_commits()})

    @property
    def identity(self) -> dict[str, Any]:
        """What makes other answers of them."""
        return {**self.job.settings, **self.job.model}

    def hashes(self, before: str = "") -> dict[str, str]:
        """sha256 of each file of answers, by its path."""
        entries = (record.files["answers"] for record in self.records.values() if "answers" in record.files)
        return {before + entry.path: entry.sha256 for entry in entries}

    def read(self, shard: int, used: dict[str, str]) -> list[Given]:
        """The answers of a shard; their file and its sha256 go into `used`.

        Raises:
            UserError: there are none, or they are damaged.
        """
        record = self.records.get(shard)
        if record is None:
            where = f"{self.option} {self.artifact.address}"
            raise UserError(f"{where} holds no shard {shard:08d}; name answers over the same corpus")
        return read_answers(self.artifact, self.option, record, used)


def grade_corpus(settings: GradeSettings, say: Callable[[str], None]) -> GradeResult:
    """Run or resume the job.

    Raises:
        UserError: bad input; nothing was harmed.
    """
    answers = _Answers.at(settings.answers, "--answers")
    against = None if settings.against is None else _Answers.at(settings.against, "--against")
    work = _Work(settings.grader, answers, against)
    work.check()
    job = JobRecord(
        kind="grade",
        schema_version=SCHEMA_VERSION,
        settings={
            **deciding(settings),
            "answers": answers.identity,
            "against": None if against is None else against.identity,
        },
        model={},
        environment={
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "answers": answers.artifact.address,
            **({} if against is None else {"against": against.artifact.address}),
        },
    )
    artifact, shards = Artifact(settings.output), list(answers.records)
    if artifact.finished:
        artifact.adopt_job(job)
        resume = artifact.resume(shards, sources=work.sources)
        if not (resume.pending or resume.strays) and artifact.manifest_holds():
            return _result(artifact, 0)
    with artifact.locked(say) as artifact:
        artifact.adopt_job(job)
        resume = artifact.resume(shards, sources=work.sources)
        for reason in resume.reasons:
            say(reason)
        drop_strays(artifact, resume, len(shards), say)
        if resume.outdated:
            say(f"{counted(len(resume.outdated), 'shards', 'are')} graded again: the answers have changed since")
        if resume.pending:
            artifact.reopen()
            artifact.forget(resume.damaged)
            corpora = work.corpora()
            progress = Progress(
                sum(answers.records[shard].counts.get("prompts", 0) for shard in resume.pending), "answers"
            )
            for shard in resume.pending:
                record = work.grade(artifact, shard, corpora)
                artifact.commit(record)
                progress.add(record.counts["prompts"])
        scores = [asdict(line) for line in summary_of(_grades(artifact))]
        artifact.finish(
            {"schema_version": SCHEMA_VERSION, "kind": "grade", "num_shards": len(shards), "scores": scores}
        )
    return _result(artifact, len(resume.pending))


def _result(artifact: Artifact, shards_done: int) -> GradeResult:
    """What the manifest says that the grades come to."""
    manifest = artifact.read_manifest()
    counts = manifest["counts"]
    return GradeResult(
        shards_done=shards_done,
        shards_skipped=manifest["num_shards"] - shards_done,
        answers=counts["prompts"],
        ungraded=counts["prompts"] - counts["graded"],
        scores=[SummaryLine(**line) for line in manifest["scores"]],
    )


@dataclass(frozen=True)
class _Work:
    """What is graded by what, and how."""

    grader: Grader
    answers: _Answers
    against: _Answers | None

    def check(self) -> None:
        """Refuse what can't be graded as asked.

        Raises:
            UserError: no references, or metrics that have nothing to score.
        """
        answers = dataset_of(self.answers.artifact.store, self.answers.hashes(), ANSWERS)
        most = references_in(answers)
        where = f"--answers {self.answers.artifact.address}"
        if self.against is not None:
            self.grader.check(dict.fromkeys(most, 1), where, self._said_by_others)
        elif not any(most.values()):
            raise UserError(
                f"{where}: no prompt has references to grade by; compare with other answers, by --against FOLDER"
            )
        else:
            self.grader.check(most, self.answers.artifact.address, partial(references_of, answers))

    def _said_by_others(self, kind: str | None) -> Iterator[list[str]]:
        """The answers that prompts of a type are compared with."""
        for shard in self.answers.records:
            yield from ([*one.references] for one in self._read(shard, {}) if one.type == kind and one.references)

    @cached_property
    def sources(self) -> dict[str, str]:
        """The files that grades are made from, and what of them all, with their sha256."""
        own = self.answers.hashes()
        all_of_them = hashlib.sha256(to_json(own | self._hashes_against)).hexdigest()
        return {**own, **self._hashes_against, _ALL_REFERENCES: all_of_them}

    @property
    def _hashes_against(self) -> dict[str, str]:
        return {} if self.against is None else self.against.hashes(_AGAINST)

    def corpora(self) -> Mapping[str | None, Corpus]:
        """All references of each type of prompts whose metric takes them, answered or not."""
        found: dict[str | None, Corpus] = {}
        if not self.grader.over_corpus:
            return found
        for shard in self.answers.records:
            for one in self._read(shard, {}):
                begin = self.grader.metric(one.type).corpus
                if begin is not None and one.references:
                    found.setdefault(one.type, begin()).add(one.references)
        return found

    def _read(self, shard: int, used: dict[str, str]) -> list[Given]:
        """The answers of a shard with what they are compared with."""
        own = self.answers.read(shard, used)
        if self.against is None:
            return own
        of_others: dict[str, str] = {}
        others = self.against.read(shard, of_others)
        used.update((_AGAINST + path, sha256) for path, sha256 in of_others.items())
        return compared_with(own, others, self.against.artifact.address)

    def grade(self, artifact: Artifact, shard: int, corpora: Mapping[str | None, Corpus]) -> CommitRecord:
        """Grade a shard, write its grades, and give the record that commits them."""
        started = time.perf_counter()
        used: dict[str, str] = {}
        rows = grade_answers(self._read(shard, used), self.grader, corpora)
        if any(self.grader.metric(row.type).corpus is not None for row in rows):
            used[_ALL_REFERENCES] = self.sources[_ALL_REFERENCES]
        entry = write_table(artifact.store, "grades", shard, table_of(GradeRow, rows))
        graded = sum(row.score is not None for row in rows)
        return CommitRecord(
            shard,
            {"grades": entry},
            {"prompts": len(rows), "graded": graded},
            {"grade": time.perf_counter() - started},
            committed=time.time(),
            sources=used,
        )


def _grades(artifact: Artifact) -> Iterator[pa.Table]:
    """The columns of every shard's grades that the summary reads."""
    for record in artifact.commits():
        with artifact.opened(record, "grades") as stream:
            yield pq.read_table(stream, columns=list(COLUMNS))
