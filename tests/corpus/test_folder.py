"""A folder of images, however deep: a sample a file, prompts from the command."""

import os
import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from tests.corpus.conftest import scan_all, sha256


@pytest.fixture
def folder(tmp_path, jpegs):
    for number, name in enumerate(("b/2.jpg", "a.jpg", "b/1.PNG", "b/c/d/3.jpeg", "z.webp")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[number])
    return tmp_path / "photos"


def test_images_come_in_the_order_of_their_names_with_the_prompts_of_the_command(folder, jpegs):
    rows = scan_all(folder, prompts=("what ?", "where ?"))
    assert [row.source for row in rows] == [
        f"photos/{n}" for n in ("a.jpg", "b/1.PNG", "b/2.jpg", "b/c/d/3.jpeg", "z.webp")
    ]
    assert [row.image_id for row in rows] == [sha256(jpegs[n]) for n in (1, 2, 0, 3, 4)]
    assert [row.sample for row in rows] == list(range(5))
    for row in rows:
        assert [(p.prompt_id, p.prompt, p.status) for p in row.prompts] == [
            (f"{row.source}#0", "what ?", "ok"),
            (f"{row.source}#1", "where ?", "ok"),
        ]


@pytest.mark.parametrize("step", [1, 2, 4, 10_000])
def test_positions_are_the_same_in_pieces(folder, step):
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("x")
    assert scan_all(folder, step=step, prompts=("what ?",)) == scan_all(folder, prompts=("what ?",))


def test_what_is_no_image_of_the_folder_has_a_row_and_is_not_read(folder, tmp_path, jpegs):
    (tmp_path / "secret.jpg").write_bytes(jpegs[5])
    (folder / "k-out.jpg").symlink_to("../secret.jpg")
    (folder / "l-in.jpg").symlink_to("a.jpg")
    (folder / "m-nowhere.jpg").symlink_to("none.jpg")
    (folder / "n-folder").symlink_to("b")
    (folder / "o-up").symlink_to("..")
    os.mkfifo(folder / "p.jpg")
    (folder / "q.jpg").touch()
    (folder / "r.heic").write_bytes(b"x")
    (folder / "s.txt").write_bytes(b"x")
    (folder / ".hidden.jpg").write_bytes(jpegs[5])
    (folder / "t.jpg").mkdir()
    rows = {row.source: row for row in scan_all(folder)}
    reasons = {source.removeprefix("photos"): row.reason for source, row in rows.items() if row.reason}
    assert reasons == {
        "/k-out.jpg": "unsafe_path",
        "/m-nowhere.jpg": "missing_file",
        "/p.jpg": "not_a_file",
        "@10": "not_images",
    }
    assert rows["photos@10"].message.endswith("2 files, no images by their names and not read: .heic 1, .txt 1")
    assert rows["photos/l-in.jpg"].image_id == rows["photos/a.jpg"].image_id
    assert rows["photos/q.jpg"].size == 0
    assert sha256(jpegs[5]) not in {row.image_id for row in rows.values()}


def test_a_folder_of_parquet_and_tars_is_refused_as_only_one_kind_would_be_read(folder, write_tar, jpegs):
    (folder / "b" / "rows.parquet").write_bytes(b"PAR1")
    (folder / "z").mkdir()
    write_tar(folder / "z" / "more.tar", [("1.jpg", jpegs[0])])
    with pytest.raises(UserError, match=r"holds Parquet and tars \(b/rows\.parquet, z/more\.tar\), and only one kind"):
        resolve_corpus([str(folder)])


def test_a_folder_that_holds_nothing_to_read_is_told_what_it_holds(tmp_path, write_tar, jpegs):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is a folder without images, Parquet or a saved data set; name Web"):
        resolve_corpus([str(tmp_path / "empty")])
    write_tar(tmp_path / "empty" / "a.tar", [("1.jpg", jpegs[0])])
    with pytest.raises(UserError, match=r"name its files, e\.g\. .*/empty/\*\.tar"):
        resolve_corpus([str(tmp_path / "empty")])


def test_a_folder_that_can_not_be_listed_is_told(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("pipeline.storage.tree.os.scandir", refuse)
    with pytest.raises(UserError, match="can't be read at byte 0: Permission denied; check its permissions"):
        resolve_corpus([str(folder)])


def test_an_image_that_is_added_is_a_change_and_another_folder_is_growth(folder, prune, tmp_path, jpegs):
    settings = {"corpus": (str(folder),), "prompt": ("what ?",), "max_tokens": "2"}
    prune(tmp_path / "out", **settings)
    more = tmp_path / "more"
    more.mkdir()
    (more / "1.jpg").write_bytes(jpegs[5])
    said = prune(tmp_path / "out", **{**settings, "corpus": (str(folder), str(more))})
    assert "indexed 6 samples: 6 distinct images in 2 shards, 6 prompts" in said
    (folder / "new.jpg").write_bytes(jpegs[5])
    with pytest.raises(UserError, match="inputs must not change: put new samples into a new folder"):
        prune(tmp_path / "out", **settings)


def test_folders_may_be_as_deep_as_the_file_system_lets_them(tmp_path, jpegs, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    with open("1.jpg", "wb") as stream:
        stream.write(jpegs[0])
    monkeypatch.chdir(tmp_path)
    try:
        (row,) = scan_all(tmp_path)
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)  # Python's own way goes by recursion
    assert row.image_id == sha256(jpegs[0])


def test_what_lies_beside_parquet_is_not_passed_over_in_silence(folder, prune, tmp_path, jpegs):
    pq.write_table(pa.table({"image": [jpegs[0]]}), folder / "rows.parquet")
    said = prune(tmp_path / "out", corpus=(str(folder),), prompt=("what ?",), max_tokens="2")
    (line,) = [line for line in said if "image file" in line]
    assert line.endswith(
        "holds 1 Parquet file and 5 image files: the Parquet is read, and the images that it names alone"
    )
    (folder / "metadata.jsonl").write_text('{"image": "a.jpg"}\n')
    with pytest.raises(
        UserError, match=r"holds Parquet and a manifest \(rows\.parquet, metadata\.jsonl\), and only one"
    ):
        resolve_corpus([str(folder)])
