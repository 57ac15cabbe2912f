"""What every store promises: whole files or none, one creator, one holder, listings in order."""

import contextlib
import pickle
import threading
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.storage import Entry, HeldError, LocalStore, Store
from pipeline.storage.objects import ObjectStore


@pytest.fixture(params=["local", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    return ObjectStore.at(f"{request.getfixturevalue('s3')}/some/where")


def names(store: Store, prefix: str = "") -> list[str]:
    return [entry.key for entry in store.list(prefix)]


def test_what_is_put_is_read(store):
    assert store.stat("a/b") is None
    entry = store.put("a/b", b"012345")
    assert entry == store.stat("a/b") == Entry("a/b", 6, entry.tag)
    assert store.read("a/b") == b"012345"
    with store.open("a/b") as stream:
        for offset, size, expected in ((2, 3, b"234"), (4, 9, b"45"), (9, 9, b""), (5, -1, b"5")):
            stream.seek(offset)
            assert stream.read(size) == expected
    with store.local(["a/b", "a/b"]) as paths:
        assert [Path(path).read_bytes() for path in paths] == [b"012345"] * 2


def test_an_empty_file_is_a_file(store):
    store.put("empty", b"")
    assert store.read("empty") == b""
    assert store.stat("empty").size_bytes == 0
    with store.open("empty") as stream:
        assert stream.read() == b""


def test_missing_files(store):
    for read in (store.read, store.open, store.raw):
        with pytest.raises(FileNotFoundError):
            read("none")
    store.delete("none")
    store.clear("none/")
    assert names(store) == names(store, "none/") == list(store.names("none/")) == list(store.walk()) == []


def test_many_files_are_read_in_order(store):
    for number in range(50):
        store.put(f"a/{number:02d}", str(number).encode())
    keys = [f"a/{number:02d}" for number in (*range(49, -1, -1), 77)]
    assert list(store.read_all(keys)) == [*(str(number).encode() for number in range(49, -1, -1)), None]


@pytest.mark.parametrize("key", ["a b.jpg", "x#1%20[0]*?&+.jpg", "é日本.jpg", "a:b;c=d.jpg"])
def test_any_name_is_a_key(store, key):
    store.put(f"in/{key}", b"1")
    assert names(store, "in/") == [f"in/{key}"]
    assert store.read(f"in/{key}") == b"1"
    assert store.locate(f"in/{key}").endswith(f"/in/{key}")


def test_listings_hold_what_lies_under_a_prefix_in_order(store):
    for key in ("b", "a", "c/d", "c/e/f", "c-", "c.x", "cd/g"):
        store.put(key, b"")
    assert names(store) == ["a", "b", "c-", "c.x"]
    assert names(store, "c/") == ["c/d"]
    assert list(store.names()) == ["a", "b", "c-", "c.x", "c/", "cd/"]
    assert list(store.names("c/")) == ["d", "e/"]
    assert [entry.key for entry in store.walk()] == ["a", "b", "c-", "c.x", "c/d", "c/e/f", "cd/g"]
    assert [entry.key for entry in store.walk("c/")] == ["c/d", "c/e/f"]
    assert [entry for entry in store.walk() if entry.key == "b"] == [store.stat("b")]


@pytest.mark.parametrize("key", ["../a", "/etc/passwd", "a/../../b"])
def test_no_key_leaves_the_store(store, key):
    with pytest.raises(ValueError, match="leaves the store"):
        store.read(key)


def test_a_new_file_appears_whole_or_not_at_all(store):
    store.put("a", b"old")
    with contextlib.suppress(RuntimeError), store.new_file("a") as new:
        new.path.write_bytes(b"ne")
        assert store.read("a") == b"old"
        raise RuntimeError
    assert store.read("a") == b"old"
    assert new.entry is None
    with store.new_file("a") as new:
        new.path.write_bytes(b"new")
    assert store.read("a") == b"new"
    assert new.entry == store.stat("a")
    assert names(store) == ["a"]
    assert not new.path.exists()


def test_of_many_creators_one_wins(store):
    won = []

    def create(number: int) -> None:
        if store.create("a/key", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert store.read("a/key") == str(winner).encode()
    assert names(store, "a/") == ["a/key"]


def test_one_holder_at_a_time(store, monkeypatch):
    monkeypatch.setattr("pipeline.storage.lease.LEASE_SEC", 0.6)
    assert store.holder("lock") == ""
    with store.hold("lock", "me") as held:
        assert store.holder("lock") == "me"
        held.put("a", b"1")
        with pytest.raises(HeldError, match="me"), store.hold("lock", "again"):
            pass
    assert store.holder("lock") == ""
    with store.hold("lock", "another"):
        assert store.holder("lock") == "another"


def test_clearing_a_prefix_takes_everything_under_it(store):
    for key in ("a/b", "a/c/d", "ab"):
        store.put(key, b"")
    store.clear("a/")
    assert [entry.key for entry in store.walk()] == ["ab"]


def test_a_raw_stream_reads_and_seeks(store):
    store.put("a", b"012345")
    with store.raw("a") as stream:
        assert (stream.seek(2), stream.read(2)) == (2, b"23")
        assert (stream.seek(-1, 2), stream.read(9), stream.read(9)) == (5, b"5", b"")
        assert (stream.seek(-2, 1), stream.tell(), stream.read(1)) == (4, 4, b"4")
        with pytest.raises((ValueError, OSError)):
            stream.seek(-1)


def test_arrow_reads_a_store(store):
    import pyarrow as pa

    table = pa.table({"n": list(range(1000))})
    with store.new_file("t/part.parquet") as new:
        pq.write_table(table, new.path, row_group_size=100)
    form, files = ds.ParquetFileFormat(), store.arrow()
    dataset = ds.FileSystemDataset([form.make_fragment("t/part.parquet", files)], table.schema, form, files)
    assert dataset.to_table(filter=ds.field("n") > 990)["n"].to_pylist() == list(range(991, 1000))
    with pytest.raises((NotImplementedError, OSError)):
        pq.write_table(table, "t/none/part.parquet", filesystem=files)


def test_a_store_travels_to_other_processes(store):
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"
