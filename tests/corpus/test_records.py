"""Prompts of records: under other names, in conversations, as captions; JSONL and JSON arrays in pieces."""

import json

import pytest

from pipeline.corpus import turns as turns_module
from pipeline.corpus.pieces import DamagedAtError, elements
from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.sample import read_prompts
from pipeline.errors import UserError
from tests.corpus.conftest import scan_all, sha256


def prompts(record: dict, **reading: object) -> list[tuple]:
    found = read_prompts(record, "s", Reading(**reading))  # type: ignore[arg-type]
    return [(p.prompt_id, p.prompt, p.references, p.type, p.status.value) for p in found]


NAMED = {"prompt_column": "question", "reference_column": "answer", "type_column": "kind", "id_column": "qid"}


def test_columns_of_another_name():
    record = {"question": "what ?", "answer": "cat", "kind": "vqa", "qid": 7, "prompts": ["not read"]}
    assert prompts(record, **NAMED) == [("7", "what ?", ["cat"], "vqa", "ok")]
    assert prompts({"question": "what ?"}, **NAMED) == [("s#0", "what ?", [], None, "ok")]
    assert prompts({"answer": "cat"}, **NAMED) == []
    many = {"question": ["a ?", "b ?"], "answer": [["x", "y"], "z"], "kind": ["k", None], "qid": ["1", 2]}
    assert prompts(many, **NAMED) == [("1", "a ?", ["x", "y"], "k", "ok"), ("2", "b ?", ["z"], None, "ok")]
    assert prompts({"question": 5}, **NAMED)[0][-1] == "bad_prompt"
    (first, second) = read_prompts({"question": ["a ?", "b ?"], "answer": ["x"]}, "s", Reading(**NAMED))
    assert (first.prompt, first.status, second.prompt) == ("a ?", "bad_prompt", "b ?")
    assert first.message == "'question' has 2 prompts, its references is ['x']: one for each needed"


def test_prompts_of_the_command_come_after_those_of_the_record():
    record = {"prompts": [{"id": "own", "prompt": "what ?"}], "answer": "cat", "qid": "q"}
    assert prompts(record, prompts=("where ?", "who ?")) == [
        ("own", "what ?", [], None, "ok"),
        ("s#1", "where ?", [], None, "ok"),
        ("s#2", "who ?", [], None, "ok"),
    ]
    asked = prompts({"answer": "cat", "qid": "q"}, prompts=("what ?",), reference_column="answer", id_column="qid")
    assert asked == [("q-0", "what ?", ["cat"], None, "ok")]


def test_captions_are_references_of_the_caption_prompt():
    assert prompts({"caption": "a cat", "url": "x"}) == [("s#0", "describe the image .", ["a cat"], "caption", "ok")]
    assert prompts({"caption": ["a", "b"]}, caption_prompt="say !") == [("s#0", "say !", ["a", "b"], "caption", "ok")]
    assert prompts({"caption": "a cat", "prompts": []}) == []


TURNS = [
    {"from": "human", "value": "<image>\nwhat ?"},
    {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "where ?"},
    {"from": "gpt", "value": "here"},
    {"from": "human", "value": "why ?"},
]


@pytest.mark.parametrize("key", ["conversations", "messages"])
def test_each_thing_a_user_says_is_a_prompt_with_the_turns_before_it(key):
    roles = {"human": "user", "gpt": "assistant"}
    parts = [[{"type": "text", "text": turn["value"]}] for turn in TURNS]
    chat = [{"role": roles[turn["from"]], "content": part} for turn, part in zip(TURNS, parts, strict=True)]
    spoken = TURNS if key == "conversations" else chat
    found = read_prompts({key: spoken}, "s")
    assert [(p.prompt_id, p.prompt, p.references, p.status) for p in found] == [
        ("s#0", "<image>\nwhat ?", ["a cat"], "ok"),
        ("s#1", "where ?", ["here"], "ok"),
        ("s#2", "why ?", [], "ok"),
    ]
    assert found[0].messages is None
    assert [(m.role, m.text) for m in found[1].messages] == [
        ("user", "<image>\nwhat ?"),
        ("assistant", "a cat"),
        ("user", "where ?"),
    ]
    assert len(found[2].messages) == 5
    system = [{"role": "system", "content": "be short"}, {"role": "user", "content": [{"type": "image"}]}]
    (only,) = read_prompts({"messages": system}, "s")
    assert (only.prompt, [m.role for m in only.messages]) == ("<image>", ["system", "user"])


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (5, "turn 2 is int, expected an object"),
        ({"from": "cat", "value": "x"}, "turn 2 is said by 'cat', expected one of human, user"),
        ({"from": ["gpt"], "value": "x"}, "turn 2 is said by"),
        ({"from": "human"}, "turn 2 says NoneType, expected a text"),
        ({"from": "human", "value": [{"type": "video"}]}, "turn 2 has a part of type 'video'"),
        ({"from": "human", "value": "\ud800"}, "turn 2 holds half of a surrogate pair"),
        ({"from": "human", "value": "x" * turns_module.MAX_CHARS}, "turn 2 ends a conversation of 131,0"),
    ],
)
def test_an_odd_turn_costs_what_follows_it_in_its_conversation(odd, said):
    first, second = read_prompts({"conversations": [*TURNS[:2], odd, *TURNS[2:]]}, "s")
    assert (first.prompt, first.status, second.status) == ("<image>\nwhat ?", "ok", "bad_prompt")
    assert said in second.message
    assert "what follows in it was not read" in second.message


