"""Answers at budgets by gain: busy images get more tokens, one threshold serves all, and it stays."""

import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import query_selections
from pipeline.answer.job import AnswerSettings, answer_corpus
from pipeline.errors import UserError

PROMPTS = {"prompts": ["what ?", "how many ?"]}


def picture(seed: int, busy: bool) -> bytes:
    """Noise, or a plane with one dot."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    if not busy:
        pixels[:] = pixels[0, 0]
        pixels[seed % 50 : seed % 50 + 8, 8:16] = 255 - pixels[0, 0]
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, write_tar: Callable[..., Path], seeds: range) -> str:
    members: list[tuple[str, object]] = []
    for seed in seeds:
        members += [(f"{seed}.png", picture(seed, seed % 2 == 0)), (f"{seed}.json", PROMPTS)]
    return str(write_tar(path, members))


@pytest.fixture
def answer(work_here, tiny_llava) -> Callable[..., list[str]]:
    """Run the answer job; what it said."""

    def run(pruned: Path, output: Path, **changes: object) -> list[str]:
        said: list[str] = []
        settings = {"model": tiny_llava, "max_new_tokens": 2, **changes}
        answer_corpus(AnswerSettings(pruned=str(pruned), output=str(output), **settings), said.append)
        return said

    return run


def kept(output: Path) -> dict[str, int]:
    """Tokens of each image that the model saw, as the answers say."""
    found = defaultdict(set)
    for path in sorted((output / "answers").iterdir()):
        for row in pq.read_table(path).to_pylist():
            found[row["image_id"]].add(row["tokens"])
    assert all(len(tokens) == 1 for tokens in found.values())
    return {image_id: tokens.pop() for image_id, tokens in found.items()}


def bytes_of(output: Path) -> dict[str, dict]:
    """The answers by prompt, without their time."""
    rows = [row for path in (output / "answers").iterdir() for row in pq.read_table(path).to_pylist()]
    return {row["prompt_id"]: {k: v for k, v in row.items() if k not in ("seconds", "shard")} for row in rows}


def test_a_mean_over_a_corpus_that_grows(prune, answer, write_tar, tmp_path):
    first = write(tmp_path / "a.tar", write_tar, range(6))
    second = write(tmp_path / "b.tar", write_tar, range(6, 14, 2))  # busy ones
    pruned, output = tmp_path / "pruned", tmp_path / "out"
    prune(pruned, corpus=(first,), max_tokens="all", shard_size=4)
    settings = {"tokens": "mean:40", "min_tokens": 5}
    said = answer(pruned, output, **settings)
    tokens = kept(output)
    assert len(tokens) == 6
    assert 39 < sum(tokens.values()) / 6 <= 40
    assert min(tokens.values()) >= 5
    assert len({*tokens.values()}) > 1
    record = json.loads((output / "_job.json").read_text())
    assert (record["settings"]["tokens"], record["settings"]["min_tokens"]) == ("mean:40", 5)
    assert record["resolved"]["images"] == 6
    assert record["resolved"]["mean_tokens"] == sum(tokens.values()) / 6
    threshold = record["resolved"]["gain_threshold"]
    assert any(f"by a gain of {threshold:.6g}, {sum(tokens.values()) / 6:.2f} tokens on average" in s for s in said)

    # The same threshold asked for by itself, and shards of another size, give the same answers.
    answer(pruned, tmp_path / "gain", tokens=f"gain:{threshold:.20f}", min_tokens=5)
    assert bytes_of(tmp_path / "gain") == bytes_of(output)
    prune(tmp_path / "other", corpus=(first,), max_tokens="all", shard_size=5)
    answer(tmp_path / "other", tmp_path / "answers", **settings)
    assert bytes_of(tmp_path / "answers") == bytes_of(output)
    assert json.loads((tmp_path / "answers" / "_job.json").read_text())["resolved"] == record["resolved"]

    assert any("nothing to do" in line for line in answer(pruned, output, **settings))
    prune(pruned, corpus=(first, second), max_tokens="all", shard_size=4)
    (line,) = [line for line in answer(pruned, output, **settings) if "has changed" in line]
    assert f"the gain of {threshold:.6g} that was found before stays" in line
    grown = kept(output)
    assert len(grown) == 10
    assert {image_id: grown[image_id] for image_id in tokens} == tokens
    assert f"now gives {sum(grown.values()) / 10:.2f} tokens on average" in line
    assert json.loads((output / "_job.json").read_text()) == record
    with pytest.raises(UserError, match="min_tokens: 5 -> 6"):
        answer(pruned, output, tokens="mean:40", min_tokens=6)


def test_the_answers_are_those_of_each_image_at_its_own_count(prune, answer, write_tar, tmp_path):
    corpus = write(tmp_path / "a.tar", write_tar, range(4))
    prune(tmp_path / "pruned", corpus=(corpus,), max_tokens="all")
    answer(tmp_path / "pruned", tmp_path / "mean", tokens="mean:20")
    counts = kept(tmp_path / "mean")
    for count in {*counts.values()}:
        answer(tmp_path / "pruned", tmp_path / str(count), tokens=str(count))
        alone = bytes_of(tmp_path / str(count))
        for prompt_id, row in bytes_of(tmp_path / "mean").items():
            if row["tokens"] == count:
                assert row == alone[prompt_id]


def test_what_is_not_stored_is_refused_before_anything_is_written(prune, answer, write_tar, tmp_path):
    corpus = write(tmp_path / "a.tar", write_tar, range(4))
    prune(tmp_path / "pruned", corpus=(corpus,), max_tokens="16")
    with pytest.raises(UserError, match=r"--tokens mean:15: \d images? ha.* not stored in .* on average; ask for less"):
        answer(tmp_path / "pruned", tmp_path / "out", tokens="mean:15")
    with pytest.raises(UserError, match=r"--tokens gain:0\.00001: 4 images have tokens that are not stored"):
        answer(tmp_path / "pruned", tmp_path / "out", tokens="gain:0.00001")
    with pytest.raises(UserError, match=r"--min-tokens 17: 4 images have tokens"):
        answer(tmp_path / "pruned", tmp_path / "out", tokens="gain:1.9", min_tokens=17)
    prune(tmp_path / "random", corpus=(corpus,), max_tokens="all", selector="random")
    with pytest.raises(UserError, match="--selector random, whose gains say nothing"):
        answer(tmp_path / "random", tmp_path / "out", tokens="mean:15")
    assert not (tmp_path / "out").exists()


def test_a_minimum_without_a_threshold_is_refused(tmp_path):
    common = {"pruned": str(tmp_path), "model": "m", "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"^--min-tokens 4: --tokens 64 keeps the same share of every image"):
        AnswerSettings(tokens="64", min_tokens=4, **common)
    with pytest.raises(UserError, match=r"^--tokens mean:3: images keep at least --min-tokens 4"):
        AnswerSettings(tokens="mean:3", min_tokens=4, **common)


def test_accuracy_names_the_budget(prune, answer, write_tar, tmp_path, capsys):
    prompt = {"prompt": "what ?", "references": ["a circle"]}
    members = [("1.png", picture(1, True)), ("1.json", {"prompts": [prompt]})]
    corpus = str(write_tar(tmp_path / "a.tar", members))
    prune(tmp_path / "pruned", corpus=(corpus,), max_tokens="all")
    for number, tokens in enumerate(("mean:20", "gain:0.5")):
        answer(tmp_path / "pruned", tmp_path / str(number), tokens=tokens)
    answers = ["--answers", str(tmp_path / "0"), "--answers", str(tmp_path / "1")]
    assert query_selections.main(["--pruned", str(tmp_path / "pruned"), *answers]) == 0
    (head,) = [line for line in capsys.readouterr().out.splitlines() if "graded" in line]
    assert {"mean:20", "gain:0.5"} <= {*head.split()}
