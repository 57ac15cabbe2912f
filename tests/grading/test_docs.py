"""docs/grading.md: each metric has a section, and its examples give what they say."""

import doctest
import re
from pathlib import Path

from pipeline.grading.intervals import MAX_GROUPS, RESAMPLES
from pipeline.grading.metrics import METRICS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "grading.md"


def test_the_examples_give_what_they_say():
    found = doctest.testfile(str(DOCS), module_relative=False)
    assert found.failed == 0
    assert found.attempted > len(METRICS)


def test_every_metric_has_a_section_with_an_example():
    sections = re.split(r"^### ", DOCS.read_text(), flags=re.M)[1:]
    by_title = {name: section for section in sections for name in section.partition("\n")[0].split(", ")}
    for name in METRICS:
        assert ">>>" in by_title[name], name


def test_its_numbers_are_those_of_the_code():
    text = " ".join(DOCS.read_text().split())
    assert f"{RESAMPLES:,} resamples" in text
    assert f"Beyond {MAX_GROUPS:,} images" in text
    least = METRICS["vqa"].min_references
    assert f"It takes {least} references or more" in text
