"""The stored features of some images out of a file that holds those of a whole shard."""

import tarfile
from collections.abc import Collection, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_SUFFIX = ".features.safetensors"


def payloads_in_parquet(stream: BinaryIO, image_ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The image id and the payload of each wanted image, in the order of the file.

    The features of a row group without any wanted image are not read.
    """
    file = pq.ParquetFile(stream)
    wanted = pa.array(sorted(image_ids), pa.string())
    for group in range(file.num_row_groups):
        found = pc.is_in(file.read_row_group(group, ["image_id"])["image_id"], value_set=wanted)
        if not pc.any(found).as_py():
            continue
        table = file.read_row_group(group, ["image_id", "features"]).filter(found)
        for image_id, payload in zip(table["image_id"], table["features"], strict=True):
            yield image_id.as_py(), payload.as_py()


def payloads_in_tar(stream: BinaryIO, image_ids: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The image id and the payload of each wanted image, in the order of the tar.

    Of other members only the headers are read, and nothing behind the last wanted one.
    """
    left = len(image_ids)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        while left and (member := archive.next()) is not None:
            image_id = member.name.removesuffix(_SUFFIX)
            if member.name.endswith(_SUFFIX) and image_id in image_ids:
                content = archive.extractfile(member)
                assert content is not None, "regular members have a stream"
                yield image_id, content.read()
                left -= 1
