"""What is counted as a failed input: as many as the shard's errors table has rows."""

from schemas.statuses import failed_inputs


def test_a_prompt_of_a_failed_sample_is_no_failed_input_of_its_own():
    counts = {
        **{"samples": 5, "samples.ok": 3, "samples.missing_file": 1, "samples.bad_record": 1},
        **{
            "prompts": 7,
            "prompts.ok": 3,
            "prompts.missing_file": 2,
            "prompts.empty_prompt": 1,
            "prompts.bad_prompt": 1,
        },
    }
    assert failed_inputs(counts) == {
        "missing_file": 1,
        "bad_record": 1,
        "empty_prompt": 1,
        "bad_prompt": 1,
    }
