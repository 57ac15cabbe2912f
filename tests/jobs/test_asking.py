"""New questions to an old artifact: prompts of a file, and prompts for which a condition holds."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from jobs import answer_corpus as job
from jobs.job_status import main as status
from pipeline.answer.job import AnswerResult, AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.budget import parse_budget
from pipeline.cluster.status import job_status
from pipeline.errors import UserError
from pipeline.families import answering, llava, loading
from pipeline.grading.job import grade_corpus
from pipeline.grading.settings import GradeSettings
from pipeline.prune.encode import EncodeSettings, load_encoder
from pipeline.prune.job import PruneSettings, prune_corpus
from pipeline.prune.select import SelectSettings
from pipeline.report.cache import SummaryCache
from pipeline.report.query import ask, connect
from pipeline.report.recipe import cook, recipe_of
from pipeline.storage.local import LocalStore
from pipeline.storage.object_file import FIRST_BYTES
from pipeline.storage.paths import open_regular

NAMES = ["a/0.jpg", "b/0.jpg", *(f"{n}.jpg" for n in range(2, 8))]
BROKEN = "7.jpg"
SHARDS = ([*NAMES[:3]], [*NAMES[3:6]], [*NAMES[6:]])
Answer = Callable[..., tuple[list[dict[str, Any]], AnswerResult, list[str]]]


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_corpus(folder: Path) -> Path:
    """Eight images in three shards, of which two are called alike and one is broken, with a prompt about each."""
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8 broken" if name == BROKEN else picture(number))
    rows = [
        {"image": name, "prompts": [{"id": f"p{n}", "prompt": f"what {n} ?", "references": ["x"], "type": f"t{n % 2}"}]}
        for n, name in enumerate(NAMES)
    ]
    return lines(folder / "m.jsonl", rows)


@pytest.fixture(scope="module")
def prune_it(without_ray, tiny_llava: str) -> Callable[..., None]:
    def run(corpus: Path, output: Path | str, *more: Path, **changes: Any) -> None:
        settings = {"max_tokens": "8", "shard_size": 3, **changes}
        paths = tuple(map(str, (corpus, *more)))
        with without_ray():
            prune_corpus(PruneSettings(corpus=paths, model=tiny_llava, output=str(output), **settings), lambda _: None)

    return run


@pytest.fixture(scope="module")
def pruned(prune_it, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of an earlier run; no test changes it."""
    root = tmp_path_factory.mktemp("asking")
    prune_it(write_corpus(root / "corpus"), root / "pruned", features="both")
    return root / "pruned"


@pytest.fixture(scope="module")
def ids(pruned: Path) -> dict[str, str]:
    """Ids of images by the names of their files."""
    return {row["source"].partition("/")[2]: row["image_id"] for row in rows_of(pruned, "selections")}


@pytest.fixture(scope="module")
def answer(without_ray, tiny_llava: str) -> Answer:
    """Run the answer job; the rows of its answers, what it did, and what it said."""

    def run(
        pruned: Path | str, output: Path | str, **changes: Any
    ) -> tuple[list[dict[str, Any]], AnswerResult, list[str]]:
        said: list[str] = []
        given = {"model": tiny_llava, "tokens": "4", "max_new_tokens": 3, **changes}
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        with without_ray():
            result = answer_corpus(AnswerSettings(pruned=str(pruned), output=str(output), **settings), said.append)
        return rows_of(output), result, said

    return run


