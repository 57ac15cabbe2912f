"""The picture of what selectors keep: both splits, every kept token in its colours and no other."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import selector_picture
from benchmarks.comparison import ALL_TOKENS, ONE_WORD, POOLED, Row, columnar
from benchmarks.graded_corpus import GradedPrompt, load_corpus
from benchmarks.selector_picture import LINE_PX, MARGIN, SELECTORS, draw, right, scenes_of, with_dropped_grey

SIDE_PX, CELL_PX, KEPT = 256, 16, 32
COLUMNS = (ALL_TOKENS, *SELECTORS)


@pytest.fixture(scope="module")
def result() -> dict:
    """Half of the one-word questions right with KEPT tokens, all with all tokens."""

    def row(kind: str, split: str, selector: str, tokens: int, percent: float) -> Row:
        return Row(POOLED, split, kind, selector, tokens, 9, percent, percent, percent, *[None] * 6)

    rows = []
    for split in ("plain", "cluttered"):
        rows.append(row(ONE_WORD, split, ALL_TOKENS, 256, 100.0))
        for name in SELECTORS:
            rows += [row(ONE_WORD, split, name, 64, 70.0), row(ONE_WORD, split, name, KEPT, 50.0)]
            rows.append(row("color", split, name, KEPT, 60.0))
    return columnar(rows)


def test_each_selector_shows_the_tokens_it_keeps_of_both_splits(result, tiny_llava, tmp_path):
    images, prompts = load_corpus(selector_picture.MANIFESTS)
    scenes = scenes_of(images, prompts)
    assert {split: len(some) for split, some in scenes.items()} == {"plain": 2, "cluttered": 2}
    assert {"zoo", "divprune_centered"} < set(SELECTORS)
    draw(result, tiny_llava, images, prompts, tmp_path / "picture.png")
    sheet = np.asarray(Image.open(tmp_path / "picture.png"))
    top = LINE_PX
    for some in scenes.values():
        top += LINE_PX
        for image in some.values():
            whole = np.asarray(image.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST))
            same = []
            for column in range(len(COLUMNS)):
                left = MARGIN + column * (SIDE_PX + MARGIN)
                equal = (sheet[top : top + SIDE_PX, left : left + SIDE_PX] == whole).all(-1)
                same.append(equal.reshape(16, CELL_PX, 16, CELL_PX).all((1, 3)))
            assert [int(cells.sum()) for cells in same] == [256] + [KEPT] * len(SELECTORS)
            assert len({cells.tobytes() for cells in same}) > len(SELECTORS) / 2
            top += SIDE_PX + MARGIN
    assert sheet.shape[0] == top + MARGIN


def test_the_shares_are_of_one_word_questions_with_as_many_tokens(result):
    found = right(result, KEPT)
    assert {name: found["cluttered", name] for name in COLUMNS} == {ALL_TOKENS: 100} | dict.fromkeys(SELECTORS, 50)


def test_what_is_dropped_is_grey_and_darker():
    picture = Image.new("RGB", (4, 4), (200, 40, 40))
    kept = np.array([[True, False], [False, False]])
    pixels = np.asarray(with_dropped_grey(picture, kept)).astype(int)
    assert (pixels[:2, :2] == (200, 40, 40)).all()
    dropped = pixels[2:]
    assert (dropped[..., 0] == dropped[..., 1]).all()
    assert dropped.max() < 100


def test_scenes_are_of_every_split_however_few_there_are():
    image = Image.new("RGB", (8, 8))
    prompts = [GradedPrompt(name, "?", ("a",), split, "color") for name, split in (("a", "plain"), ("b", "cluttered"))]
    assert scenes_of({"a": image, "b": image}, prompts) == {"plain": {"a": image}, "cluttered": {"b": image}}
