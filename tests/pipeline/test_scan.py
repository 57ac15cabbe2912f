"""The first pass over a corpus: what is found, where it lies, and what is refused."""

import hashlib
import io
import json
import os
import pickle
import socket
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.corpus.decode import DecodeError
from pipeline.corpus.fetch import Place, read_bytes
from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.scan import scan, scan_units
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError


def scan_all(path: Path, limit: int | None = None) -> list[dict]:
    return [asdict(row) for unit in scan_units(resolve_corpus([str(path)])) for row in scan(unit, limit)]


def test_offsets_point_at_the_image(tmp_path, jpeg, write_tar):
    record = {"prompts": [{"id": "q", "prompt": "what ?", "references": ["a", "b"], "type": "t"}]}
    path = write_tar(
        tmp_path / "a.tar", [("x/1.jpg", jpeg(1)), ("x/1.json", record), ("2.json", {}), ("2.PNG", jpeg(2))]
    )
    first, second = scan_all(path)
    for row, seed in ((first, 1), (second, 2)):
        with open(row["path"], "rb") as stream:
            stream.seek(row["offset"])
            data = stream.read(row["size"])
        assert data == jpeg(seed)
        assert row["image_id"] == hashlib.sha256(data).hexdigest()
        assert row["reason"] is None
    assert first["source"] == "a.tar/x/1.jpg"
    assert first["prompts"] == [
        {
            "prompt_id": "q",
            "prompt": "what ?",
            "references": ["a", "b"],
            "type": "t",
            "status": "ok",
            "message": None,
            "messages": None,
        }
    ]
    assert second["prompts"] == []


def test_a_prompt_without_id_gets_one_and_an_empty_one_keeps_its_row(tmp_path, jpeg, write_tar):
    path = write_tar(
        tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", {"prompts": ["what ?", {"prompt": " "}, {"id": 7}]})]
    )
    (row,) = scan_all(path)
    assert [(p["prompt_id"], p["status"]) for p in row["prompts"]] == [
        ("a.tar/1#0", "ok"),
        ("a.tar/1#1", "empty_prompt"),
        ("7", "empty_prompt"),
    ]


