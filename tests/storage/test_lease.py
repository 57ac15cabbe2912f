"""Leases: one owner at a time, whatever clocks, lost answers and dead owners do."""

import threading
import time

import pytest

from pipeline.errors import UserError
from pipeline.storage import HeldError
from pipeline.storage.bucket import Bucket
from pipeline.storage.lease import Body, Lease
from pipeline.storage.objects import ObjectStore
from tests.object_server import Faults

LIFE = 1.2


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("pipeline.storage.lease.LEASE_SEC", LIFE)


@pytest.fixture
def store(s3) -> ObjectStore:
    return ObjectStore.at(f"{s3}/out")


def abandoned(store: ObjectStore, owner: str = "the dead") -> str:
    """A lease whose owner has died without a word; its tag."""
    return Bucket(store.bucket).put("out/lock", Body(owner, "their nonce", LIFE).to_json())


def test_a_lease_that_nobody_renews_is_taken_over_once_it_has_run_out(store):
    abandoned(store)
    said: list[str] = []
    began = time.monotonic()
    with store.hold("lock", "me", said.append) as held:
        assert LIFE <= time.monotonic() - began < 4 * LIFE
        assert store.holder("lock") == "me"
        held.put("a", b"1")
    assert len(said) == 1
    assert "names another process" in said[0]


def test_a_lease_outlives_its_life_while_it_is_renewed(store):
    with store.hold("lock", "me") as held:
        with pytest.raises(HeldError, match="me"), store.hold("lock", "other"):
            pass
        time.sleep(2 * LIFE)
        with pytest.raises(HeldError, match="me"), store.hold("lock", "other"):
            pass
        held.put("a", b"1")


def test_nothing_is_written_under_a_lease_that_was_taken_over(store):
    """Also by processes that the owner has handed its store to, which have no clock for it."""
    with store.hold("lock", "me") as held:
        held.put("before", b"1")
        Bucket(store.bucket).put("out/lock", Body("the other", "another nonce", LIFE).to_json())
        writings = (
            lambda: held.put("a", b"1"),
            lambda: held.create("a", b"1"),
            lambda: held.delete("before"),
            lambda: held.clear(""),
        )
        for write in writings:
            with pytest.raises(UserError, match=r"s3://.*/out is not held by this job any more: another process"):
                write()
        with pytest.raises(UserError, match="not held by this job any more"), held.new_file("a") as new:
            new.path.write_bytes(b"1")
    assert [entry.key for entry in store.walk()] == ["before", "lock"]
    assert store.holder("lock") == "the other"


def test_an_owner_that_cannot_renew_stops_writing_when_it_has_run_out(store, object_server):
    with store.hold("lock", "me") as held:
        object_server.faults = Faults(refuse=lambda method, path: "AccessDenied" if method == "PUT" else None)
        time.sleep(1.5 * LIFE)
        object_server.faults = Faults()
        with pytest.raises(UserError, match="could not be renewed in time"):
            held.put("a", b"1")
    assert store.stat("a") is None


def test_a_renewal_whose_answer_is_lost_does_not_lose_the_lease(store, object_server, monkeypatch):
    monkeypatch.setattr("pipeline.storage.lease.LEASE_SEC", 3.0)
    own = Lease._write
    lost: list[str] = []

    def write(lease: Lease, tag: str | None) -> bool:
        done = own(lease, tag)
        if tag is not None and not lost:
            lease._tag = "of before"  # as if the answer with the new one had never come
            lost.append(tag)
        return done

    monkeypatch.setattr(Lease, "_write", write)
    with store.hold("lock", "me") as held:
        time.sleep(2.5)
        assert len(lost) == 1
        held.put("a", b"1")
        time.sleep(2.5)
        held.put("a", b"2")
    assert store.read("a") == b"2"
    assert store.holder("lock") == ""


def race(store: ObjectStore, names: list[str]) -> tuple[list[str], list[str]]:
    """Drivers that begin at once: those that held the store, and whom the others were told of."""
    held: list[str] = []
    told: list[str] = []
    begin, end = threading.Barrier(len(names)), threading.Barrier(len(names))

    def drive(name: str) -> None:
        begin.wait()
        try:
            with store.hold("lock", name):
                held.append(name)
                end.wait(60)  # until the others have been refused
        except HeldError as error:
            told.append(error.owner)
            end.wait(60)

    threads = [threading.Thread(target=drive, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return held, told


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_of_two_drivers_at_once_one_owns_it(store, rounds):
    for number in range(rounds):
        held, told = race(store, [f"{number}a", f"{number}b"])
        assert len(held) == 1
        assert told == held


def test_of_two_drivers_that_find_a_dead_owner_one_takes_over(store):
    abandoned(store)
    held, told = race(store, ["a", "b"])
    assert len(held) == 1
    assert told == held


def test_a_lease_of_another_version_is_not_taken_at_once(store):
    Bucket(store.bucket).put("out/lock", b"something else")
    began = time.monotonic()
    with store.hold("lock", "me"):
        assert time.monotonic() - began >= LIFE
