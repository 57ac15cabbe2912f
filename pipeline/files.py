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
        UserError: no space, no permission, a read-only or over-quota file system.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise cannot_write(path, error.errno) from error


def cannot_write(path: Path, error_number: int) -> UserError:
    """What to tell about an output that can't be written."""
    return UserError(
        f"{path} can't be written: {os.strerror(error_number)}; nothing half-written is left; "
        "make room or mend it, then run the same command again to resume"
    )


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success flush it to disk and rename it to `path`.

    Two writers of the same path never disturb each other: names are unique, the last rename wins.

    Raises:
        UserError: no space, no permission, a read-only or over-quota file system.
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
