"""Thumbnails of a corpus's images, read again from where its index says they lie."""

import base64
import io
from collections.abc import Callable, Iterator, Mapping

from PIL import Image

from pipeline.artifact.index import Index
from pipeline.corpus.decode import DecodeError, decode_image
from pipeline.corpus.fetch import Fetcher
from schemas.wording import counted

SIDES = (320, 240, 160, 96)  # longest side, pixels
QUALITIES = (85, 70, 50, 30)  # of JPEG
_TOLD_EVERY = 100

Thumbnail = tuple[str | None, str | None]  # a data URL, or why there is none


def thumbnails(
    shards: Mapping[str, int], index: Index | None, most: int, say: Callable[[str], None]
) -> dict[str, Thumbnail]:
    """A thumbnail of each image in at most `most` bytes, or why there is none.

    Each image is proven to be the one that was indexed. Those of one file are read in the order in which they lie.

    Args:
        shards: the shard of each image, by its id.
        index: of the pruned artifact; None where it is gone.
        most: bytes of a data URL.
        say: takes one line for the user.
    """
    if index is None:
        return dict.fromkeys(shards, (None, "the artifact has lost its _index, which says where its pictures lie"))
    places = index.places(shards)
    made: dict[str, Thumbnail] = dict.fromkeys(shards, (None, "the index does not hold it"))
    order = sorted(places.items(), key=lambda one: (one[1].path, one[1].within or "", one[1].offset or 0, one[0]))
    with Fetcher() as fetcher:
        for number, (image_id, place) in enumerate(order):
            if number and number % _TOLD_EVERY == 0:
                say(f"{number:,} of {counted(len(order), 'pictures')} read")
            try:
                small = thumbnail(decode_image(fetcher.read(place, image_id)), most)
            except DecodeError as error:
                made[image_id] = None, str(error)
                continue
            except MemoryError:
                made[image_id] = None, "there was no memory left to decode it"
                continue
            made[image_id] = small, None if small else f"no thumbnail of it takes as little as {most:,} bytes"
    return made


def thumbnail(image: Image.Image, most: int) -> str | None:
    """The picture as a data URL of at most so many bytes, as large and as good as fits; None where nothing does."""
    for data in _smaller_and_smaller(image):
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        if len(url) <= most:
            return url
    return None


def _smaller_and_smaller(image: Image.Image) -> Iterator[bytes]:
    small = image.copy()
    for side in SIDES:
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=quality, optimize=True)
            yield stream.getvalue()
