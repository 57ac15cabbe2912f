"""Only the payloads that are asked for are read."""

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifact.tables import GROUP_BYTES, write_features
from pipeline.loader.payloads import GAP_BYTES, payloads_in_parquet, payloads_in_tar
from schemas.columns import rows_of
from schemas.selections import PayloadRow
from schemas.tables import FEATURES, SELECTIONS

SIZE = 1_000_000
IDS = [f"{number:064x}" for number in range(8)]
BUFFER = io.DEFAULT_BUFFER_SIZE
PAYLOADS = [np.random.default_rng(n).bytes(SIZE) for n in range(len(IDS))]
READERS = {"features/shard-00000000.tar": payloads_in_tar, "features/part-00000000.parquet": payloads_in_parquet}


class CountingFile(io.FileIO):
    """A file that counts the bytes it gives, and how often it is asked."""

    given = asked = 0

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer) or 0
        self.given, self.asked = self.given + count, self.asked + 1
        return count


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """A shard of eight payloads in both forms."""
    root = tmp_path_factory.mktemp("shard")
    rows = [
        {"image_id": image_id, "num_kept": 1, "width": 1, "dtype": "int8", "features": payload}
        for image_id, payload in zip(IDS, PAYLOADS, strict=True)
    ]
    selections = pa.Table.from_pylist([{"image_id": image_id} for image_id in IDS], SELECTIONS)
    write_features(root, 0, selections, pa.Table.from_pylist(rows, FEATURES), ("webdataset", "parquet"))
    return root


def rows_at(shard: Path, wanted: list[int]) -> dict[int, PayloadRow]:
    rows = rows_of(PayloadRow, pq.read_table(shard / "payloads" / "part-00000000.parquet"))
    return {place: rows[place] for place in wanted}


@pytest.mark.parametrize("wanted", [[], [0], [7], [2, 5], [5, 2], list(range(8))])
@pytest.mark.parametrize("name", READERS)
def test_wanted_payloads_come_in_the_order_of_the_file(shard, name, wanted):
    with open(shard / name, "rb") as stream:
        found = [(row.image_id, data) for row, data in READERS[name](stream, rows_at(shard, wanted))]
    assert found == [(IDS[n], PAYLOADS[n]) for n in sorted(wanted)]


@pytest.mark.parametrize(("wanted", "reads"), [([0], 1), ([7], 1), ([2, 5], 2), ([2, 3, 4], 1)])
def test_of_a_tar_nothing_is_read_but_wanted_payloads_and_neighbours_at_once(shard, wanted, reads):
    file = CountingFile(os.fspath(shard / "features/shard-00000000.tar"))
    with io.BufferedReader(file) as stream:
        assert len(list(payloads_in_tar(stream, rows_at(shard, wanted)))) == len(wanted)
    assert len(wanted) * SIZE <= file.given <= len(wanted) * SIZE + (len(wanted) - 1) * GAP_BYTES + BUFFER
    assert file.asked <= 2 * reads


@pytest.mark.parametrize("wanted", [[0], [7], [2, 5]])
def test_row_groups_without_a_wanted_image_are_not_read(shard, wanted):
    path = shard / "features/part-00000000.parquet"
    groups = pq.ParquetFile(path).metadata
    assert groups.num_row_groups == len(IDS), f"each is as large as {GROUP_BYTES} bytes"
    file = CountingFile(os.fspath(path))
    with io.BufferedReader(file) as stream:
        assert len(list(payloads_in_parquet(stream, rows_at(shard, wanted)))) == len(wanted)
    assert len(wanted) * SIZE <= file.given <= len(wanted) * SIZE * 1.01 + 64 * BUFFER


def test_a_tar_that_was_cut_short_gives_what_it_has(shard, tmp_path):
    """It is refused by its sha256, not by an end of its bytes."""
    cut = tmp_path / "cut.tar"
    cut.write_bytes((shard / "features/shard-00000000.tar").read_bytes()[: SIZE // 2])
    with open(cut, "rb") as stream:
        ((_, data),) = payloads_in_tar(stream, rows_at(shard, [0]))
    assert data == PAYLOADS[0][: len(data)] != PAYLOADS[0]
