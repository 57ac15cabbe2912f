"""What users say about the form of their corpus: where prompts stand in a record, and what is asked beside them."""

from dataclasses import dataclass

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
    def columns(self) -> tuple[str, ...]:
        """The keys of a record that prompts are read from, where they are there."""
        named = (self.prompt_column, self.reference_column, self.type_column, self.id_column)
        asked = ("prompts", "prompt", "conversations", "messages", "caption")
        return tuple(dict.fromkeys([*(() if self.prompt_column else asked), *filter(None, named)]))
