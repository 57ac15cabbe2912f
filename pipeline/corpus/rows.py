"""Rows of Arrow tables as samples: which columns are read, and what an image column may hold.

An image is a struct with `bytes` and `path` as Hugging Face `datasets` writes it, encoded bytes, or the path of a file.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.corpus.fetch import inspect
from pipeline.corpus.reading import Reading
from pipeline.corpus.record import leaves, take_image
from pipeline.corpus.sample import ScanUnit, is_unicode, keys_instead, named_in, read_prompts
from pipeline.errors import UserError
from schemas.samples import Sample

MAX_NAMES = 12  # of columns that a message names
# Where the bytes of a row lie: `offset`, `size` and `within` of its place.
PlaceOf = Callable[[int, pa.Array], tuple[int, int | None, str | None]]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that are read of a table."""

    bytes: str | None  # that holds encoded bytes; a field of a struct as `column.field`
    path: str | None  # that holds names of files
    record: tuple[str, ...]  # that prompts are read from
    others: tuple[str, ...]  # told where there are no prompts

    @classmethod
    def of(cls, schema: pa.Schema, reading: Reading, path: str) -> "Columns":
        """Find them.

        Raises:
            UserError: there is no column of images.
        """
        key = reading.image_key
        if key not in schema.names:
            names = ", ".join(schema.names[:MAX_NAMES]) + (", ..." if len(schema.names) > MAX_NAMES else "")
            raise UserError(
                f"--corpus: {path} has no column {key!r}; its columns are {names}: say with --image-column which of "
                "them holds the images"
            )
        asked = {key, *reading.columns}
        twice = next((name for name in schema.names if name in asked and schema.names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"--corpus: {path} has two columns {twice!r}; give them names of their own")
        kind = schema.field(key).type
        record = tuple(name for name in reading.columns if name in schema.names and name != key)
        others = tuple(name for name in schema.names if name != key)
        if pa.types.is_struct(kind):
            fields = {field.name: field.type for field in kind}
            held = f"{key}.bytes" if _is_bytes(fields.get("bytes")) else None
            named = f"{key}.path" if _is_text(fields.get("path")) else None
            if held or named:
                return cls(held, named, record, others)
        elif _is_bytes(kind):
            return cls(key, None, record, others)
        elif _is_text(kind):
            return cls(None, key, record, others)
        raise UserError(
            f"--corpus: {path}: its column {key!r} holds {str(kind)[:80]}; an image is a struct of bytes and path, "
            "encoded bytes, or the path of a file, and a prompt is about one image"
        )

    @property
    def read(self) -> list[str]:
        """All that are read."""
        return [*filter(None, (self.bytes, self.path)), *self.record]


def _is_bytes(kind: pa.DataType | None) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType | None) -> bool:
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def samples_of(
    unit: ScanUnit,
    reading: Reading,
    columns: Columns,
    first: int,
    held: pa.Array | None,
    named: pa.Array | None,
    records: pa.RecordBatch,
    place_of: PlaceOf,
) -> Iterator[Sample]:
    """The samples of a batch of rows.

    Args:
        unit: of the input.
        reading: what the user says of the corpus.
        columns: that were read.
        first: number of the first row.
        held: encoded bytes of each row; None: the table has none.
        named: path of each row; None: the table has none.
        records: what prompts are read from.
        place_of: of a row of the batch, by its number in the batch.
    """
    for number, record in enumerate(records.to_pylist()):
        row = first + number
        name = f"{unit.name}@{row}"
        sample = Sample(input=unit.input, sample=row, source=name)
        sample.prompts, sample.named = read_prompts(record, name, reading), named_in(columns.record, reading)
        if not sample.prompts:
            sample.keys = keys_instead(dict.fromkeys(columns.others))
        path = None if named is None else named[number].as_py()
        data = None if held is None else held[number].as_buffer()
        if data is None:
            take_image(sample, unit, path, reading, where=f"{unit.path}, row {row}")
        else:
            found = inspect(io.BytesIO(data))
            if isinstance(path, str) and path and is_unicode(path) and not leaves(path):
                sample.source = f"{name}/{path}"
            sample.path = unit.path
            sample.offset, sample.size, sample.within = place_of(number, held)
            sample.size = found.size
            sample.image_id, sample.width, sample.height = found.image_id, found.width, found.height
        yield sample
