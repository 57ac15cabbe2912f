"""Memory of this process: as the kernel counts it, and how it is got."""

import ctypes
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def resident_bytes() -> int:
    """Now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """At its peak since it began, or since it was reset; getrusage also counts what the parent held as it forked."""
    return _status_bytes("VmHWM")


def forget_peak() -> None:
    """The peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def keep_freed_memory() -> None:
    """Let what large tensors leave stay with this process for the next, where the C library has options for it.

    glibc takes such memory from the kernel, page by page, and gives it back at once. Now all threads that start share
    one heap, large tensors come from it too, and up to 2 GiB of it stay when they are free.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, (1 << 31) - 1)):
            set_option(option, value)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
