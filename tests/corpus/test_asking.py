"""Files of prompts about pruned images: the same rows from JSONL and Parquet, and a sentence for what is not read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus import asking
from pipeline.corpus.asking import PromptsFile
from pipeline.corpus.reading import Reading
from pipeline.errors import UserError
from schemas.asked import FileRow
from schemas.columns import rows_of
from schemas.samples import Message

ID = "0a" * 32
TURNS = [
    {"role": "user", "content": "what is it ?"},
    {"role": "assistant", "content": "a dog"},
    {"role": "user", "content": "which colour ?"},
]


def jsonl(path: Path, *lines: Any) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def rows(location: str, **reading: str) -> list[FileRow]:
    return [row for table in PromptsFile(location, Reading(**reading)).tables() for row in rows_of(FileRow, table)]


def test_jsonl_and_parquet_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "_ROWS", 2)  # rows go on from table to table
    records = [
        {"image_id": ID.upper(), "source": None, "prompt": "one ?", "references": ["x", "y"], "type": "t", "id": "p1"},
        {"image_id": None, "source": "a/b.jpg", "prompt": "two ?", "references": None, "type": None, "id": None},
        {"image_id": ID, "source": None, "prompt": " ", "references": [], "type": None, "id": "p3"},
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "p.parquet", row_group_size=2)
    found = rows(jsonl(tmp_path / "p.jsonl", *records))
    assert found == rows(str(tmp_path / "p.parquet"))
    assert [(row.position, row.prompt_id, row.image_id, row.source, row.prompt) for row in found] == [
        (1, "p1", ID, None, "one ?"),
        (2, None, None, "a/b.jpg", "two ?"),
        (3, "p3", ID, None, " "),
    ]
    assert [(row.references, row.type, row.status) for row in found] == [
        (["x", "y"], "t", "ok"),
        ([], None, "ok"),
        ([], None, "empty_prompt"),
    ]


def test_a_conversation_is_asked_once_at_its_end(tmp_path):
    answered = [*TURNS, {"role": "assistant", "content": "brown"}]
    file = jsonl(
        tmp_path / "p.jsonl",
        {"image_id": ID, "messages": TURNS},
        "",
        {"image_id": ID, "messages": answered, "prompt": "which colour ?"},
        {"image_id": ID, "messages": answered, "references": ["red"]},
        {"image_id": ID, "messages": TURNS[:1]},
        {"image_id": ID, "prompt": TURNS},
    )
    found = rows(file)
    said = [Message(role=turn["role"], text=turn["content"]) for turn in TURNS]
    assert [(row.position, row.prompt, row.references, row.messages) for row in found] == [
        (1, "which colour ?", [], said),
        (3, "which colour ?", ["brown"], said),
        (4, "which colour ?", ["red"], said),
        (5, "what is it ?", [], None),
        (6, "which colour ?", [], said),
    ]
    assert {row.status for row in found} == {"ok"}


def test_messages_are_read_as_the_table_of_prompts_has_them(tmp_path):
    """So that prompts of an artifact can be asked again after a look at them in SQL."""
    turns = [{"role": turn["role"], "text": turn["content"]} for turn in TURNS]
    table = pa.Table.from_pylist([{"image_id": ID, "prompt": "which colour ?", "messages": turns}])
    pq.write_table(table, tmp_path / "p.parquet")
    (row,) = rows(str(tmp_path / "p.parquet"))
    assert [(message.role, message.text) for message in row.messages or []] == [tuple(turn.values()) for turn in turns]


def test_columns_by_other_names(tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"source": "a.jpg", "q": "what ?", "a": "dog", "kind": "t", "n": 7})
    named = {"prompt_column": "q", "reference_column": "a", "type_column": "kind", "id_column": "n"}
    (row,) = rows(file, **named)
    assert (row.prompt, row.references, row.type, row.prompt_id, row.status) == ("what ?", ["dog"], "t", "7", "ok")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"prompt": "x"}, "it names no image, by 'image_id' or by 'source'"),
        ({"image_id": ID, "source": "a.jpg", "prompt": "x"}, "it names its image twice"),
        ({"image_id": 7, "prompt": "x"}, "'image_id' is 7, expected a text"),
        ({"source": " ", "prompt": "x"}, "'source' is ' ', expected a text"),
        ({"image_id": ID, "prompt": 7}, "'prompt' is 7, expected a text"),
        ({"image_id": ID, "prompt": "x", "references": [1]}, "'references' is [1], expected texts"),
        ({"image_id": ID, "prompt": "x", "id": 1.5}, "'id' is 1.5, expected a text or a whole number"),
        ({"image_id": ID, "messages": "x"}, "'messages': it is 'x', expected a list of turns"),
        ({"image_id": ID, "messages": TURNS[1:2]}, "'messages': no turn of it is said by the user"),
        ({"image_id": ID, "messages": [{"role": "robot", "content": "x"}]}, "turn 0 is said by 'robot'"),
        (
            {"image_id": ID, "messages": TURNS, "prompt": "else"},
            "'prompt' is not what the user says last in 'messages'",
        ),
        ("[1, 2]", "the line is no JSON object: holds list"),
        ("{", "the line is no JSON object: "),
    ],
)
def test_a_bad_row_stays_with_its_reason_and_the_others_are_read(tmp_path, record, why):
    bad, good = rows(jsonl(tmp_path / "p.jsonl", *(["", record] if record == "[1, 2]" else [record]), GOOD))
    assert (bad.status, good.status) == ("bad_prompt", "ok")
    assert why in (bad.message or "")


GOOD = {"image_id": ID, "prompt": "what ?"}


def test_a_row_without_a_prompt_is_empty(tmp_path):
    empty, _ = rows(jsonl(tmp_path / "p.jsonl", {"image_id": ID}, GOOD))
    assert (empty.status, empty.message) == (
        "empty_prompt",
        "'prompt' is not there, expected a text that is not blank",
    )


def refusal(location: str) -> str:
    with pytest.raises(UserError) as caught:
        rows(location)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays(
        [pa.array([ID]), pa.array(["a ?"]), pa.array(["b ?"])], ["image_id", "prompt", "prompt"]
    )
    pq.write_table(table, tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"p.parquet has the column 'prompt' twice; leave one out$"):
        rows(str(tmp_path / "p.parquet"))


def test_files_that_are_no_files_of_prompts_get_one_sentence(tmp_path):
    known = "a prompt has image_id or source, prompt or messages, references, type, id: correct the name"
    misspelt = refusal(jsonl(tmp_path / "key.jsonl", GOOD, {**GOOD, "refernces": ["x"]}))
    assert "key.jsonl: line 2 has the key 'refernces', which is not read; " + known in misspelt
    pq.write_table(pa.table({"image_id": [ID], "question": ["x"]}), tmp_path / "column.parquet")
    assert "column.parquet: it has the column 'question', which is not read" in refusal(
        str(tmp_path / "column.parquet")
    )
    pq.write_table(pa.table({"prompt": ["x"]}), tmp_path / "none.parquet")
    assert "has neither a column image_id nor a column source" in refusal(str(tmp_path / "none.parquet"))
    pq.write_table(pa.table({"image_id": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    for name in ("empty.parquet", "empty.jsonl"):
        (tmp_path / "empty.jsonl").write_text("\n\n")
        assert f"{name} holds no prompt; write a prompt a line" in refusal(str(tmp_path / name))
    assert "begins like a JSON array; write an object a line" in refusal(jsonl(tmp_path / "array.json", [GOOD]))
    cut = (tmp_path / "column.parquet").read_bytes()[:-9]
    (tmp_path / "cut.parquet").write_bytes(cut)
    assert "cut.parquet can't be read as Parquet (" in refusal(str(tmp_path / "cut.parquet"))
    assert "gone.jsonl does not exist; name a file of prompts" in refusal(str(tmp_path / "gone.jsonl"))
    assert "is a folder, not a regular file" in refusal(str(tmp_path))
    with pytest.raises(UserError, match=r"gone.jsonl does not exist"):
        PromptsFile(str(tmp_path / "gone.jsonl")).sha256()
