"""Files that appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError

# The output's fault, not the shard's: trying again at once would not help.
_CANNOT_WRITE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a file system that can't be written from other errors.

    Raises:
        UserError: what the file system said; `passing` unless it is out of space, over quota, read-only or forbidden.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """What to tell about an output that can't be written."""
    told = UserError(
        f"{path} can't be written: {os.strerror(error.errno) if error.errno else error}; nothing half-written is left; "
        "make room or mend it, then run the same command again to resume"
    )
    told.passing = error.errno not in _CANNOT_WRITE
    return told


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success flush it to disk and rename it to `path`.

    Two writers of the same path never disturb each other: names are unique, the last rename wins.

    Raises:
        UserError: as `writing` does.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Add a line to a log. Raises as `new_file` does."""
    with writing(path), open(path, "a") as stream:
        stream.write(line + "\n")


def sha256_of(path: Path) -> str:
    """Lower-case hex sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
