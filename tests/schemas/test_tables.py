"""The tables' schemas as they were written down first: names, types and order are what every reader relies on."""

import pyarrow as pa
import pytest

from schemas.tables import ASKED, ERRORS, FEATURES, PAYLOADS, PROMPTS, SELECTIONS

_SEGMENT = (
    *("first", "tile", "rows", "cols", "row", "col"),
    *("tile_rows", "tile_cols", "tiles_across", "top", "left"),
)
_POSITION = pa.struct([("tile", pa.int32()), ("row", pa.int32()), ("col", pa.int32())])

GOLDEN = {
    "selections": pa.schema(
        [
            ("image_id", pa.string()),
            ("source", pa.string()),
            ("shard", pa.int32()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("num_tokens", pa.int32()),
            ("num_kept", pa.int32()),
            ("num_structure", pa.int32()),
            ("grid", pa.struct([("rows", pa.int32()), ("cols", pa.int32()), ("tiles", pa.int32())])),
            ("segments", pa.list_(pa.struct([(name, pa.int32()) for name in _SEGMENT]))),
            ("structure", pa.list_(pa.int32())),
            ("image_grid_thw", pa.list_(pa.int32())),
            ("ranking", pa.list_(pa.int32())),
            ("gain", pa.list_(pa.float32())),
            ("sensitivity", pa.list_(pa.float32())),
            ("position", pa.list_(_POSITION)),
            ("sensitivity_min", pa.float32()),
            ("sensitivity_mean", pa.float32()),
            ("sensitivity_max", pa.float32()),
            ("last_gain", pa.float32()),
        ]
    ),
    "prompts": pa.schema(
        [
            ("prompt_id", pa.string()),
            ("image_id", pa.string()),
            ("prompt", pa.string()),
            ("messages", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
            ("references", pa.list_(pa.string())),
            ("type", pa.string()),
            ("source", pa.string()),
            ("status", pa.string()),
            ("shard", pa.int32()),
            ("image_shard", pa.int32()),
        ]
    ),
    "errors": pa.schema(
        [
            ("source", pa.string()),
            ("prompt_id", pa.string()),
            ("image_id", pa.string()),
            ("reason", pa.string()),
            ("message", pa.string()),
            ("shard", pa.int32()),
        ]
    ),
    "features": pa.schema(
        [
            ("image_id", pa.string()),
            ("num_kept", pa.int32()),
            ("width", pa.int32()),
            ("dtype", pa.string()),
            ("features", pa.large_binary()),
        ]
    ),
    "payloads": pa.schema(
        [
            ("image_id", pa.string()),
            ("offset", pa.int64()),
            ("size_bytes", pa.int64()),
            ("sha256", pa.string()),
        ]
    ),
}
GOLDEN["asked"] = GOLDEN["prompts"].append(pa.field("message", pa.string()))


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        *(("selections", SELECTIONS), ("prompts", PROMPTS), ("errors", ERRORS), ("features", FEATURES)),
        *(("payloads", PAYLOADS), ("asked", ASKED)),
    ],
)
def test_a_table_has_the_columns_it_always_had(name: str, schema: pa.Schema) -> None:
    assert schema.equals(GOLDEN[name], check_metadata=True)
    assert [field.type for field in schema] == [field.type for field in GOLDEN[name]]
