"""The report in Debian's chromium: it opens at once, asks for nothing, and can be worked by mouse and by keyboard."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs import report_corpus
from pipeline.report.query import connect
from tests.browser.chromium import Chromium
from tests.report.reports import hostile_corpus, write_answers, write_choice

pytestmark = pytest.mark.browser

IMAGES = 200
OPEN_SEC = 3.0
SIDE = 16  # tokens along a side of an image of the bundled model
STOPPED = "document.documentElement.style.scrollBehavior = 'auto'"


@pytest.fixture(scope="session")
def outputs(prune, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Over 200 images of the bundled corpus, and answers: everything right at 64 tokens, some of it wrong at 16."""
    folder = tmp_path_factory.mktemp("bundled")
    prune(folder / "pruned", max_tokens="64", limit=230)
    full = write_answers(folder / "64", folder / "pruned", "64", lambda prompt: (expected(prompt), 1.0))
    few = write_answers(
        folder / "16", folder / "pruned", "16",
        lambda prompt: (expected(prompt), 1.0) if hash_of(prompt) % 5 else ("something else", 0.0), seen=16,
    )  # fmt: skip
    return folder / "pruned", [full, few]


def expected(prompt: dict[str, Any]) -> str:
    return prompt["references"][0] if prompt["references"] else "anything"


def hash_of(prompt: dict[str, Any]) -> int:
    return sum(map(ord, prompt["prompt_id"]))


def written(folder: Path, pruned: Path, answers: list[Path], *more: str) -> Path:
    output = folder / "report.html"
    options = [part for path in answers for part in ("--answers", str(path))]
    assert report_corpus.main(["--pruned", str(pruned), *options, "--output", str(output), *more]) == 0
    return output


@pytest.fixture(scope="session")
def report(outputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    choice = write_choice(folder / "choice")
    return written(folder, *outputs, "--images", str(IMAGES), "--choice", str(choice))


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    with Chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Chromium, report: Path) -> Iterator[Chromium]:
    """The page as it is when it was just opened; it may complain of nothing and ask for nothing."""
    browser.complaints.clear()
    browser.requests.clear()
    browser.size(1280, 900)
    browser.prefer("light")
    browser.open(report)
    browser.js(STOPPED)
    yield browser
    assert browser.complaints == []
    assert browser.requests == []


def show_gallery(page: Chromium) -> None:
    page.js("document.getElementById('gallery').scrollIntoView()")
    page.until("document.querySelector('.card canvas').dataset.kept !== undefined")


def shown_tokens(page: Chromium) -> list[int]:
    """The tokens of the first image that the overlay leaves bright, by what the canvas holds at their centres."""
    tokens: list[int] = page.js(
        f"""(() => {{
        const {{ width, height }} = document.querySelector('.card canvas');
        const copy = Object.assign(document.createElement('canvas'), {{ width, height }});
        const pen = copy.getContext('2d', {{ willReadFrequently: true }});
        pen.drawImage(document.querySelector('.card canvas'), 0, 0);
        const {{ data }} = pen.getImageData(0, 0, width, height);
        return [...Array({SIDE * SIDE}).keys()].filter(token => {{
            const x = Math.floor((token % {SIDE} + .5) / {SIDE} * width);
            const y = Math.floor((Math.floor(token / {SIDE}) + .5) / {SIDE} * height);
            return data[4 * (y * width + x) + 3] === 0;
        }}) }})()"""
    )
    return tokens


def first_ranking(page: Chromium, pruned: Path) -> list[int]:
    source = page.js("document.querySelector('.card .source').textContent")
    ((ranking,),) = connect(pruned).execute("select ranking from images where source = ?", [source]).fetchall()
    return ranking


def test_200_images_open_in_under_3_seconds(browser, report):
    """The best of three: others work on this machine too."""
    seconds = []
    for _ in range(3):
        browser.complaints.clear()
        browser.requests.clear()
        seconds.append(browser.open(report))
        assert browser.js("document.querySelectorAll('.card img').length") == IMAGES
        assert browser.js("document.querySelectorAll('.chart svg').length") >= 7
        assert (browser.complaints, browser.requests) == ([], [])
    assert min(seconds) < OPEN_SEC, seconds


