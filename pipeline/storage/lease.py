"""Who may write to a place that has no locks: a lease, which its owner renews, and others take over when he does not.

The lease is an object. Whoever writes it under the condition that it is still the one that was read owns it until
another one does. Clocks of machines differ, so nobody compares times: who waits for a lease to run out watches it, and
takes it over when he has seen the same one for as long as it says that it lives. Its owner renews it every third of
that, and counts from before his last renewal: he knows that it is lost no later than anybody can have taken it over.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Self

from pipeline.errors import UserError
from pipeline.storage.bucket import Bucket, Found
from pipeline.storage.store import HeldError, StorageError

LEASE_SEC = 60.0
RENEWALS = 3  # in the life of a lease
LOOKS = 20  # in the life of a lease that somebody waits for

_leases: "dict[str, Lease]" = {}  # those that this process owns


@dataclass(frozen=True)
class Body:
    """What the object says."""

    owner: str  # of itself
    nonce: str  # of this owner, in this run
    life_sec: float
    renewals: int = 0  # equal bytes have an equal tag, so no two writings are equal

    def to_json(self) -> bytes:
        """The bytes of the object."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Self | None":
        """What the object says; None where it was let go. What another version wrote is taken for a lease, too."""
        if not text:
            return None
        try:
            data = json.loads(text)
            return cls(str(data["owner"]), str(data["nonce"]), float(data["life_sec"]), int(data["renewals"]))
        except (ValueError, KeyError, TypeError):
            return cls("", "", LEASE_SEC)


@dataclass(frozen=True)
class Hold:
    """A lease as those who write under it know it; it can be sent to other processes."""

    key: str  # of the object in its bucket
    nonce: str

    def require(self, bucket: Bucket) -> None:
        """See that the lease is still the one that this hold is of.

        Raises:
            UserError: it is not, so nothing may be written.
        """
        lease = _leases.get(self.nonce)
        if lease is not None and lease.has_run_out:
            raise _lost(bucket, self.key, "it could not be renewed in time")
        try:
            body = Body.from_json(bucket.get(self.key).data)
        except FileNotFoundError:
            body = None
        if body is None or body.nonce != self.nonce:
            raise _lost(bucket, self.key, "it was let go" if body is None else "another process has taken it over")


def _lost(bucket: Bucket, key: str, why: str) -> UserError:
    where = bucket.locate(key.rpartition("/")[0])
    return UserError(
        f"{where} is not held by this job any more: {why}; nothing is written to it since; see that nobody else works "
        "on it, then run the same command again to resume"
    )


class Lease:
    """A lease that this process owns, from `take` to `let_go`."""

    def __init__(self, bucket: Bucket, key: str, owner: str) -> None:
        self._bucket, self._key = bucket, key
        self._body = Body(owner, uuid.uuid4().hex, LEASE_SEC)
        self._tag = ""
        self._since = 0.0  # when the writing began that gave the tag
        self._is_lost = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {bucket.locate(key)}", daemon=True)

    @property
    def hold(self) -> Hold:
        """What others need to write under it."""
        return Hold(self._key, self._body.nonce)

    @property
    def has_run_out(self) -> bool:
        """Whether somebody can have taken it over."""
        return self._is_lost or time.monotonic() - self._since >= self._body.life_sec

    def take(self, tell: Callable[[str], None]) -> None:
        """Become the owner; waits while it can't be told whether the one there lives.

        Args:
            tell: takes one line for the user.

        Raises:
            HeldError: its owner lives.
        """
        watched: str | None = None  # the tag of a lease whose owner may live
        until = 0.0  # then it has run out
        while True:
            found = self._look()
            body = Body.from_json(found.data) if found is not None else None
            if found is None or body is None:
                if self._write(found.tag if found is not None else None):
                    break
                continue  # somebody was quicker
            if watched is None:
                watched, until = found.tag, time.monotonic() + body.life_sec
                tell(
                    f"{self._bucket.locate(self._key)} names another process; whether that one lives shows within "
                    f"{body.life_sec:g} s"
                )
            elif watched != found.tag:
                raise HeldError(body.owner)
            elif time.monotonic() >= until:
                if self._write(found.tag):
                    break
                continue  # it was renewed at last, or somebody was quicker
            time.sleep(body.life_sec / LOOKS)
        _leases[self._body.nonce] = self
        self._thread.start()

    def _look(self) -> Found | None:
        try:
            return self._bucket.get(self._key)
        except FileNotFoundError:
            return None

    def _write(self, tag: str | None) -> bool:
        """Write it where nobody has (None) or where it has this tag; whether that was done."""
        began = time.monotonic()
        new = self._bucket.put_if(self._key, self._body.to_json(), tag)
        if new is not None:
            self._tag, self._since = new, began
        return new is not None

    def _renew(self) -> None:
        rest = self._body.life_sec / RENEWALS
        wait = rest
        while not self._ended.wait(wait) and not self.has_run_out:
            self._body = replace(self._body, renewals=self._body.renewals + 1)
            try:
                wait = rest if self._write(self._tag) else self._look_again()
            except StorageError:  # until it has run out it can still be renewed; after that, who writes is told
                wait = rest / 4

    def _look_again(self) -> float:
        """After a refusal: seconds until the next renewal. What refused can be our own, of which we were not told."""
        found = self._look()
        body = Body.from_json(found.data) if found is not None else None
        if found is None or body is None or body.nonce != self._body.nonce:
            self._is_lost = True
        else:
            self._tag = found.tag
        return 0.0

    def let_go(self) -> None:
        """Be the owner no longer, so that the next one need not wait."""
        self._ended.set()
        self._thread.join(self._body.life_sec)
        _leases.pop(self._body.nonce, None)
        with contextlib.suppress(StorageError):  # then it runs out by itself
            self._bucket.put_if(self._key, b"", self._tag)
