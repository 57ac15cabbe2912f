"""What users say about the form of their corpus: where prompts stand in a record, and what is asked beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schemas.wording import counted

CAPTION_PROMPT = "describe the image ."
CAPTION_TYPE = "caption"


@dataclass(frozen=True, slots=True)
class Reading:
    """How the records of all inputs are read; a column is a key of JSON records, too."""

    prompts: tuple[str, ...] = ()  # asked about every image, beside what its record asks
    caption_prompt: str = CAPTION_PROMPT  # whose references are the captions of an image that has no prompts
    prompt_column: str | None = None  # None: `prompts`, then `conversations` or `messages`, then `caption`
    reference_column: str | None = None
    type_column: str | None = None
    id_column: str | None = None
    image_column: str | None = None  # None: `image`
    image_root: str | None = None  # folder that names of image files are relative to; None: that of their input

    @property
    def image_key(self) -> str:
        """Where a record names its image."""
        return self.image_column or "image"

    @property
    def named(self) -> dict[str, str]:
        """The columns that the user names for prompts, each with the option that names it."""
        options = ("prompt_column", "reference_column", "type_column", "id_column")
        return {getattr(self, name): f"--{name.replace('_', '-')}" for name in options if getattr(self, name)}

    @property
    def columns(self) -> tuple[str, ...]:
        """The keys of a record that prompts are read from, where they are there."""
        named = (self.prompt_column, self.reference_column, self.type_column, self.id_column)
        asked = ("prompts", "prompt", "conversations", "messages", "caption")
        return tuple(dict.fromkeys([*(() if self.prompt_column else asked), *filter(None, named)]))

    def nowhere(self, records: int, seen: Mapping[str, int]) -> list[str]:
        """The columns that the user names and that none of so many records has; nothing is known where there is none.

        Args:
            records: that were looked at.
            seen: the number of them that have each column.
        """
        return [name for name in self.named if records and not seen.get(name)]

    def columns_note(self, records: int, seen: Mapping[str, int]) -> str | None:
        """One line about records without columns that the user names, as `nowhere`; None where all have all."""
        lacking = {name: records - seen.get(name, 0) for name in self.named}
        clauses = [
            f"{count:,} of {counted(records, 'records', 'have')} no {name!r} ({self.named[name]})"
            for name, count in lacking.items()
            if count
        ]
        return "; ".join(clauses) or None


def refused_columns(reading: Reading, missing: Sequence[str]) -> str:
    """Why a corpus is refused of which no record has these columns."""
    names = " and ".join(f"{reading.named[name]} {name}" for name in missing)
    return f"{names}: no record of the corpus has such a column or key; correct the name, or leave the option out"
