"""Reading inputs from storage that fails: tried again where that can help, told as what it is where it can't."""

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest

from pipeline.corpus.fetch import Inspected, Place, hash_image, read_bytes
from pipeline.storage import LocalStore, input_file
from pipeline.storage.input_file import InputReadError, PatientFile, open_input


class FailingFile(io.FileIO):
    """A file whose next reads fail, each with the next of some errors; the end of the list comes first."""

    def __init__(self, name: str, failures: list[int]) -> None:
        super().__init__(name)
        self._failures = failures

    def readinto(self, buffer) -> int | None:
        if self._failures:
            number = self._failures.pop()
            raise OSError(number, os.strerror(number))
        return super().readinto(buffer)


class FailingStore(LocalStore):
    """A store whose reads fail as often as told."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)
        self.failures: list[int] = []
        self.pauses: list[float] = []
        self.opened = 0

    def raw(self, key: str) -> io.FileIO:
        self.opened += 1
        super().raw(key).close()  # refuses what the local store refuses
        return FailingFile(self.locate(key), self.failures)


@pytest.fixture
def storage(monkeypatch) -> FailingStore:
    """Every location lies in this store, and nobody really pauses."""
    store = FailingStore("/")
    monkeypatch.setattr(input_file, "at", lambda location: (store, location.lstrip("/")))
    monkeypatch.setattr(input_file.time, "sleep", store.pauses.append)
    monkeypatch.setattr(PatientFile, "_given_up", 0)
    return store


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "a.bin"
    file.write_bytes(bytes(range(256)) * 100)
    return file


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_read_that_fails_in_passing_is_tried_again_on_a_fresh_handle(number, path, storage):
    with open_input(str(path)) as stream:
        assert stream.read(10) == bytes(range(10))
        storage.failures += [number] * 3
        stream.seek(20_000)
        assert stream.read() == path.read_bytes()[20_000:]
    assert storage.pauses == list(input_file.PAUSES_SEC)
    assert storage.opened == 4


def test_a_read_that_goes_on_failing_is_a_read_error_with_its_place(path, storage):
    with open_input(str(path)) as stream:
        stream.seek(20_000)
        storage.failures += [errno.EIO] * 4
        with pytest.raises(InputReadError, match=r"a\.bin can't be read at byte 20000: Input/output error") as caught:
            stream.read(10)
        assert caught.value.reason == "read_error"
        assert stream.read(10) == path.read_bytes()[20_000:20_010]


def test_what_is_missing_or_forbidden_is_not_waited_for(tmp_path, path, storage):
    with pytest.raises(InputReadError, match="does not exist") as caught:
        open_input(str(tmp_path / "none"))
    assert caught.value.reason == "missing_file"
    with pytest.raises(InputReadError, match="does not exist"):
        open_input("no\0name")
    with pytest.raises(InputReadError, match="is a folder, not a regular file") as caught:
        open_input(str(tmp_path))
    assert caught.value.reason == "not_a_file"
    assert storage.pauses == []


def test_storage_that_is_gone_is_not_waited_for_at_every_read(path, storage):
    """A corpus on a dead mount must come to an end; the first read that succeeds restores the patience."""
    tries = len(input_file.PAUSES_SEC) + 1
    storage.failures += [errno.EIO] * (input_file.MAX_PATIENCE * tries + 500)
    with open_input(str(path)) as stream:
        for _ in range(input_file.MAX_PATIENCE + 500):
            with pytest.raises(InputReadError):
                stream.read(10)
        assert len(storage.pauses) == input_file.MAX_PATIENCE * len(input_file.PAUSES_SEC)
        assert stream.read(2) == b"\0\1"
    storage.failures.append(errno.EIO)
    with open_input(str(path)) as stream:
        assert stream.read(2) == b"\0\1"


def test_it_reads_like_a_file(path):
    with open_input(str(path)) as stream, open(path, "rb") as other:
        for place, whence, count in ((0, 0, 5), (3, 1, 9000), (-7, 2, 20), (25_000, 0, 2000), (30_000, 0, 1)):
            assert stream.seek(place, whence) == other.seek(place, whence)
            assert stream.read(count) == other.read(count)
            assert stream.tell() == other.tell()
        stream.seek(0)
        assert hashlib.file_digest(stream, "sha256").digest() == hashlib.sha256(path.read_bytes()).digest()
        with pytest.raises(ValueError, match="position"):
            stream.seek(-1)
    assert isinstance(stream, io.BufferedReader)


def test_images_are_fetched_by_patient_reads(path, storage):
    image_id = hashlib.sha256(path.read_bytes()[5:8]).hexdigest()
    storage.failures.append(errno.EIO)
    assert read_bytes(Place(str(path), 5, 3), image_id) == path.read_bytes()[5:8]
    storage.failures.append(errno.EIO)
    assert hash_image(Place(str(path), 5, 3)) == Inspected(image_id, 3, None, None)
    storage.failures.append(errno.EIO)
    assert hash_image(str(path)) == Inspected(hashlib.sha256(path.read_bytes()).hexdigest(), 25_600, None, None)
    assert len(storage.pauses) == 3
