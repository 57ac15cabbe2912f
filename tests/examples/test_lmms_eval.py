"""examples/lmms_eval without lmms-eval: what it exchanges with our jobs. With it: tests/lmms."""

import hashlib
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import answer
import datasets
import grade
import pyarrow.parquet as pq
import pytest
import yaml
from comparing import compare
from exchange import Answers, Export, Grades, Refusal, Request, read_answers, read_corpus, read_grades, write_corpus
from PIL import Image

from jobs.options import execute
from jobs.zoo_prune import COMMAND

HERE = Path(__file__).resolve().parents[2] / "examples" / "lmms_eval"
TASK = {"task": "scenes_exist", "documents": 9, "references": None, "generation_kwargs": {"max_new_tokens": 8}}


def loaded(name: str) -> ModuleType:
    """A script by its path: others of its name are on the path of these tests."""
    spec = importlib.util.spec_from_file_location(f"lmms_eval_{name.replace('/', '_')}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(seed: int) -> Image.Image:
    return Image.new("RGB", (20, 16), (seed, 0, 255 - seed))


def requests(references: tuple[str, ...] = ("yes",)) -> list[Request]:
    """Three questions about two pictures."""
    return [Request(n, f"is there number {n} ?", references, picture(n % 2)) for n in range(3)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", TASK, requests())
    return tmp_path / "corpus"


@pytest.fixture
def export(corpus: Path) -> Export:
    return read_corpus(corpus)


@pytest.fixture
def answered(export: Export, write_answers: Callable[..., Path]) -> Callable[..., Path]:
    """Write answers to the exported prompts, in two shards; each change is a row's."""

    def write(*changes: dict[str, Any], name: str = "answers") -> Path:
        rows = [
            {"prompt_id": one.prompt_id, "image_id": one.image_id, "type": "scenes_exist",
             "references": list(one.references), "answer": "yes", **change}
            for one, change in zip(export.prompts.values(), changes, strict=False)
        ]  # fmt: skip
        return write_answers(name, rows[:2], rows[2:])

    return write


def test_an_image_is_written_once_under_the_id_that_it_has_in_every_table(corpus, export):
    files = sorted((corpus / "images").iterdir())
    assert [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] == [file.stem for file in files]
    prompts = [export.prompts[f"scenes_exist/{n}"] for n in range(3)]
    assert prompts[0].image_id == prompts[2].image_id != prompts[1].image_id
    assert {one.image_id for one in prompts} == {file.stem for file in files}
    assert Image.open(corpus / "images" / f"{prompts[1].image_id}.png").tobytes() == picture(1).tobytes()
    assert (export.task["exported"], export.task["images"]) == (3, 2)


def test_images_of_other_sizes_or_modes_are_other_images_only_if_they_look_otherwise(tmp_path):
    grey = Image.new("L", (4, 2), 9)
    images = [grey, grey.convert("RGB"), grey.resize((2, 4)), grey.convert("RGBA")]
    write_corpus(tmp_path / "out", TASK, [Request(n, "?", (), image) for n, image in enumerate(images)])
    ids = [one.image_id for one in read_corpus(tmp_path / "out").prompts.values()]
    assert ids[0] == ids[1] == ids[3] != ids[2]


def test_an_export_that_broke_off_is_begun_again_and_a_whole_one_is_kept(tmp_path):
    def breaking_off():
        yield requests()[0]
        raise Refusal("document 1 shows 2 images")

    folder = tmp_path / "out"
    with pytest.raises(Refusal, match="2 images"):
        write_corpus(folder, TASK, breaking_off())
    with pytest.raises(Refusal, match=r"has no task\.json; name the output of a finished export"):
        read_corpus(folder)
    write_corpus(folder, TASK, requests())
    assert len(read_corpus(folder).prompts) == 3
    with pytest.raises(Refusal, match="holds an exported task"):
        write_corpus(folder, TASK, requests())


def test_a_folder_of_something_else_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refusal, match=r"holds thesis\.tex, which is of no exported task"):
        write_corpus(tmp_path, TASK, requests())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_that_lost_lines_is_refused(corpus):
    lines = (corpus / "manifest.jsonl").read_text().splitlines()
    (corpus / "manifest.jsonl").write_text("\n".join(lines[:2]))
    with pytest.raises(Refusal, match=r"has 2 prompts where its task\.json says 3"):
        read_corpus(corpus)


def test_our_jobs_prune_answer_and_grade_it_and_what_they_say_is_read_back(
    corpus, export, tiny_llava, tmp_path, work_here
):
    """By the commands that answer.py runs."""
    output = tmp_path / "run"
    options = ["--corpus", str(corpus), "--model", tiny_llava, "--tokens", "0.125", "--metric", "pope"]
    commands = answer.commands(answer.parser().parse_args([*options, "--output", str(output)]))
    assert [execute(COMMAND, command) for command in commands] == [0, 0, 0]
    assert commands[1][commands[1].index("--max-new-tokens") + 1] == "8", "the task's own"
    answers = read_answers(output / "answers-0.125", export)
    assert answers.by_prompt.keys() == export.prompts.keys()
    assert not answers.missing
    grades = read_grades(output / "grades-0.125", export)
    assert (grades.metric, grades.score.keys()) == ("pope", export.prompts.keys())
    right = {name: float(said == "yes") for name, said in answers.by_prompt.items()}
    accuracy = sum(right.values()) / 3
    found = 2 * accuracy / (accuracy + 1)  # all are yes: precision is 1 where anything is, recall the accuracy
    there = {name: {"pope_accuracy": {"score": score}} for name, score in right.items()}
    comparison = compare(there, {"pope_accuracy": accuracy, "pope_f1_score": found}, grades)
    assert comparison.equal
    assert comparison.measures.keys() == {"accuracy", "f1"}


def test_answers_that_are_refused_or_not_there_are_told(export, answered, capsys):
    folder = answered({"answer": None, "message": "too long"}, {})
    answers = read_answers(folder, export)
    assert answers.by_prompt == {"scenes_exist/1": "yes"}
    assert answers.missing["scenes_exist/0"] == "refused: too long"
    assert answers.missing["scenes_exist/2"].startswith("not among the answers")
    with pytest.raises(Refusal, match=r"2 of 3 prompts .* scenes_exist/0 \(refused: too long\).*nothing was graded"):
        grade.check_missing(answers, export, skip=False)
    grade.check_missing(answers, export, skip=True)
    assert "2 of 3 prompts of scenes_exist have no answer" in capsys.readouterr().err
    with pytest.raises(Refusal, match="there is nothing to grade"):
        grade.check_missing(Answers({}, dict.fromkeys(export.prompts, "why")), export, skip=True)


def test_of_many_missing_answers_a_few_are_named(export):
    missing = {f"scenes_exist/{n}": "not there" for n in range(9)}
    with pytest.raises(Refusal, match=r"scenes_exist/4 \(not there\), and 4 more; nothing was graded"):
        grade.check_missing(Answers({"a": "b"}, missing), export, skip=False)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"image_id": "0" * 64}, "another image"), ({"references": ["no"]}, "other references")],
)
def test_answers_over_another_export_are_refused(export, answered, change, what):
    with pytest.raises(Refusal, match=f"the answer to scenes_exist/0 is about {what} than the exported"):
        read_answers(answered(change, {}, {}), export)


