"""The JSON record of a sample: one odd item costs that item and nothing else."""

import json
import re

import pytest

from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.sample import MAX_KEYS, keys_instead, parse_record, read_prompts
from pipeline.corpus.scan import scan, scan_units
from schemas.columns import table_of
from schemas.samples import Sample

HUGE = b"9" * 5000
DEEP = b"[" * 900 + b"]" * 900


def stored(text: bytes) -> list[dict]:
    """The prompts of a record, as they come back from Arrow."""
    row = Sample(input=0, sample=0, source="a.tar/1", prompts=read_prompts(parse_record(text), "a.tar/1"))
    (back,) = table_of(Sample, [row]).to_pylist()
    return back["prompts"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (b"5", "the prompt is 5, expected a text or an object"),
        (b"null", "the prompt is None"),
        (b'["what ?"]', r"the prompt is \['what \?'\]"),
        (b'{"prompt": 5}', "'prompt' is 5, expected a text"),
        (b'{"prompt": ["what ?"]}', "'prompt' is "),
        (b'{"prompt": "half a pair: \\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "raw half a pair: \xed\xa0\x80"}', "half of a surrogate pair"),
        (b'{"prompt": "what ?", "references": 5}', "'references' is 5, expected texts"),
        (b'{"prompt": "what ?", "references": ["a", 5]}', "expected texts; 5 is none"),
        (b'{"prompt": "what ?", "references": [null]}', "expected texts; None is none"),
        (b'{"prompt": "what ?", "references": {}}', "'references' is {}"),
        (b'{"prompt": "what ?", "references": {"a": 1}}', "'references' is {'a': 1}"),
        (b'{"prompt": "what ?", "references": false}', "'references' is False"),
        (b'{"prompt": "what ?", "references": NaN}', "'references' is nan"),
        (b'{"prompt": "what ?", "references": ["\\udfff"]}', "half of a surrogate pair"),
        (b'{"prompt": "what ?", "references": ' + DEEP + b"}", "'references' is "),
        (b'{"prompt": "what ?", "id": ' + HUGE + b"}", "'id' is a number of 5,000 digits"),
        (b'{"prompt": "what ?", "id": -' + HUGE + b"}", "'id' is a number of 5,000 digits"),
        (b'{"prompt": "what ?", "id": 1.5}', "'id' is 1.5, expected a text or a whole number"),
        (b'{"prompt": "what ?", "id": true}', "'id' is True"),
        (b'{"prompt": "what ?", "id": {"a": 1}}', "'id' is {'a': 1}"),
        (b'{"prompt": "what ?", "id": "\\ud800"}', "'id' is "),
        (b'{"prompt": "what ?", "type": ["vqa"]}', r"'type' is \['vqa'\]"),
        (b'{"prompt": "what ?", "type": 2.5}', "'type' is 2.5"),
    ],
)
def test_an_odd_prompt_fails_alone(item, said):
    prompts = stored(b'{"prompts": ["before ?", ' + item + b', {"id": "c", "prompt": "behind ?"}]}')
    assert [p["status"] for p in prompts] == ["ok", "bad_prompt", "ok"]
    assert [p["prompt_id"] for p in prompts] == ["a.tar/1#0", "a.tar/1#1", "c"]
    assert re.search(said, prompts[1]["message"])
    assert len(prompts[1]["message"]) < 300
    assert (prompts[0]["message"], prompts[2]["message"]) == (None, None)


def test_what_is_right_about_a_wrong_prompt_stays():
    (row,) = read_prompts({"prompts": [{"id": 7, "prompt": "how many ?", "references": [2], "type": "count"}]}, "s")
    assert (row.prompt_id, row.prompt, row.type, row.references) == ("7", "how many ?", "count", [])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"prompt": " \n"}, "is ' \\n'"),
        ({"prompt": None}, "is None"),
        ({"question": "what ?", "id": 7}, "is not among its keys ['question', 'id']"),
    ],
)
def test_an_empty_prompt_says_what_it_has(item, said):
    (row,) = read_prompts({"prompts": [item]}, "s")
    assert row.status == "empty_prompt"
    assert said in (row.message or "")


@pytest.mark.parametrize("value", ["what ?", {"prompt": "what ?"}, 5, False, 0.5])
def test_prompts_that_are_no_list_are_one_failed_prompt(value):
    (row,) = read_prompts({"prompts": value}, "s")
    assert (row.prompt_id, row.status) == ("s#0", "bad_prompt")
    assert "expected a list" in (row.message or "")


@pytest.mark.parametrize(
    "text",
    [
        b'{"prompts": null}',
        b"\xef\xbb\xbf{}",
        b'{"n": ' + HUGE + b', "x": NaN, "y": [Infinity, 1e999], "z": ' + DEEP + b', "\\ud800": "\\ud800"}',
    ],
)
def test_what_else_a_record_holds_harms_nobody(text):
    assert stored(text) == []
    with_prompt = text.replace(b"null}", b'["what ?"]}') if b"null" in text else text[:-1] + b',"prompts":["what ?"]}'
    assert [p["status"] for p in stored(with_prompt.replace(b"{,", b"{"))] == ["ok"]


def test_keys_of_a_sample_without_prompts():
    record = {"image": "a.jpg", "caption": "a cat", "\ud800": 1}
    assert keys_instead(record, [".txt"]) == [".txt", "caption", "\\ud800"]
    assert keys_instead({"prompts": [], "width": 5}) == ["prompts"]
    assert keys_instead({"prompts": None, "caption": 5}) == ["prompts", "caption"]
    many = keys_instead(json.loads(json.dumps({f"{n}" * 99: n for n in range(999)})))
    assert (len(many), max(map(len, many))) == (MAX_KEYS, 64)


def test_a_sample_with_prompts_has_no_keys(tmp_path, jpeg, write_tar):
    """`keys` tells what stands in place of prompts: it is empty where there are some, in a tar and in a manifest."""
    record = {"prompts": ["what ?"], "caption": ""}
    write_tar(tmp_path / "a.tar", [("1.jpg", jpeg(1)), ("1.json", record)])
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": "1.jpg", **record}))
    for unit in scan_units(resolve_corpus([str(tmp_path / "*.*")])):
        (sample,) = scan(unit)
        assert (len(sample.prompts), sample.keys) == (1, [])
