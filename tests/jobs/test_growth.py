"""What a sample takes from the image it repeats, wherever that lies; corpora without a prompt to answer."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs.prune_corpus import main
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import write_table
from pipeline.errors import UserError
from pipeline.families.checkpoint import open_checkpoint
from schemas.columns import table_of
from schemas.selections import PromptRow
from tests.in_this_process import in_this_process


def rows_of(root: Path, table: str) -> list[dict]:
    manifest = json.loads((root / "manifest.json").read_text())
    return [row for s in manifest["shards"] for row in pq.read_table(root / s["files"][table]["path"]).to_pylist()]


def statuses(root: Path) -> dict[str, str]:
    return {row["prompt_id"]: row["status"] for row in rows_of(root, "prompts")}


def answers(pruned: Path, model: str, output: Path) -> dict[str, tuple[str, str | None]]:
    settings = AnswerSettings(pruned=str(pruned), model=model, output=str(output), max_new_tokens=2, workers=1)
    with in_this_process():
        result = answer_corpus(settings, lambda _: None)
    assert result.failures == {}
    return {row["prompt_id"]: (row["finish_reason"], row["message"]) for row in rows_of(output, "answers")}


@pytest.fixture
def loud_model(tiny_llava: str, jpeg: Callable[[int], bytes], tmp_path: Path) -> str:
    """The bundled model with features so large that noise overflows float16 and an even picture does not."""
    noise, *others = (largest_feature(tiny_llava, image) for image in (jpeg(1), even(0), even(9)))
    assert noise > 1.05 * max(others)
    folder = tmp_path / "loud"
    shutil.copytree(tiny_llava, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("weight", "bias"):
        tensors[f"multi_modal_projector.linear_2.{name}"] *= (
            torch.finfo(torch.float16).max / (noise * max(others)) ** 0.5
        )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def largest_feature(path: str, image: bytes) -> float:
    """The largest magnitude among an image's projected features."""
    checkpoint, family = open_checkpoint(path)
    encoder = family.encoder(checkpoint, torch.device("cpu"), torch.float32)
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    pixels = family.preparer(checkpoint).prepare(picture)
    (encoded,) = encoder.encode(encoder.pack([pixels], [(picture.height, picture.width)]))
    return encoded.projected_NO.abs().max().item()


