"""Looking at a corpus before a job: what is counted, whether of all samples or of some."""

import json
from pathlib import Path

import pytest

from pipeline.corpus.reading import Reading
from pipeline.corpus.resolve import resolve_corpus
from pipeline.prune import census as census_of
from pipeline.prune.census import take_census
from pipeline.storage.input_file import InputReadError


def size(width: int, height: int) -> int:
    return 3 * width * height


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A manifest of 4,000 lines: 25 images of two sizes, a tenth without its file, a fifth with an empty prompt."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    for n in range(25):
        Image.new("RGB", (8 if n % 2 else 16, 8), (n, 0, 0)).save(folder / f"{n}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_bytes(b"a text")
    lines = []
    for n in range(4000):
        name = "none.png" if n % 10 == 3 else f"{n % 25}.png"
        lines.append(json.dumps({"image": name, "prompts": ["what ?", "" if n % 5 == 0 else "how many ?"]}))
    lines += [json.dumps({"image": name}) for name in ("empty.png", "text.png")]
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "m.jsonl"


def test_all_samples_are_counted_one_by_one(corpus):
    census = take_census(resolve_corpus([str(corpus)]), size, count=0, limit=None, reading=Reading())
    assert census.whole
    assert census.total is census.seen
    total = census.total
    # the images of lines 3, 13 and 23 of 25 come elsewhere too, so that all 25 are found, and the two bad ones
    assert (total.samples, total.images, total.usable, total.prompts) == (4002, 27, 25, 8000)
    assert total.failed == {"missing_file": 400, "empty_prompt": 800, "empty_file": 1, "unreadable_image": 1}
    assert sorted(census.prepared) == [0, 0, *[size(8, 8)] * 12, *[size(16, 8)] * 13]


def test_a_sample_is_multiplied_by_the_share_that_was_looked_at(corpus, monkeypatch):
    looked = []
    scan = census_of.scan
    monkeypatch.setattr(
        census_of, "scan", lambda unit, **of: (looked.append(one.sample) or one for one in scan(unit, **of))
    )
    census = take_census(resolve_corpus([str(corpus)]), size, count=400, limit=None, reading=Reading())
    assert not census.whole
    assert census.seen.samples == 400
    assert len(looked) == 401  # nothing behind the first sample that is not counted
    assert census.total.samples == pytest.approx(4002, rel=0.02)
    assert census.total.prompts == pytest.approx(8000, rel=0.02)
    assert census.total.failed["missing_file"] == pytest.approx(400, rel=0.02)
    assert census.total.failed["empty_prompt"] == pytest.approx(800, rel=0.02)


def test_pieces_are_spread_over_all_inputs_of_a_kind(jpeg, write_tar, corpus, tmp_path):
    tars = [write_tar(tmp_path / f"{n:03d}.tar", [(f"{m}.jpg", jpeg(m)) for m in range(4)]) for n in range(100)]
    inputs = resolve_corpus([*map(str, tars), str(corpus)])
    census = take_census(inputs, size, count=200, limit=None, reading=Reading())
    assert census.total.samples == pytest.approx(4402, rel=0.02)
    seen = {sample.input for sample in census.kept}
    assert 100 in seen  # the manifest
    tens = {number // 10 for number in seen - {100}}
    assert tens == set(range(10))


@pytest.mark.parametrize("count", [0, 100])
def test_a_limit_takes_the_first_samples(corpus, count):
    census = take_census(resolve_corpus([str(corpus)]), size, count=count, limit=50, reading=Reading())
    assert census.whole
    assert (census.total.samples, census.total.failed) == (50, {"missing_file": 5, "empty_prompt": 10})
    beyond = take_census(resolve_corpus([str(corpus)]), size, count=100, limit=1000, reading=Reading())
    assert not beyond.whole
    assert beyond.total.samples == pytest.approx(1000)
    assert beyond.total.failed["missing_file"] == pytest.approx(100, rel=0.05)


def test_an_input_that_the_storage_does_not_give_is_left_out(corpus, jpeg, write_tar, tmp_path, monkeypatch):
    bad, good = (write_tar(tmp_path / f"{name}.tar", [("1.jpg", jpeg(1))]) for name in ("bad", "good"))
    scan = census_of.scan

    def failing(unit, **of):
        if unit.path == str(bad):
            raise InputReadError(unit.path, OSError(5, "Input/output error"), 0)
        yield from scan(unit, **of)

    monkeypatch.setattr(census_of, "scan", failing)
    for count in (0, 100):
        census = take_census(resolve_corpus([str(bad), str(good)]), size, count=count, limit=None, reading=Reading())
        assert (census.total.samples, census.total.images) == (1, 1)
        assert list(census.unread) == [str(bad)]
        assert "Input/output error" in census.unread[str(bad)]


def test_a_sample_that_is_kept_of_many_is_bounded_and_fair(corpus, monkeypatch):
    monkeypatch.setattr(census_of, "MAX_KEPT", 100)
    census = take_census(resolve_corpus([str(corpus)]), size, count=0, limit=None, reading=Reading())
    assert len(census.kept) == 100
    positions = [sample.sample for sample in census.kept]
    assert positions == sorted(positions)
    middle = corpus.stat().st_size / 2
    assert 25 < sum(position < middle for position in positions) < 75


def test_prompts_and_images_are_those_that_the_job_would_find(jpeg, tmp_path):
    """What the user says of the corpus counts: where images and prompts stand, and what is asked about every image."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(1))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"file": "a.jpg", "question": "what ?"}) + "\n")
    reading = Reading(
        prompts=("why ?",), prompt_column="question", image_column="file", image_root=str(tmp_path / "photos")
    )
    inputs = resolve_corpus([str(manifest), str(tmp_path / "photos")])
    for count in (0, 10):
        total = take_census(inputs, size, count=count, limit=None, reading=reading).total
        assert (total.samples, total.images, total.prompts, dict(total.failed)) == (2, 1, 3, {})
