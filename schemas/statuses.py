"""The words for what became of a prompt, and the names under which commit records count samples and prompts by them."""

from collections.abc import Mapping
from enum import StrEnum

OK = "ok"  # of a sample as of a prompt


class PromptStatus(StrEnum):
    """What a prompt is by itself. A prompt of a sample that failed has the reason of that sample instead."""

    OK = OK
    BAD = "bad_prompt"
    EMPTY = "empty_prompt"
    DUPLICATE_ID = "duplicate_prompt_id"


class AskedStatus(StrEnum):
    """What else can keep a prompt from being posed that is asked about an artifact after it was pruned."""

    UNKNOWN = "unknown_image"
    AMBIGUOUS = "ambiguous_source"


_IN_WORDS: dict[str, str] = {
    PromptStatus.BAD: "not in the form of a prompt",
    PromptStatus.EMPTY: "without text",
    PromptStatus.DUPLICATE_ID: "with the id of another prompt",
    AskedStatus.UNKNOWN: "about images that are not there",
    AskedStatus.AMBIGUOUS: "about one of several images",
}


def why_not_posed(statuses: Mapping[str, int]) -> str:
    """Prompts that can't be posed, by their statuses, as a clause: `2 without text (empty_prompt)`.

    Args:
        statuses: number of prompts by status; "ok" is left out. A status that is none of `PromptStatus` is the reason
            of their sample.
    """
    return ", ".join(
        f"{count:,} {_IN_WORDS.get(status, 'of samples that failed')} ({status})"
        for status, count in statuses.items()
        if status != OK
    )


class Counted(StrEnum):
    """What a commit record counts per status."""

    SAMPLES = "samples"
    PROMPTS = "prompts"

    def named(self, status: str) -> str:
        """The name of the count of those that have this status."""
        return f"{self}.{status}"

    def per_status(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The counts of a record by status."""
        prefix = self.named("")
        return {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}


def failed_inputs(counts: Mapping[str, int]) -> dict[str, int]:
    """Failed samples, and prompts that failed by themselves, per reason: the rows of the shard's errors table.

    Args:
        counts: of the shard's commit record.
    """
    samples, prompts = Counted.SAMPLES.per_status(counts), Counted.PROMPTS.per_status(counts)
    failed = {reason: count for reason, count in samples.items() if reason != OK}
    return failed | {status: prompts[status] for status in PromptStatus if status != OK and status in prompts}
