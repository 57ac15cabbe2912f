"""Tars that mean harm, through the whole job: nothing unpickled, nothing written outside, every member reported."""

import io
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fault_tools import rows_of

from benchmarks.synthetic import jpeg_of
from pipeline.corpus import resolve_corpus
from pipeline.errors import UserError
from pipeline.scan import scan, scan_units
from schemas.tables import SCAN


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
    return pa.Table.from_pylist(rows, SCAN).to_pylist()


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
