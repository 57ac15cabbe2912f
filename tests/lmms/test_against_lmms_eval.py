"""examples/lmms_eval with lmms-eval itself: its code grades our answers, and its grades are ours."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.options import execute
from jobs.zoo_prune import COMMAND
from tests.lmms.conftest import ENVIRONMENT, REPO, Script
from tests.lmms.data_sets import GQA, POPE, TEXTVQA

pytestmark = [pytest.mark.lmms, pytest.mark.ray]

EXAMPLE = "examples/lmms_eval"
POST = "\nAnswer the question using a single word or phrase."
TASKS = {
    "pope": ("pope", [question + POST for question, _ in POPE], [[answer] for _, answer in POPE], []),
    "gqa": ("gqa", [question + POST for question, _ in GQA], [[answer] for _, answer in GQA], []),
    "textvqa_val": (
        "textvqa",
        [question.capitalize() + POST for question, _ in TEXTVQA],
        [answers for _, answers in TEXTVQA],
        ["--references", "answers"],
    ),
}


@pytest.fixture(scope="module")
def exported(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The export of a task that lmms-eval comes with; made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("export") / name
            done = script(f"{EXAMPLE}/export.py", "--task", name, *TASKS[name][3], "--output", made[name])
            assert done.returncode == 0, done.stderr
        return made[name]

    return get


def manifest(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (corpus / "manifest.jsonl").read_text().splitlines()]


def asked(corpus: Path) -> list[dict[str, Any]]:
    """What the answers to an exported task have in common with it."""
    return [
        {
            "prompt_id": prompt["id"],
            "image_id": Path(record["image"]).stem,
            "type": prompt["type"],
            "references": prompt["references"],
        }
        for record in manifest(corpus)
        for prompt in record["prompts"]
    ]


@pytest.fixture
def graded(exported, write_answers, script: Script, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Any]]:
    """Give answers to a task's prompts, in their order; what both say of them. None: the prompt is refused."""

    def grade(name: str, *answers: str | None, skip_missing: bool = False) -> tuple[dict[str, Any], Any]:
        corpus = exported(name)
        rows = [
            {**row, "answer": answer, "message": "too long" if answer is None else None}
            for row, answer in zip(asked(corpus), answers, strict=False)
        ]
        folder = write_answers(f"answers-{name}", rows[::2], rows[1::2])  # shards in another order than the documents
        ours, output = tmp_path / "grades", tmp_path / "result"
        assert (
            execute(COMMAND, ["grade", "--answers", str(folder), "--metric", TASKS[name][0], "--output", str(ours)])
            == 0
        )
        more = ["--skip-missing"] if skip_missing else []
        options = ["--corpus", corpus, "--answers", folder, "--grades", ours, "--output", output]
        done = script(f"{EXAMPLE}/grade.py", *options, *more)
        result = output / "result.json"
        return json.loads(result.read_text()) if result.exists() else {}, done

    return grade


@pytest.mark.parametrize("name", TASKS)
def test_its_own_tasks_are_exported_with_their_prompts_references_and_images(name, exported):
    """Unchanged, from folders in place of their data sets; two documents show an image."""
    records = manifest(exported(name))
    prompts = [prompt for record in records for prompt in record["prompts"]]
    _, texts, references, _ = TASKS[name]
    assert [prompt["prompt"] for prompt in prompts] == texts
    assert [prompt["references"] for prompt in prompts] == references
    assert [prompt["id"] for prompt in prompts] == [f"{name}/{n}" for n in range(len(texts))]
    images = [record["image"] for record in records]
    assert images[::2] == images[1::2]
    assert len(set(images)) == len(list((exported(name) / "images").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("pope", ["yes", "no", "no", "Yes ", " NO", "maybe"]),
        ("gqa", [" Red.", "yes", "tshirt", "Traffic light!", "", "dark red"]),
        ("textvqa_val", ["STOP", "many", "Dr. Pepper", "Joe's.", "1,000", "the red bus"]),
    ],
)
def test_grades_of_its_own_tasks_equal_ours(name, answers, graded):
    result, done = graded(name, *answers)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (result["equal"], result["graded"], result["missing"]) == (True, 6, {})
    assert all(0 < value["lmms_eval"] < 1 for value in result["compared"].values())
    assert "all 6 answers have the same grade with both" in done.stdout


def test_textvqa_has_grades_between_0_and_1_and_writes_its_submission(graded, tmp_path):
    """What two of ten people say, by hand; where `until` or another file is asked for, it lies in --output."""
    result, _ = graded("textvqa_val", "bus", "many", "pepper", "joe", "1,000", "bus")
    two_of_ten, one_of_ten = (2 * 1 / 3 + 8 * 2 / 3) / 10, (9 * 1 / 3) / 10
    # "many" and the last "bus" were said by one of ten; "1,000" is "1000", as all ten say but for a dollar sign
    assert result["metrics"]["exact_match"] == pytest.approx((0 + one_of_ten + 0 + 0 + 1 + one_of_ten) / 6)
    assert two_of_ten > one_of_ten
    (submission,) = (tmp_path / "result" / "submissions").iterdir()
    assert [entry["answer"] for entry in json.loads(submission.read_text())][:2] == ["bus", "many"]


