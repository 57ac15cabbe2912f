"""URLs are known as such, and nothing that never ends is read."""

import os
import socket

import pytest

from pipeline.errors import UserError
from pipeline.storage.paths import NotAFileError, is_url, open_regular, refuse_url


@pytest.mark.parametrize(
    "text",
    ["s3://b/o", "s3:/b/o", "S3://b", "hf://datasets/x", "gs://b", "http://h/x.jpg", "https://h", "file:///a/b",
     " s3://b", "abfs+x://b", "pipe:cat a.tar", "data:image/png;base64,iVBOR"],
)  # fmt: skip
def test_urls(text):
    assert is_url(text)
    with pytest.raises(UserError, match="is a URL; only paths"):
        refuse_url("--output", text, "do that")


@pytest.mark.parametrize("text", ["a/b", "/a/s3:/b", "./s3:/b", "c:/b", "a:b", "org/name", "~/a", "a b: c/d", ""])
def test_paths(text):
    assert not is_url(text)


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to_fifo").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    for name in ("file", "link"):
        with open(tmp_path / name, "rb", opener=open_regular) as stream:
            assert stream.read() == b"abc"
    for name, kind in (("fifo", "a FIFO"), ("to_fifo", "a FIFO"), ("socket", "a socket"), ("", "a folder")):
        with pytest.raises(NotAFileError, match=f"is {kind}, not a regular file"):
            open_regular(str(tmp_path / name), os.O_RDONLY)
    with pytest.raises(NotAFileError, match="is a device"):
        open_regular("/dev/zero", os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / "none"), os.O_RDONLY)
