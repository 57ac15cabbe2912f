"""Which group a question belongs to, and what its answer is worth."""

import json
from collections import Counter

import pytest

from benchmarks.graded_corpus import GradedPrompt, load_corpus, split_and_kind, spread


@pytest.mark.parametrize(
    ("prompt_type", "split", "kind"),
    [
        ("color", "plain", "color"),
        ("caption", "plain", "caption"),
        ("never seen before", "plain", "never seen before"),
        ("cluttered_color", "cluttered", "color"),
        ("cluttered-count", "cluttered", "count"),
        ("Cluttered: digit", "cluttered", "digit"),
        ("cluttered_small_text", "cluttered", "small_text"),
        ("cluttered", "cluttered", "untyped"),
        ("uncluttered", "plain", "uncluttered"),
        (None, "plain", "untyped"),
        ("", "plain", "untyped"),
    ],
)
def test_groups_are_read_from_the_type(prompt_type, split, kind):
    assert split_and_kind(prompt_type) == (split, kind)


def graded(kind: str, *references: str) -> GradedPrompt:
    return GradedPrompt("0", "?", references, "plain", kind)


def test_one_word_is_matched_exactly_and_captions_by_their_objects():
    assert graded("color", "red").score(" Red.") == 1
    assert graded("color", "red").score("red circle") == 0
    assert graded("color", "grey", "gray").score("gray") == 1
    assert graded("caption", "a red circle, a blue seven.").score("a blue seven.") == pytest.approx(2 / 3)
    assert graded("caption", "a star.", "a red circle.").score("red circle") == 1
    assert graded("caption", "a star.").score("") == 0


def test_the_bundled_corpus_is_read_whole(scenes_manifest):
    from pathlib import Path

    images, prompts = load_corpus([Path(scenes_manifest)])
    assert {prompt.image_id for prompt in prompts} == set(images)
    kinds = Counter(prompt.kind for prompt in prompts)
    assert {"color", "shape", "digit", "count", "exist", "relation", "caption"} <= set(kinds)


def test_records_without_a_gradable_question_are_left_out(tmp_path, scenes_manifest):
    from pathlib import Path

    image = Path(scenes_manifest).parent / "images" / "000000.jpg"
    (tmp_path / "a.jpg").write_bytes(image.read_bytes())
    (tmp_path / "b.jpg").write_bytes(b"no image")
    asked = [{"prompt": "what ?", "references": ["x"]}, {"prompt": " ", "references": ["x"]}, {"prompt": "why ?"}]
    records = [{"image": "a.jpg", "prompts": asked}, {"image": "b.jpg", "prompts": asked}, {"image": "a.jpg"}]
    manifest = tmp_path / "corpus.jsonl"
    manifest.write_text("\n".join(map(json.dumps, records)))
    images, prompts = load_corpus([manifest])
    assert [(p.text, p.kind) for p in prompts] == [("what ?", "untyped")]
    assert len(images) == 1


def test_a_limit_takes_images_from_the_whole_corpus():
    images = {str(n): None for n in range(10)}
    assert list(spread(images, 3)) == ["0", "3", "6"]
    assert list(spread(images, 10)) == list(spread(images, None)) == list(spread(images, 99)) == list(images)
