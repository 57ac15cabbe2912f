"""Numbers and reasons, as messages say them."""

from schemas.statuses import why_not_posed
from schemas.wording import counted


def test_one_is_singular():
    assert counted(1, "shards") == "1 shard"
    assert counted(1, "shards", "were") == "1 shard was"
    assert counted(0, "shards", "were") == "0 shards were"
    assert counted(1000, "input files", "are") == "1,000 input files are"


def test_reasons_are_told_in_words_beside_the_status_of_the_tables():
    assert why_not_posed({"ok": 9, "empty_prompt": 1200, "duplicate_prompt_id": 1, "missing_file": 2}) == (
        "1,200 without text (empty_prompt), 1 with the id of another prompt (duplicate_prompt_id), "
        "2 of samples that failed (missing_file)"
    )