def test_outputs_that_are_not_what_they_should_be_are_refused(export, answered, corpus, tmp_path):
    answers = answered({}, {}, {})
    with pytest.raises(Refusal, match=r"--answers .*corpus has no _job\.json; name the output of zoo-prune answer"):
        read_answers(corpus, export)
    with pytest.raises(Refusal, match=r"--grades .* is the output of zoo-prune answer; name one of zoo-prune grade"):
        read_grades(answers, export)
    other = Export(export.task, {})
    with pytest.raises(Refusal, match="holds no answer to a prompt of scenes_exist"):
        read_answers(answers, other)
    assert execute(COMMAND, ["grade", "--answers", str(answers), "--output", str(tmp_path / "grades")]) == 0
    with pytest.raises(Refusal, match="holds no grade of a prompt of scenes_exist"):
        read_grades(tmp_path / "grades", other)
    (answers / "answers" / "part-00000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(Refusal, match=r"answers/part-00000001\.parquet is damaged or missing"):
        read_answers(answers, export)
    (answers / "_SUCCESS").unlink()
    with pytest.raises(Refusal, match="is not finished; run its zoo-prune answer again"):
        read_answers(answers, export)


def grades_of(*scores: float | None, metric: str = "pope", **measures: float) -> Grades:
    return Grades(metric, {f"p{n}": score for n, score in enumerate(scores)}, measures)


def test_differences_are_found_prompt_by_prompt_and_in_what_they_come_to():
    there = {f"p{n}": {"pope_accuracy": {"score": score}} for n, score in enumerate((1.0, 0.0, 1.0))}
    totals = {"pope_accuracy": 2 / 3, "pope_f1_score": 0.8, "pope_yes_ratio": 0.5}
    found = compare(there, totals, grades_of(1.0, 1.0, None, accuracy=1.0, f1=0.8))
    assert found.differences == {"p1": (0.0, 1.0), "p2": (1.0, None)}
    assert found.measures == {"accuracy": ("pope_accuracy", 2 / 3, 1.0), "f1": ("pope_f1_score", 0.8, 0.8)}
    assert not found.equal
    assert compare(there, totals, grades_of(1.0, 0.0, 1.0, accuracy=0.666667, f1=0.8)).equal
    assert not compare(there, totals, grades_of(1.0, 0.0, 1.0, accuracy=0.666667, f1=0.7)).equal, "the F1 alone"


def test_a_metric_without_a_known_partner_is_refused_unless_one_is_named():
    there, totals = {"p0": {"anls": 0.75}}, {"anls": 0.75}
    ours = grades_of(0.75, metric="anls", mean=0.75)
    with pytest.raises(Refusal, match=r"by anls: it is not known which metric .* --compare METRIC, with one of anls"):
        compare(there, totals, ours)
    assert compare(there, totals, ours, partner="anls").equal
    with pytest.raises(Refusal, match="compared with lmms-eval's exact_match, but the task has only anls"):
        compare(there, totals, grades_of(1.0, metric="gqa", mean=1.0))


def test_what_is_printed_lists_each_difference_with_its_answer(export, capsys):
    there = {"scenes_exist/0": {"exact_match": 0.0}}
    comparison = compare(there, {"exact_match": 0.0}, Grades("gqa", {"scenes_exist/0": 1.0}, {"mean": 1.0}))
    result = {"task": "scenes_exist", "graded": 1, "prompts": 3, "lmms_eval": "0.7.3", "metrics": {"exact_match": 0.0}}
    answers = Answers({"scenes_exist/0": "Yes\x1b[31m"}, {})
    grade.show({**result, **grade.compared(comparison)}, answers, export)
    shown = capsys.readouterr().out
    assert "exact_match                0.000000   zoo-prune grade: 1.000000 (gqa mean)" in shown
    assert r"scenes_exist/0: lmms-eval 0, zoo-prune 1; answer 'Yes\x1b[31m', references 'yes'" in shown


def test_several_tasks_are_one_corpus_and_budgets_have_folders_of_their_own(corpus, tmp_path):
    longer = {**TASK, "task": "other", "generation_kwargs": {"max_new_tokens": 16}}
    write_corpus(tmp_path / "other", longer, requests())
    options = ["--corpus", str(corpus), "--corpus", str(tmp_path / "other"), "--model", "m", "--output", "out"]
    options += ["--tokens", "mean:64", "--metric", "scenes_exist=pope", "--metric", "other=gqa"]
    prune, reply, mark = answer.commands(answer.parser().parse_args(options))
    assert [prune[n + 1] for n, word in enumerate(prune) if word == "--corpus"] == [
        str(folder / "manifest.jsonl") for folder in (corpus, tmp_path / "other")
    ]
    assert reply[-3:] == ["16", "--output", "out/answers-mean-64"]
    assert mark == shlex.split(
        "grade --answers out/answers-mean-64 --metric scenes_exist=pope --metric other=gqa --output out/grades-mean-64"
    )


def test_the_commands_of_the_readme_are_understood(tmp_path):
    text = (HERE / "README.md").read_text().replace("\\\n", " ")
    lines = [shlex.split(line.removeprefix("$ ")) for line in text.splitlines() if line.startswith("$ ")]
    scripts = {"export": loaded("export").parser(), "answer": answer.parser(), "grade": grade.parser()}
    seen = set()
    for words in lines:
        place = next((n for n, word in enumerate(words) if word.startswith("examples/lmms_eval/")), None)
        if place is not None and (name := Path(words[place]).stem) in scripts:
            scripts[name].parse_args(words[place + 1 :])
            seen.add(name)
    assert seen == set(scripts)


def test_the_tasks_over_the_bundled_scenes_are_whole(tmp_path):
    make = loaded("scenes_task/make")
    make.make_tasks(tmp_path)
    for name in ("scenes_exist", "scenes_words"):
        task = yaml.load(re.sub(r"!function ", "", (tmp_path / f"{name}.yaml").read_text()), yaml.SafeLoader)
        assert task["task"] == name
        table = pq.read_table(tmp_path / task["dataset_kwargs"]["data_files"]["test"])
        features = datasets.Features.from_arrow_schema(table.schema)
        assert isinstance(features["image"], datasets.Image)
        assert {"question_id", "question", "answer"} <= features.keys()
        assert table.num_rows > 40
        functions = set(re.findall(r"!function utils\.(\w+)", (tmp_path / f"{name}.yaml").read_text()))
        assert functions <= set(dir(loaded("scenes_task/utils")))
    answers = set(pq.read_table(tmp_path / "scenes_exist.parquet")["answer"].to_pylist())
    assert answers == {"yes", "no"}


def test_the_requirements_name_the_versions_that_we_test_with():
    """Where both environments have a package."""
    texts = [(HERE / "requirements.txt").read_text(), (HERE.parents[1] / "constraints.txt").read_text()]
    theirs, ours = (dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.M)) for text in texts)
    assert {name: ours.get(name, version) for name, version in theirs.items()} == theirs
    assert "torch" not in theirs, "its build is the user's choice"
    assert theirs["lmms_eval"]
