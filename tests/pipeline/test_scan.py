"""The first pass over a corpus: what is found, where it lies, and what is refused."""

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest

from pipeline.corpus import resolve_corpus
from pipeline.errors import UserError
from pipeline.sample import ScanUnit
from pipeline.scan import scan, scan_units


def scan_all(path: Path, limit: int | None = None) -> list[dict]:
    return [row for unit in scan_units(resolve_corpus([str(path)])) for row in scan(unit, limit)]


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
        {"prompt_id": "q", "prompt": "what ?", "references": ["a", "b"], "type": "t", "status": "ok", "message": None}
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
    units = [ScanUnit(0, "m.jsonl", str(path), "manifest", begin, min(begin + step, size)) for begin in range(0, size, step)]
    rows = [row for unit in units for row in scan(unit)]
    assert [row["source"].partition("/")[2] for row in rows] == [f"{n}.jpg" for n in range(40)]
    assert [row["sample"] for row in rows] == sorted(row["sample"] for row in rows)
    assert len({row["source"] for row in rows}) == 40


def test_limit(tmp_path, jpeg, write_tar):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", jpeg(n)) for n in range(5)])
    assert len(scan_all(path, limit=3)) == 3
