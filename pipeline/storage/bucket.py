"""Requests to a bucket of an object store that speaks S3's protocol: who repeats them, and what their failures mean.

Where the store is and who asks is told by the environment, as for every program that speaks S3: `AWS_ENDPOINT_URL`,
`AWS_REGION`, `AWS_ACCESS_KEY_ID` and the others, or by the role of the machine. Nothing of it is kept or sent on: each
process reads its own.

A request that is answered with a server's error is repeated by the library, as `RETRIES` says. What fails otherwise, an
answer that breaks off above all, is repeated here, as `PAUSES_SEC` says.
"""

import errno
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from pipeline.storage.paths import object_location
from pipeline.storage.store import StorageError

T = TypeVar("T")

RETRIES: Any = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=2), "base": 3},
}
PAUSES_SEC = (0.1, 0.4, 1.6)
OPTIONS: Any = {"connect_timeout": "5s", "timeout": "120s", "allow_http": True}  # HTTP where the endpoint's URL says so
WHOLE_BYTES = 64 << 20  # a larger file is sent in parts
PART_BYTES = 32 << 20
PARTS_AT_ONCE = 4
LISTED_AT_ONCE = 1000
_TOKEN = "zoo-prune-write"  # metadata of an object that was written under a condition: which call wrote it
_CODE = re.compile(r"(?:<Code>|\(code: )(\w+)")  # of an answer, or of a key in an answer about many
_SAID = 200  # characters of what the library says of a failure
_NO_BUCKET = "NoSuchBucket"
_WHY = {  # what to do about a refusal, by S3's codes
    "InvalidAccessKeyId": "its access key is not known there (InvalidAccessKeyId): correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "its secret key does not fit (SignatureDoesNotMatch): correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "its credentials have expired (ExpiredToken): renew them",
    "AccessDenied": "its credentials have no permission (AccessDenied): allow them to read, write, list and delete",
    "RequestTimeTooSkewed": "this machine's clock is wrong (RequestTimeTooSkewed): set it",
    "AuthorizationHeaderMalformed": "it lies in another region (AuthorizationHeaderMalformed): correct AWS_REGION",
    "PermanentRedirect": "it lies in another region (PermanentRedirect): correct AWS_REGION",
}


@dataclass(frozen=True, slots=True)
class Found:
    """An object, or a part of it, as it was answered."""

    size_bytes: int  # of all of it
    tag: str
    data: bytes = b""


