"""The answers table keeps its form, and what is read back of other tables has theirs."""

import pyarrow as pa
import pytest

from schemas.answers import AnswerRow, FinishReason
from schemas.columns import schema_of, table_of
from schemas.stored import StoredPrompt, StoredSelection
from schemas.tables import ANSWERS, PROMPTS, SELECTIONS

# As version 2 of the schema has it.
GOLDEN = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("image_id", pa.string()),
        ("answer", pa.string()),
        ("answer_tokens", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("tokens", pa.int32()),
        ("seconds", pa.float32()),
        ("type", pa.string()),
        ("references", pa.list_(pa.string())),
        ("correct", pa.bool_()),
        ("metric", pa.string()),
        ("score", pa.float32()),
        ("shard", pa.int32()),
        ("message", pa.string()),
    ]
)


def test_the_form_of_answers():
    assert ANSWERS.equals(GOLDEN)


def test_a_reason_is_stored_as_its_word():
    row = AnswerRow(
        prompt_id="p", image_id="i", answer=None, answer_tokens=[], finish_reason=FinishReason.REFUSED, tokens=0,
        seconds=0.0, type=None, references=None, correct=None, metric="exact", score=None, shard=0, message="why",
    )  # fmt: skip
    assert table_of(AnswerRow, [row]).to_pylist()[0]["finish_reason"] == "refused"
    with pytest.raises(AttributeError):
        row.answers = "x"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("row", "table"), [(StoredPrompt, PROMPTS), (StoredSelection, SELECTIONS)])
def test_what_is_read_back_are_columns_of_the_table(row, table):
    for field in schema_of(row):
        assert field.equals(table.field(field.name))