class Explosive:
    """Unpickling an instance creates a file: proof that nobody unpickles."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def test_hostile_members_are_reported_and_never_opened(tmp_path, jpeg):
    witness = tmp_path / "unpickled"
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes = b"", **attributes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("../escape.jpg", jpeg(1))
        add("/etc/absolute.jpg", jpeg(1))
        add("a.pkl", pickle.dumps(Explosive(witness)))
        add("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", type=tarfile.LNKTYPE, linkname="../other")
        add("pipe.jpg", type=tarfile.FIFOTYPE)
        add("good.jpg", jpeg(2))
        add("lonely.json", b'{"prompts": []}')
        add("two.jpg", jpeg(3))
        add("two.png", jpeg(4))
        add("broken.jpg", jpeg(5))
        add("broken.json", b"{not json")
        add("good.jpg", jpeg(6))
    rows = scan_all(path)
    assert [row["reason"] for row in rows] == [
        *["unsafe_member"] * 6,
        None,
        "no_image",
        "duplicate_key",
        "bad_record",
        "duplicate_key",
    ]
    assert all(row["message"] for row in rows if row["reason"])
    assert not witness.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.tar"]


def test_interleaved_members_are_reported(tmp_path, jpeg, write_tar):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("1.json", {"prompts": ["what ?"]})])
    rows = scan_all(path)
    assert [row["reason"] for row in rows] == [None, None, "duplicate_key"]


def test_a_tar_that_breaks_off_keeps_what_came_before(tmp_path, jpeg, write_tar):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("2.jpg", jpeg(2)), ("3.jpg", jpeg(3))])
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    rows = scan_all(path)
    assert rows[0]["reason"] is None
    assert rows[-1]["reason"] == "truncated_tar"


def test_a_file_that_is_no_tar_stops_the_job_with_its_name(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"hello" * 1000)
    with pytest.raises(UserError, match=r"a\.tar can't be read as a tar"):
        scan_all(path)


def test_manifest_rows_and_their_failures(tmp_path, jpeg):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(jpeg(1))
    lines = [
        {"image": "images/1.jpg", "prompts": ["what ?"]},
        {"image": "images/none.jpg", "prompts": ["what ?"]},
        "not json",
        {"prompts": []},
        {"image": "images"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n\n")
    rows = scan_all(path)
    assert [row["reason"] for row in rows] == [None, "missing_file", "bad_record", "bad_record", "not_a_file"]
    assert rows[0]["source"] == "m.jsonl@0/images/1.jpg"
    assert rows[1]["prompts"][0]["prompt"] == "what ?"


@pytest.mark.parametrize("step", [1, 7, 50, 120, 1000])
def test_chunks_of_a_manifest_see_every_line_once(tmp_path, step):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"image": f"{n}.jpg", "pad": "x" * (n % 13)}) + "\n" for n in range(40)))
    size = path.stat().st_size
    (whole,) = scan_units(resolve_corpus([str(path)]))
    units = [replace(whole, begin=begin, end=min(begin + step, size)) for begin in range(0, size, step)]
    rows = [asdict(row) for unit in units for row in scan(unit)]
    assert [row["source"].partition("/")[2] for row in rows] == [f"{n}.jpg" for n in range(40)]
    assert [row["sample"] for row in rows] == sorted(row["sample"] for row in rows)
    assert len({row["source"] for row in rows}) == 40


def test_limit(tmp_path, jpeg, write_tar):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", jpeg(n)) for n in range(5)])
    assert len(scan_all(path, limit=3)) == 3


def test_what_is_no_file_is_said_and_never_waited_for(tmp_path, jpeg):
    """A FIFO, a link to one, a socket, a device, a folder, URLs: each a row, the prompts with it."""
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "link.jpg").symlink_to("fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
    (tmp_path / "good.jpg").write_bytes(jpeg(1))
    not_files = ["fifo.jpg", "link.jpg", "socket.jpg", "/dev/zero", "."]
    urls = ["s3://b/1.jpg", "http://h/1.jpg", "file:///1.jpg", "s3:/b/1.jpg", "data:image/png;base64," + "x" * 9999]
    odd = ["", "x" * 5000, "\ud800.jpg", 5, None, ["good.jpg", "good.jpg"]]
    reasons = ["not_a_file"] * 5 + ["not_local"] * 5 + ["bad_record"] * 6 + ["missing_file", None]
    images = [*not_files, *urls, *odd, "nul\0.jpg", "good.jpg"]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"image": image, "prompts": ["what ?"]}) + "\n" for image in images))
    rows = scan_all(path)
    assert [row["reason"] for row in rows] == reasons
    assert len({row["source"] for row in rows}) == len(rows)
    assert all(len(row["prompts"]) == 1 for row in rows)
    assert all(20 < len(row["message"]) < 400 for row in rows[:-1])
    assert "is a FIFO, not a regular file" in rows[0]["message"]
    assert "'s3://b/1.jpg', a URL; only files are read" in rows[5]["message"]


def test_a_file_that_became_a_fifo_is_not_waited_for(tmp_path, jpeg):
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "m.jsonl").write_text('{"image": "1.jpg"}\n')
    (row,) = scan_all(tmp_path / "m.jsonl")
    (tmp_path / "1.jpg").unlink()
    os.mkfifo(tmp_path / "1.jpg")
    with pytest.raises(DecodeError, match="is a FIFO") as caught:
        read_bytes(Place(row["path"], row["offset"], row["size"], row["within"]), row["image_id"])
    assert caught.value.reason == "not_a_file"


def test_a_corpus_that_is_no_file_or_vanishes_is_told(tmp_path):
    for name in ("a.tar", "a.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match=r"is a FIFO, not a regular file"):
            resolve_corpus([str(tmp_path / name)])
    (tmp_path / "b.jsonl").write_text("{}\n")
    units = scan_units(resolve_corpus([str(tmp_path / "b.jsonl")]))
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(InputReadError, match=r"b.jsonl does not exist"):
        list(scan(units[0]))
    os.mkfifo(tmp_path / "b.jsonl")
    with pytest.raises(InputReadError, match=r"b.jsonl is a FIFO"):
        list(scan(units[0]))


def test_a_corpus_whose_name_is_no_text_is_refused(tmp_path):
    path = os.fsencode(tmp_path / "x") + b"\xff.jsonl"
    with open(path, "w") as stream:
        stream.write("{}\n")
    with pytest.raises(UserError, match=r"\\udcff.jsonl has a name that is no UTF-8"):
        resolve_corpus([os.fsdecode(path)])


def test_one_odd_prompt_costs_neither_image_nor_neighbours(tmp_path, jpeg, write_tar):
    text = b'{"prompts": [{"id": ' + b"9" * 5000 + b', "prompt": "a ?"}, {"prompt": "b ?", "references": 5}, "c ?"]}'
    path = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", text)])
    (tmp_path / "1.jpg").write_bytes(jpeg(1))
    (tmp_path / "m.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "1.jpg", ' + text[1:] + b"\n")
    for one in (path, tmp_path / "m.jsonl"):
        (row,) = scan_all(one)
        assert (row["reason"], row["image_id"]) == (None, hashlib.sha256(jpeg(1)).hexdigest())
        assert [p["status"] for p in row["prompts"]] == ["bad_prompt", "bad_prompt", "ok"]


def test_prompts_under_a_key_with_a_dot_have_rows_and_the_dot_is_named(tmp_path, jpeg, write_tar):
    """WebDataset ends a key at its first dot, so that `a.b.jpg` is no image."""
    prompts = {"prompts": [{"id": "q", "prompt": "what ?"}]}
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("d/a.b.jpg", jpeg(1)),
            ("d/a.b.json", prompts),
            ("d/a.c.jpg", jpeg(2)),
            ("d/a.c.json", {"prompts": ["who ?"]}),
        ],
    )
    (row,) = scan_all(path)
    assert row["reason"] == "no_image"
    assert "'d/a.b.jpg' is none, because a key ends at its first dot: write 'd/a-b.jpg'" in row["message"]
    assert [(p["prompt_id"], p["prompt"]) for p in row["prompts"]] == [("q", "what ?"), ("a.tar/d/a.c#0", "who ?")]


def test_other_json_members_of_a_sample_with_an_image_hold_no_prompts(tmp_path, jpeg, write_tar):
    path = write_tar(
        tmp_path / "a.tar", [("a.jpg", jpeg(1)), ("a.json", {"prompts": ["what ?"]}), ("a.x.json", {"prompts": ["no"]})]
    )
    (row,) = scan_all(path)
    assert [p["prompt"] for p in row["prompts"]] == ["what ?"]


def test_a_prompt_beside_prompts_is_told(tmp_path, jpeg, write_tar):
    record = {"prompt": "the odd one", "prompts": ["what ?"]}
    (row,) = scan_all(write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", record)]))
    assert [p["status"] for p in row["prompts"]] == ["ok", "bad_prompt"]
    assert "'the odd one' stands beside 'prompts' and was not read" in row["prompts"][1]["message"]
