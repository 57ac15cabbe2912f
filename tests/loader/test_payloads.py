"""Only the payloads that are asked for are read."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.loader.payloads import payloads_in_parquet, payloads_in_tar

SIZE = 1_000_000
IDS = [f"{number:064x}" for number in range(8)]
BUFFER = 2 * io.DEFAULT_BUFFER_SIZE  # what a buffered stream may read around a header
PAYLOADS = {image_id: np.random.default_rng(n).bytes(SIZE) for n, image_id in enumerate(IDS)}


class CountingFile(io.FileIO):
    """A file that counts the bytes it gives."""

    given = 0

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer) or 0
        self.given += count
        return count


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for image_id, payload in PAYLOADS.items():
            for name, data in ((f"{image_id}.features.safetensors", payload), (f"{image_id}.json", b"{}")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "part.parquet"
    table = pa.table({"image_id": IDS, "num_kept": [1] * len(IDS), "features": list(PAYLOADS.values())})
    pq.write_table(table, path, row_group_size=2, compression="none", use_dictionary=False)
    return path


@pytest.mark.parametrize("wanted", [[], [0], [7], [2, 5], list(range(8))])
@pytest.mark.parametrize(("form", "read"), [("tar", payloads_in_tar), ("parquet", payloads_in_parquet)])
def test_wanted_payloads_come_in_the_order_of_the_file(request, form, read, wanted):
    with open(request.getfixturevalue(form), "rb") as stream:
        found = list(read(stream, {IDS[n] for n in wanted}))
    assert found == [(IDS[n], PAYLOADS[IDS[n]]) for n in wanted]


def test_what_is_not_there_is_not_given(tar, parquet):
    for path, read in ((tar, payloads_in_tar), (parquet, payloads_in_parquet)):
        with open(path, "rb") as stream:
            assert [image_id for image_id, _ in read(stream, {IDS[1], "ff" * 32})] == [IDS[1]]


@pytest.mark.parametrize("wanted", [[0], [7], [2, 5]])
def test_other_payloads_of_a_tar_are_not_read(tar, wanted):
    file = CountingFile(os.fspath(tar))
    with io.BufferedReader(file) as stream:
        assert len(list(payloads_in_tar(stream, {IDS[n] for n in wanted}))) == len(wanted)
    passed = 2 * (max(wanted) + 1)  # members up to the last wanted one
    assert len(wanted) * SIZE <= file.given <= len(wanted) * SIZE + passed * BUFFER
    assert file.given < tar.stat().st_size * 0.5


def test_row_groups_without_a_wanted_image_are_not_read(parquet):
    file = CountingFile(os.fspath(parquet))
    with io.BufferedReader(file) as stream:
        assert len(list(payloads_in_parquet(stream, {IDS[4], IDS[5]}))) == 2
    assert 2 * SIZE <= file.given < 3 * SIZE
