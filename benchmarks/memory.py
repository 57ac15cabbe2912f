"""Memory of this process, as the kernel counts it."""

from pathlib import Path


def resident_bytes() -> int:
    """Now."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """At its peak since it began, or since it was reset; getrusage also counts what the parent held as it forked."""
    return _status_bytes("VmHWM")


def forget_peak() -> None:
    """The peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
