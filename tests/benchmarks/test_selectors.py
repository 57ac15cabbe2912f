"""The benchmark of selectors as a command, small, and the texts that are made of its result."""

import json
import sys

import pytest

from benchmarks import readme_figures, selectors
from benchmarks.comparison import rows_of
from zoo_ops import SELECTORS

pytestmark = pytest.mark.long

QUESTIONS = {"plain": 5, "cluttered": 5}  # of two images with a caption, one each


@pytest.fixture(scope="module")
def result(tiny_llava, tmp_path_factory) -> tuple[dict, str]:
    """Of two models, the second a copy of the first, over two images, one of them said to be cluttered; and what
    was printed.
    """
    folder = tmp_path_factory.mktemp("selectors")
    scenes = readme_figures.REPO / "examples" / "scenes"
    records = [json.loads(line) for line in (scenes / "scenes.jsonl").read_text().splitlines()[2:4]]
    for number, record in enumerate(records):
        record["image"] = str(scenes / record["image"])
        for prompt in record["prompts"]:
            prompt["type"] = f"cluttered_{prompt['type']}" if number % 2 else prompt["type"]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "again").symlink_to(tiny_llava)
    command = ["benchmarks/selectors.py", "--controls", "--processes", "1", "--manifest", str(folder / "corpus.jsonl")]
    command += ["--model", tiny_llava, "--model", str(folder / "again")]
    command += ["--json", str(folder / "result.json"), "--picture", str(folder / "picture.png")]
    with pytest.MonkeyPatch.context() as patch, open(folder / "printed", "w") as printed:
        patch.setattr(sys, "argv", command)
        patch.setattr(sys, "stdout", printed)
        selectors.main()
    assert (folder / "picture.png").stat().st_size > 1000
    return json.loads((folder / "result.json").read_text()), (folder / "printed").read_text()


def test_the_result_holds_every_model_split_and_selector(result):
    found, _ = result
    rows = rows_of(found)
    assert {row.model for row in rows} == {"pooled", "tiny-llava", "again"} == {"pooled", *found["models"]}
    assert {row.split for row in rows} == {"plain", "cluttered", "both"}
    assert {row.selector for row in rows} == {"all tokens", "pooling", *SELECTORS}
    assert {row.tokens for row in rows if row.selector == "zoo"} == {192, 128, 64, 32, 16, 8}
    assert {row.tokens for row in rows if row.selector == "pooling"} == {64, 16}
    assert {split: sum(kinds.values()) for split, kinds in found["questions"].items()} == QUESTIONS


def test_equal_models_have_equal_rows_apart_and_pooled(result):
    """The second model has the same weights, so pooling both says what each says alone."""
    by_model: dict[str, list] = {}
    for model, *values in result[0]["rows"]:
        by_model.setdefault(model, []).append(values)
    assert by_model["pooled"] == by_model["tiny-llava"] == by_model["again"]


def test_costs_are_measured_and_nothing_is_asked_for_twice(result):
    answers = result[0]["answers"]
    assert set(answers["cpu_ms_per_answer"]) == {"256", "192", "128", "64", "32", "16", "8"}
    assert min(answers["cpu_ms_per_answer"].values()) > 0
    assert 0 < answers["generated"] <= answers["asked"]
    runs = len(SELECTORS) + 4  # random has five seeds
    assert answers["asked"] == 2 * sum(QUESTIONS.values()) * (1 + 6 * runs + 2)


def test_the_printed_tables_show_every_group(result):
    _, printed = result
    for title in (
        "pooled, plain, one-word",
        "again, cluttered, one-word",
        "pooled, both, caption",
        "cluttered, 8 tokens",
    ):
        assert title in printed
    assert "images with all tokens, ranked by each selector, are answered as by the untouched model" in printed


def test_texts_are_made_of_the_result(result):
    found, _ = result
    readme = "\n".join(readme_figures.accuracy_lines(found))
    assert "| plain, " in readme
    assert "| cluttered, " in readme
    assert "| 8 (0.03125) |" in readme
    docs = "\n".join(readme_figures.selector_lines(found))
    assert all(f"| {name} | " in docs for name in (*SELECTORS, "pooling"))
    assert "Apart, the models give the same verdict" in docs
    assert "(object F1)" in docs


def test_models_of_one_name_are_refused(tiny_llava, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["selectors.py", "--model", tiny_llava, "--model", str(tmp_path / "tiny-llava")])
    with pytest.raises(SystemExit, match="told apart by the names"):
        selectors.main()
