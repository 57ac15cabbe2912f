"""The page: it holds what it says, nothing in the corpus gets out of its place, and it has a size that it keeps to."""

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import numpy as np
import pytest
from PIL import Image

from jobs import report_corpus, zoo_prune
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.index import read_index
from pipeline.errors import UserError
from pipeline.report import gallery as gallery_room
from pipeline.report.accuracy import Accuracy, Run
from pipeline.report.gallery import GALLERY_BYTES, make_gallery
from pipeline.report.html import MARK, MAX_BYTES, Report, render
from pipeline.report.query import connect
from pipeline.report.thumbnails import thumbnail
from tests.report.reports import HOSTILE, TURNED, hostile_corpus, page_on, report_on, write_answers

pytestmark = pytest.mark.long

NOT_TEXT = ("script", "style")


class Page(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[tuple[dict[str, str], str]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, before = self.scripts[-1]
            self.scripts[-1] = attributes, before + data
        elif self._inside != "style":
            self.text += data


@pytest.fixture(scope="module")
def hostile(prune, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A hostile corpus pruned, and hostile answers at two budgets."""
    folder = tmp_path_factory.mktemp("hostile")
    prune(folder / "pruned", corpus=(str(hostile_corpus(folder / "corpus")),), max_tokens="64", limit=None)
    answers = [
        write_answers(folder / "all", folder / "pruned", "64", lambda prompt: (prompt["prompt"], 1.0)),
        write_answers(
            folder / "few", folder / "pruned", "16",
            lambda prompt: (None, None) if prompt["prompt_id"].endswith("0-1") else (HOSTILE[1], 0.0), seen=16,
        ),
    ]  # fmt: skip
    return folder / "pruned", answers


@pytest.fixture(scope="module")
def page(hostile) -> str:
    return page_on(*hostile)


def test_nothing_in_the_corpus_becomes_markup(page):
    found = Page(page)
    scripts = [attributes for attributes, _ in found.scripts]
    assert scripts == [{"type": "application/json", "id": "data"}, {}, {}, {}]
    assert {name for _, name, _ in found.attributes if name.startswith("on")} == set()
    assert found.tags["img"] == 12, "a thumbnail an image that decoded"
    assert all(value.startswith("data:image/jpeg;base64,") for tag, name, value in found.attributes if name == "src")
    assert {value[:1] for tag, name, value in found.attributes if name == "href"} == {"#"}
    assert not {"iframe", "object", "embed", "link", "base", "b", "i", "textarea"} & set(found.tags)
    for text in HOSTILE[:6]:
        assert text in found.text, "it is shown as it is"
    assert "49" not in [word for word in found.text.split() if word == "49"], "the template is not run over texts"


def test_nothing_turns_the_direction_of_text(page):
    assert not set(TURNED) & set(page) - set("gpj.exe")
    assert not re.search(r"[\u2028\u2029\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f]", page)
    assert r"\u202egpj.exe\u2066" in page


def test_data_in_scripts_can_not_end_them(hostile, page):
    (_, data), *scripts = Page(page).scripts
    assert "<" not in data
    assert {row["type"] for row in json.loads(data)["charts"]["accuracy"]["points"]} >= set(HOSTILE[:6])
    for _, script in scripts:
        assert "</script" not in script.lower()


def test_commands_that_the_page_names_are_there(page):
    named = set(re.findall(r"<code>zoo-prune ([\w-]+)", page))
    assert "choose" in named
    assert named <= set(zoo_prune.COMMAND.commands)


def test_refused_prompts_are_no_failed_inputs(hostile, page):
    """Two images can't be read; at the smaller budget one prompt of several images is refused."""
    pruned, answers = hostile
    db = connect(pruned, answers)
    ((failed,),) = db.sql("select count(*) from errors").fetchall()
    ((refused,),) = db.sql("select count(*) from answers where finish_reason = 'refused'").fetchall()
    assert min(failed, refused) > 1
    text = " ".join(Page(page).text.split())
    assert f"{failed} inputs failed; nothing else is missing. Each has a row in errors." in text
    assert f"{refused} answers were refused: their prompts don't fit the model at that budget." in text
    assert f"<dt>inputs that failed</dt><dd>{failed}</dd>" in page


def test_the_policy_lets_these_scripts_run_and_nothing_be_asked_for(page):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert rules["base-uri"] == rules["form-action"] == ["'none'"]
    scripts = [text for attributes, text in Page(page).scripts if not attributes]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    assert rules["script-src"] == [f"'sha256-{digest}'" for digest in hashes]
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")


def test_the_page_says_what_was_kept_what_failed_and_what_was_lost(hostile, page):
    text = " ".join(Page(page).text.split())
    assert "25.0 %" in text
    assert "64 of 256 tokens" in text
    assert "−100.0 points" in text, "everything is wrong at 16 tokens"
    assert "not tested" in text
    assert text.count("unreadable_image") >= 1
    assert "refused (16)" in text
    assert "12 images: all there are." in text


def test_half_of_the_gallery_is_there_for_what_is_lost(hostile):
    page = page_on(*hostile, images=8)
    text = " ".join(Page(page).text.split())
    assert "8 images: 4 drawn from those where an answer right at 64 tokens is wrong at a smaller budget" in text
    assert Page(page).tags["img"] == 8
    assert "8 images, drawn at random from 12." in " ".join(Page(page_on(hostile[0], images=8)).text.split())


def test_the_same_records_give_the_same_bytes(hostile, page):
    assert page_on(*hostile) == page
    assert page_on(*hostile, seed=1, images=5) != page_on(*hostile, seed=2, images=5)


def test_pictures_that_can_not_be_read_any_more_are_told(hostile, tmp_path):
    pruned, answers = hostile
    corpus = pruned.parent / "corpus"
    corpus.rename(corpus.with_name("away"))
    try:
        report = report_on(pruned, answers)
    finally:
        corpus.with_name("away").rename(corpus)
    assert all(card.thumbnail is None and "does not exist" in (card.problem or "") for card in report.gallery.cards)
    assert report.gallery.notes[0].startswith("No picture could be read from the corpus again. The first reason: ")
    assert "does not exist" in Page(render(report).decode()).text


def test_a_picture_that_was_replaced_is_not_shown(hostile):
    pruned, _ = hostile
    card = report_on(pruned).gallery.cards[0]
    (place,) = read_index(Artifact(pruned).store).places({card.image_id: 0}).values()
    original = Path(place.path).read_bytes()
    try:
        Image.new("RGB", (8, 8)).save(place.path, "PNG")
        report = report_on(pruned)
    finally:
        Path(place.path).write_bytes(original)
    (changed,) = [one for one in report.gallery.cards if one.problem]
    assert changed.image_id == card.image_id
    assert "other bytes than when it was indexed" in changed.problem
    assert report.gallery.notes[0].startswith("11 of 12 pictures could be read")


def test_an_artifact_without_its_index_has_a_gallery_without_pictures(small_pruned, tmp_path):
    report = report_on(small_pruned(tmp_path / "out"))
    assert {card.problem for card in report.gallery.cards} == {
        "the artifact has lost its _index, which says where its pictures lie"
    }
    assert b"has lost its _index" in render(report)


def test_an_empty_artifact_has_a_page(small_pruned, tmp_path):
    page = page_on(small_pruned(tmp_path / "out", shards=0))
    assert "No image has been committed." in page


@pytest.mark.parametrize("count", [200, 1000])
def test_no_corpus_makes_the_page_too_large(count, monkeypatch, tmp_path, small_pruned):
    """Every text as long and as costly as can be, every thumbnail as large as it may be."""
    text, budgets = '"\u202e' * 400, ["all", "64"]
    db = duckdb.connect()
    db.execute(
        f"""
        create table images as select md5(range::varchar) as image_id, '{text}' as source, 0 as shard, 640 as width,
            480 as height, 20000 as num_tokens, 20000 as num_kept, {{'rows': 100, 'cols': 200, 'tiles': 1}} as grid,
            [{{'rows': 100, 'cols': 200, 'row': 0, 'col': 0}}] as segments, range(20000) as ranking
        from range({count});
        create table prompts as select image_id, image_id || n as prompt_id, '{text}' as prompt,
            ['{text}', '{text}'] as "references", '{text}' || n as type, 'ok' as status from images, range(9) r(n);
        create table answers as select image_id, prompt_id, b as budget, '{text}' as answer, 0.33 as score,
            64 as tokens, 'length' as finish_reason from prompts, (values ('all'), ('64')) v(b);
        """
    )
    runs = [Run(selector=text, budget=one, tokens=64, seconds=1, is_control=False) for one in budgets]
    accuracy = Accuracy(runs=runs, points=[], reference=0, measure=text, images=count, left_out=0)
    asked: list[int] = []

    def thumbnails(shards, _index, most, _say):
        asked.append(most)
        return {image_id: ("data:image/jpeg;base64,".ljust(most, "A"), None) for image_id in shards}

    monkeypatch.setattr(gallery_room, "thumbnails", thumbnails)
    made = make_gallery(db, count, 0, accuracy, None, None, lambda _: None)
    assert len(made.cards) == count
    assert asked[0] > 3_000, "there is room for a picture"
    assert all(card.left_out for card in made.cards), "not all prompts have room"
    assert all(card.prompts for card in made.cards) == (count == 200), "texts as these have none among 1000 cards"
    small = report_on(small_pruned(tmp_path / "out"))
    page = render(Report(**{**vars(small), "gallery": made}))
    without = render(Report(**{**vars(small), "gallery": make_gallery(db, 0, 0, accuracy, None, None, lambda _: None)}))
    assert 0.4 * GALLERY_BYTES < len(page) - len(without) <= GALLERY_BYTES
    assert len(page) < MAX_BYTES


def test_a_thumbnail_is_as_small_as_it_must_be():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8))
    sizes = [len(thumbnail(noise, most)) for most in (200_000, 20_000, 3_700)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(size <= most for size, most in zip(sizes, (200_000, 20_000, 3_700), strict=True))
    assert thumbnail(noise, 100) is None


def test_something_else_is_not_overwritten(hostile, tmp_path):
    output = tmp_path / "deep" / "report.html"
    arguments = ["--pruned", str(hostile[0]), "--images", "1", "--output", str(output)]
    assert report_corpus.main(arguments) == 0
    assert output.read_text()[:200].count(MARK) == 1
    assert report_corpus.main(arguments) == 0, "a report is replaced by the next"
    output.write_text("<!doctype html>my own page")
    with pytest.raises(UserError, match="holds something other than a report; name a new file"):
        report_corpus.main(arguments)
    assert output.read_text() == "<!doctype html>my own page"
    with pytest.raises(UserError, match=r"give it a name that ends in \.html"):
        report_corpus.main([*arguments[:-1], str(tmp_path)])


def test_prompts_about_an_image_and_its_answers_stand_under_it(hostile):
    report = report_on(*hostile)
    (card,) = [one for one in report.gallery.cards if one.source.startswith("all.jsonl") and "/0 " in one.source]
    db = connect(hostile[0])
    asked = db.execute("select prompt from prompts where image_id = ?", [card.image_id]).fetchall()
    assert sorted(one.prompt for one in card.prompts) == sorted(prompt for (prompt,) in asked)
    assert [[one.text for one in prompt.answers] for prompt in card.prompts] == [
        [HOSTILE[0], HOSTILE[1]],
        [HOSTILE[0], None],
    ]
    assert [prompt.marks for prompt in card.prompts] == ["rw", "r-"]
    assert card.tokens == [64, 16]
