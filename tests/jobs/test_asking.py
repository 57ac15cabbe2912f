"""New questions to an old artifact: prompts of a file, and those that a condition chooses, about images pruned before."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.answer.job import AnswerResult, AnswerSettings, answer_corpus
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.prune.job import PruneSettings, prune_corpus

SHARD = 3
IMAGES = 8


@pytest.fixture(scope="module")
def made(without_ray, tiny_llava: str, tmp_path_factory) -> Path:
    """A pruned corpus of eight images in three shards, of which one is broken: `pruned`."""
    root = tmp_path_factory.mktemp("asking")
    scenes = root / "corpus"
    for folder in ("a", "b"):
        (scenes / folder).mkdir(parents=True)
    return root


@pytest.fixture
def corpus(tmp_path: Path, jpeg) -> Path:
    """Eight images, of which two are called alike and one is broken, a prompt about each."""
    folder = tmp_path / "corpus"
    names = ["a/0.jpg", "b/0.jpg", *(f"{n}.jpg" for n in range(2, IMAGES))]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8 broken" if number == 7 else jpeg(number))
    lines = [
        {
            "image": name,
            "prompts": [
                {"id": f"p{n}", "prompt": f"what {n} ?", "references": ["x"], "type": "even" if n % 2 == 0 else "odd"}
            ],
        }
        for n, name in enumerate(names)
    ]
    write_lines(folder / "m.jsonl", lines)
    return folder / "m.jsonl"


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pruned(work_here, corpus: Path, tiny_llava: str, tmp_path: Path) -> Path:
    settings = PruneSettings(
        corpus=(str(corpus),), model=tiny_llava, output=str(tmp_path / "pruned"), max_tokens="8", shard_size=SHARD
    )
    prune_corpus(settings, lambda _: None)
    return tmp_path / "pruned"


@pytest.fixture
def answer(work_here, tiny_llava: str) -> Callable[..., tuple[list[dict[str, Any]], AnswerResult, list[str]]]:
    """Run the answer job; the rows of its answers, what it did, and what it said."""

    def run(pruned: Path | str, output: Path | str, **changes: Any):
        said: list[str] = []
        settings = {"model": tiny_llava, "tokens": "4", "max_new_tokens": 2, **changes}
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
        result = answer_corpus(AnswerSettings(pruned=str(pruned), output=str(output), **settings), said.append)
        return rows_of(output), result, said

    return run


def rows_of(output: Path | str, table: str = "answers") -> list[dict[str, Any]]:
    artifact = Artifact(str(output))
    return [
        row
        for record in artifact.checked_commits()
        for row in pq.read_table(artifact.store.open(record.files[table].path)).to_pylist()
    ]


def images_of(pruned: Path) -> dict[str, str]:
    """Ids of images by the names of their files."""
    return {row["source"].partition("/")[2]: row["image_id"] for row in rows_of(pruned, "selections")}


def test_smoke(pruned, answer, tmp_path):
    ids = images_of(pruned)
    file = write_lines(
        tmp_path / "f.jsonl",
        [
            {
                "image_id": ids["2.jpg"],
                "prompt": "what is it ?",
                "references": ["dog", "cat"],
                "type": "t",
                "id": "mine",
            },
            {"source": "3.jpg", "prompt": "where ?"},
            {"source": "a/0.jpg", "prompt": "where ?"},
            {"source": "0.jpg", "prompt": "where ?"},
            {"source": "7.jpg", "prompt": "where ?"},
            {"source": "nowhere.jpg", "prompt": "where ?"},
            {"image_id": "ff" * 32, "prompt": "where ?"},
            {"image_id": ids["2.jpg"], "prompt": "  "},
            {"image_id": ids["2.jpg"], "source": "x", "prompt": "two"},
            {"prompt": "none"},
            {"image_id": ids["3.jpg"], "prompt": "again", "id": "mine"},
            {
                "image_id": ids["3.jpg"],
                "messages": [
                    {"role": "user", "content": "what ?"},
                    {"role": "assistant", "content": "a dog"},
                    {"role": "user", "content": "where ?"},
                ],
            },
            {"source": "3.jpg", "prompt": "where ?"},
        ],
    )
    rows, result, said = answer(pruned, tmp_path / "out", prompts=file)
    for r in rows:
        print(
            {k: r[k] for k in ("prompt_id", "image_id", "answer", "finish_reason", "message", "shard", "type", "score")}
        )
    for r in rows_of(tmp_path / "out", "prompts"):
        print(r)
    print(result, said)
    rows2, result, said = answer(pruned, tmp_path / "out", prompts=file)
    print(result, said)
    rows, result, said = answer(pruned, tmp_path / "out2", where="type = 'even' and num_kept = 8")
    for r in rows:
        print(
            {k: r[k] for k in ("prompt_id", "image_id", "answer", "finish_reason", "message", "shard", "type", "score")}
        )
    print(result, said)
    assert 0
