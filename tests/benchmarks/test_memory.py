"""The memory that benchmarks report is that of the process that they report it of."""

import subprocess
import sys

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
