"""Counts per status in a commit record: what is written under a name is found under it."""

from schemas.statuses import OK, Counted, PromptStatus


def test_counts_are_told_apart_by_kind_and_status():
    counts = {
        "samples": 7,
        Counted.SAMPLES.named(OK): 4,
        Counted.SAMPLES.named("missing_file"): 3,
        Counted.PROMPTS.named(PromptStatus.EMPTY): 2,
        "prompts": 2,
        "samples_elsewhere": 1,
    }
    assert Counted.SAMPLES.per_status(counts) == {"ok": 4, "missing_file": 3}
    assert Counted.PROMPTS.per_status(counts) == {"empty_prompt": 2}
    assert list(counts)[1] == "samples.ok"
