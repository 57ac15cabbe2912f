"""Compressed tars and those that img2dataset writes: streamed, each image read again from the nearest restart."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.corpus import packed as packed_module
from pipeline.corpus.fetch import Fetcher, Place
from pipeline.corpus.packed import DamagedError, Unpacked
from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from pipeline.storage.input_file import InputReadError
from tests.corpus.conftest import scan_all, sha256

SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"


def in_parts(data: bytes, size: int, pack) -> bytes:
    return b"".join(pack(data[begin : begin + size]) for begin in range(0, len(data), size))


def compressed(data: bytes, form: str) -> bytes:
    codec = pa.Codec("zstd")
    one = {"gz": gzip.compress, "zst": lambda part: codec.compress(part, asbytes=True)}[form.partition("-")[0]]
    if form.endswith("-many"):
        between = SKIPPABLE if form.startswith("zst") else b""
        return in_parts(data, max(3000, len(data) // 50), lambda part: one(part) + between)
    return one(data)


FORMS = ("gz", "gz-many", "zst", "zst-many")


@pytest.fixture
def restarts(monkeypatch):
    """Small pieces, so that a small file has many, and few are held."""
    monkeypatch.setattr(packed_module, "PIECE_BYTES", 700)
    monkeypatch.setattr(packed_module, "RESTART_BYTES", 1000)


@pytest.fixture
def tar(tmp_path, jpegs, write_tar) -> Path:
    members: list = []
    for number, data in enumerate(jpegs):
        members += [
            (f"{number}.jpg", data),
            (f"{number}.json", {"prompts": [{"id": f"q{number}", "prompt": "what ?"}]}),
        ]
    return write_tar(tmp_path / "a.tar", members)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("small", [False, True])
def test_a_compressed_tar_gives_what_the_plain_one_gives(tar, form, small, jpegs, request):
    if small:
        request.getfixturevalue("restarts")
    path = tar.with_name(f"b.tar.{form.partition('-')[0]}")
    path.write_bytes(compressed(tar.read_bytes(), form))
    plain, rows = scan_all(tar), scan_all(path)
    assert [row.image_id for row in rows] == [sha256(data) for data in jpegs]
    for one, other in zip(plain, rows, strict=True):
        assert (one.sample, one.offset, one.size, one.prompts) == (
            other.sample,
            other.offset,
            other.size,
            other.prompts,
        )
        assert one.source.replace("a.tar/", f"{path.name}/") == other.source
    begins = [int(row.within.split(":")[1]) for row in rows]
    assert (begins[-1] > 0) == (small and form.endswith("-many"))


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_reads_forward_once_and_only_from_its_restart_on(tar, form, restarts, monkeypatch):
    path = tar.with_name(f"b.tar.{form.partition('-')[0]}")
    path.write_bytes(compressed(tar.read_bytes(), form))
    rows = scan_all(path)
    begun = []
    monkeypatch.setattr(packed_module, "Unpacked", lambda *given: begun.append(given[2:]) or Unpacked(*given))
    with Fetcher() as fetcher:
        for row in rows[2:]:
            data = fetcher.read(Place(row.path, row.offset, row.size, row.within), row.image_id)
            assert hashlib.sha256(data).hexdigest() == row.image_id
        assert begun[0] == tuple(map(int, rows[2].within.split(":")[1:]))
        assert len(begun) == 1 if not form.endswith("-many") else len(begun) <= len(rows[2:])
        again = rows[1]
        fetcher.read(Place(again.path, again.offset, again.size, again.within), again.image_id)


@pytest.mark.parametrize("form", FORMS)
def test_it_reads_like_a_file(tmp_path, form, restarts):
    data = b"".join(n.to_bytes(4, "big") for n in range(20_000))
    path = tmp_path / "x"
    path.write_bytes(compressed(data, form))
    kind = {"gz": "gzip", "zst": "zstd"}[form.partition("-")[0]]
    with Unpacked(str(path), kind) as stream:
        for place, count in ((0, 5), (100, 9000), (9099, 2), (9000, 10), (70_000, 20_000), (3, 70_000), (80_000, 1)):
            assert stream.seek(place) == place
            assert stream.read(count) == data[place : place + count]
            assert stream.tell() == min(place + count, max(place, len(data)))
        begin, base = stream.restart_before(50_000)
        with pytest.raises(ValueError, match="position"):
            stream.seek(-1)
    with Unpacked(str(path), kind, begin, base) as stream:
        stream.seek(50_000)
        assert stream.read(77) == data[50_000:50_077]
        assert stream.seek(3, io.SEEK_CUR) == 50_080


@pytest.mark.parametrize(
    ("form", "damage"),
    [*((form, damage) for form in FORMS for damage in ("cut", "garbage")), ("gz", "flipped"), ("gz-many", "flipped")],
)
def test_a_damaged_file_keeps_what_came_before(tar, form, damage, write_tar, jpegs):
    noise = np.random.default_rng(0).bytes(300_000)  # many blocks of a compressed file an image
    tar = write_tar(tar, [(f"{number}.jpg", data + noise) for number, data in enumerate(jpegs)])
    data = bytearray(compressed(tar.read_bytes(), form))
    if damage == "cut":
        del data[len(data) * 2 // 3 :]
    elif damage == "flipped":
        data[len(data) * 2 // 3] ^= 0xFF
        data[len(data) * 2 // 3 + 1] ^= 0xFF
    else:
        data[len(data) * 2 // 3 :] = b"garbage" * 100
    path = tar.with_name(f"b.tar.{form.partition('-')[0]}")
    path.write_bytes(data)
    rows, whole = scan_all(path), scan_all(tar)
    assert rows[-1].reason == "truncated_tar"
    assert "of what it unpacks to" in rows[-1].message
    good = [row for row in rows if row.reason is None]
    assert [row.image_id for row in good[:3]] == [row.image_id for row in whole[:3]]
    assert len(good) < len(whole), "a gzip's sum is behind its data: one image may come through with other bytes"


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_a_bomb_is_not_unpacked(tmp_path, form, monkeypatch):
    monkeypatch.setattr(packed_module, "FREE_BYTES", 1 << 20)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("1.jpg")
        info.size = 100 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    path = tmp_path / f"b.tar.{form}"
    path.write_bytes(compressed(stream.getvalue(), form))
    (row,) = scan_all(path)
    assert row.reason == "truncated_tar"
    assert "it is taken for a decompression bomb" in row.message


def test_an_image_too_large_for_memory_is_a_row(tar, monkeypatch):
    path = tar.with_name("b.tar.gz")
    path.write_bytes(gzip.compress(tar.read_bytes()))
    monkeypatch.setattr("pipeline.corpus.tar.MAX_PACKED_BYTES", 10)
    assert {row.reason for row in scan_all(path)} == {"too_large"}


def test_names_and_content_that_do_not_fit(tmp_path):
    for name in ("a.tar.gz", "a.tgz", "a.tar.zst"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        with pytest.raises(UserError, match=rf"{name} is not compressed by (gzip|zstd), as its name says"):
            resolve_corpus([str(tmp_path / name)])
    (tmp_path / "a.tar.gz").write_bytes(compressed(b"x" * 1000, "zst"))
    with pytest.raises(UserError, match=r"a\.tar\.gz can't be read as a tar"):
        scan_all(tmp_path / "a.tar.gz")
    (tmp_path / "a.tar.xz").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=r"a\.tar\.xz is a tar compressed otherwise than by gzip or zstd"):
        resolve_corpus([str(tmp_path / "a.tar.xz")])


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_changed_or_is_gone_costs_its_image(tar, form):
    path = tar.with_name(f"b.tar.{form.partition('-')[0]}")
    path.write_bytes(compressed(tar.read_bytes(), form))
    row = scan_all(path)[-1]
    place = Place(row.path, row.offset, row.size, row.within)
    path.write_bytes(b"other bytes")
    with Fetcher() as fetcher, pytest.raises(DamagedError):
        fetcher.bytes_at(place)
    with Fetcher() as fetcher, pytest.raises(Exception, match="can't be read as when it was indexed") as caught:
        fetcher.read(place, row.image_id)
    assert caught.value.reason == "changed_file"
    path.unlink()
    with Fetcher() as fetcher, pytest.raises(InputReadError):
        fetcher.bytes_at(place)


def test_a_failing_storage_is_no_damage(tar, monkeypatch):
    """The whole input is left out and taken up by the next run."""
    for form in ("gz", "zst"):
        path = tar.with_name(f"b.tar.{form}")
        path.write_bytes(compressed(tar.read_bytes(), form))
        reads = iter([True] * 1)

        def fail(stream, size=-1, reads=reads):
            if next(reads, None) is None:
                raise InputReadError(str(path), OSError(5, "Input/output error"), 0)  # noqa: B023
            return type(stream).__mro__[1].read(stream, min(size, 500))

        class Failing(io.BufferedReader):
            read = fail

        monkeypatch.setattr(packed_module, "open_input", lambda name: Failing(io.FileIO(name)))
        with pytest.raises(InputReadError):
            scan_all(path)
        monkeypatch.undo()


def test_what_img2dataset_writes(tmp_path, jpegs, write_tar):
    members: list = []
    for number, data in enumerate(jpegs):
        caption = f"a cat {number}"
        record = {"caption": caption, "url": f"http://h/{number}", "key": f"{number:09d}", "status": "success"}
        members += [
            (f"{number:09d}.jpg", data),
            (f"{number:09d}.json", record),
            (f"{number:09d}.txt", caption.encode()),
        ]
    members += [("000000100.jpg", jpegs[0] + b"x"), ("000000100.txt", "é only a text\n".encode())]
    rows = scan_all(write_tar(tmp_path / "00000.tar", members))
    asked = [[(p.prompt, p.references, p.type, p.status) for p in row.prompts] for row in rows]
    assert asked[0] == [("describe the image .", ["a cat 0"], "caption", "ok")]
    assert asked[-1] == [("describe the image .", ["é only a text"], "caption", "ok")]
    assert len(rows) == len(jpegs) + 1
