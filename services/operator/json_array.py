"""A JSON array that does not fit into memory, one item after the other.

Owns the reading of a file whose items do fit: each is parsed once it is there as a whole. Must never hold more than one
item and a bounded piece of the next.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, Protocol

# A conversation of years is some megabytes. A larger item is refused: it would be held whole.
ITEM_CHARS = 64 * 1024 * 1024
_PIECE_BYTES = 256 * 1024
_BETWEEN = re.compile(r"[ \t\r\n]*")


class NotAnArray(Exception):
    """The file is not one, or an item cannot be read. The text names the line."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Text:
    """What was read and not taken yet."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.ahead = ""
        self._line = 1

    def more(self, size: int) -> bool:
        """Read on; False at the end."""
        piece = self._stream.read(max(size, _PIECE_BYTES))
        try:
            self.ahead += self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise NotAnArray(f"after line {self._line}: not UTF-8") from error
        return bool(piece)

    def take(self, until: int) -> None:
        self._line += self.ahead.count("\n", 0, until)
        self.ahead = self.ahead[until:]

    def next_sign(self) -> str:
        """The next character that is not between things; "" at the end."""
        while True:
            self.take(_BETWEEN.match(self.ahead).end())  # type: ignore[union-attr]
            if self.ahead or not self.more(0):
                return self.ahead[:1]

    def wrong(self, what: str, at: int = 0) -> NotAnArray:
        return NotAnArray(f"line {self._line + self.ahead.count(chr(10), 0, at)}: {what}")


def array_items(stream: Readable) -> Iterator[Any]:
    """Each item of the one array in the stream. Raises NotAnArray."""
    text = _Text(stream)
    if text.next_sign() != "[":
        raise text.wrong("not a JSON array")
    text.take(1)
    closed = text.next_sign() == "]"
    while not closed:
        yield _item(text)
        sign = text.next_sign()
        if sign not in (",", "]") or not sign:
            raise text.wrong("the file ends in the middle: it was cut" if not sign else "not a JSON array")
        closed = sign == "]"
        if not closed:
            text.take(1)
            text.next_sign()


def _item(text: _Text) -> Any:
    """Parsed again, with as much again, until it is there as a whole."""
    decoder = json.JSONDecoder()
    while True:
        try:
            value, end = decoder.raw_decode(text.ahead)
        except RecursionError as error:
            raise text.wrong("nested too deep") from error
        except ValueError as error:
            at = getattr(error, "pos", 0)
            if len(text.ahead) > ITEM_CHARS:
                raise text.wrong(f"no JSON, or an item of more than {ITEM_CHARS} characters", at) from error
            if not text.more(len(text.ahead)):
                raise text.wrong("no JSON, or the file was cut", at) from error
            continue
        text.take(end)
        return value
