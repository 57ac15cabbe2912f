"""The libraries within a report are the ones that its README names, unchanged, and may be put into a page."""

import hashlib
import re
from pathlib import Path

import pytest

VENDOR = Path(__file__).resolve().parents[2] / "pipeline" / "report" / "page" / "vendor"
ROWS = re.findall(r"^\| `([^`]+)` \| .* \| `([0-9a-f]{64})` \|", (VENDOR / "README.md").read_text(), re.M)


def test_every_library_is_named():
    assert {name for name, _ in ROWS} == {path.name for path in VENDOR.glob("*.js")}


@pytest.mark.parametrize(("name", "sha256"), ROWS)
def test_it_is_the_file_of_its_package(name, sha256):
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("path", sorted(VENDOR.glob("*.js")), ids=lambda path: path.name)
def test_it_can_be_put_into_a_page(path):
    """A page's own hash of a script is that of its text, in which no parser may find an end, or turn a line end."""
    text = path.read_bytes()
    assert not re.search(rb"</script|<script|<!--|\r", text, re.I)
    assert (VENDOR / f"{path.name.split('.')[0]}.LICENSE").read_text().startswith("Copyright")