def test_answers_that_are_graded_otherwise_are_listed(graded):
    """POPE's code there takes a bare yes or no alone; GQA's counts white space within an answer."""
    result, done = graded("pope", "Yes, there is.", "no", "yes", "No.", "yes", "no")
    assert done.returncode == 1
    assert result["differences"] == {
        "pope/0": {"lmms_eval": 0.0, "zoo_prune": 1.0},
        "pope/3": {"lmms_eval": 0.0, "zoo_prune": 1.0},
    }
    assert "pope/0: lmms-eval 0, zoo-prune 1; answer 'Yes, there is.', references 'yes'" in done.stdout
    assert result["compared"]["pope_accuracy"] == {"measure": "accuracy", "lmms_eval": 4 / 6, "zoo_prune": 1.0}


def test_gqa_differs_on_white_space_within_an_answer(graded):
    result, done = graded("gqa", "red", "no", "T-shirt", "traffic light", "woman", "dark  red")
    assert done.returncode == 1
    assert result["differences"] == {"gqa/5": {"lmms_eval": 0.0, "zoo_prune": 1.0}}


def test_missing_answers_are_told_and_never_scored_in_silence(graded):
    answers = ["yes", None, "no", "no", "yes"]  # the second is refused, the last document has none
    result, done = graded("pope", *answers)
    assert (done.returncode, result) == (2, {})
    assert "2 of 6 prompts of pope have no answer: pope/1 (refused: too long); pope/5 (not among" in done.stderr
    assert "nothing was graded" in done.stderr


def test_the_others_are_graded_where_that_is_asked_for(graded):
    result, done = graded("pope", "yes", None, "no", "no", "yes", skip_missing=True)
    assert done.returncode == 0, done.stderr
    assert (result["graded"], result["prompts"], list(result["missing"])) == (4, 6, ["pope/1", "pope/5"])
    assert result["metrics"]["pope_accuracy"] == 3 / 4
    assert result["metrics"]["pope_yes_ratio"] == 3 / 4, "of the four that were graded"
    assert "4 of 6 prompts graded" in done.stdout


def test_answers_to_other_prompts_than_it_asks_now_are_refused(exported, script, write_answers, tmp_path):
    """Where the task or its data changed since; the manifest says what was asked."""
    corpus = exported("pope")
    changed = tmp_path / "changed"
    changed.mkdir()
    lines = (corpus / "manifest.jsonl").read_text().replace("Is there a dog", "Is there a wolf", 1)
    (changed / "manifest.jsonl").write_text(lines)
    (changed / "task.json").write_text((corpus / "task.json").read_text())
    answers = write_answers("answers", [{**row, "answer": "no"} for row in asked(changed)])
    done = script(f"{EXAMPLE}/grade.py", "--corpus", changed, "--answers", answers, "--output", tmp_path / "out")
    assert done.returncode == 2
    assert "lmms-eval asks 'Is there a dog" in done.stderr
    assert "where 'Is there a wolf" in done.stderr


