"""What is particular to buckets: requests, parts, faults, versions, addresses, folders that are fetched."""

import os
import threading

import pytest

from pipeline.artifact.artifact import Artifact
from pipeline.corpus.resolve import resolve_corpus
from pipeline.errors import UserError
from pipeline.storage import StorageError
from pipeline.storage.bucket import RETRIES, Bucket, bucket
from pipeline.storage.fetched import fetched_folder
from pipeline.storage.input_file import InputReadError, open_input
from pipeline.storage.object_file import FIRST_BYTES, MOST_BYTES
from pipeline.storage.objects import ObjectStore
from pipeline.storage.paths import split_object
from pipeline.storage.places import absolute, at, beside, common_folder, expand, seen_from
from pipeline.storage.tree import is_folder, tree
from tests.object_server import FAULTS, Faults


@pytest.fixture
def store(s3) -> ObjectStore:
    return ObjectStore.at(s3)


def test_a_large_file_is_sent_in_parts_however_many_of_them_fail(store, object_server, monkeypatch):
    monkeypatch.setattr("pipeline.storage.bucket.WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr("pipeline.storage.bucket.PART_BYTES", 5 << 20)
    data = os.urandom(12 << 20)
    object_server.faults = Faults(0.2, seed=3)
    with store.new_file("a/large") as new:
        new.path.write_bytes(data)
    object_server.faults = Faults()
    assert store.read("a/large") == data
    assert new.entry == store.stat("a/large")
    assert object_server.requests["POST"] >= 2, "a beginning and an end"


def test_conditions_hold_among_faults(store, object_server):
    """Each fault comes up; a write that was done, but whose answer got lost, is told as done, and as ours alone."""
    object_server.faults = faults = Faults(0.3, seed=4)
    for number in range(12):
        key = f"k/{number}"
        assert store.create(key, b"same bytes")
        assert not store.create(key, b"same bytes")
        bucket = Bucket(store.bucket)
        tag = bucket.head(key).tag
        now = bucket.put_if(key, f"{number}".encode(), tag)
        assert now is not None
        assert bucket.put_if(key, b"late", tag) is None
        assert store.read(key) == f"{number}".encode()
    assert faults.made.keys() == set(FAULTS)


def test_a_store_that_never_answers_is_said_and_may_be_tried_again(store, object_server, monkeypatch):
    monkeypatch.setattr("pipeline.storage.bucket.PAUSES_SEC", (0.0,))
    monkeypatch.setitem(Bucket.__init__.__globals__["RETRIES"], "max_retries", 1)
    object_server.faults = Faults(1.0, seed=5)
    with pytest.raises(UserError, match="can't be written: its store does not answer") as caught:
        store.put("a", b"1")
    assert caught.value.passing
    with pytest.raises(StorageError, match="its store does not answer"):
        store.read("a")


def test_reading_on_asks_for_more_each_time(store, object_server):
    data = os.urandom(24 << 20)
    Bucket(store.bucket).put("large", data)
    object_server.requests.clear()
    with store.open("large") as stream:
        assert stream.read(512) == data[:512]
        assert object_server.requests == {"HEAD": 1, "GET": 1}
        parts = [data[:512]]
        while part := stream.read(10_000):
            parts.append(part)
        assert b"".join(parts) == data
        assert object_server.requests["GET"] <= 9
        stream.seek(5 << 20)
        object_server.requests.clear()
        assert stream.read(100) == data[5 << 20 :][:100]
        assert stream.read(FIRST_BYTES // 2) == data[(5 << 20) + 100 :][: FIRST_BYTES // 2]
        assert object_server.requests == {"GET": 1}
    assert MOST_BYTES < 24 << 20


def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(store):
    store.put("a", b"1" * 3 * FIRST_BYTES)
    with store.raw("a") as stream:
        stream.read(10)
        store.put("a", b"2" * 3 * FIRST_BYTES)
        stream.seek(2 * FIRST_BYTES)
        with pytest.raises(StorageError, match="it was replaced while it was read"):
            stream.read(10)


def test_inputs_are_read_with_patience_and_say_what_is_wrong(s3, object_server, monkeypatch):
    monkeypatch.setattr("pipeline.storage.input_file.PAUSES_SEC", (0.0,))
    with pytest.raises(InputReadError, match=rf"{s3}/none\.jpg does not exist") as caught:
        open_input(f"{s3}/none.jpg")
    assert caught.value.reason == "missing_file"
    with pytest.raises(InputReadError, match="there is no bucket no-such-bucket") as caught:
        open_input("s3://no-such-bucket/a.jpg")
    assert caught.value.reason == "read_error"
    object_server.faults = Faults(refuse=lambda method, path: "AccessDenied")
    with pytest.raises(InputReadError, match="its credentials have no permission"):
        open_input(f"{s3}/a.jpg")


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "\x7f", "\ud800", "x" * 2000])
def test_names_that_no_object_can_have_are_those_of_missing_files(name, s3):
    with pytest.raises(InputReadError) as caught:
        open_input(f"{s3}/{name}")
    assert caught.value.reason == "missing_file"
    with pytest.raises(UserError, match=r"does not exist|can't be read: no object can be called so"):
        resolve_corpus([f"{s3}/{name}.tar"])


