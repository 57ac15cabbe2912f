"""Tars that mean harm, through the whole job: nothing unpickled, nothing written outside, every member reported."""

import io
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fault_tools import rows_of

from benchmarks.synthetic import jpeg_of
from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.scan import scan, scan_units
from pipeline.errors import UserError
from schemas.columns import table_of
from schemas.samples import Sample


class Explosive:
    """Unpickling an instance creates a file: proof that nobody unpickles."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (Path.touch, (self.witness,))


def write_hostile_tar(path: Path, witness: Path) -> None:
    """Three good samples among members no reader should trust."""
    boom = pickle.dumps(Explosive(witness))
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes = b"", **attributes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))

        add("good.jpg", jpeg_of(0, 1))
        add("good.json", b'{"prompts": [{"id": "good", "prompt": "what ?"}]}')
        add("../../escape.jpg", jpeg_of(0, 2))
        add(str(witness.parent / "absolute.jpg"), jpeg_of(0, 3))
        add("folder/../../up.json", b'{"prompts": ["what ?"]}')
        add("a.pkl", boom)
        add("b.pickle", boom)
        add("c.pt", boom)
        add("d.pyd", boom)
        add("e.jpg", boom)
        add("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.jpg", type=tarfile.LNKTYPE, linkname="../../etc/passwd")
        add("pipe.jpg", type=tarfile.FIFOTYPE)
        add("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add("dots.in.key.jpg", jpeg_of(0, 4))
        add("in.a.folder/plain.jpg", jpeg_of(0, 5))
        add("in.a.folder/plain.json", b'{"prompts": [{"id": "folder", "prompt": "what ?"}]}')
        add("twice.jpg", jpeg_of(0, 6))
        add("twice.png", jpeg_of(0, 7))
        add("one.jpg", jpeg_of(0, 8))
        add("two.json", b'{"prompts": [{"id": "interleaved", "prompt": "what ?"}]}')
        add("one.json", b'{"prompts": [{"id": "late", "prompt": "what ?"}]}')
        add("good.jpg", jpeg_of(0, 9))
        add("lonely.json", b'{"prompts": [{"id": "lonely", "prompt": "what ?"}]}')
        add("broken.jpg", jpeg_of(0, 10))
        add("broken.json", b'{"prompts": [')
        add("deep.jpg", jpeg_of(0, 11))
        add("deep.json", b'{"prompts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
        add("list.jpg", jpeg_of(0, 12))
        add("list.json", b'["what ?"]')


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_hostile_members_are_reported_and_harm_nobody(prune, tmp_path):
    corpus = tmp_path / "deeper" / "corpus"
    corpus.mkdir(parents=True)
    witness = tmp_path / "unpickled"
    write_hostile_tar(corpus / "bad.tar", witness)
    before = everything_under(tmp_path)
    output = tmp_path / "out"
    prune(output, corpus=(str(corpus / "bad.tar"),), max_tokens="16", features="both", max_error_rate=1.0)

    assert not witness.exists()
    assert {name for name in everything_under(tmp_path) - before if not name.startswith("out")} == set()
    reasons = sorted((row["source"].partition("/")[2], row["reason"]) for row in rows_of(output, "errors"))
    assert reasons == sorted(
        [
            ("../../escape.jpg", "unsafe_member"),
            (str(witness.parent / "absolute.jpg"), "unsafe_member"),
            ("folder/../../up.json", "unsafe_member"),
            *((f"{name}", "unsafe_member") for name in ("a.pkl", "b.pickle", "c.pt", "d.pyd")),
            ("e.jpg", "unreadable_image"),
            *((f"{name}.jpg", "unsafe_member") for name in ("link", "hard", "pipe", "device")),
            ("dots", "no_image"),
            ("twice.jpg", "duplicate_key"),
            ("two", "no_image"),
            ("one", "duplicate_key"),
            ("good.jpg", "duplicate_key"),
            ("lonely", "no_image"),
            ("broken.jpg", "bad_record"),
            ("deep.jpg", "bad_record"),
            ("list.jpg", "bad_record"),
        ]
    )
    assert all(row["message"] for row in rows_of(output, "errors"))
    kept = [row["source"] for row in rows_of(output, "selections")]
    assert kept == ["bad.tar/good.jpg", "bad.tar/in.a.folder/plain.jpg", "bad.tar/one.jpg"]
    status = {row["prompt_id"]: row["status"] for row in rows_of(output, "prompts")}
    assert status == {
        "good": "ok",
        "folder": "ok",
        "interleaved": "no_image",
        "late": "duplicate_key",
        "lonely": "no_image",
    }  # the prompts of a member that is never read are not known


def test_a_file_that_is_no_tar_stops_the_job_in_one_sentence(prune, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 1000)
    with pytest.raises(UserError, match=r"a\.tar can't be read as a tar") as caught:
        prune(tmp_path / "out", corpus=(str(tmp_path / "a.tar"),))
    assert "\n" not in str(caught.value)


def scan_all(path: Path) -> list[dict]:
    """Rows of the first pass, in the form in which they are stored."""
    rows = [row for unit in scan_units(resolve_corpus([str(path)])) for row in scan(unit)]
    return table_of(Sample, rows).to_pylist()


def plain_tar(form: int) -> bytes:
    """Four samples, one name not in ASCII, as one of the forms of `tarfile`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for number in range(4):
            stem = f"image-{number}-\u00e9" + "x" * (120 if form != tarfile.USTAR_FORMAT else 0)
            for name, data in ((f"{stem}.jpg", jpeg_of(0, number)), (f"{stem}.json", b'{"prompts": ["what ?"]}')):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def with_checksum(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


FIELDS = ((0, 100), (100, 108), (124, 136), (136, 148), (156, 157), (157, 257), (257, 265), (345, 500))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_with_any_bytes_are_rows_or_one_clear_refusal(form, tmp_path):
    """Names, sizes, kinds and links overwritten at random under a right checksum: never another exception."""
    sound = plain_tar(form)
    with tarfile.open(fileobj=io.BytesIO(sound)) as archive:
        begins = [member.offset for member in archive]
    generator = np.random.default_rng(form)
    path = tmp_path / "a.tar"
    outcomes = Counter()
    for _ in range(200):
        data, begin = bytearray(sound), int(generator.choice(begins))
        first, last = FIELDS[generator.integers(len(FIELDS))]
        for place in generator.integers(first, last, generator.integers(1, 8)):
            data[begin + place] = generator.choice([0, 255, 128, 0x30, 0x37, generator.integers(256)])
        data[begin : begin + 512] = with_checksum(data[begin : begin + 512])
        path.write_bytes(data)
        try:
            outcomes[scan_all(path)[-1]["reason"]] += 1
        except UserError:
            outcomes["refused"] += 1
    assert outcomes.total() == 200
    assert len(outcomes) >= 3, outcomes


def test_a_member_that_claims_more_than_the_file_holds_is_never_read(tmp_path):
    """A sparse member of 8 EiB, one of a negative size, one of 1 TiB."""
    for name, size in (("huge", 1 << 40), ("negative", -512), ("sparse", 1 << 62)):
        path = tmp_path / f"{name}.tar"
        good, bad = tarfile.TarInfo("good.jpg"), tarfile.TarInfo("bad.jpg")
        good.size, bad.size = len(jpeg_of(0, 1)), size
        if name == "sparse":
            bad.size, bad.pax_headers = 0, {"GNU.sparse.map": f"0,{size}", "GNU.sparse.size": str(size)}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if name == "sparse" else tarfile.GNU_FORMAT) as archive:
            archive.addfile(good, io.BytesIO(jpeg_of(0, 1)))
            archive.addfile(bad)
        reasons = {row["reason"] for row in scan_all(path)}
        assert reasons == {None, "unsafe_member" if name == "sparse" else "truncated_tar"}