def test_what_the_browser_would_complain_of_is_heard(browser, tmp_path):
    """Else a silent page proves nothing."""
    (tmp_path / "bad.html").write_text("<script>console.error('a'); fetch('http://127.0.0.1:9/x'); missing()</script>")
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(tmp_path / "bad.html")
    browser.until("1", lambda _: len(browser.complaints) >= 3)
    assert browser.requests == ["http://127.0.0.1:9/x"]


def test_the_slider_shows_the_first_k_of_the_ranking(page, outputs):
    show_gallery(page)
    ranking = first_ranking(page, outputs[0])
    for k in (1, 10, 64):
        page.js(
            f"(() => {{ const k = document.getElementById('k'); k.value = {k};k.dispatchEvent(new Event('input')) }})()"
        )
        page.until("document.querySelector('.card canvas').dataset.kept", lambda kept, k=k: kept == str(k))
        assert shown_tokens(page) == sorted(ranking[:k])
        assert page.js("document.querySelector('.card .count').textContent") == f"{k} of 256 tokens"


def test_a_budget_that_was_answered_can_be_gone_to(page):
    show_gallery(page)
    page.js("document.querySelectorAll('.stop')[0].click()")
    page.until("document.querySelector('.card canvas').dataset.kept", lambda kept: kept == "64")
    assert page.js("document.getElementById('k').value") == "64"
    assert page.js("document.querySelectorAll('.stop')[0].getAttribute('aria-pressed')") == "true"
    assert page.js("[...document.querySelectorAll('.given .current')].every(line => line.dataset.run === '0')")


def count_of(page: Chromium) -> tuple[int, int]:
    """Images and prompts that are to be seen, counted in the page and told by it."""
    found = page.js(
        "[...document.querySelectorAll('.card:not([hidden])')].map("
        "card => card.querySelectorAll('.prompt:not([hidden])').length)"
    )
    told = page.js("document.getElementById('count').textContent")
    assert told == f"{len(found)} of {IMAGES} images, {sum(found):,} prompts"
    return len(found), sum(found)


def test_filters(page, outputs):
    pruned, answers = outputs
    db = connect(pruned, answers)
    sources = page.js("[...document.querySelectorAll('.card .source')].map(name => name.textContent)")

    def counted(condition: str) -> tuple[int, int]:
        """Images and prompts of the gallery, counted in SQL."""
        return db.execute(
            f"""select count(distinct image_id), count(*) from prompts p join images i using (image_id)
                join answers a using (prompt_id) where a.budget = '16' and p.status = 'ok'
                and list_contains(?, i.source) and {condition}""",
            [sources],
        ).fetchall()[0]

    everything = count_of(page)
    assert everything == (IMAGES, counted("true")[1])
    change = (
        "(() => {{ const one = document.getElementById('{}'); one.value = {}; one.dispatchEvent(new Event('{}')) }})()"
    )
    kinds = page.js("[...document.getElementById('type').options].map(one => one.textContent)")
    page.js(change.format("type", repr(str(kinds.index("count") - 1)), "change"))
    assert count_of(page) == counted("p.type = 'count'")
    page.js(change.format("marks", "'lost:1'", "change"))
    assert count_of(page) == counted("p.type = 'count' and a.score = 0")
    assert page.js("document.querySelector('.stop[aria-pressed=true]').textContent") == "16", "it goes to that budget"
    page.js(change.format("type", "''", "change"))
    assert count_of(page) == counted("a.score = 0")
    page.js(change.format("marks", "'wrong:0'", "change"))
    assert count_of(page) == (0, 0)
    assert page.js("document.getElementById('nothing').checkVisibility()")
    page.js(change.format("marks", "''", "change"))
    page.js(change.format("find", "'how many'", "input"))
    assert count_of(page) == counted("p.prompt like 'how many%'")
    page.js(change.format("find", "''", "input"))
    assert count_of(page) == everything


