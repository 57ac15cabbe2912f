"""Committed files damaged afterwards: found by a rerun and by --verify, their shards done again, no other touched."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_tools import DATA_FOLDERS, NUM_SHARDS, RUN_SETTINGS, commits, data_of, differing

from pipeline.artifact.artifact import Artifact

COMMIT = "_commits/{:08d}.json"
TABLES = (
    "selections/part-{:08d}.parquet",
    "prompts/part-{:08d}.parquet",
    "errors/part-{:08d}.parquet",
    "features/part-{:08d}.parquet",
    "features/shard-{:08d}.tar",
    "payloads/part-{:08d}.parquet",
)
Harm = Callable[[Path], None]


def flip_a_byte(path: Path) -> None:
    """Same size, other content, as a program that writes to the wrong file would leave it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


def rot_a_byte(path: Path) -> None:
    """Same size and time of change, as a failing disk would leave it."""
    status = path.stat()
    flip_a_byte(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xff" * 200)


def hold_no_object(path: Path) -> None:
    path.write_bytes(b"[]")


def delete(path: Path) -> None:
    path.unlink()


ANY_RERUN_FINDS = [
    *((COMMIT, harm) for harm in (cut_in_half, empty, fill_with_garbage, hold_no_object, delete)),
    *((table, harm) for table in TABLES for harm in (flip_a_byte, cut_in_half, delete)),
]
ONLY_THE_BYTES_TELL = [(table, rot_a_byte) for table in TABLES]


class Damaged:
    """A copy of an output with one harm a shard: shard 0 suffers the first, shard 1 the second, ..."""

    def __init__(self, calm: Path, root: Path, harms: list[tuple[str, Harm]]) -> None:
        self.root = root
        shutil.copytree(calm, root)
        self.harmed = {shard: (name.format(shard), harm) for shard, (name, harm) in enumerate(harms)}
        for name, harm in self.harmed.values():
            harm(root / name)
        self._before = self._inodes()

    def _inodes(self) -> dict[str, int]:
        return {str(p.relative_to(self.root)): p.stat().st_ino for p in self.root.rglob("*") if p.is_file()}

    def rewritten(self) -> set[str]:
        """Data files and commit records that are other files than before."""
        changed = {name for name, inode in self._inodes().items() if self._before.get(name) != inode}
        return {name for name in changed if name.startswith((*DATA_FOLDERS, "_commits"))}

    def files_of_the_harmed(self) -> set[str]:
        return {name.format(shard) for shard in self.harmed for name in (*TABLES, COMMIT)}


@pytest.mark.parametrize(("harms", "verify"), [(ANY_RERUN_FINDS, False), (ONLY_THE_BYTES_TELL, True)])
def test_damaged_shards_are_named_and_done_again_and_no_other(harms, verify, prune, made_corpus, calm, tmp_path):
    damaged = Damaged(calm, tmp_path / "out", harms)
    said = prune(damaged.root, corpus=(made_corpus,), **RUN_SETTINGS["prune"], verify=verify)
    again = [line for line in said if "is done again" in line]
    for shard, (name, harm) in damaged.harmed.items():
        named = [line for line in again if line.startswith(f"shard {shard:08d} ")]
        if (name, harm) == (COMMIT.format(shard), delete):  # a shard without a record never happened
            assert named == []
        else:
            assert len(named) == 1, (name, harm)
            assert name in named[0]
    assert len(again) == len(harms) - sum(case == (COMMIT, delete) for case in harms)
    assert damaged.rewritten() == damaged.files_of_the_harmed()
    assert differing(data_of(damaged.root), data_of(calm)) == []
    assert commits(damaged.root) == NUM_SHARDS
    assert (damaged.root / "_SUCCESS").exists()


def test_a_rerun_trusts_size_and_time_of_change(prune, made_corpus, calm, tmp_path):
    """The limit of a rerun without --verify, on purpose: it reads no file whose size and time are as committed."""
    damaged = Damaged(calm, tmp_path / "out", [("selections/part-{:08d}.parquet", rot_a_byte)])
    said = prune(damaged.root, corpus=(made_corpus,), **RUN_SETTINGS["prune"])
    assert any("nothing to do" in line for line in said)
    (record,) = [record for record in Artifact(damaged.root).commits() if record.shard == 0]
    problem = Artifact(damaged.root).problem_of(record, deep=True)
    assert problem is not None
    assert "sha256" in problem


def test_verify_writes_nothing_when_all_is_well(prune, made_corpus, calm, tmp_path):
    damaged = Damaged(calm, tmp_path / "out", [])
    said = prune(damaged.root, corpus=(made_corpus,), **RUN_SETTINGS["prune"], verify=True)
    assert any(f"verified {NUM_SHARDS}" in line for line in said)
    assert damaged.rewritten() == set()
