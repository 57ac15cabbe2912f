"""The view `grades`: grades beside the answers that they are of, told apart, and never of other answers."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.errors import UserError
from pipeline.grading.job import grade_corpus
from pipeline.grading.settings import GradeSettings
from pipeline.report.query import ask, connect
from pipeline.report.summary import accuracy
from schemas.columns import schema_of
from schemas.grades import GradeRow
from schemas.tables import ANSWERS


def with_references(answers: Path, references: Sequence[str] = ("x", "y")) -> Path:
    """The same answers with what a small artifact leaves out."""
    artifact = Artifact(answers)
    for record in list(artifact.commits()):
        table = pq.read_table(answers / record.files["answers"].path)
        rows = [{**row, "image_id": "0" * 64, "references": references} for row in table.to_pylist()]
        record.files["answers"] = write_table(answers, "answers", record.shard, table.from_pylist(rows, ANSWERS))
        artifact.recommit(record)
    artifact.finish({"num_shards": 2})
    return answers


def grade(answers: Path, output: Path, *metric: str, against: Path | None = None) -> Path:
    other = None if against is None else str(against)
    grade_corpus(GradeSettings(answers=str(answers), output=str(output), metric=metric, against=other), lambda _: None)
    return output


@pytest.fixture
def pruned(small_pruned, tmp_path) -> Path:
    return small_pruned(tmp_path / "pruned")


@pytest.fixture
def answers(small_answers, pruned, tmp_path) -> list[Path]:
    """At all tokens and at one."""
    return [with_references(small_answers(tmp_path / f"answers-{tokens}", pruned, tokens)) for tokens in ("all", "1")]


def test_grades_stand_beside_their_answers(pruned, answers, tmp_path):
    grades = [
        grade(answers[0], tmp_path / "a"),
        grade(answers[1], tmp_path / "b", "rouge_l"),
        grade(answers[1], tmp_path / "c", against=answers[0]),
    ]
    db = connect(pruned, answers, grades)
    columns = ask(db, "select * from grades limit 1").column_names
    assert columns == [*schema_of(GradeRow).names, "budget", "against"]
    sql = """
        select budget, against, g.metric, count(*) as n, avg(g.score) as score
        from grades g join answers a using (prompt_id, budget) group by all order by all"""
    assert ask(db, sql).to_pylist() == [
        {"budget": "1", "against": "all", "metric": "exact", "n": 2, "score": 1.0},
        {"budget": "1", "against": None, "metric": "rouge_l", "n": 2, "score": 1.0},
        {"budget": "all", "against": None, "metric": "exact", "n": 2, "score": 1.0},
    ]
    assert ask(connect(pruned, answers), "select count(*) as n from grades").to_pylist() == [{"n": 0}]


def test_grades_of_other_answers_are_refused(pruned, answers, tmp_path):
    grades = grade(answers[1], tmp_path / "grades")
    for given in (answers[:1], []):
        with pytest.raises(UserError, match=r"--grades .*grades: it grades none of the --answers as they are"):
            connect(pruned, given, [grades])
    other = with_references(answers[1], ["other"])
    with pytest.raises(UserError, match="it grades none of the --answers as they are"):
        connect(pruned, [other], [grades])
    with_references(answers[1])
    copy = shutil.copytree(grades, tmp_path / "copy")
    with pytest.raises(UserError, match=r"grades and .*copy grade the same answers by the same metrics; name one"):
        connect(pruned, answers, [grades, copy])
    with pytest.raises(UserError, match=r"--grades .*is the output of another job \(answer\); .* a grade job"):
        connect(pruned, answers, [answers[0]])


def test_answers_of_the_form_before_scores_are_shown(pruned, answers):
    """Without the columns they are null, and what was right is still counted."""
    artifact = Artifact(answers[0])
    for record in list(artifact.commits()):
        old = pq.read_table(answers[0] / record.files["answers"].path).drop_columns(["metric", "score"])
        record.files["answers"] = write_table(answers[0], "answers", record.shard, old)
        artifact.recommit(record)
    artifact.finish({"num_shards": 2})
    db = connect(pruned, answers[:1])
    assert ask(db, "select distinct metric, score, correct from answers").to_pylist() == [
        {"metric": None, "score": None, "correct": True}
    ]
    assert accuracy(db).to_pylist()[0] == {"type": "t", "metric": "exact", "graded": 2, "all tokens": 100.0}
