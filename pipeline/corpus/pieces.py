"""Walking through a JSON file too large for memory: elements of its arrays, each with the byte it begins at."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from pipeline.corpus.packed import DamagedError
from pipeline.corpus.sample import MAX_JSON_BYTES

PIECE_BYTES = 4 << 20
_BLANK = " \t\r\n"
# Whole numbers of thousands of digits are no error here, and cost nothing.
_DECODER = json.JSONDecoder(parse_int=float)


@dataclass(frozen=True, slots=True)
class Element:
    """A value in a JSON file."""

    key: str | None  # of the array that it is an element of; None: the file is that array
    begin: int  # byte of the file
    text: bytes


class _Text:
    """The file as text in which each letter is one byte, as far as it is needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.buffer = ""
        self.base = 0  # byte of the file that the buffer begins at
        self.at = 0  # in the buffer
        self.ended = False

    def more(self, size: int | None = None) -> None:
        """Read on; what lies before the position is forgotten."""
        data = self._stream.read(size or PIECE_BYTES)
        self.ended = not data
        self.base += self.at
        self.buffer = self.buffer[self.at :] + data.decode("latin-1")
        self.at = 0

    def next_letter(self) -> str:
        """The first letter behind blanks, at which the position then is; none at the end."""
        while True:
            while self.at < len(self.buffer):
                letter = self.buffer[self.at]
                if letter not in _BLANK:
                    return letter
                self.at += 1
            if self.ended:
                return ""
            self.more()

    def take(self, letters: str) -> str:
        """One of these letters, behind which the position then is.

        Raises:
            DamagedError: another one stands there.
        """
        found = self.next_letter()
        if not found or found not in letters:
            raise self.damaged(f"{found!r} stands there, expected one of {letters}" if found else "it breaks off")
        self.at += 1
        return found

    def value(self) -> tuple[int, str, Any]:
        """The next value: the byte it begins at, its text, and what it is, behind which the position then is."""
        self.next_letter()
        size = PIECE_BYTES
        while True:
            try:
                found, end = _DECODER.raw_decode(self.buffer, self.at)
            except RecursionError as error:
                raise self.damaged("it is nested too deeply") from error
            except ValueError as error:
                if self.ended:
                    raise self.damaged(f"no JSON value ends there ({str(error)[:80]})") from error
            else:
                if end - self.at > MAX_JSON_BYTES:
                    raise self.damaged(f"a JSON value of over {MAX_JSON_BYTES} bytes begins there")
                if end < len(self.buffer) or self.ended:
                    begin, text = self.base + self.at, self.buffer[self.at : end]
                    self.at = end
                    return begin, text, found
            if len(self.buffer) - self.at > MAX_JSON_BYTES:
                raise self.damaged(f"no JSON value of at most {MAX_JSON_BYTES} bytes begins there")
            self.more(size)
            size *= 2

    def damaged(self, why: str) -> DamagedError:
        return DamagedAtError(self.base + self.at, why)


class DamagedAtError(DamagedError):
    """A JSON file is damaged; `begin` is the byte from which on it can't be read."""

    def __init__(self, begin: int, why: str) -> None:
        super().__init__(f"byte {begin}: {why}")
        self.begin = begin


def elements(stream: BinaryIO) -> Iterator[Element]:
    """The elements of an array, or of every array that is a member of an object, and its other members, in order.

    Raises:
        InputReadError: the storage does not give the file.
        DamagedAtError: from there on the file is no JSON.
    """
    text = _Text(stream)
    text.more()
    if text.buffer.startswith("\xef\xbb\xbf"):  # a byte order mark
        text.at = 3
    if text.take("[{") == "[":
        yield from _array(text, None)
        return
    if text.next_letter() == "}":
        return
    while True:
        _, _, key = text.value()
        if not isinstance(key, str):
            raise text.damaged(f"{str(key)[:40]!r} stands where the name of a member should")
        text.take(":")
        if text.next_letter() == "[":
            text.at += 1
            yield from _array(text, key)
        else:
            begin, value, _ = text.value()
            yield Element(key, begin, value.encode("latin-1"))
        if text.take(",}") == "}":
            return


def _array(text: _Text, key: str | None) -> Iterator[Element]:
    if text.next_letter() == "]":
        text.at += 1
        return
    while True:
        begin, value, _ = text.value()
        yield Element(key, begin, value.encode("latin-1"))
        if text.take(",]") == "]":
            return