class Bucket:
    """A bucket, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._check_endpoint()
        try:
            self._client = S3Store(name, client_options=OPTIONS, retry_config=RETRIES)
        except BaseError as error:
            why = f"its credentials are not complete ({_first_line(error)}): set both or none of AWS_ACCESS_KEY_ID and "
            raise self._error(errno.EACCES, f"{why}AWS_SECRET_ACCESS_KEY", "") from error
        self._is_there = False  # it has answered: what is not found then is an object

    def _check_endpoint(self) -> None:
        """Raise StorageError where the environment names no server that can be asked: a request would panic.

        The address of an object is made here, without asking anybody and with a key that is none.
        """
        nobody = S3Store(self.name, access_key_id="-", secret_access_key="-", client_options=OPTIONS)
        try:
            url = obstore.sign(nobody, "GET", "-", timedelta(seconds=1))
        except BaseError as error:
            url = _first_line(error)
        if not url.startswith(("http://", "https://")):
            why = f"AWS_ENDPOINT_URL can't be used ({url[:_SAID]}): write it as http://HOST:PORT, or unset it"
            raise self._error(errno.EINVAL, why, "")

    def locate(self, key: str) -> str:
        """The address of a key."""
        return object_location(self.name, key)

    def _ask(self, key: str, call: Callable[[], T]) -> T:
        """What a call of the library gives, which is repeated where that may help.

        Raises:
            FileNotFoundError: there is no such object.
            AlreadyExistsError, PreconditionError: the condition of the request does not hold.
            StorageError: the store does not do it.
        """
        pauses = iter(PAUSES_SEC)
        while True:
            try:
                answer = call()
            except FileNotFoundError as error:
                self._require_bucket(error)
                raise
            except (AlreadyExistsError, PreconditionError) as error:
                self._require_bucket(error)
                raise
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise self._refused(key, error) from error
            except ValueError as error:  # a control character, half a letter
                raise self._error(errno.ENOENT, "no object can be called so", key) from error
            except InvalidPathError as error:
                raise self._error(errno.EINVAL, f"a key there can't be used ({_first_line(error)})", key) from error
            except (BaseError, OSError) as error:
                if _code(error) in _WHY:
                    raise self._refused(key, error) from error
                if _code(error) == _NO_BUCKET:
                    self._require_bucket(error)
                pause = next(pauses, None)
                if pause is None:
                    why = f"its store does not answer; correct AWS_ENDPOINT_URL or wait ({_first_line(error)})"
                    raise self._error(errno.EIO, why, key) from error
                time.sleep(pause)
            else:
                self._is_there = True
                return answer

    def _require_bucket(self, error: BaseException) -> None:
        """Raise StorageError where it is not the object that is missing but the bucket."""
        code = _code(error)
        if self._is_there and code != _NO_BUCKET:
            return
        if code is None:  # an answer to HEAD says nothing
            try:
                obstore.list_with_delimiter(self._client, "no-key-begins-so")
            except (BaseError, OSError) as told:
                code = _code(told)
        if code == _NO_BUCKET:
            why = f"there is no bucket {self.name}: make it, or correct its name"
            raise self._error(errno.ENODEV, why, "") from error

    def _refused(self, key: str, error: BaseException) -> StorageError:
        code = _code(error)
        if code is None:  # as above
            try:
                obstore.get_range(self._client, key, start=0, length=1)
            except (BaseError, OSError) as told:
                code = _code(told)
        return self._error(errno.EACCES, _WHY.get(code or "AccessDenied", f"it is refused ({code})"), key)

    def _error(self, number: int, why: str, key: str) -> StorageError:
        return StorageError(number, why, self.locate(key))

    def head(self, key: str) -> Found | None:
        """Size and tag of an object, None where there is none."""
        try:
            return _found(self._ask(key, lambda: obstore.head(self._client, key)))
        except FileNotFoundError:
            return None

    def get(self, key: str, begin: int = 0, end: int | None = None, tag: str | None = None) -> Found:
        """An object, or its bytes from `begin` to before `end`, which lie in it.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it can't be read, or its tag is another one than `tag`.
        """
        options: Any = {} if tag is None else {"if_match": tag}
        if end is not None:
            options["range"] = (begin, end)

        def ask() -> Found:
            answer = obstore.get(self._client, key, options=options)
            return _found(answer.meta, bytes(answer.bytes()))

        try:
            return self._ask(key, ask)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.locate(key)) from error
        except PreconditionError as error:
            raise self._error(errno.ESTALE, "it was replaced while it was read", key) from error

    def put(self, key: str, data: bytes | Path) -> str:
        """Write an object, in place of another one; its tag.

        Args:
            key: of it.
            data: its bytes, or the file that holds them.
        """
        parts: Any = {"use_multipart": False}
        if isinstance(data, Path) and data.stat().st_size > WHOLE_BYTES:
            parts = {"use_multipart": True, "chunk_size": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
        elif isinstance(data, Path):
            data = data.read_bytes()
        content = data
        return _tag(self._ask(key, lambda: obstore.put(self._client, key, content, **parts)))

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """Write an object if there is none, or if the one that is there has this tag; its new tag, None if refused.

        What is refused can be the repetition of a request that was done, but whose answer got lost. So each call leaves
        a mark of its own in what it writes, and one that is refused looks for it.
        """
        token = uuid.uuid4().hex
        mode: Any = "create" if tag is None else {"e_tag": tag}
        marked: Any = {_TOKEN: token}
        while True:
            try:
                put = self._ask(
                    key,
                    lambda: obstore.put(self._client, key, data, mode=mode, use_multipart=False, attributes=marked),
                )
                return _tag(put)
            except FileNotFoundError:
                return None
            except (AlreadyExistsError, PreconditionError):
                try:
                    there = self._ask(key, lambda: obstore.get(self._client, key))
                except FileNotFoundError:
                    if tag is None:  # it went meanwhile
                        continue
                    return None
                return _tag(there.meta) if there.attributes.get(_TOKEN) == token else None

    def walk(self, prefix: str) -> Iterator[tuple[str, Found]]:
        """Every object under a prefix ("", or keys up to a "/"), in the order of keys, in one listing."""
        last: tuple[str, Found] | None = None
        for key, found in self._listed(prefix):
            if last is not None and not _is_mark(last, key):
                yield last
            last = key, found
        if last is not None:
            yield last

    def _listed(self, prefix: str) -> Iterator[tuple[str, Found]]:
        after: str | None = None
        stream: Any = None

        def more() -> Any:
            nonlocal stream
            if stream is None:
                stream = obstore.list(self._client, prefix or None, offset=after, chunk_size=LISTED_AT_ONCE)
            try:
                return next(stream, None)
            except BaseException:
                stream = None  # the next one goes on behind the last key that came
                raise

        while (chunk := self._ask(prefix, more)) is not None:
            for meta in chunk:
                after = meta["path"]
                if after.startswith(prefix):  # the library also gives what is called like the prefix without its "/"
                    yield after, _found(meta)

    def below(self, prefix: str) -> tuple[list[tuple[str, Found]], list[str]]:
        """The objects directly under a prefix, and the prefixes there, which end in "/"; in the order of keys."""
        answer = self._ask(prefix, lambda: obstore.list_with_delimiter(self._client, prefix or None))
        prefixes = sorted(f"{one}/" for one in answer["common_prefixes"])
        objects = sorted((meta["path"], _found(meta)) for meta in answer["objects"])
        marks = set(prefixes)
        objects = [
            (key, found)
            for key, found in objects
            if key.startswith(prefix) and (found.size_bytes or f"{key}/" not in marks)
        ]
        return objects, prefixes

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, those of them that are there."""
        for begin in range(0, len(keys), LISTED_AT_ONCE):
            some = list(keys[begin : begin + LISTED_AT_ONCE])
            self._ask(some[0], lambda some=some: obstore.delete(self._client, some))  # type: ignore[misc]


@lru_cache(maxsize=64)
def bucket(name: str) -> Bucket:
    """The bucket of a name, one object a process."""
    return Bucket(name)


def _is_mark(one: tuple[str, Found], following: str) -> bool:
    """Whether an object is one of those empty ones by which some programs mark a folder."""
    return not one[1].size_bytes and following.startswith(f"{one[0]}/")


def _found(meta: Any, data: bytes = b"") -> Found:
    return Found(meta["size"], _tag(meta), data)


def _tag(meta: Any) -> str:
    return str(meta.get("e_tag") or meta.get("version") or "")


def _code(error: BaseException) -> str | None:
    found = _CODE.search(str(error))
    return found[1] if found else None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:_SAID]