def test_a_conversation_without_end_has_bounds():
    """The turns before each prompt are kept with it, which grows with their square."""
    found = read_prompts({"conversations": TURNS[:2] * 5000}, "s")
    assert len(found) == turns_module.MAX_TURNS // 2 + 1
    assert "in 513 turns; at most 131,072 in 512 are read" in found[-1].message
    assert [p.status for p in read_prompts({"conversations": "x"}, "s")] == ["bad_prompt"]


@pytest.fixture
def llava(tmp_path, jpegs):
    """An instruct file as LLaVA's are, text-only records and odd ones among them."""
    for number, data in enumerate(jpegs):
        (tmp_path / "coco").mkdir(exist_ok=True)
        (tmp_path / "coco" / f"{number}.jpg").write_bytes(data)
    records = [{"id": str(n), "image": f"coco/{n}.jpg", "conversations": TURNS} for n in range(6)]
    return [
        *records[:3],
        {"id": "t", "conversations": TURNS},
        "no object",
        {"id": "é" * 50, "image": "coco/../../x.jpg", "conversations": TURNS},
        {"id": 1, "image": "/etc/hostname", "conversations": TURNS},
        {"id": 2, "image": "http://h/1.jpg", "number": int("9" * 4000)},
        *records[3:],
    ]


REASONS = [None] * 3 + ["bad_record", "bad_record", "unsafe_path", "unsafe_path", "not_local"] + [None] * 3


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("step", [None, 100, 1000, 3000])
def test_a_json_array_is_read_by_element(tmp_path, llava, jpegs, indent, step):
    path = tmp_path / "llava.json"
    path.write_text("\ufeff" + json.dumps(llava, indent=indent, ensure_ascii=False), "utf-8")
    rows = scan_all(path, step=step)
    assert [row.reason for row in rows] == REASONS
    assert [row.image_id for row in rows if row.image_id] == [sha256(data) for data in jpegs]
    assert rows[0].source == f"llava.json@{path.read_bytes().index(b'{')}/coco/0.jpg"
    assert [len(row.prompts) for row in rows] == [3, 3, 3, 3, 0, 3, 3, 0, 3, 3, 3]
    assert rows == scan_all(path)


def test_json_lines_of_conversations(tmp_path, llava, jpegs):
    path = tmp_path / "llava.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in llava))
    rows = scan_all(path)
    assert [row.image_id for row in rows if row.image_id][:3] == [sha256(data) for data in jpegs[:3]]
    assert [p.prompt for p in rows[0].prompts] == ["<image>\nwhat ?", "where ?", "why ?"]
    assert [len(p.messages or ()) for p in rows[0].prompts] == [0, 3, 5]


def test_image_root_is_where_names_begin_and_may_not_be_left(tmp_path, jpegs):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").write_bytes(jpegs[0])
    (tmp_path / "out.jpg").write_bytes(jpegs[1])
    (tmp_path / "m.jsonl").write_text('{"photo": "1.jpg"}\n{"photo": "../out.jpg"}\n')
    rows = scan_all(tmp_path / "m.jsonl", image_root=str(tmp_path / "images"), image_column="photo")
    assert [row.reason for row in rows] == [None, "unsafe_path"]
    assert "'photo' is '../out.jpg', a path that leaves its folder" in rows[1].message


@pytest.mark.parametrize("cut", [1, 40, 300, -3])
def test_a_file_that_breaks_off_keeps_what_came_before(tmp_path, llava, cut):
    path = tmp_path / "llava.json"
    path.write_text(json.dumps(llava))
    whole = scan_all(path)
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    for step in (None, 100):
        rows = scan_all(path, step=step)
        assert rows[-1].reason == "damaged_file"
        assert rows[:-1] == whole[: len(rows) - 1]
        assert "what follows was not read, the samples it held are lost" in rows[-1].message