@pytest.fixture(scope="module")
def answered(pruned: Path, answer: Answer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The answers to the artifact's own prompts."""
    output = tmp_path_factory.mktemp("own") / "answers"
    answer(pruned, output)
    return output


def rows_of(output: Path | str, table: str = "answers") -> list[dict[str, Any]]:
    artifact = Artifact(str(output))
    paths = [record.files[table].path for record in artifact.checked_commits()]
    return [row for path in paths for row in pq.read_table(io.BytesIO(artifact.store.read(path))).to_pylist()]


def said_in(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    """Answers by image and type of prompt, of which each image has one."""
    return {(row["image_id"], row["type"]): row["answer_tokens"] for row in rows}


def state_of(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in root.rglob("*") if path.is_file()}


def refusal(run: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_three_files_one_after_the_other_and_the_tower_is_never_loaded(
    pruned, answered, ids, answer, tiny_llava, tmp_path, monkeypatch
):
    """Asked what the corpus asked, by id, by source and in turns, it answers as it did."""
    loaded: list[int] = []  # layers of vision towers in each model that is loaded

    def load_part(*given: Any) -> Any:
        model = loading.load_part(*given)
        loaded.append(sum(isinstance(module, CLIPEncoderLayer) for module in model.modules()))
        return model

    for module in (llava, answering):
        monkeypatch.setattr(module, "load_part", load_part)
    select = SelectSettings(parse_budget("8", ""))
    load_encoder(EncodeSettings(tiny_llava, "float32", 1, "model", select), torch.device("cpu"))
    assert loaded[0] > 0, "a tower is seen where it is loaded"
    asked = {name: f"what {n} ?" for n, name in enumerate(NAMES) if name != BROKEN}
    kinds = {name: f"t{n % 2}" for n, name in enumerate(NAMES)}
    pq.write_table(
        pa.Table.from_pylist([{"source": n, "prompt": text, "type": kinds[n]} for n, text in asked.items()]),
        tmp_path / "by_source.parquet",
    )
    turns = {name: [{"role": "user", "content": text}] for name, text in asked.items()}
    files = [
        lines(
            tmp_path / "by_id.jsonl", [{"image_id": ids[n], "prompt": t, "type": kinds[n]} for n, t in asked.items()]
        ),
        tmp_path / "by_source.parquet",
        lines(
            tmp_path / "turns.jsonl", [{"image_id": ids[n], "messages": t, "type": kinds[n]} for n, t in turns.items()]
        ),
    ]
    before, expected = state_of(pruned), said_in(rows_of(answered))
    for file in files:
        rows, result, said = answer(pruned, tmp_path / file.stem, prompts=file)
        assert (result.shards_done, result.prompts, result.refused) == (3, 7, 0)
        assert said_in(rows) == expected
        assert f"--prompts {file}: 7 prompts about 7 images in 3 shards" in said
    assert loaded[1:] == [0, 0, 0]
    assert state_of(pruned) == before


def test_the_same_output_takes_the_same_file_alone(pruned, ids, answer, tmp_path):
    one = lines(tmp_path / "one.jsonl", [{"image_id": ids["2.jpg"], "prompt": "what ?"}])
    other = lines(tmp_path / "other.jsonl", [{"image_id": ids["2.jpg"], "prompt": "where ?"}])
    output = tmp_path / "out"
    answer(pruned, output, prompts=one)
    before = state_of(output)
    told = refusal(lambda: answer(pruned, output, prompts=other))
    assert told.startswith(f"--output {output} holds answers to the prompts of {one}, as that file was then; those of")
    with pytest.raises(UserError, match=r"was started with other settings:\n  asked: 3 settings -> None"):
        answer(pruned, output)
    with pytest.raises(UserError, match=r"asked.where: None -> 'true'"):
        answer(pruned, output, prompts=one, where="true")
    one.rename(tmp_path / "moved.jsonl")
    _, result, said = answer(pruned, output, prompts=tmp_path / "moved.jsonl")
    assert (result.shards_done, said) == (0, [f"1 shard is there already in {output}; nothing to do"])
    assert state_of(output) == before
    own = tmp_path / "own"
    answer(pruned, own)
    assert "holds answers to the prompts of the corpus; those of" in refusal(lambda: answer(pruned, own, prompts=other))


def test_a_hash_that_is_the_id_of_another_prompt_is_given_to_none(pruned, ids, answer, tmp_path):
    """As in a file of prompts with the ids that they got before, and new ones among them."""
    what, where = ({"image_id": ids["2.jpg"], "prompt": text} for text in ("what ?", "where ?"))
    rows, _, _ = answer(pruned, tmp_path / "one", prompts=lines(tmp_path / "one.jsonl", [what]))
    own = rows[0]["prompt_id"]
    asked = [{**what, "id": own}, what, {**where, "id": f"{own}-2"}, what]
    rows, result, _ = answer(pruned, tmp_path / "all", prompts=lines(tmp_path / "all.jsonl", asked))
    assert (result.prompts, result.refused) == (4, 0)
    assert [row["prompt_id"] for row in rows] == [own, f"{own}-3", f"{own}-2", f"{own}-4"]


def test_what_cannot_be_posed_is_a_row_with_its_reason(pruned, ids, answer, tmp_path):
    asked = [
        ({"image_id": ids["2.jpg"], "prompt": "what ?", "references": ["dog"], "type": "t", "id": "mine"}, None),
        ({"source": "0.jpg", "prompt": "x"}, r"row 2: the sources of 2 images end in 0.jpg, m.jsonl@0/a/0.jpg and"),
        ({"source": "a/0.jpg", "prompt": "x"}, None),
        ({"source": BROKEN, "prompt": "x"}, "row 4: its image could not be pruned: unreadable_image, no image format"),
        ({"source": "no.jpg", "prompt": "x"}, "row 5: no image of the pruned corpus has the source no.jpg"),
        ({"image_id": "ff" * 32, "prompt": "x"}, "row 6: no image of the pruned corpus has the image_id ffff"),
        ({"image_id": ids["3.jpg"], "prompt": " "}, "row 7: 'prompt' is ' ', expected a text"),
        ({"image_id": ids["3.jpg"], "prompt": "x", "id": "mine"}, "row 8: its id, mine, is that of another prompt"),
        ({"prompt": "x"}, "row 9: it names no image"),
        ({"source": "3.jpg", "prompt": "x"}, None),
        ({"source": "3.jpg", "prompt": "x"}, None),
    ]
    rows, result, said = answer(
        pruned, tmp_path / "out", prompts=lines(tmp_path / "f.jsonl", [row for row, _ in asked])
    )
    assert (result.prompts, result.refused, len(rows)) == (11, 7, 11)
    assert "2 shards" in said[0]
    assert "3 about images that are not there (unknown_image)" in said[0]
    prompts = {row["prompt_id"]: row for row in rows_of(tmp_path / "out", "prompts")}
    assert len(prompts) == 11, "ids are unique"
    refused = {row["message"]: row for row in rows if row["finish_reason"] == "refused"}
    for record, why in asked:
        if why is not None:
            (row,) = [row for message, row in refused.items() if message.startswith(why)]
            assert (row["answer"], row["tokens"], row["score"]) == (None, 0, None)
            assert prompts[row["prompt_id"]]["prompt"] == record["prompt"]
            assert prompts[row["prompt_id"]]["status"] != "ok"
    posed = [row for row in rows if row["finish_reason"] != "refused"]
    assert {row["image_id"] for row in posed} == {ids["2.jpg"], ids["a/0.jpg"], ids["3.jpg"]}
    assert all(row["message"] is None and row["tokens"] == 4 for row in posed)
    (mine,) = [row for row in posed if row["prompt_id"] == "mine"]
    assert (mine["type"], mine["references"]) == ("t", ["dog"])
    twice = [row["prompt_id"] for row in posed if row["image_id"] == ids["3.jpg"]]
    assert twice == [twice[0], f"{twice[0]}-2"]


def test_ids_come_from_what_is_asked_however_the_image_is_named(pruned, ids, answer, tmp_path):
    found = []
    for number, image in enumerate(({"image_id": ids["2.jpg"]}, {"source": "2.jpg"}, {"source": "m.jsonl@214/2.jpg"})):
        file = lines(
            tmp_path / f"{number}.jsonl", [{**image, "prompt": "what ?"}, {"source": "3.jpg", "prompt": "what ?"}]
        )
        source = rows_of(pruned, "selections")[2]["source"]
        if number == 2:
            lines(file, [{"source": source, "prompt": "what ?"}, {"source": "3.jpg", "prompt": "what ?"}])
        rows, _, _ = answer(pruned, tmp_path / f"out{number}", prompts=file, max_new_tokens=1)
        found.append([row["prompt_id"] for row in rows])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 2


def test_a_condition_chooses_among_the_prompts_of_the_artifact(pruned, answered, answer, tmp_path):
    own = {row["prompt_id"]: row for row in rows_of(answered)}
    rows, result, said = answer(pruned, tmp_path / "out", where="type = 't1' and num_kept = 8")
    assert [row["prompt_id"] for row in rows] == ["p1", "p3", "p5"]
    assert result.shards_done == 2
    assert "--where: 3 prompts about 3 images in 2 shards" in said
    for row in rows:
        assert {**row, "seconds": 0} == {**own[row["prompt_id"]], "seconds": 0}
    in_sql = "image_id in (select image_id from images order by image_id limit 2)  -- of the views"
    rows, _, _ = answer(pruned, tmp_path / "views", where=in_sql)
    assert len(rows) == 2
    settings = json.loads((tmp_path / "views" / "_job.json").read_text())["settings"]
    assert settings["asked"] == {"prompts_sha256": None, "where": in_sql}


def test_a_condition_chooses_among_the_prompts_of_a_file(pruned, ids, answer, tmp_path):
    rows = [{"image_id": image, "prompt": f"what {n} ?", "type": name} for n, (name, image) in enumerate(ids.items())]
    rows.append({"source": "no.jpg", "prompt": "x", "type": "no"})
    file = lines(tmp_path / "f.jsonl", rows)
    chosen, _, _ = answer(pruned, tmp_path / "out", prompts=file, where="type in ('2.jpg', 'no')")
    assert [(row["type"], row["finish_reason"] == "refused") for row in chosen] == [("2.jpg", False), ("no", True)]
    chosen, _, _ = answer(pruned, tmp_path / "width", prompts=file, where="width = 48 and list_contains(ranking, 0)")
    with_zero = {row["image_id"] for row in rows_of(pruned, "selections") if 0 in row["ranking"]}
    assert {row["image_id"] for row in chosen} == with_zero


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("type = 'none'", "it holds for none of 7 prompts"),
        ("kind = 'x'", 'Referenced column "kind" not found'),
        (" ", "expected a condition on the columns of a prompt or image"),
        ("select 1", "the SQL can't be read: Parser Error"),
        ("num_kept", "it gives INTEGER, not true or false; expected a condition on the columns of a prompt or image"),
        ("prompt_id not in (select prompt_id from answers)", "Table with name answers does not exist"),
        ("type = ", "the SQL can't be read: Parser Error"),
        ("true); delete from prompts; select (true", "3 SQL statements were given, expected one"),
        ("(select count(*) from read_csv('/etc/passwd')) > 0", "disabled"),
    ],
)
def test_a_condition_that_is_none_is_refused(pruned, answer, tmp_path, where, told):
    sentence = refusal(lambda: answer(pruned, tmp_path / "out", where=where))
    assert sentence.startswith(f"--where {where}: ")
    assert told in sentence
    assert not (tmp_path / "out").exists()


def test_a_file_of_which_nothing_can_be_posed_is_refused(pruned, ids, answer, tmp_path):
    file = lines(tmp_path / "f.jsonl", [{"source": "no.jpg", "prompt": "x"}, {"image_id": ids["2.jpg"]}])
    told = refusal(lambda: answer(pruned, tmp_path / "out", prompts=file))
    assert told == (
        f"--prompts {file}: none of 2 prompts can be posed: 1 without text (empty_prompt), 1 about images that are not "
        "there (unknown_image); row 1: no image of the pruned corpus has the source no.jpg"
    )
    typo = lines(tmp_path / "t.jsonl", [{"image_id": ids["2.jpg"], "promt": "x"}])
    assert "line 1 has the key 'promt'" in refusal(lambda: answer(pruned, tmp_path / "out", prompts=typo))
    good = lines(tmp_path / "g.jsonl", [{"image_id": ids["2.jpg"], "prompt": "x", "type": "t"}])
    scored = lambda: answer(pruned, tmp_path / "out", prompts=good, metric=("t=relaxed",))  # noqa: E731
    assert "--metric t=relaxed: relaxed takes 1 reference a prompt" in refusal(scored)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--id-column n: it is a column of --prompts; give that file too"):
        AnswerSettings(pruned="p", model="m", output="o", id_column="n")


@pytest.fixture
def read_of(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that local files give, by their paths."""
    given: Counter[str] = Counter()

    class Counted(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            count = super().readinto(buffer) or 0
            given[str(self.name)] += count
            return count

        def readall(self) -> bytes:
            data = super().readall()
            given[str(self.name)] += len(data)
            return data

    monkeypatch.setattr(LocalStore, "raw", lambda store, key: Counted(store._name(key), "r", opener=open_regular))
    return given


@pytest.fixture(scope="module")
def one_shard(prune_it, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Prune a corpus of 24 images, with all of their tokens, into one shard."""
    folder = tmp_path_factory.mktemp("one")
    for number in range(24):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    corpus = lines(folder / "m.jsonl", [{"image": f"{n}.jpg", "prompts": []} for n in range(24)])
    return lambda output, **changes: prune_it(corpus, output, max_tokens="all", shard_size=24, **changes)


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_subset_reads_only_the_bytes_of_its_images(one_shard, answer, tmp_path, read_of, form):
    """The corpus has no prompts of its own, so that an artifact can be made for questions that come later."""
    pruned = tmp_path / "pruned"
    one_shard(pruned, features=form)
    sizes = {row["image_id"]: row["size_bytes"] for row in rows_of(pruned, "payloads")}
    asked = [row["image_id"] for row in rows_of(pruned, "selections")[2:5:2]]  # not side by side
    file = lines(tmp_path / "f.jsonl", [{"image_id": image, "prompt": "what ?"} for image in asked])
    read_of.clear()
    rows, result, _ = answer(pruned, tmp_path / "out", prompts=file, tokens="all")
    assert (result.refused, [row["tokens"] for row in rows]) == (0, [256, 256])
    by_folder: Counter[str] = Counter()
    for path, count in read_of.items():
        if path.startswith(f"{pruned}/"):
            by_folder[Path(path).parent.name] += count
    (features,) = (pruned / "features").iterdir()
    wanted, whole = sum(sizes[image] for image in asked), features.stat().st_size
    most = wanted + 4 * io.DEFAULT_BUFFER_SIZE
    if form == "parquet":  # of which a row group is the least that is read: an image, or about a mebibyte
        groups = pq.ParquetFile(features).metadata
        assert groups.num_row_groups >= 3
        most = groups.row_group(0).total_byte_size + 4 * io.DEFAULT_BUFFER_SIZE
    assert wanted <= by_folder["features"] <= most < whole / 2
    record = Artifact(pruned).read_commit(0)
    assert record is not None
    sources = Artifact(tmp_path / "out").read_commit(0).sources  # type: ignore[union-attr]
    assert sources[record.files[f"features.{form}"].path] == record.files[f"features.{form}"].sha256


def test_in_a_bucket_a_subset_is_fetched_by_ranges(one_shard, answer, s3, object_server, tmp_path):
    """Pruned, prompts and answers all lie in the bucket."""
    from pipeline.storage.places import folder_at

    one_shard(f"{s3}/pruned")
    rows = rows_of(f"{s3}/pruned", "payloads")
    sizes = {row["image_id"]: row["size_bytes"] for row in rows}
    asked = [rows[place]["image_id"] for place in (3, 15)]
    text = "".join(json.dumps({"image_id": image, "prompt": "what ?"}) + "\n" for image in asked)
    folder_at(s3).put("f.jsonl", text.encode())
    object_server.sent.clear()
    found, result, _ = answer(f"{s3}/pruned", f"{s3}/out", prompts=f"{s3}/f.jsonl", tokens="all")
    assert (result.refused, {row["image_id"] for row in found}) == (0, set(asked))
    sent = {key.partition("/features/")[2]: count for key, count in object_server.sent.items() if "/features/" in key}
    tar = folder_at(f"{s3}/pruned").stat("features/shard-00000000.tar")
    assert tar is not None
    assert list(sent) == ["shard-00000000.tar"]
    wanted = sum(max(sizes[image], FIRST_BYTES) for image in asked)
    assert sum(sizes[image] for image in asked) <= sent["shard-00000000.tar"] <= wanted < tar.size_bytes / 2


def test_a_mean_budget_is_that_of_the_images_asked_about(pruned, ids, answer, tmp_path):
    gains = {row["image_id"]: row["gain"] for row in rows_of(pruned, "selections")}
    asked = [ids["2.jpg"], ids["5.jpg"]]
    file = lines(tmp_path / "f.jsonl", [{"image_id": image, "prompt": "what ?"} for image in asked])
    answer(pruned, tmp_path / "mean", prompts=file, tokens="mean:4")
    found = json.loads((tmp_path / "mean" / "_job.json").read_text())["resolved"]
    assert found["images"] == 2
    kept = {image: 1 + sum(gain >= found["gain_threshold"] for gain in gains[image][1:]) for image in asked}
    rows, _, _ = answer(pruned, tmp_path / "mean", prompts=file, tokens="mean:4")
    assert {row["image_id"]: row["tokens"] for row in rows} == kept
    assert found["mean_tokens"] == sum(kept.values()) / 2 <= 4
    threshold = f"gain:{found['gain_threshold']!r}"
    rows, _, _ = answer(pruned, tmp_path / "gain", where="prompt_id in ('p2', 'p5')", tokens=threshold)
    assert {row["image_id"]: row["tokens"] for row in rows} == kept


def test_it_resumes_and_what_was_answered_stays(pruned, ids, answer, tmp_path, monkeypatch):
    file = lines(tmp_path / "f.jsonl", [{"image_id": image, "prompt": "what ?"} for image in ids.values()])
    output = tmp_path / "out"
    whole, _, _ = answer(pruned, tmp_path / "whole", prompts=file)
    commit = Artifact.commit

    def stop_at_one(self: Artifact, record: Any) -> None:
        if record.shard == 1:
            raise KeyboardInterrupt
        commit(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(Artifact, "commit", stop_at_one)
        with pytest.raises(KeyboardInterrupt):
            answer(pruned, output, prompts=file)
    stopped = job_status(output)
    assert (stopped.shards, stopped.shards_done, stopped.total, stopped.done) == (3, 1, 7, 3)
    before = state_of(output)
    rows, result, _ = answer(pruned, output, prompts=file)
    assert (result.shards_done, result.shards_skipped) == (2, 1)
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in whole]
    kept = ("_commits/00000000.json", "answers/part-00000000.parquet", "_asked.json")
    kept += tuple(f"prompts/part-0000000{n}.parquet" for n in range(3))
    after = state_of(output)
    assert all(after[str(output / name)] == before[str(output / name)] for name in kept)
    (output / "prompts" / "part-00000002.parquet").unlink()
    (output / "_asked.json").unlink()
    rows, result, _ = answer(pruned, output, prompts=file)
    assert result.shards_done >= 1
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in whole]


def test_an_artifact_that_has_grown_knows_more_images(prune_it, answer, tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    pruned, output = tmp_path / "pruned", tmp_path / "out"
    prune_it(corpus, pruned)
    (tmp_path / "corpus" / "new.jpg").write_bytes(picture(99))
    asked = [
        {"source": "a/0.jpg", "prompt": "x"},
        {"source": "3.jpg", "prompt": "x"},
        {"source": "new.jpg", "prompt": "x"},
    ]
    file = lines(tmp_path / "f.jsonl", asked)
    rows, _, _ = answer(pruned, output, prompts=file)
    assert [row["finish_reason"] == "refused" for row in rows] == [False, True, False]
    before = state_of(output)
    prune_it(corpus, pruned, lines(tmp_path / "corpus" / "more.jsonl", [{"image": "new.jpg", "prompts": []}]))
    rows, result, _ = answer(pruned, output, prompts=file)
    assert [row["finish_reason"] == "refused" for row in rows] == [False, False, False]
    assert (result.shards_done, result.shards_skipped) == (2, 1), "shard 0, whose prompts changed, and the new one"
    assert (
        state_of(output)[str(output / "answers/part-00000001.parquet")]
        == before[str(output / "answers/part-00000001.parquet")]
    )


def test_queries_show_the_prompts_that_were_asked(pruned, answered, ids, answer, tmp_path):
    file = lines(
        tmp_path / "f.jsonl",
        [
            {"image_id": image, "prompt": "is it so ?", "references": ["yes"], "id": f"q{name}"}
            for name, image in ids.items()
        ],
    )
    outputs = [tmp_path / "few", tmp_path / "many"]
    for output, tokens in zip(outputs, ("2", "8"), strict=True):
        answer(pruned, output, prompts=file, tokens=tokens)
    join = "select count(*) as n, count(distinct prompt) as texts from answers join prompts using (prompt_id)"
    direct = connect(pruned, outputs)
    cached = connect(pruned, outputs, summaries=SummaryCache(str(tmp_path / "cache"), lambda _: None, worth=1))
    for db in (direct, cached):
        assert ask(db, join).to_pylist() == [{"n": 14, "texts": 1}]
        assert ask(db, "select count(*) as n from prompts").to_pylist() == [{"n": 7}]
    assert len(cook(direct, recipe_of("agreement"))) == 1
    with pytest.raises(UserError, match="answer prompts of different files, or of a file and of the corpus"):
        connect(pruned, [answered, outputs[0]])
    answer(pruned, tmp_path / "some", where="type = 't0'", tokens="2")
    some = connect(pruned, [answered, tmp_path / "some"])
    assert ask(some, "select budget, count(*) as n from answers group by budget order by n").to_pylist() == [
        {"budget": "2", "n": 4},
        {"budget": "4", "n": 7},
    ]


def test_they_are_graded_and_a_part_against_the_whole(pruned, answered, ids, answer, tmp_path):
    file = lines(
        tmp_path / "f.jsonl",
        [
            {"image_id": ids["5.jpg"], "prompt": "x", "references": ["y"]},
            {"source": "no", "prompt": "x", "references": ["y"]},
        ],
    )
    answer(pruned, tmp_path / "asked", prompts=file)
    answer(pruned, tmp_path / "part", where="type = 't1' and image_id <> (select max(image_id) from images)")
    for name, against, graded in (("asked", None, 1), ("part", str(answered), None)):
        settings = GradeSettings(answers=str(tmp_path / name), output=str(tmp_path / f"{name}-grades"), against=against)
        result = grade_corpus(settings, lambda _: None)
        assert result.answers - result.ungraded == (result.answers if graded is None else graded)
        assert result.scores[0].value == (1.0 if against else 0.0)
        assert job_status(tmp_path / f"{name}-grades").state == "finished"
        assert grade_corpus(settings, lambda _: None).shards_done == 0


def test_the_command_and_its_status(pruned, ids, tiny_llava, without_ray, tmp_path, capsys):
    rows = [
        {"image_id": ids["2.jpg"], "q": "what ?", "a": "zero", "kind": "t"},
        {"source": "no.jpg", "q": "x", "a": "y"},
    ]
    file = lines(tmp_path / "f.jsonl", rows)
    arguments = ["--pruned", str(pruned), "--model", tiny_llava, "--output", str(tmp_path / "out"), "--tokens", "2"]
    arguments += ["--prompts", str(file), "--prompt-column", "q", "--reference-column", "a", "--type-column", "kind"]
    with without_ray():
        assert job.main([*arguments, "--max-new-tokens", "2", "--save-config", str(tmp_path / "c.yaml")]) == 0
    told = capsys.readouterr()
    assert "answered 2 prompts in 1 shard, 1 of them refused" in told.err
    assert f"prompts: {file}" in (tmp_path / "c.yaml").read_text()
    assert status(["--output", str(tmp_path / "out")]) == 0
    told_status = capsys.readouterr().out
    assert re.search(r"prompts\s+2 of 2", told_status), told_status
    assert "1 refused" in told_status or re.search(r"refused\s+1", told_status), told_status
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| `prompts/` | 2 | 1 |" in card
    assert "| asked.prompts_sha256 |" in card
