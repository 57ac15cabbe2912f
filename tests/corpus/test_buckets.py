"""Every reader reads a bucket as it reads a disk: the same samples, sources, prompts and bytes."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.fetch import Fetcher, Place
from pipeline.corpus.resolve import resolve_corpus
from pipeline.corpus.scan import scan, scan_units
from pipeline.storage.local import LocalStore
from pipeline.storage.places import folder_at

FORMS = ("a.tar", "*.tar.gz", "m.jsonl", "t.parquet", "tables", "pictures", "i.json", "q.json+n.json")


@pytest.fixture
def on_disk(tmp_path: Path, write_tar, jpeg) -> Path:
    root = tmp_path / "corpus"
    (root / "pictures" / "deep").mkdir(parents=True)
    (root / "tables").mkdir()
    for number in range(4):
        (root / "pictures" / f"{number}.jpg").write_bytes(jpeg(number))
    (root / "pictures" / "deep" / "a b#1.jpg").write_bytes(jpeg(9))
    (root / "pictures" / "notes.txt").write_text("x")
    asked = {"prompts": [{"prompt": "what ?"}]}
    write_tar(
        root / "a.tar", [(f"{n}.{end}", part) for n in range(3) for end, part in (("jpg", jpeg(n)), ("json", asked))]
    )
    (root / "a.tar.gz").write_bytes(gzip.compress((root / "a.tar").read_bytes()))
    lines = [{"image": name, **asked} for name in ("pictures/0.jpg", "pictures/deep/a b#1.jpg", "none.jpg", "../../x")]
    (root / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = pa.table({"image": [jpeg(1), jpeg(2), b"no image"], "prompt": ["a ?", "b ?", "c ?"]})
    for path in ("t.parquet", "tables/1.parquet", "tables/2.parquet"):
        pq.write_table(table, root / path)
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "x"}]
    (root / "i.json").write_text(json.dumps([{"id": "1", "image": "pictures/1.jpg", "conversations": turns}]))
    (root / "q.json").write_text(
        json.dumps(
            {
                "questions": [{"image_id": 1, "question": "what ?", "question_id": 5}],
                "images": [{"id": 1, "file_name": "pictures/2.jpg"}],
            }
        )
    )
    (root / "n.json").write_text(
        json.dumps({"annotations": [{"question_id": 5, "image_id": 1, "multiple_choice_answer": "x", "answers": []}]})
    )
    return root


def found_in(root: str, form: str) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Samples of a corpus as they are whatever it lies in, and the bytes of their images."""
    inputs = resolve_corpus(["+".join(f"{root}/{part}" for part in form.split("+"))])
    samples, images = [], []
    with Fetcher() as fetcher:
        for unit in scan_units(inputs):
            for one in scan(unit):
                row = {name: getattr(one, name) for name in ("input", "sample", "source", "image_id", "reason", "size")}
                row["message"] = (one.message or "").replace(root, "ROOT")
                samples.append({**row, "path": (one.path or "").replace(root, "ROOT"), "prompts": one.prompts})
                if one.image_id is not None:
                    images.append(fetcher.read(Place(one.path, one.offset, one.size, one.within), one.image_id))
    return samples, images


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_finds_in_a_bucket_what_it_finds_on_disk(form, on_disk, s3):
    store = folder_at(f"{s3}/some/corpus")
    for entry in LocalStore(on_disk).walk():
        store.put(entry.key, (on_disk / entry.key).read_bytes())
    expected, found = found_in(str(on_disk), form), found_in(f"{s3}/some/corpus", form)
    assert found == expected
    assert found[1]