def focused(page: Chromium) -> str:
    return page.js("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")


def tab_to(page: Chromium, wanted: str) -> None:
    for _ in range(60):
        page.press("Tab")
        if focused(page) == wanted:
            outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", "what has the focus can be seen"
            return
    raise AssertionError(f"the Tab key does not lead to {wanted}")


def test_the_keyboard_is_enough(page, outputs):
    page.press("Tab")
    assert focused(page) == "skip"
    page.press("Enter")
    assert page.js("location.hash") == "#main"
    tab_to(page, "k")
    page.press("Home")
    page.press("ArrowRight", 9)
    page.until("document.querySelector('.card canvas').dataset.kept", lambda kept: kept == "10")
    assert shown_tokens(page) == sorted(first_ranking(page, outputs[0])[:10])
    assert page.js("document.getElementById('k').getAttribute('aria-valuetext')") == "10 of 256 (3.91 %)"
    page.press("End")
    page.until("document.querySelector('.card canvas').dataset.kept", lambda kept: kept == "64")
    tab_to(page, "stop")
    page.press("Tab")
    page.press(" ")
    page.until("document.querySelector('.card canvas').dataset.kept", lambda kept: kept == "16")
    tab_to(page, "type")
    page.press("ArrowDown")
    assert count_of(page)[1] < 1000
    assert page.js("document.getElementById('type').selectedIndex") == 1


def test_the_levels_of_the_map_can_be_changed(page):
    def map_now() -> str:
        return page.js("document.querySelector('#c-heat svg').innerHTML")

    before, levels = map_now(), page.js("document.querySelectorAll('#levels input').length")
    assert levels >= 3
    page.js("document.querySelectorAll('#levels input')[0].click()")
    assert map_now() != before
    assert page.js("document.querySelector('#levels-told tr.current th').textContent") == page.js(
        "document.querySelector('#levels input:checked + span').textContent"
    )


def test_everything_that_works_or_shows_has_a_name(page):
    """As a screen reader is told it."""
    show_gallery(page)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    assert named.keys() >= {
        "slider",
        "combobox",
        "button",
        "searchbox",
        "radio",
        "image",
        "table",
        "main",
        "navigation",
    }
    for role in ("slider", "combobox", "button", "searchbox", "radio", "image", "link", "heading", "region"):
        assert all(name.strip() for name in named[role]), role
    assert named["slider"] == ["Tokens kept"]
    assert len([name for name in named["image"] if name.startswith("Picture ")]) > 0
    levels = page.js("[...document.querySelectorAll('h1, h2, h3')].map(one => Number(one.tagName[1]))")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.js("document.getElementById('count').getAttribute('aria-live')") == "polite"


