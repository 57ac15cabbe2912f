"""The grade job: grades beside answers that stay as they are, resumed, reproducible, and refused in one sentence."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.grade_answers import main
from pipeline.artifact.artifact import Artifact
from pipeline.cluster.status import job_status
from pipeline.errors import UserError
from pipeline.grading.job import GradeResult, grade_corpus
from pipeline.grading.settings import GradeSettings
from pipeline.storage.places import folder_at
from schemas.tables import ANSWERS, GRADES

COLOR = {"type": "color", "references": ["red"]}
CAPTION = {"type": "caption", "references": ["a red dog runs on the grass", "a dog on grass"]}
SHARDS = (
    [{"answer": " Red.", **COLOR}, {"answer": "a red dog sits on grass", **CAPTION}, {"answer": None, **COLOR}],
    [{"answer": "blue", **COLOR}, {"answer": "the cat sleeps", **CAPTION}, {"answer": "why", "type": "why"}],
)


def grade(answers: Path | str, output: Path | str, *metric: str, against: Path | str | None = None) -> GradeResult:
    other = None if against is None else str(against)
    settings = GradeSettings(answers=str(answers), output=str(output), metric=metric, against=other)
    return grade_corpus(settings, lambda _: None)


def grades_of(output: Path) -> list[dict]:
    manifest = json.loads((output / "manifest.json").read_text())
    return [row for s in manifest["shards"] for row in pq.read_table(output / s["files"]["grades"]["path"]).to_pylist()]


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_answers_are_graded_by_the_metric_of_their_type(write_answers, tmp_path):
    answers = write_answers("answers", *SHARDS)
    before = files_of(answers)
    result = grade(answers, tmp_path / "out", "caption=rouge_l")
    assert files_of(answers) == before
    assert (result.shards_done, result.answers, result.ungraded) == (2, 6, 2)
    rows = grades_of(tmp_path / "out")
    assert pq.read_schema(tmp_path / "out" / "grades" / "part-00000000.parquet").equals(GRADES)
    assert [(row["prompt_id"], row["metric"], row["correct"]) for row in rows] == [
        ("p0-0", "exact", True),
        ("p0-1", "rouge_l", False),
        ("p0-2", "exact", None),
        ("p1-0", "exact", False),
        ("p1-1", "rouge_l", False),
        ("p1-2", "exact", None),
    ]
    # 5 of the 6 words are in the first reference, and all 4 of the second among them; the other shares only "the"
    best = 2.44 * (5 / 6) * 1 / (1 + 1.44 * 5 / 6)
    other = 2.44 * (1 / 3) * (1 / 7) / (1 / 7 + 1.44 / 3)
    assert [row["score"] for row in rows] == [1, pytest.approx(best), None, 0, pytest.approx(other), None]
    lines = {(line.type, line.metric): (line.graded, line.value) for line in result.scores}
    assert lines == {
        ("color", "exact"): (2, 0.5),
        ("caption", "rouge_l"): (2, pytest.approx((best + other) / 2, abs=1e-6)),
    }


def test_the_same_command_gives_the_same_bytes_and_writes_nothing_twice(write_answers, tmp_path):
    answers = write_answers("answers", *SHARDS)
    metrics = ("exact", "caption=cider_d")
    first = grade(answers, tmp_path / "one", *metrics)
    grade(answers, tmp_path / "two", *metrics)
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    timed = {name for name in one if name.startswith(("_commits/", "_lock", "manifest"))}
    assert {name: one[name] for name in one.keys() - timed} == {name: two[name] for name in two.keys() - timed}
    assert json.loads(one["manifest.json"])["scores"] == json.loads(two["manifest.json"])["scores"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    again = grade(answers, tmp_path / "one", *metrics)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")} == before
    assert (again.shards_done, again.shards_skipped, again.scores) == (0, 2, first.scores)
    (tmp_path / "one" / "grades" / "part-00000001.parquet").unlink()
    assert grade(answers, tmp_path / "one", *metrics).shards_done == 1
    assert files_of(tmp_path / "one")["grades/part-00000001.parquet"] == one["grades/part-00000001.parquet"]


def test_answers_that_changed_are_graded_again_and_all_where_scores_take_all_references(write_answers, tmp_path):
    one = write_answers("one", *SHARDS)
    changed = [SHARDS[0], [*SHARDS[1][:-1], {"answer": "oh", "type": "why"}]]
    two = write_answers("two", *changed)
    for name, metric, done in (("rows", "caption=rouge_l", 1), ("corpus", "caption=cider_d", 2)):
        output = tmp_path / f"out-{name}"
        grade(one, output, metric)
        assert grade(two, output, metric).shards_done == done


def test_old_answers_without_score_are_graded(write_answers, tmp_path):
    old = pa.schema([field for field in ANSWERS if field.name not in ("score", "metric")])
    answers = write_answers("answers", *SHARDS, schema=old)
    assert {line.type: line.value for line in grade(answers, tmp_path / "out").scores if not line.of_all} == {
        "caption": 0,
        "color": 0.5,
    }


def test_other_answers_stand_for_references(write_answers, tmp_path):
    """Also where there are references, and where there are none; what the other run refused is not compared."""
    other = [
        [{"answer": "RED"}, {"answer": "a dog"}, {"answer": "red"}],
        [{"answer": "red"}, {"answer": None}, {"answer": "Why?"}],
    ]
    full = write_answers("full", *other)
    answers = write_answers("answers", *SHARDS, tokens="8")
    result = grade(answers, tmp_path / "out", against=full)
    assert [row["score"] for row in grades_of(tmp_path / "out")] == [1, 0, None, 0, None, 1]
    assert result.ungraded == 2
    job = Artifact(tmp_path / "out").require_job("grade", "--grades")
    assert (job.settings["answers"]["tokens"], job.settings["against"]["tokens"]) == ("8", "all")
    changed = r"  against: the output of a job with tokens 'all' -> None\n  metric: \[\] -> \['anls'\]\n"
    with pytest.raises(UserError, match=f"was started with other settings:\n{changed}repeat the old settings"):
        grade(answers, tmp_path / "out", "anls")


def test_answers_without_references_are_told_to_compare(write_answers, tmp_path):
    answers = write_answers("answers", [{"answer": "a"}, {"answer": "b", "references": []}])
    with pytest.raises(UserError, match=r"no prompt has references to grade by; compare .* by --against FOLDER"):
        grade(answers, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("colour=exact", r"--metric colour=exact: .*answers holds no prompt of type colour; its types are c.*, color"),
        ("color=vqa", "vqa takes 4 references a prompt or more, but no prompt of type color in .* has more than 1"),
        ("why=anls", "anls takes 1 reference a prompt or more, but no prompt of type why in .*answers has any"),
        ("color=pope", "--metric color=pope: pope is about yes or no, but no prompt of type color in .* says so"),
        ("vqa", "--metric vqa: vqa takes 4 references a prompt or more, but no prompt in .* has more than 2"),
        ("rouge", r"--metric rouge: there is no metric rouge; did you mean rouge_l\?"),
        ("caption=CIDEr-D", r"--metric caption=CIDEr-D: there is no metric CIDEr-D; did you mean cider_d\?"),
        ("meteor", "there is no metric meteor; there are exact, vqa, "),
    ],
)  # fmt: skip
def test_metrics_that_cannot_be_are_refused(write_answers, tmp_path, metric, message):
    answers = write_answers("answers", *SHARDS)
    with pytest.raises(UserError, match=message):
        grade(answers, tmp_path / "out", metric)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_finished_answers_are_refused(write_answers, small_pruned, tmp_path):
    answers = write_answers("answers", *SHARDS)
    for folder, message in (
        (tmp_path / "nowhere", "--answers .*nowhere: is empty, or does not exist; name the --output of an answer job"),
        (small_pruned(tmp_path / "pruned"), r"is the output of another job \(prune\)"),
    ):
        with pytest.raises(UserError, match=message):
            grade(folder, tmp_path / "out")
        with pytest.raises(UserError, match=message.replace("--answers", "--against")):
            grade(answers, tmp_path / "out", against=folder)
    half = shutil.copytree(answers, tmp_path / "half")
    (half / "_SUCCESS").unlink()
    with pytest.raises(UserError, match=r"--answers .*half is not finished; run its answer job again"):
        grade(half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_grades_are_not_put_among_answers(write_answers, tmp_path):
    answers = write_answers("answers", *SHARDS)
    before = files_of(answers)
    with pytest.raises(UserError, match=r"--output .*answers is the output of another job \(answer\); choose an empty"):
        grade(answers, answers)
    assert files_of(answers) == before


def test_answers_of_another_corpus_are_no_references(write_answers, tmp_path):
    answers = write_answers("answers", *SHARDS)
    for other, message in (
        (write_answers("fewer", SHARDS[0]), "--against .*fewer holds no shard 00000001"),
        (write_answers("short", SHARDS[0], SHARDS[1][:1]), "--against .*short: shard 00000001 holds no answer to it"),
        (write_answers("images", SHARDS[0], [{"image_id": "i", **row} for row in SHARDS[1]]), "about another image"),
    ):
        with pytest.raises(UserError, match=message):
            grade(answers, tmp_path / f"out-{other.name}", against=other)
        assert not (tmp_path / f"out-{other.name}" / "_SUCCESS").exists()


def test_damaged_answers_are_named(write_answers, tmp_path):
    answers = write_answers("answers", *SHARDS)
    path = answers / "answers" / "part-00000001.parquet"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"the answers of shard 00000001 can't be read \(.*differs from the sha256"):
        grade(answers, tmp_path / "out", "color=gqa")


def test_the_command_prints_what_the_grades_come_to(write_answers, tmp_path, capsys):
    answers = write_answers("answers", *SHARDS)
    arguments = ["--answers", str(answers), "--output", str(tmp_path / "out"), "--metric", "caption=bleu"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "6 of 6 answers (100 %)" in said.err
    assert "graded 6 answers in 2 shards" in said.err
    assert "2 answers have no score: refused, or without the references that the metric takes" in said.err
    table = [line.split() for line in said.out.splitlines()]
    assert table[0][:3] == ["scores", "x", "100,"]
    assert table[1] == ["type", "metric", "measure", "graded", "value", "low", "high"]
    assert [line[:4] for line in table[2:5]] == [
        ["caption", "bleu", "corpus", "2"],
        ["caption", "bleu", "mean", "2"],
        ["color", "exact", "mean", "2"],
    ]
    assert main(arguments) == 0
    said_again = capsys.readouterr()
    assert said_again.out == said.out
    assert "2 shards are there already" in said_again.err


def test_everything_in_a_bucket(write_answers, tmp_path, s3):
    on_disk = write_answers("answers", *SHARDS)
    in_store = folder_at(f"{s3}/answers")
    for path in on_disk.rglob("*"):
        if path.is_file() and path.name != "_lock":
            in_store.put(str(path.relative_to(on_disk)), path.read_bytes())
    here, there = tmp_path / "out", f"{s3}/grades"
    expected = grade(on_disk, here, "caption=cider_d")
    found = grade(f"{s3}/answers", there, "caption=cider_d", against=f"{s3}/answers")
    assert found.answers == expected.answers
    assert grade(f"{s3}/answers", f"{s3}/again", "caption=cider_d") == expected
    for key in ("grades/part-00000000.parquet", "grades/part-00000001.parquet"):
        assert folder_at(f"{s3}/again").read(key) == (here / key).read_bytes()
    assert grade(f"{s3}/answers", f"{s3}/again", "caption=cider_d").shards_done == 0


def test_status_tells_how_far_it_is(write_answers, tmp_path):
    answers = write_answers("answers", *SHARDS)
    grade(answers, tmp_path / "out")
    Artifact(tmp_path / "out").forget([1])
    Artifact(tmp_path / "out").reopen()
    status = job_status(tmp_path / "out")
    assert (status.kind, status.unit, status.shards, status.shards_done) == ("grade", "prompts", 2, 1)
    assert (status.total, status.done) == (6, 3)
    shutil.rmtree(answers)
    assert "answers, which it grades, holds no shard any more" in job_status(tmp_path / "out").notes[0]


def test_a_grading_that_was_killed_goes_on(write_answers, tmp_path, monkeypatch):
    answers = write_answers("answers", *SHARDS)
    grade(answers, tmp_path / "whole", "caption=cider_d")
    own = Artifact.commit

    def commit(self, record):
        if record.shard == 1:
            raise KeyboardInterrupt
        own(self, record)

    monkeypatch.setattr(Artifact, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        grade(answers, tmp_path / "out", "caption=cider_d")
    monkeypatch.setattr(Artifact, "commit", own)
    result = grade(answers, tmp_path / "out", "caption=cider_d")
    assert (result.shards_done, result.shards_skipped) == (1, 1)
    assert grades_of(tmp_path / "out") == grades_of(tmp_path / "whole")