def test_what_cannot_be_exported_is_refused_in_a_sentence(lmms_python, data_sets, environment, tmp_path):
    own = tmp_path / "tasks"
    own.mkdir()
    base = (
        "dataset_path: parquet\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
        "output_type: {type}\ndoc_to_text: question\ndoc_to_target: {target}\ndoc_to_visual: !function utils.{visual}\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\ntask: {name}\n"
    )
    (own / "utils.py").write_text(
        "def one(doc):\n    return [doc['image']]\n\ndef two(doc):\n    return [doc['image']] * 2\n\n"
        "def none(doc):\n    return []\n\ndef film(doc):\n    return ['film.mp4']\n\n"
        "def broken(doc, results):\n    raise KeyError('no such field')\n"
    )
    data = data_sets / "lmms-lab-encoder" / "POPE" / "data" / "test-00000-of-00001.parquet"
    for name, visual, target in (
        ("two", "two", "answer"),
        ("none", "none", "answer"),
        ("film", "film", "answer"),
        ("templates", "one", "'{{ answer }}'"),
        ("constant", "one", "label"),
        ("broken", "one", "answer"),
    ):
        text = base.format(data=data, type="generate_until", target=target, visual=visual, name=name)
        grading = "process_results: !function utils.broken\n" if name == "broken" else ""
        (own / f"{name}.yaml").write_text(text + grading)
    filters = "filter_list:\n" + "".join(
        f"  - name: {name}\n    filter:\n      - function: take_first\n" for name in ("one", "other")
    )
    text = base.format(data=data, type="generate_until", target="answer", visual="one", name="filters")
    (own / "filters.yaml").write_text(text + filters)
    lost = base.format(data="lost.parquet", type="generate_until", target="answer", visual="one", name="lost")
    (own / "lost.yaml").write_text(lost)
    odd = base.format(data=data, type="generate_until_multi_round", target="answer", visual="one", name="rounds")
    (own / "rounds.yaml").write_text(odd)
    here = {"include_path": str(own)}
    expected = {
        "two": ({"task": "two", **here}, "--task two, document 0 shows 2 images; a prompt is about one image"),
        "none": ({"task": "none", **here}, "document 0 shows no image"),
        "film": ({"task": "film", **here}, "document 0 shows a str, no image"),
        "rounds": ({"task": "rounds", **here}, "is of the type generate_until_multi_round; only generate_until"),
        "constant": ({"task": "constant", **here}, "its doc_to_target 'label' names no column"),
        "column": (
            {"task": "two", "references": "tags", **here},
            "--references tags: the documents of two have no such column, only id,",
        ),
        "templates": ({"task": "templates", **here}, ""),
        "unknown": ({"task": "poppe"}, "--task poppe: lmms-eval knows no such task; did you mean pope"),
        "group": ({"task": "textvqa"}, "--task textvqa is a group of tasks; export one of its tasks at a time"),
        "target": ({"task": "textvqa_val"}, "its doc_to_target 'answer' names no column, so lmms-eval takes that word"),
        "lost": ({"task": "lost", **here}, "--task lost: lmms-eval can't load its data set: FileNotFoundError"),
        "filters": ({"task": "filters", **here}, "--task filters has several filters"),
        "limit": ({"task": "templates", "limit": 0, **here}, "--limit 0: expected a number of documents, at least 1"),
        "broken": ({"task": "broken", "grade": {}, **here}, "task broken: lmms-eval's process_results fails: KeyError"),
        "grown": (
            {"task": "templates", "grade": {"documents": 5}, **here},
            "task templates has 6 documents, 5 when it was exported; export it again",
        ),
        "changed": (
            {"task": "templates", "grade": {"references": ["maybe"]}, **here},
            "task templates, document 0 has other references than when it was exported",
        ),
        "folder": ({"task": "two", "include_path": str(own / "away")}, "is no folder; name one with YAML files"),
    }
    done = subprocess.run(
        [lmms_python, str(REPO / "tests" / "lmms" / "refusals.py")],
        input=json.dumps({name: case for name, (case, _) in expected.items()}),
        cwd=data_sets, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    for name, (_, sentence) in expected.items():
        assert sentence in said[name], name
        assert bool(sentence) == bool(said[name]), said[name]


def readme_commands() -> list[str]:
    """Those on the bundled scenes."""
    text = (REPO / EXAMPLE / "README.md").read_text()
    (block,) = (block for block in re.findall(r"```console\n(.*?)```", text, re.S) if "scenes-tasks" in block)
    return [line.removeprefix("$ ") for line in block.replace("\\\n", " ").splitlines() if line.startswith("$ ")]


def test_the_commands_of_the_readme_run_as_they_stand_and_all_grades_are_equal(lmms_python, environment, tmp_path):
    (tmp_path / "examples").symlink_to(REPO / "examples")
    programs = {"python": sys.executable, str(ENVIRONMENT.relative_to(REPO)): lmms_python}
    both = {**environment, "PYTHONPATH": str(REPO)}
    said = ""
    for command in readme_commands():
        first, *rest = shlex.split(command)
        done = subprocess.run([programs[first], *rest], cwd=tmp_path, env=both, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout
    result = json.loads((tmp_path / "out" / "scenes-exist-run" / "lmms-eval-32" / "result.json").read_text())
    assert result["equal"]
    assert all(0.5 < value < 1 or name == "pope_recall" for name, value in result["metrics"].items())
    assert f"```\n{said}```" in (REPO / EXAMPLE / "README.md").read_text()


def test_questions_of_one_word_about_the_scenes_too(script, lmms_python, tiny_llava, tmp_path, without_ray):
    """At a budget at which the model errs; and the same answers by `exact`."""
    sys.path.append(str(REPO / EXAMPLE))
    import answer  # the example's

    tasks, corpus, output = tmp_path / "tasks", tmp_path / "corpus", tmp_path / "run"
    assert script(f"{EXAMPLE}/scenes_task/make.py", tasks).returncode == 0
    done = script(
        f"{EXAMPLE}/export.py", "--task", "scenes_words", "--include-path", tasks, "--output", corpus, "--limit", 150
    )
    assert done.returncode == 0, done.stderr
    assert "150 prompts, the first of" in done.stdout
    options = ["--corpus", corpus, "--model", tiny_llava, "--tokens", 8, "--metric", "gqa", "--output", output]
    commands = answer.commands(answer.parser().parse_args([*map(str, options)]))
    exact = ["grade", "--answers", str(output / "answers-8"), "--output", str(output / "exact")]
    with without_ray():
        assert [execute(COMMAND, command) for command in [*commands, exact]] == [0] * 4
    for grades in ("grades-8", "exact"):
        done = script(
            f"{EXAMPLE}/grade.py", "--corpus", corpus, "--answers", output / "answers-8", "--grades", output / grades,
            "--output", output / f"result-{grades}",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads((output / f"result-{grades}" / "result.json").read_text())
        assert (result["equal"], result["graded"]) == (True, 150)
        assert 0.3 < result["metrics"]["exact_match"] < 1