def test_a_line_or_an_element_too_long_for_memory_is_one_row(tmp_path, jpegs, monkeypatch):
    for module in ("manifest", "pieces"):
        monkeypatch.setattr(f"pipeline.corpus.{module}.MAX_JSON_BYTES", 300)
    monkeypatch.setattr("pipeline.corpus.pieces.PIECE_BYTES", 64)
    (tmp_path / "1.jpg").write_bytes(jpegs[0])
    records = [{"image": "1.jpg"}, {"image": "1.jpg", "pad": "x" * 400}, {"image": "1.jpg"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "m.json").write_text(json.dumps(records))
    for step in (None, 50):
        assert [row.reason for row in scan_all(tmp_path / "m.jsonl", step=step)] == [None, "bad_record", None]
    assert [row.reason for row in scan_all(tmp_path / "m.json")] == [None, "damaged_file"]


def test_elements_of_arrays_and_members_of_objects(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.corpus.pieces.PIECE_BYTES", 3)
    text = b' {"a": [1, 23 , "x]\\"}"], "b" : {"c": []}, "d": [], "e": 45}'
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with open(path, "rb") as stream:
        found = [(one.key, one.text, text[one.begin : one.begin + len(one.text)]) for one in elements(stream)]
    assert all(told == there for _, told, there in found)
    assert [(key, told) for key, told, _ in found] == [
        ("a", b"1"), ("a", b"23"), ("a", b'"x]\\"}"'), ("b", b'{"c": []}'), ("e", b"45")
    ]  # fmt: skip
    for bad, at in ((b"[1, ", 4), (b"[1 2]", 3), (b'{"a" 1}', 5), (b"{1: 2}", 2), (b"[" * 9000, 1), (b"x", 0)):
        path.write_bytes(bad)
        with open(path, "rb") as stream, pytest.raises(DamagedAtError) as caught:
            list(elements(stream))
        assert caught.value.begin == at, bad[:9]


def test_json_that_is_neither_array_nor_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('"x"')
    with pytest.raises(UserError, match=r"a\.json begins with b'\"', no JSON array or object"):
        resolve_corpus([str(tmp_path / "a.json")])


def test_a_conversation_is_posed_with_its_earlier_turns(prune, tiny_llava, work_here, tmp_path, jpegs):
    """From instruct data to answers: the second turn's answer depends on what was said before it."""
    import pyarrow.parquet as pq

    from pipeline.answer.job import AnswerSettings, answer_corpus

    (tmp_path / "1.jpg").write_bytes(jpegs[0])
    alone = [{"from": "human", "value": TURNS[2]["value"]}]
    records = [{"image": "1.jpg", "conversations": turns} for turns in (TURNS[:4], alone)]
    (tmp_path / "l.json").write_text(json.dumps(records))
    prune(tmp_path / "out", corpus=(str(tmp_path / "l.json"),), max_tokens="4")
    table = pq.read_table(tmp_path / "out" / "prompts" / "part-00000000.parquet").to_pylist()
    assert [len(row["messages"] or ()) for row in table] == [0, 3, 0]
    settings = AnswerSettings(pruned=str(tmp_path / "out"), model=tiny_llava, output=str(tmp_path / "a"), workers=1)
    assert answer_corpus(settings, lambda _: None).failures == {}
    rows = pq.read_table(tmp_path / "a" / "answers" / "part-00000000.parquet").to_pylist()
    assert [row["finish_reason"] != "refused" for row in rows] == [True] * 3
    assert rows[1]["references"] == ["here"]


def test_an_image_in_a_list_of_its_own_is_an_image_and_none_at_all_is_told_with_the_keys(tmp_path, jpegs):
    (tmp_path / "1.jpg").write_bytes(jpegs[0])
    lines = [{"image": ["1.jpg"]}, {"image": ["1.jpg", "2.jpg"]}, {"file": "1.jpg", "q": "what ?"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, many, none = scan_all(tmp_path / "m.jsonl")
    assert (one.reason, one.image_id) == (None, sha256(jpegs[0]))
    assert many.reason == none.reason == "bad_record"
    assert none.message.endswith("it has no 'image', its keys are ['file', 'q']; see --image-column")


def test_an_array_of_records_is_one_whatever_its_name_says(tmp_path, jpegs):
    (tmp_path / "1.jpg").write_bytes(jpegs[0])
    (tmp_path / "m.jsonl").write_text(json.dumps([{"image": "1.jpg", "prompts": ["a ?"]}] * 2, indent=1))
    assert [row.reason for row in scan_all(tmp_path / "m.jsonl")] == [None, None]
    (tmp_path / "m.jsonl").write_text('[1]\n{"image": "1.jpg"}\n')
    assert [row.reason for row in scan_all(tmp_path / "m.jsonl")] == ["bad_record", None]
