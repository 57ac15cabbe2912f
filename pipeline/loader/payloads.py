"""The stored features of some images out of a file that holds those of a whole shard."""

from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import pyarrow.parquet as pq

from schemas.selections import PayloadRow

GAP_BYTES = 64 << 10  # between two payloads that are read at once: less than what another request would cost
RUN_BYTES = 8 << 20  # that are read at once, or one payload


def payloads_in_parquet(stream: BinaryIO, wanted: Mapping[int, PayloadRow]) -> Iterator[tuple[PayloadRow, bytes]]:
    """Each wanted row of the table `payloads`, which is given by its place there, and the payload; in this order.

    Row groups without a wanted image are not read.
    """
    file = pq.ParquetFile(stream)
    left = sorted(wanted, reverse=True)
    first = 0
    for group in range(file.num_row_groups):
        behind = first + file.metadata.row_group(group).num_rows
        if left and left[-1] < behind:
            features = file.read_row_group(group, ["features"])["features"]
            while left and left[-1] < behind:
                place = left.pop()
                yield wanted[place], features[place - first].as_py()
        first = behind


def payloads_in_tar(stream: BinaryIO, wanted: Mapping[int, PayloadRow]) -> Iterator[tuple[PayloadRow, bytes]]:
    """As `payloads_in_parquet`. Nothing is read but wanted payloads, and what little lies between neighbours."""
    for run in _runs([wanted[place] for place in sorted(wanted)]):
        begin = _offset(run[0])
        data = memoryview(_read(stream, begin, _offset(run[-1]) + run[-1].size_bytes - begin))
        for row in run:
            yield row, bytes(data[_offset(row) - begin :][: row.size_bytes])


def _offset(row: PayloadRow) -> int:
    assert row.offset is not None, "a shard with a tar says where its payloads begin"
    return row.offset


def _runs(rows: Sequence[PayloadRow]) -> Iterator[list[PayloadRow]]:
    """The rows in groups that are read at once."""
    run: list[PayloadRow] = []
    for row in rows:
        if run:
            gap = _offset(row) - _offset(run[-1]) - run[-1].size_bytes
            if gap > GAP_BYTES or _offset(row) + row.size_bytes - _offset(run[0]) > RUN_BYTES:
                yield run
                run = []
        run.append(row)
    if run:
        yield run


def _read(stream: BinaryIO, begin: int, size: int) -> bytearray:
    """These bytes, or fewer where the file ends; asked for at once, which `read` of a buffered stream would not do."""
    stream.seek(begin)
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size and (count := stream.readinto(view[done:])):  # type: ignore[attr-defined]  # streams have it
        done += count
    return data[:done]