def even(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (48, 40), (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


def test_a_later_repeat_takes_the_reason_that_encoding_gave(prune, loud_model, jpeg, write_tar, tmp_path):
    """Found after growing, in one run with its owner, and in any order of being done again."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    old = write_tar(tmp_path / "a" / "x.tar", [("1.jpg", jpeg(1)), ("2.png", even(0)), ("1b.json", {})])
    record = {"prompts": ["what ?"]}
    images = {"1.jpg": jpeg(1), "2.png": even(0), "3.png": even(9)}
    members = [pair for name, data in images.items() for pair in ((name, data), (f"{name[0]}.json", record))]
    new = write_tar(tmp_path / "b" / "x.tar", members)
    output = tmp_path / "out"
    settings = {"model": loud_model, "max_tokens": "all", "feature_dtype": "float16", "max_error_rate": 1.0}
    prune(output, corpus=(str(old),), **settings)
    prune(output, corpus=(str(old), str(new)), **settings)
    expected = {"../b/x.tar/1#0": "feature_overflow", "../b/x.tar/2#0": "ok", "../b/x.tar/3#0": "ok"}
    assert statuses(output) == expected
    (error,) = [row for row in rows_of(output, "errors") if row["source"] == "../b/x.tar/1.jpg"]
    assert error["reason"] == "feature_overflow"
    assert error["message"].startswith("same bytes as x.tar/1.jpg: ")
    before = {path: path.read_bytes() for folder in ("prompts", "errors") for path in (output / folder).iterdir()}
    for shards in ([0, 1], [0]):
        (output / "_SUCCESS").unlink()
        Artifact(output).forget(shards)
        prune(output, corpus=(str(old), str(new)), **settings)
        assert {path: path.read_bytes() for path in before} == before
    assert answers(output, loud_model, tmp_path / "answers") == {
        name: ("stop", None) for name, status in expected.items() if status == "ok"
    }

    # Should a status be wrong all the same, that prompt is refused and its shard is answered.
    artifact = Artifact(output)
    commit = artifact.read_commit(1)
    assert commit is not None
    wrong = [PromptRow(**{**row, "status": "ok"}) for row in rows_of(output, "prompts")]
    entry = write_table(output, "prompts", 1, table_of(PromptRow, wrong))
    artifact.commit(replace(commit, files={**commit.files, "prompts": entry}))
    artifact.finish({})  # the manifest lists the file that lies there now
    assert answers(output, loud_model, tmp_path / "again") == {
        name: ("stop", None) if status == "ok" else ("refused", "its image has no selection in the pruned corpus")
        for name, status in expected.items()
    }


def test_a_repeat_follows_its_owner_when_that_is_lost_and_mended(prune, jpeg, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(jpeg(1))
        (tmp_path / folder / "m.jsonl").write_text('{"image": "1.jpg", "prompts": ["what ?"]}\n')
    (tmp_path / "b" / "2.jpg").write_bytes(jpeg(2))
    with open(tmp_path / "b" / "m.jsonl", "a") as stream:
        stream.write('{"image": "2.jpg", "prompts": ["what ?"]}\n')
    corpus = (str(tmp_path / "a" / "m.jsonl"), str(tmp_path / "b" / "m.jsonl"))
    output = tmp_path / "out"
    prune(output, corpus=corpus[:1], max_tokens="4")
    prune(output, corpus=corpus, max_tokens="4")
    owner, repeat, other = statuses(output)
    assert set(statuses(output).values()) == {"ok"}
    features = (output / "features" / "shard-00000001.tar").stat()

    (tmp_path / "a" / "1.jpg").rename(tmp_path / "away.jpg")
    (output / "_SUCCESS").unlink()
    Artifact(output).forget([0])
    prune(output, corpus=corpus, max_tokens="4", max_error_rate=1.0)
    assert statuses(output) == {owner: "missing_file", repeat: "missing_file", other: "ok"}
    assert (output / "features" / "shard-00000001.tar").stat() == features  # nothing was encoded for it

    (tmp_path / "away.jpg").rename(tmp_path / "a" / "1.jpg")
    prune(output, corpus=corpus, max_tokens="4", redo_errors=True)
    assert statuses(output) == {owner: "ok", repeat: "ok", other: "ok"}


def test_a_corpus_without_prompts_says_so_twice(prune, tiny_llava, jpeg, write_tar, tmp_path):
    members: list = [("1.jpg", jpeg(1)), ("1.cls", b"7"), ("1.json", {"label": "a cat"})]
    write_tar(tmp_path / "x.tar", members)
    said = prune(tmp_path / "out", corpus=(str(tmp_path / "x.tar"),), max_tokens="4")
    (line,) = [line for line in said if "no prompts" in line]
    assert "1 of 1 sample has no prompts; in their place: .cls (1), label (1); " in line
    assert '"prompts": [{"prompt": ' in line
    with pytest.raises(UserError, match=r"holds no prompt to answer; 1 of 1 sample has .*label \(1\)") as caught:
        answers(tmp_path / "out", tiny_llava, tmp_path / "answers")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "answers").exists()


def test_a_corpus_of_prompts_that_all_failed_is_not_answered(prune, tiny_llava, jpeg, write_tar, tmp_path):
    write_tar(tmp_path / "x.tar", [("1.jpg", jpeg(1)), ("1.json", {"prompts": [" ", 5]})])
    said = prune(tmp_path / "out", corpus=(str(tmp_path / "x.tar"),), max_tokens="4")
    assert (
        "2 prompts can't be posed: 1 not in the form of a prompt (bad_prompt), 1 without text (empty_prompt); "
        "the errors table says where"
    ) in said
    errors = {row["reason"]: row["message"] for row in rows_of(tmp_path / "out", "errors")}
    assert errors["bad_prompt"] == "the prompt is 5, expected a text or an object"
    with pytest.raises(UserError, match=r"none of 2 prompts can be posed: 1 not in the form .*, 1 without text"):
        answers(tmp_path / "out", tiny_llava, tmp_path / "answers")


def table_of_prompts(path: Path, jpeg: Callable[[int], bytes], **columns: list[str]) -> str:
    rows = len(next(iter(columns.values())))
    pq.write_table(pa.table({"image": [jpeg(n) for n in range(rows)], **columns}), path)
    return str(path)


def test_columns_that_no_record_has_are_refused(prune, jpeg, tmp_path):
    corpus = (table_of_prompts(tmp_path / "a.parquet", jpeg, q=["what ?", "why ?"], a=["x", "y"]),)
    with pytest.raises(UserError, match=r"^--prompt-column Q and --id-column n: no record of the corpus has such"):
        prune(tmp_path / "out", corpus=corpus, prompt_column="Q", id_column="n", max_tokens="4")
    with pytest.raises(
        UserError, match=r"^--reference-column answre: no record of the corpus has such a column or key"
    ):
        prune(tmp_path / "out", corpus=corpus, prompt_column="q", reference_column="answre", max_tokens="4")
    prune(tmp_path / "out", corpus=corpus, prompt_column="q", reference_column="a", max_tokens="4")
    assert [row["references"] for row in rows_of(tmp_path / "out", "prompts")] == [["x"], ["y"]]
    said = prune(tmp_path / "1", corpus=corpus, prompt_column="q", reference_column="b", max_tokens="4", limit=1)
    assert "1 of 1 record has no 'b' (--reference-column)" in said  # later ones may have it


def test_columns_that_some_records_lack_are_told(prune, jpeg, write_tar, tmp_path):
    """A new file without answers may come; of images alone nothing is said."""
    first = table_of_prompts(tmp_path / "a.parquet", jpeg, q=["what ?", "why ?"], a=["x", "y"])
    write_tar(tmp_path / "b.tar", [("1.jpg", jpeg(7)), ("2.jpg", jpeg(8)), ("2.json", {"q": "who ?"})])
    settings = {"prompt_column": "q", "reference_column": "a", "max_tokens": "4"}
    prune(tmp_path / "out", corpus=(first,), **settings)
    said = prune(tmp_path / "out", corpus=(first, str(tmp_path / "b.tar")), **settings)
    assert [line for line in said if "--reference-column" in line] == ["1 of 1 record has no 'a' (--reference-column)"]


def test_a_plan_tells_of_columns_and_annotations_that_are_not_there(prune, tiny_llava, jpeg, tmp_path, capsys):
    corpus = table_of_prompts(tmp_path / "a.parquet", jpeg, q=["what ?"])
    image = tmp_path / "1.jpg"
    image.write_bytes(jpeg(1))
    questions = {"questions": [{"image_id": "1", "question_id": 5, "question": "what ?"}]}
    (tmp_path / "q.json").write_text(json.dumps(questions))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": [{"question_id": 6, "answer": "x"}]}))
    pair = f"{tmp_path}/q.json+{tmp_path}/a.json"
    with pytest.raises(UserError, match=r"not one of 1 question of .*q\.json has an answer in .*a\.json; name two"):
        prune(tmp_path / "out", corpus=(pair,), max_tokens="4")
    words = ["--corpus", corpus, "--corpus", pair, "--model", tiny_llava, "--output", str(tmp_path / "plan"), "--plan"]
    assert main([*words, "--prompt-column", "q", "--type-column", "kind"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("stop")] == [
        "stop     --type-column kind: no record of the corpus has such a column or key; correct the name, or leave the "
        "option out",
        f"stop     --corpus: not one of 1 question of {tmp_path}/q.json has an answer in {tmp_path}/a.json; name two "
        "files that belong together, or the questions alone",
    ]
