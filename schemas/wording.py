"""Numbers of things and times, as messages say them."""

_SINGULAR = {"are": "is", "were": "was", "have": "has", "hold": "holds"}


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
