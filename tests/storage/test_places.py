"""Locations: the store and the key of each, what a pattern stands for, what a manifest means by a name."""

from pathlib import Path

import pytest

from pipeline.storage.places import at, beside, expand


@pytest.mark.parametrize(
    "location", ["a.tar", "./b/a.tar", "b/../a.tar", "b//a.tar", "b/..", ".", "b/", "..a", "link/../a.tar"]
)
def test_a_location_and_its_store_and_key_name_the_same_place(location, tmp_path):
    """`..` stays where it is: behind a link it leads elsewhere than the text says."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    for name in ("a.tar", "..a", "b/a.tar", "elsewhere/a.tar"):
        (tmp_path / name).write_text(name)
    store, key = at(f"{tmp_path}/{location}")
    named = Path(store.locate(key))
    assert named.samefile(f"{tmp_path}/{location}")
    if named.is_file():
        assert store.read(key) == Path(f"{tmp_path}/{location}").read_bytes()


def test_a_pattern_stands_for_what_is_there_in_order(tmp_path):
    for name in ("b.tar", "a.tar", "a[0].tar", "sub/c.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern: str) -> list[str]:
        return [str(Path(path).relative_to(tmp_path)) for path in expand(f"{tmp_path}/{pattern}")]

    assert names("*.tar") == ["a.tar", "a[0].tar", "b.tar"]
    assert names("*/?.tar") == ["sub/c.tar"]
    assert names("a[0].tar") == ["a[0].tar"]
    assert names("[ab].tar") == ["a.tar", "b.tar"]
    assert names("none-*.tar") == []
    assert names("none.tar") == ["none.tar"]


def test_a_name_beside_a_file():
    assert beside("/a/m.jsonl", "x/1.jpg") == "/a/x/1.jpg"
    assert beside("/a/m.jsonl", "../1.jpg") == "/a/../1.jpg"
    assert beside("/a/m.jsonl", "/b/1.jpg") == "/b/1.jpg"
