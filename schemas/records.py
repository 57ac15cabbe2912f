"""The JSON records of an artifact: job, commit record, manifest. Plain JSON, validated on the way in."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from schemas.tables import SCHEMA_VERSION


class RecordError(ValueError):
    """A record does not have the form it must have: truncated or altered."""


class OtherVersionError(ValueError):
    """A job record of another schema version: nothing else in its folder can be relied on."""


def to_json(record: Any) -> bytes:
    """Stable bytes of a record: sorted keys, two spaces, one newline at the end."""
    data = record if isinstance(record, Mapping) else asdict(record)
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _parse(text: bytes | str, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise RecordError(f"{where} is not valid JSON ({error}); it was truncated or altered") from error
    if not isinstance(data, dict):
        raise RecordError(f"{where} holds {type(data).__name__}, expected a JSON object")
    return data


def _take_dict(data: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> dict[str, Any]:
    """An object whose values are all of one kind."""
    taken: dict[str, Any] = _take(data, key, dict, where)
    for name, value in taken.items():
        if not isinstance(value, kind):
            raise RecordError(f"{where}: {key}.{name} is {value!r}, expected {kind}")
    return taken


def _take(data: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in data:
        raise RecordError(f"{where} has no {key!r}; it was truncated, altered or written by another version")
    if not isinstance(data[key], kind):
        raise RecordError(f"{where}: {key!r} is {data[key]!r}, expected {kind}")
    return data[key]


@dataclass(frozen=True)
class FileEntry:
    """One committed file: where it lies under the artifact's root, and what it must contain."""

    path: str  # relative to the artifact's root, "/" between parts
    rows: int
    size_bytes: int
    tag: str  # of the store, as written; another one means: compare the sha256 before trusting the file
    sha256: str


@dataclass(frozen=True)
class CommitRecord:
    """One committed unit of work. Without this record the shard never happened."""

    shard: int
    files: dict[str, FileEntry]  # by table name ("selections", "features.webdataset", ...)
    counts: dict[str, int]  # input samples and prompts per status
    seconds: dict[str, float] = field(default_factory=dict)  # per stage
    began: float | None = None  # seconds since the epoch: first model batch
    committed: float | None = None
    sources: dict[str, str] = field(default_factory=dict)  # files of another artifact this was made from -> sha256
    device: str | None = None  # that the model ran on: "cuda", "cpu" or "server"; informative
    batch_size: int | None = None  # that it was made with: less than asked for where memory ran out; None: no model ran

    @classmethod
    def from_json(cls, text: bytes | str, where: str) -> "CommitRecord":
        """Parse and check a commit record.

        Raises:
            RecordError: truncated or altered record, or a path that leaves the artifact.
        """
        data = _parse(text, where)
        files = {}
        for name, entry in _take(data, "files", dict, where).items():
            if not isinstance(entry, dict):
                raise RecordError(f"{where}: files.{name} is {entry!r}, expected an object")
            path = _take(entry, "path", str, where)
            if path.startswith("/") or ".." in path.split("/"):
                raise RecordError(f"{where}: file path {path!r} leaves the artifact's folder")
            files[name] = FileEntry(
                path=path,
                rows=_take(entry, "rows", int, where),
                size_bytes=_take(entry, "size_bytes", int, where),
                tag=_take(entry, "tag", str, where),
                sha256=_take(entry, "sha256", str, where),
            )
        return cls(
            shard=_take(data, "shard", int, where),
            files=files,
            counts=_take_dict(data, "counts", int, where),
            seconds=_take_dict(data, "seconds", (int, float), where),
            began=data.get("began"),
            committed=data.get("committed"),
            sources=_take_dict(data, "sources", str, where),
            device=data.get("device"),
            batch_size=data.get("batch_size"),
        )


@dataclass(frozen=True)
class FailureRecord:
    """Why a shard was given up. The record goes when the shard is committed."""

    shard: int
    time: float  # seconds since the epoch
    status: str  # as in the outcome of the shard
    stage: str
    message: str  # a sentence; the traceback follows where there is one

    @classmethod
    def from_json(cls, text: bytes | str, where: str) -> "FailureRecord":
        """Parse and check the record of a failure.

        Raises:
            RecordError: truncated or altered record.
        """
        data = _parse(text, where)
        return cls(
            shard=_take(data, "shard", int, where),
            time=_take(data, "time", (int, float), where),
            status=_take(data, "status", str, where),
            stage=_take(data, "stage", str, where),
            message=_take(data, "message", str, where),
        )


@dataclass(frozen=True)
class OwnerRecord:
    """`_lock`: the process that works on an artifact; empty when none does. One that was killed stays named."""

    process: int
    host: str
    began: float  # seconds since the epoch

    @classmethod
    def from_json(cls, text: bytes | str, where: str) -> "OwnerRecord":
        """Parse and check what a lock says of its owner.

        Raises:
            RecordError: it says nothing of this form.
        """
        data = _parse(text, where)
        return cls(
            process=_take(data, "process", int, where),
            host=_take(data, "host", str, where),
            began=_take(data, "began", (int, float), where),
        )

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class JobRecord:
    """`_job.json`: what was asked for, of which model, by which code, where. Written before anything else."""

    kind: str  # "prune", "answer" or "grade"
    schema_version: int
    settings: dict[str, Any]  # resolved settings that decide the output's bytes
    model: dict[str, Any]  # identity of the model, see pipeline/families/checkpoint.py
    environment: dict[str, str]  # versions, hardware and places of the first run; informative
    notes: list[str] = field(default_factory=list)  # what was resolved in another way than asked, and why
    resolved: dict[str, Any] = field(default_factory=dict)  # what "auto" came to; chosen once, in force ever after

    @classmethod
    def from_json(cls, text: bytes | str, where: str) -> "JobRecord":
        """Parse and check `_job.json`.

        Raises:
            RecordError: truncated or altered record.
            OtherVersionError: a record of another schema version.
        """
        data = _parse(text, where)
        version = _take(data, "schema_version", int, where)
        if version != SCHEMA_VERSION:
            raise OtherVersionError(f"{where} has schema version {version}, expected {SCHEMA_VERSION}")
        return cls(
            kind=_take(data, "kind", str, where),
            schema_version=version,
            settings=_take(data, "settings", dict, where),
            model=_take(data, "model", dict, where),
            environment=_take(data, "environment", dict, where),
            notes=_take(data, "notes", list, where),
            resolved=_take(data, "resolved", dict, where),
        )

    def differences(self, other: "JobRecord") -> list[str]:
        """What would make the two jobs write different bytes, a line each; empty when they are the same job."""
        lines = []
        if self.kind != other.kind:
            lines.append(f"kind: {self.kind} -> {other.kind}")
        if self.schema_version != other.schema_version:
            lines.append(f"schema_version: {self.schema_version} -> {other.schema_version}")
        for title, mine, theirs in (
            ("", self.settings, other.settings),
            ("model.", self.model, other.model),
        ):
            lines += _differences(title, mine, theirs)
        return lines


def _shown(value: Any) -> str:
    """A setting in a few words: of what another job wrote, which holds all settings of that job, how it was begun."""
    if isinstance(value, Mapping):
        return f"the output of a job with tokens {value['tokens']!r}" if "tokens" in value else f"{len(value)} settings"
    return repr(value)


def _differences(title: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted(mine.keys() | theirs.keys()):
        old, new = mine.get(key), theirs.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differences(f"{title}{key}.", old, new)
        elif old != new:
            lines.append(f"{title}{key}: {_shown(old)} -> {_shown(new)}")
    return lines
