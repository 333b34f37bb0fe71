"""Step 12, inference/models: lines of an event stream -> events (the HTML standard's server-sent events).

Owns what is an event and what is only a sign of an open connection: comment lines and empty events give nothing. Does
no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name ('message' if it has none) and its data's lines, joined."""

    name: str
    data: bytes


class EventReader:
    """Collects the lines of one event; the blank line gives it out."""

    def __init__(self) -> None:
        self._name = b""
        self._data: list[bytes] = []

    def read(self, line: bytes) -> Event | None:
        """The event that this line completes."""
        if not line:
            return self._take()
        field, _, value = line.removeprefix(BYTE_ORDER_MARK).partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        elif field == b"error" or line.startswith((b"{", b"<")):
            # No event stream: older llama.cpp writes `error: {...}`, and others a bare JSON error or a proxy's page.
            return Event("error", line if field != b"error" else value)
        return None

    def _take(self) -> Event | None:
        name, data = self._name.decode("utf-8", errors="replace"), self._data
        self._name, self._data = b"", []
        return Event(name or "message", b"\n".join(data)) if any(data) else None
