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
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success flush it to disk and rename it to `path`.

    Two writers of the same path never disturb each other: names are unique, the last rename wins.

    Raises:
        UserError: no space, no permission, a read-only or over-quota file system.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise UserError(
                f"{path} can't be written: {os.strerror(error.errno)}; nothing half-written is left; "
                "make room or mend it, then run the same command again to resume"
            ) from error
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def sha256_of(path: Path) -> str:
    """Lower-case hex sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