def ends_of(data: bytes) -> list[int]:
    """Where each member's data and padding end; the last is where the end mark begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [m.offset_data + -(-m.size // 512) * 512 for m in archive]


def sources_and_last(path: Path) -> tuple[list[str], dict | None]:
    """Sources of the good samples, and the row that is none, if there is one."""
    rows = scan_all(path)
    bad = [row for row in rows if row["reason"] is not None]
    assert len(bad) <= 1
    assert not bad or bad[0] is rows[-1]
    assert len({row["sample"] for row in rows}) == len(rows)
    return [row["source"] for row in rows if row["reason"] is None], bad[0] if bad else None


def test_a_tar_cut_anywhere_keeps_the_samples_before_and_says_how_much_is_gone(tmp_path):
    sound = plain_tar(tarfile.USTAR_FORMAT)
    path = tmp_path / "a.tar"
    path.write_bytes(sound)
    every, nothing = sources_and_last(path)
    assert (len(every), nothing) == (4, None)
    ends = ends_of(sound)
    for member in range(1, 8):
        within_its_data = ends[member - 1] + 512 + 5
        for cut, whole in ((ends[member], True), (ends[member] + 100, False), (within_its_data, False)):
            path.write_bytes(sound[:cut])
            good, row = sources_and_last(path)
            complete = sum(end <= cut for end in ends)
            assert good == every[: -(-complete // 2)]
            assert row is not None
            assert row["reason"] == "truncated_tar"
            unread = 0 if whole else cut - ends[complete - 1]
            assert (row["path"], row["offset"], row["size"]) == (str(path), cut - unread, unread)
            assert f"{unread} bytes were not read" in row["message"] or (whole and "without the mark" in row["message"])


def test_a_header_that_is_garbage_is_told_wherever_it_lies(tmp_path):
    sound = plain_tar(tarfile.USTAR_FORMAT)
    path = tmp_path / "a.tar"
    for member in range(1, 8):
        begin = ends_of(sound)[member - 1]
        path.write_bytes(sound[:begin] + b"garbage!" * 64 + sound[begin + 512 :])
        good, row = sources_and_last(path)
        assert len(good) == -(-member // 2)
        assert row is not None
        assert (row["reason"], row["offset"], row["size"]) == ("truncated_tar", begin, len(sound) - begin)
        assert f"{len(sound) - begin} bytes were not read" in row["message"]


def test_forms_of_a_tars_end(tmp_path):
    """What other writers leave: no mark, half a mark, no padding, much padding, another tar behind."""
    sound = plain_tar(tarfile.USTAR_FORMAT)
    end = ends_of(sound)[-1]
    for name, tail, reason, unread in (
        ("two blocks", bytes(1024), None, 0),
        ("one block", bytes(512), None, 0),
        ("padded", bytes(1 << 20), None, 0),
        ("no mark", b"", "truncated_tar", 0),
        ("half a block", bytes(256), "truncated_tar", 256),
        ("another tar", bytes(1024) + sound, "trailing_data", len(sound)),
        ("another tar, far", bytes(3 << 20) + sound, "trailing_data", len(sound)),
        ("a lone block, more members", bytes(512) + sound, "trailing_data", len(sound)),
        ("rubbish", bytes(1024 + 100) + b"rubbish", "trailing_data", 107),
    ):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(sound[:end] + tail)
        good, row = sources_and_last(path)
        assert len(good) == 4, name
        assert (row and row["reason"], row["size"] if row else 0) == (reason, unread), name
        if reason == "trailing_data":
            assert f"{unread} bytes" in row["message"]
            assert ("another tar" in row["message"]) == (name != "rubbish")
    unpadded = tmp_path / "unpadded.tar"
    with tarfile.open(fileobj=io.BytesIO(sound)) as archive:
        last = archive.getmembers()[-1]
    unpadded.write_bytes(sound[: last.offset_data + last.size])
    good, row = sources_and_last(unpadded)
    assert len(good) == 4
    assert row is not None
    assert "without the mark" in row["message"]


def test_a_tar_cut_within_its_first_member_is_a_row_not_a_refusal(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(plain_tar(tarfile.USTAR_FORMAT)[:1000])
    (row,) = scan_all(path)
    assert (row["reason"], row["size"]) == ("truncated_tar", 1000)


def test_a_member_of_negative_size_comes_to_an_end(tmp_path):
    """A pickle is never read, but its size moves the reader on: or back, for ever."""
    path = tmp_path / "a.tar"
    pickled = tarfile.TarInfo("b.pkl")
    pickled.size = -1024
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        good = tarfile.TarInfo("a.jpg")
        good.size = len(jpeg_of(0, 1))
        archive.addfile(good, io.BytesIO(jpeg_of(0, 1)))
        archive.addfile(pickled)
    (unit,) = scan_units(resolve_corpus([str(path)]))
    assert [row.reason for row in scan(unit, 10)] == [None, "truncated_tar"]


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("a.jpg", b'{"prompts": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "bad_record"),
        ("a.jpg", b'{"prompts": ["half a pair: \\ud800"]}', None),
        ("a.jpg", b'{"half a pair: \\ud800": "\\udfff"}', None),
        ("a.jpg", b'{"prompts": [{"id": ' + b"9" * 5000 + b', "prompt": "what ?"}]}', None),
        ("a.jpg", b"\xff\xfe{", "bad_record"),
        ("a\udcff.jpg", b'{"prompts": ["what ?"]}', None),
    ],
)
def test_records_and_names_that_are_no_text(name, record, reason, tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [(name, jpeg_of(0, 1)), (name.replace("jpg", "json"), record)])
    (row,) = scan_all(path)
    assert row["reason"] == reason
    assert row["source"] == f"a.tar/{name}".replace("\udcff", "\\xff")
