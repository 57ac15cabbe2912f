"""What a corpus may be named by; what is refused says cause and remedy."""

import bz2
import gzip
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError


@pytest.mark.parametrize("name", ["a.tar", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize(("pack", "what"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_file_under_another_name(tmp_path, name, pack, what):
    (tmp_path / name).write_bytes(pack(b"x" * 1000))
    if (name, what) == ("a.tar", "gzip"):
        assert [item.kind for item in resolve_corpus([str(tmp_path / name)])] == ["tar_gzip"]
        return
    with pytest.raises(UserError, match=rf"{name} is compressed by {what}, whatever its name says: decompress it"):
        resolve_corpus([str(tmp_path / name)])


def test_tables_are_told_what_to_write_instead(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "a.csv").write_text("image,prompt\n")
    form = r'write a manifest with a line for each image: \{"image": "photo.jpg", "prompts": \[\{"prompt": '
    with pytest.raises(UserError, match=rf"a\.csv is a table that is not read; {form}"):
        resolve_corpus([str(tmp_path / "a.csv")])
    with pytest.raises(UserError, match=r"a\.tar is a Parquet file, whatever its name says: name it \.parquet"):
        resolve_corpus([str(tmp_path / "a.tar")])


@pytest.mark.parametrize(
    "pattern", ["{0..999999999999}.tar", "{" + "9" * 6000 + "..0}.tar", "{a,b,c,d}" * 11 + ".tar", "{0..999999}{0..9}"]
)
def test_braces_that_stand_for_too_much_are_refused_at_once(pattern):
    with pytest.raises(UserError, match="stands for over 250,000 paths; use a glob"):
        resolve_corpus([pattern])


def test_a_folder_under_two_names_gives_no_file_twice(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.tar").write_bytes(b"\0" * 1024)
    (tmp_path / "linked").symlink_to("real")
    (found,) = resolve_corpus([str(tmp_path / "linked" / "*.tar")])
    assert Path(found.path) == tmp_path / "linked" / "a.tar", "a link alone is fine, and keeps its name"
    with pytest.raises(UserError, match=r"a\.tar is named twice"):
        resolve_corpus([str(tmp_path / "*" / "*.tar")])


def test_a_name_too_long_for_a_file():
    with pytest.raises(UserError, match="can't be read at byte 0: File name too long"):
        resolve_corpus(["x" * 300 + ".tar"])


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.zst", "a.json", "a.parquet", "a.arrow"])
def test_a_file_without_bytes_is_called_so(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"{name} has no bytes; fetch it again, or leave it out"):
        resolve_corpus([str(tmp_path / name)])