def test_addresses():
    assert split_object("s3://bucket/a//b/./c/../d.tar") == ("bucket", "a/b/d.tar")
    assert split_object("s3://bucket") == split_object("s3://bucket/") == ("bucket", "")
    assert split_object("s3://bucket/../../a") == ("bucket", "a")
    assert absolute("s3://bucket/a/../b") == "s3://bucket/b"
    for wrong in ("s3://", "s3:///a", "s3://ab/x", "s3://UPPER/x", "s3://under_score/x"):
        with pytest.raises(ValueError, match="expected s3://BUCKET/KEY"):
            split_object(wrong)
    found, key = at("s3://bucket/a/b.tar")
    assert (found.locate(key), found.locate(), key) == ("s3://bucket/a/b.tar", "s3://bucket", "a/b.tar")
    assert ObjectStore.at("s3://bucket/a/b/").locate() == "s3://bucket/a/b"
    assert beside("s3://bucket/a/m.jsonl", "x/1.jpg") == "s3://bucket/a/x/1.jpg"


def test_names_of_inputs_are_seen_from_their_folder_as_on_disk():
    names = ["a/b/x.tar", "a/c/d/y.tar", "a/b/z.tar"]
    on_disk, in_bucket = ([f"{root}/{name}" for name in names] for root in ("/data", "s3://bucket"))
    assert (common_folder(on_disk), common_folder(in_bucket)) == ("/data/a", "s3://bucket/a")
    seen = [[seen_from(one, common_folder(all_of)) for one in all_of] for all_of in (on_disk, in_bucket)]
    assert seen[0] == seen[1] == ["b/x.tar", "c/d/y.tar", "b/z.tar"]
    assert common_folder(["s3://bucket/x.tar"]) == "s3://bucket"
    assert seen_from("s3://bucket/x.tar", "s3://bucket") == "x.tar"
    assert seen_from("s3://bucket/up/x.tar", "s3://bucket/a/b") == "../../up/x.tar"
    mixed = ["/data/a/x.tar", "s3://bucket/x.tar", "s3://other/x.tar", "hf://datasets/o/n@c/x.tar"]
    assert common_folder(mixed) == "/data/a"
    assert [seen_from(one, "/data/a") for one in mixed] == ["x.tar", *mixed[1:]]
    assert common_folder(mixed[1:]) == "/"
    assert [seen_from(one, "s3://bucket") for one in mixed] == ["/data/a/x.tar", "x.tar", *mixed[2:]]


def test_a_pattern_stands_for_what_is_there_as_on_disk(store, s3, tmp_path):
    names = ["b.tar", "a.tar", "a[0].tar", "sub/c.tar", "sub/d/e.tar", ".hidden.tar", "deep/d/f.tar"]
    for name in names:
        store.put(f"in/{name}", b"1")
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    for pattern in ("*.tar", "*/?.tar", "a[0].tar", "[ab].tar", "none-*", "none.tar", "*", "*/d/*.tar", ".*.tar", "s*"):
        seen = [
            [path.removeprefix(f"{root}/in/") for path in expand(f"{root}/in/{pattern}")] for root in (tmp_path, s3)
        ]
        assert seen[0] == seen[1], pattern
    assert is_folder(f"{s3}/in/sub")
    assert is_folder(s3)
    assert not is_folder(f"{s3}/in/b.tar")
    assert not is_folder(f"{s3}/in/none")
    for sizes in (False, True):
        trees = [[one.name for one in tree(f"{root}/in", sizes=sizes)] for root in (tmp_path, s3)]
        assert trees[0] == trees[1]


