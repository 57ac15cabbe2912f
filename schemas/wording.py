"""Numbers of things, times and foreign texts, as messages say them."""

import unicodedata

_SINGULAR = {"are": "is", "were": "was", "have": "has", "hold": "holds"}
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories that move the cursor, turn the direction of text or end a line
_JOINERS = "\u200c\u200d"  # they shape the letters and emoji beside them


def clock(seconds: float) -> str:
    """`1:05`, `2:03:04`: a time as hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def counted(number: int, things: str, verb: str = "") -> str:
    """`1 shard`, `2 shards`; with a verb `1 shard was`, `2 shards were`.

    Args:
        number: of the things.
        things: in the plural, which ends in "s".
        verb: in the plural, one of `are`, `were`, `have`, `hold`.
    """
    one = number == 1
    words = [f"{number:,}", things.removesuffix("s") if one else things]
    return " ".join([*words, _SINGULAR[verb] if one else verb] if verb else words)


def visible(text: str) -> str:
    """The text with everything written out that acts on what shows it: a new line as `\\n`, ESC as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in _UNSEEN and c not in _JOINERS else c for c in text)


def clipped(text: str, most: int) -> str:
    """The first characters of a text; "..." stands for what is cut off."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
