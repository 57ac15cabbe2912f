"""choose_budget's verdict in a report: as it was found, and only where it was."""

import json
import re

import pytest

from pipeline.errors import UserError
from pipeline.report.html import render
from tests.report.reports import HOSTILE, page_on, report_on, write_choice


def page_with(small_pruned, tmp_path, **choice: object) -> str:
    pruned = small_pruned(tmp_path / "pruned")
    return page_on(pruned, choice=str(write_choice(tmp_path / "choice", **choice)))


def test_the_first_screen_names_the_safe_budget(small_pruned, tmp_path):
    page = page_with(small_pruned, tmp_path)
    first = page[: page.index('id="h-verdict"')]
    assert re.search(r'class="figure good">.*64 tokens', first)
    assert "--tokens 0.25 is the smallest budget measured." in first
    assert "Tolerance 2 points, confidence 95 %, 480 images" in first
    assert "not tested" not in first
    assert "0.50 [0.00, 1.00]" in page
    assert "random loses 18.00" in page
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    assert data["charts"]["verdict"]["tolerance"] == 2.0
    assert [point["series"] for point in data["charts"]["verdict"]["points"]] == ["zoo", "random"] * 2


def test_it_says_so_where_nothing_is_safe(small_pruned, tmp_path):
    page = page_with(small_pruned, tmp_path, chosen=None)
    assert re.search(r'class="figure bad">.*no budget', page)
    assert 'class="figure good"' not in page


def test_a_verdict_on_another_selector_is_told(small_pruned, tmp_path):
    """The artifact's record names no selector."""
    choice = write_choice(tmp_path / "choice", selector="divprune")
    report = report_on(small_pruned(tmp_path / "pruned"), choice=str(choice))
    assert report.verdict is not None
    assert "It tested tokens chosen by divprune" in report.verdict.sentences[-1]
    page = render(report).decode()
    assert "It tested tokens chosen by divprune" in page[: page.index('id="h-verdict"')], "beside the figure"


@pytest.mark.parametrize("text", HOSTILE)
def test_its_texts_become_no_markup(small_pruned, tmp_path, text):
    page = page_with(small_pruned, tmp_path, name=text)
    assert page.count("<script") == 4
    assert "window.hacked = 1</script>" not in page
    assert "<img" not in page
    assert "<svg/onload" not in page


def test_without_one_it_is_refused(small_pruned, tmp_path):
    pruned = small_pruned(tmp_path / "pruned")
    with pytest.raises(UserError, match=r"holds no choice\.json; name the --output of a choose_budget job"):
        report_on(pruned, choice=str(tmp_path / "nowhere"))
    choice = write_choice(tmp_path / "choice")
    data = json.loads((choice / "choice.json").read_text())
    for change, said in (({"version": 2}, "version: "), ({"budgets": "none"}, "budgets: ")):
        (choice / "choice.json").write_text(json.dumps(data | change))
        with pytest.raises(UserError, match=f"{said}.*run choose_budget again") as caught:
            report_on(pruned, choice=str(choice))
        assert "\n" not in str(caught.value)
    (choice / "choice.json").write_text("{")
    with pytest.raises(UserError, match=r"its text: .*run choose_budget again"):
        report_on(pruned, choice=str(choice))
