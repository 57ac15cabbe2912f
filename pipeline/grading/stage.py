"""Stage grade: the answers of one shard to their grades."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.grading.grader import Grader
from pipeline.grading.metrics.exact import is_correct
from pipeline.grading.metrics.metric import Corpus
from schemas.columns import column, rows_of, schema_of
from schemas.grades import GradeRow
from schemas.records import CommitRecord, RecordError


@dataclass(slots=True, kw_only=True)
class Given:
    """What grading reads of an answer. Older artifacts have these columns too."""

    prompt_id: str = column(pa.string())
    image_id: str | None = column(pa.string())
    answer: str | None = column(pa.string())
    type: str | None = column(pa.string())
    references: list[str] | None = column(pa.list_(pa.string()))
    shard: int = column(pa.int32())


def read_answers(artifact: Artifact, option: str, record: CommitRecord, used: dict[str, str]) -> list[Given]:
    """The answers of a shard; see `Ledger.opened` for `used`.

    Raises:
        UserError: the file is not the one that was committed.
    """
    try:
        with artifact.opened(record, "answers", used) as stream:
            return rows_of(Given, pq.read_table(stream, columns=schema_of(Given).names))
    except (RecordError, FileNotFoundError) as error:
        raise UserError(
            f"{option} {artifact.address}: the answers of shard {record.shard:08d} can't be read ({error}); "
            "run its answer job again to mend them"
        ) from error


def compared_with(answers: Sequence[Given], others: Sequence[Given], where: str) -> list[Given]:
    """The answers with what other answers say to the same prompts for references; none where the other was refused.

    Raises:
        UserError: the others are not about these prompts and images.
    """
    said = {other.prompt_id: other for other in others}
    paired = []
    for one in answers:
        other = said.get(one.prompt_id)
        if other is None or other.image_id != one.image_id:
            what = "no answer to it" if other is None else "an answer to it about another image"
            raise UserError(
                f"--against {where}: shard {one.shard:08d} holds {what}, prompt {one.prompt_id}; name answers over the "
                "same corpus, pruned with the same --shard-size"
            )
        given = None if other.answer is None else [other.answer]
        paired.append(
            Given(
                prompt_id=one.prompt_id, image_id=one.image_id, answer=one.answer, type=one.type, references=given,
                shard=one.shard,
            )
        )  # fmt: skip
    return paired


def grade_answers(answers: Sequence[Given], grader: Grader, corpora: Mapping[str | None, Corpus]) -> list[GradeRow]:
    """A row for each answer, in their order.

    Args:
        answers: with their references.
        grader: which metric scores which.
        corpora: of each type of prompts whose metric takes all references, these.
    """
    return [_grade(one, grader, corpora) for one in answers]


def _grade(one: Given, grader: Grader, corpora: Mapping[str | None, Corpus]) -> GradeRow:
    metric = grader.metric(one.type)
    references, score, counts, correct = one.references or (), None, None, None
    if one.answer is not None and references:
        correct = is_correct(one.answer, references)
        if metric.can_score(references):
            scorer = metric.score or corpora[one.type].score
            score = scorer(one.answer, references)
        if score is not None and metric.counts is not None:
            counts = list(metric.counts(one.answer, references))
    return GradeRow(
        prompt_id=one.prompt_id,
        image_id=one.image_id,
        type=one.type,
        metric=metric.name,
        score=score,
        counts=counts,
        correct=correct,
        shard=one.shard,
    )