def test_empty_objects_that_mark_folders_are_no_files(store, object_server):
    import urllib.request

    for key in ("in/", "in/sub/"):
        put = urllib.request.Request(f"{object_server.url}/{store.bucket}/{key}", data=b"", method="PUT")
        urllib.request.urlopen(put).close()
    store.put("in/sub/a", b"1")
    assert [entry.key for entry in store.walk()] == ["in/sub/a"]
    assert list(store.names("in/")) == ["sub/"]
    assert [entry.key for entry in store.list("in/")] == []


def test_a_corpus_of_many_files_is_looked_at_in_its_order(store, s3, write_tar, jpeg, tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1))]).read_bytes()
    for number in range(20):
        store.put(f"{number:02d}.tar", tar)
    found = resolve_corpus([f"{s3}/{{00..19}}.tar"])
    assert [item.path for item in found] == [f"{s3}/{number:02d}.tar" for number in range(20)]
    with pytest.raises(UserError, match=rf"{s3}/00\.tar is named twice"):
        resolve_corpus([f"{s3}/*.tar", f"{s3}/x/../00.tar"])
    with pytest.raises(UserError, match=rf"nothing matches '{s3}/x-\*\.tar'"):
        resolve_corpus([f"{s3}/x-*.tar"])


def test_a_folder_is_fetched_once_and_again_when_it_changes(store, s3, object_server, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    for name in ("config.json", "model.safetensors", "notes.md"):
        store.put(f"m/{name}", name.encode())
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda: got.append(fetched_folder(f"{s3}/m", ["*.json", "*.safetensors"])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (folder,) = set(got)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_bytes() == b"config.json"
    assert object_server.requests["GET"] == 2
    (folder / "config.json").write_bytes(b"short")
    assert fetched_folder(f"{s3}/m", ["*.json", "*.safetensors"]) == folder
    assert (folder / "config.json").read_bytes() == b"config.json"
    store.put("m/config.json", b"another.js.")
    again = fetched_folder(f"{s3}/m", ["*.json", "*.safetensors"])
    assert again != folder
    assert (again / "config.json").read_bytes() == b"another.js."
    with pytest.raises(FileNotFoundError):
        fetched_folder(f"{s3}/none", ["*.json"])


def test_the_stores_library_is_loaded_where_a_bucket_is_used_alone():
    import subprocess
    import sys

    code = "import sys, jobs.prune_corpus, pipeline.corpus.resolve; print('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("url", ["", "nonsense", "127.0.0.1:9000", "http://host:port", "ftp://host"])
def test_an_endpoint_that_is_none_is_said(url, s3, monkeypatch):
    """The library panics over some of these."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    bucket.cache_clear()
    with pytest.raises(
        UserError, match=r"AWS_ENDPOINT_URL can't be used \(.*\): write it as http://HOST:PORT, or unset it$"
    ):
        Artifact(f"{s3}/out").read_job()


def test_half_of_a_key_is_said(s3, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket.cache_clear()
    with pytest.raises(UserError, match=r"its credentials are not complete .*: set both or none of AWS_ACCESS_KEY_ID"):
        Artifact(f"{s3}/out").read_job()


def test_a_wrong_clock_and_a_wrong_region_are_said(s3, object_server):
    for code, what in (("RequestTimeTooSkewed", "clock is wrong"), ("AuthorizationHeaderMalformed", "AWS_REGION")):
        object_server.faults = Faults(refuse=lambda *_, code=code: code)
        with pytest.raises(UserError, match=what):
            Artifact(f"{s3}/out").read_job()


def test_a_server_that_is_not_there_is_said_by_the_variable_that_names_it(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(RETRIES, "max_retries", 0)
    monkeypatch.setattr("pipeline.storage.bucket.PAUSES_SEC", ())
    bucket.cache_clear()
    with pytest.raises(UserError, match=r"its store does not answer; correct AWS_ENDPOINT_URL or wait \(.*\)$"):
        Artifact(f"{s3}/out").read_job()


def test_the_working_directory_says_nothing_about_an_address(s3):
    for name in ("none.tar", "none/*.tar"):
        with pytest.raises(UserError, match="none") as caught:
            resolve_corpus([f"{s3}/{name}"])
        assert "looked from" not in str(caught.value)
