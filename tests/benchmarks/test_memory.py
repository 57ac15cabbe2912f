"""The memory that benchmarks report is that of the process that they report it of."""

import os
import platform
import subprocess
import sys

import pytest

from benchmarks.memory import peak_bytes, resident_bytes

MIB = 2**20
CHILD = "from benchmarks.memory import peak_bytes, resident_bytes; print(peak_bytes(), resident_bytes())"


def test_what_the_parent_held_is_not_the_childs():
    held = bytearray(b"x") * (256 * MIB)
    assert peak_bytes() >= resident_bytes() - MIB > 256 * MIB
    output = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True).stdout
    del held
    peak, resident = map(int, output.split())
    assert resident - MIB <= peak < 128 * MIB


FAULTS = """
import resource
def work():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
size = 64 << 20
b"x" * size
as_it_is = work()
from benchmarks.memory import keep_freed_memory
keep_freed_memory()
b"x" * size
print(as_it_is, work())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such options")
def test_memory_that_is_kept_is_not_asked_of_the_kernel_again():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True, env=environment)
    as_it_is, kept = map(int, done.stdout.split())
    assert as_it_is > 4 * (64 * MIB) / os.sysconf("SC_PAGE_SIZE") * 0.9
    assert kept < as_it_is / 10
