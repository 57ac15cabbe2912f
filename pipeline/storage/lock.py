"""One job a folder: a lock that goes with the process that holds it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.files import writing


@contextmanager
def hold(root: Path) -> Iterator[None]:
    """Hold a folder, made if need be; the lock goes with this process, however it ends.

    Raises:
        UserError: another live job holds it, or the file system can't lock or be written.
    """
    path = root / "_lock"
    with writing(path):
        root.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a+")  # noqa: SIM115  # closed below, after the block of the caller
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise UserError(
                    f"--output {root} can't be locked: {error.strerror}; its file system must be mounted with "
                    "locking, or choose an --output on another one"
                ) from error
            stream.seek(0)
            owner = stream.read().strip() or "another process"
            raise UserError(f"--output {root} is in use by {owner}; wait for it, or choose another --output") from error
        with writing(path):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            stream.flush()
        yield
