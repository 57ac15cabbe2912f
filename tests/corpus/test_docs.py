"""Every form of one corpus, by the commands of docs/corpora.md: the same images, rankings and features."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import webdataset as wds

from examples.corpus_forms import COUNT, scenes, write_forms
from jobs.options import execute
from jobs.zoo_prune import COMMAND
from pipeline.corpus.resolve import resolve_corpus
from pipeline.prune.census import take_census
from pipeline.prune.settings import PruneSettings
from tests.in_this_process import in_this_process
from tests.test_readme import REPO, console_blocks, ours

pytestmark = pytest.mark.long

COMMANDS = [
    words
    for is_illustration, commands in console_blocks((REPO / "docs" / "corpora.md").read_text())
    for words in ([] if is_illustration else filter(None, map(ours, commands)))
]
OUTPUTS = [words[words.index("--output") + 1] for words in COMMANDS]
OTHER_PROMPTS = {"out/photos", "out/captions", "out/img2dataset"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all commands ran."""
    folder: Path = tmp_path_factory.mktemp("forms")
    write_forms(folder / "forms")
    (folder / "examples").symlink_to(REPO / "examples")
    with pytest.MonkeyPatch.context() as patch, in_this_process():
        patch.chdir(folder)
        for words in COMMANDS:
            assert execute(COMMAND, words) == 0, words
    return folder


def rows(output: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(output / table / "part-00000000.parquet").to_pylist()


def decisions(output: Path) -> dict[str, tuple[list[int], bytes]]:
    """The ranking and the stored features of each image."""
    tar = wds.WebDataset(str(output / "features" / "shard-00000000.tar"), shardshuffle=False)
    features = {sample["__key__"]: sample["features.safetensors"] for sample in tar}
    return {row["image_id"]: (row["ranking"], features[row["image_id"]]) for row in rows(output, "selections")}


def asked(output: Path) -> set[tuple[Any, ...]]:
    return {
        (row["image_id"], row["prompt"].removeprefix("<image>\n"), *row["references"], row["status"])
        for row in rows(output, "prompts")
    }


def test_the_commands_cover_every_reader():
    """Beside the hub's, which a stand-in for the hub tests."""
    from pipeline.corpus.scan import READERS

    assert len(OUTPUTS) == len(set(OUTPUTS)) == 15
    text = (REPO / "docs" / "corpora.md").read_text()
    assert len(READERS) == 9
    for word in (
        "scenes.tar.gz",
        "scenes.tar.zst",
        "hf://datasets/",
        "llava.json ",
        "photos",
        "saved",
        "paths.parquet",
    ):
        assert word in text


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_form_gives_equal_images_rankings_and_features(outputs, output):
    expected = decisions(outputs / OUTPUTS[0])
    assert len(expected) == COUNT
    assert decisions(outputs / output) == expected
    assert rows(outputs / output, "errors") == []
    if output not in OTHER_PROMPTS:
        assert asked(outputs / output) == asked(outputs / OUTPUTS[0])
        assert len(rows(outputs / output, "prompts")) == sum(len(scene["prompts"]) for scene in scenes())


def test_a_plan_counts_in_each_form_what_the_job_finds(outputs, monkeypatch):
    planned: list[PruneSettings] = []
    monkeypatch.setattr("jobs.prune_corpus.tell_plan", lambda settings: planned.append(settings) or 0)
    monkeypatch.chdir(outputs)
    for words in COMMANDS:
        assert execute(COMMAND, [*words, "--plan"]) == 0
    for output, settings in zip(OUTPUTS, planned, strict=True):
        inputs = resolve_corpus(settings.corpus)
        census = take_census(inputs, lambda *_: 1, count=0, limit=None, reading=settings.reading)
        found, total = json.loads((outputs / output / "manifest.json").read_text())["counts"], census.total
        assert (total.samples, total.images, total.prompts) == tuple(
            found[name] for name in ("samples", "images", "prompts")
        ), output
        assert settings.reading.nowhere(census.records, census.named) == []
        assert total.failed == {}


def test_ids_and_types_come_from_their_columns(outputs):
    def named(output: str) -> set[tuple[str, str]]:
        return {(row["prompt_id"], row["type"]) for row in rows(outputs / output, "prompts")}

    for output in ("parquet", "saved", "binary", "paths", "other-keys", "questions", "jsonl"):
        assert named(f"out/{output}") == named("out/tar"), output


def test_captions_and_prompts_of_the_command(outputs):
    for output in ("img2dataset", "captions"):
        found = rows(outputs / "out" / output, "prompts")
        assert {(row["prompt"], row["type"]) for row in found} == {("describe the image .", "caption")}
        assert len({row["references"][0] for row in found}) > 1
    found = rows(outputs / "out/photos", "prompts")
    assert len(found) == 2 * COUNT
    assert {row["prompt"] for row in found} == {"which colours are there ?", "how many things are there ?"}


def test_earlier_turns_are_kept_in_the_table(outputs):
    for output in ("llava", "llava-jsonl"):
        counts = [len(row["messages"] or ()) for row in rows(outputs / "out" / output, "prompts")[:5]]
        assert counts == [0, 3, 5, 7, 9]
    assert {row["messages"] for row in rows(outputs / "out/tar", "prompts")} == {None}


def test_all_forms_in_one_corpus_encode_each_image_once(outputs, prune, tmp_path):
    forms = outputs / "forms"
    names = ("scenes.tar", "scenes.tar.gz", "scenes.tar.zst", "photos", "llava.json", "saved", "hub")
    corpus = tuple(str(forms / name) for name in names)
    prune(tmp_path / "out", corpus=corpus[:3], image_root=str(forms / "photos"), max_tokens="8")
    prune(tmp_path / "out", corpus=corpus, image_root=str(forms / "photos"), max_tokens="8")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_shards"] == 2
    first, second = (pq.read_table(path) for path in sorted((tmp_path / "out" / "selections").iterdir()))
    assert (len(first), len(second)) == (COUNT, 0)
