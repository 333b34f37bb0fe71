"""Step 12, inference/models: bytes -> lines, ended by LF alone.

Owns the only splitting of a model server's body. Text splitters will not do: they also break at U+0085, U+2028 and
U+2029, which stand raw inside JSON (measured: broken JSON from httpx's aiter_lines). Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

from services.inference.models.port import ModelFailure

# Ollama's own runner protocol allows events of 8 MB; a server that sends more in one line is broken, not talkative.
MAX_LINE_BYTES = 8 * 1024 * 1024


class LineSplitter:
    """Collects the body as it comes in, split anywhere, and gives out each line once it is whole."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._parts: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that chunk completes, without their ends. Raises ModelFailure for a line beyond the bound."""
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            self._hold(part)
            yield self._take()
        self._hold(rest)

    def last(self) -> Iterator[bytes]:
        """What a clean end leaves: a line without its end, if it looks whole, and the blank line that ends an event.

        Half a line is dropped: it says nothing, and the body's end says that the answer was cut.
        """
        rest = self._take()
        if rest.endswith((b"}", b"]")):
            yield rest
        yield b""

    def _hold(self, part: bytes) -> None:
        self._held_bytes += len(part)
        if self._held_bytes > self._max_line_bytes:
            raise ModelFailure("model_error", f"a line of more than {self._max_line_bytes} bytes")
        if part:
            self._parts.append(part)

    def _take(self) -> bytes:
        line = b"".join(self._parts).removesuffix(b"\r")
        self._parts.clear()
        self._held_bytes = 0
        return line