CONTRAST = """(() => {
    const style = getComputedStyle(document.documentElement);
    const light = name => {
        const pen = document.createElement('canvas').getContext('2d');
        pen.fillStyle = style.getPropertyValue(name);
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const pairs = ['--ink', '--soft', '--accent', '--good', '--bad'].flatMap(
        ink => ['--paper', '--surface', '--sunken'].map(paper => [ink, paper])).concat([['--warm-ink', '--warm']]);
    return pairs.map(([ink, paper]) => {
        const [less, more] = [light(ink), light(paper)].sort((a, b) => a - b);
        return [ink + ' on ' + paper, (more + .05) / (less + .05)];
    });
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_those_a_person_prefers_and_can_be_read(page, scheme):
    page.prefer(scheme)
    page.until("document.documentElement.dataset.theme", lambda theme: theme == scheme)
    for pair, contrast in page.js(CONTRAST):
        assert contrast >= 4.5, pair
    paper = page.js("getComputedStyle(document.body).backgroundColor")
    page.js("document.getElementById('theme').click()")
    assert page.js("getComputedStyle(document.body).backgroundColor") != paper, "and can be changed"


@pytest.mark.parametrize("width", [360, 768])
def test_a_narrow_screen_scrolls_in_one_direction(page, width):
    page.size(width, 740)
    page.js("new Promise(done => setTimeout(done, 300))")
    assert page.js("document.documentElement.scrollWidth") <= width


def test_it_prints(page):
    assert page.printed().startswith(b"%PDF-")
    page.js("dispatchEvent(new Event('beforeprint'))")
    assert page.js("document.querySelectorAll('.card:not(.unprinted)').length") == 24
    assert page.js("document.getElementById('printed').textContent") == f"24 of {IMAGES} images are printed."
    page.prefer("light", media="print")
    assert page.js("document.querySelectorAll('.card')[23].checkVisibility()")
    assert not page.js("document.querySelectorAll('.card')[24].checkVisibility()")
    assert not page.js("document.getElementById('controls').checkVisibility()")
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js("document.querySelectorAll('.unprinted').length") == 0


def leftmost(page: Chromium, chart: str) -> float:
    """How far right of the left edge of a chart its texts begin."""
    begin: float = page.js(
        f"""(() => {{
        const edge = document.querySelector('{chart} svg:last-of-type').getBoundingClientRect().left;
        return Math.min(...[...document.querySelectorAll('{chart} svg text')]
            .map(one => one.getBoundingClientRect().left)) - edge }})()"""
    )
    return begin


def test_every_budget_has_its_label_and_none_lies_over_an_answer(browser, outputs, tmp_path):
    """On a logarithmic axis from 8 to 256; answers of several lines beside the name of a mean budget."""
    long = "a red circle, a blue star, " * 8
    answers = [
        write_answers(tmp_path / f"{seen}", outputs[0], budget, lambda prompt: (long, 1.0), seen=seen)
        for seen, budget in ((256, "64"), (64, "mean:60.25"), (8, "8"))
    ]
    browser.open(written(tmp_path, outputs[0], answers, "--images", "4"))
    labels = browser.js(
        "[...document.querySelectorAll('#c-accuracy [aria-label=\"x-axis tick label\"] text')].map(t => t.textContent)"
    )
    assert sorted(labels, key=float) == ["8", "64", "256"]
    assert browser.js(
        """[...document.querySelectorAll('.given li')].every(line => {
        const [at, mark, said] = line.children;
        return at.getBoundingClientRect().right <= mark.getBoundingClientRect().left
            && at.scrollWidth <= at.clientWidth
            && mark.getBoundingClientRect().right <= said.getBoundingClientRect().left })"""
    )
    assert browser.js("document.querySelector('.given .said').getBoundingClientRect().height") > 30


def test_a_hostile_corpus_does_nothing(browser, prune, tmp_path):
    prune(tmp_path / "pruned", corpus=(str(hostile_corpus(tmp_path / "corpus")),), max_tokens="64", limit=None)
    answers = [
        write_answers(tmp_path / "all", tmp_path / "pruned", "64", lambda prompt: (prompt["prompt"], 1.0)),
        write_answers(tmp_path / "few", tmp_path / "pruned", "16", lambda prompt: (prompt["prompt_id"], 0.0), seen=16),
    ]
    hostile = written(tmp_path, tmp_path / "pruned", answers)
    browser.complaints.clear()
    browser.requests.clear()
    browser.open(hostile)
    browser.js(
        "document.querySelectorAll('.prompt, summary, .card').forEach(one => "
        "{ one.click(); one.dispatchEvent(new Event('mouseover')) })"
    )
    assert browser.js("typeof window.hacked") == "undefined"
    assert browser.js("document.querySelectorAll('.chart svg').length") >= 6
    assert (browser.complaints, browser.requests) == ([], [])
    assert leftmost(browser, "#c-types") >= 0, "a long name stays in its chart"
    assert browser.js("[...document.querySelectorAll('.type')].every(one => one.scrollWidth <= one.clientWidth)")
    texts = browser.js("JSON.stringify([...document.querySelectorAll('.question bdi')].map(one => one.textContent))")
    assert any("</script><script>" in text for text in json.loads(texts))
