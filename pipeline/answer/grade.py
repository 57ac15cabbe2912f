"""Whether a generated answer is right: it must equal one of the references after the usual normalisation."""

import re
import string
from collections.abc import Sequence

_EDGES = string.punctuation + string.whitespace


def normalise(text: str) -> str:
    """The text with its case folded, white space collapsed, and punctuation at both ends dropped."""
    return re.sub(r"\s+", " ", text.casefold()).strip(_EDGES)


def is_correct(answer: str, references: Sequence[str] | None) -> bool | None:
    """Whether the answer equals a reference, or None where there is no reference to compare with."""
    if not references:
        return None
    return normalise(answer) in {normalise(reference) for reference in references}
