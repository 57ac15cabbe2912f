"""What the local store does beside what every store promises (test_stores.py)."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage import HeldError, LocalStore, Store
from pipeline.storage.paths import NotAFileError


@pytest.fixture
def store(tmp_path) -> Store:
    return LocalStore(tmp_path / "store")


def names(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def test_a_file_lies_at_its_address(store):
    store.put("a/b", b"012345")
    assert Path(store.locate("a/b")).read_bytes() == b"012345"


def test_a_file_that_is_replaced_has_another_tag(store):
    before = store.put("a", b"1")
    os.utime(store.locate("a"), ns=(1, 1))
    assert store.stat("a").tag != before.tag


def test_a_listing_holds_the_finished_files_of_one_folder_in_order(store):
    for key in ("b", "a", "c/d"):
        store.put(key, b"")
    Path(store.locate(".x.0.tmp")).write_bytes(b"half")
    assert names(store) == ["a", "b"]
    assert names(store, "c/") == ["c/d"]


def test_a_file_that_failed_leaves_nothing_in_the_folder(store):
    with contextlib.suppress(RuntimeError), store.new_file("a") as new:
        new.path.write_bytes(b"half")
        raise RuntimeError
    assert os.listdir(Path(store.locate())) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_file_is_created_once_where_the_file_system_has_no_links(store, monkeypatch, number):
    def link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", link)
    assert store.create("a/b", b"1")
    assert not store.create("a/b", b"2")
    assert store.read("a/b") == b"1"
    assert os.listdir(Path(store.locate("a"))) == ["b"]


def test_one_holder_at_a_time_and_a_killed_one_lets_go(store):
    code = (
        "import sys, time; from pipeline.storage import LocalStore\n"
        "with LocalStore(sys.argv[1]).hold('lock', 'the other'):\n print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, store.locate()], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HeldError, match="the other"), store.hold("lock", "me"):
            pass
        other.kill()
        other.wait()
    with store.hold("lock", "me"), pytest.raises(HeldError, match="me"), store.hold("lock", "again"):
        pass
    with store.hold("lock", "me"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(store, monkeypatch, number):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(UserError, match=r"can't be locked: .*; mount its file system"),
        store.hold("l", "x"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_place_that_can_not_be_held_is_named_not_the_file_of_its_lock(store, monkeypatch, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", refuse)
    told = f"^{store.locate()} can't be written: {os.strerror(number)}; .*; allow this user to write there, or name"
    with pytest.raises(UserError, match=told), store.hold("_lock", "me"):
        pass


def test_what_stands_in_the_way_of_a_folder_is_named(store):
    store.put("file", b"1")
    file = store.locate("file")
    for place in (file, f"{file}/deeper/still"):
        with pytest.raises(UserError, match=f"{file} is a file where a folder must be"):
            LocalStore(place).put("a", b"1")
        with (
            pytest.raises(UserError, match=f"{file} is a file where a folder must be"),
            LocalStore(place).hold("l", ""),
        ):
            pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_place_that_cannot_be_written_is_said(store, monkeypatch, number):
    def replace(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(UserError, match=f"a can't be written: {os.strerror(number)}") as caught:
        store.put("a", b"1")
    assert caught.value.passing == (number == errno.EIO)
    assert os.listdir(Path(store.locate())) == []


def test_scratch_folders_go_and_what_killed_writers_left_is_cleared(store):
    with store.scratch() as folder:
        (folder / "large").write_bytes(b"1")
        left = Path(store.locate("table/.part.0.tmp"))
        left.parent.mkdir()
        left.write_bytes(b"half")
    assert not folder.exists()
    abandoned = Path(store.locate(".scratch-x"))
    abandoned.mkdir()
    store.put("table/part", b"1")
    store.clear_unfinished()
    assert not left.exists()
    assert not abandoned.exists()
    assert names(store, "table/") == ["table/part"]


def test_a_full_disk_in_a_scratch_folder_is_said_of_the_store(store):
    with pytest.raises(UserError, match=r"store can't be written: No space left"), store.scratch():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(Path(store.locate())) == []


def test_clearing_a_prefix_takes_everything_under_it(store):
    for key in ("a/b", "a/c/d", "ab"):
        store.put(key, b"")
    Path(store.locate("a/c/.x.0.tmp")).write_bytes(b"half")
    store.clear("a/")
    store.clear("none/")
    assert os.listdir(Path(store.locate())) == ["ab"]


def test_what_is_no_regular_file_is_never_read(store):
    store.put("a/b", b"")
    os.mkfifo(store.locate("fifo"))
    for key, kind in (("fifo", "a FIFO"), ("a", "a folder")):
        assert store.stat(key) is None
        for read in (store.read, store.open, store.raw):
            with pytest.raises(NotAFileError, match=f"is {kind}, not a regular file"):
                read(key)


def test_a_raw_stream_reads_and_seeks_without_a_buffer(store):
    store.put("a", b"012345")
    with store.raw("a") as stream:
        assert (stream.seek(2), stream.read(2)) == (2, b"23")
        Path(store.locate("a")).write_bytes(b"012xyz")
        assert stream.read(2) == b"yz"
