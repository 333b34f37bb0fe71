"""Why a program of the stack ended: its last words, from its own log.

Owns what counts as such: a critical line of our services, a fatal one of nats-server, the last line of a traceback.
Must never take an error that the program lived on with for the reason of its end.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from services.runtime.logs import MASK

# The end of a log is read no further back.
_TAIL_BYTES = 64 * 1024
_PLAIN = re.compile(r"\[FTL\] (?P<fatal>.+)|(?P<raised>(?:[\w.]*(?:Error|Exception)|nats-server): .+)")


class ErrorLog:
    """A program's log, and how far it was looked at: no end is told twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = path.stat().st_size if path.exists() else 0

    def last_words(self) -> str | None:
        """Of what was written since the last look."""
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            since = self._seen if self._seen <= size else 0  # smaller than before: the supervisor began a new file
            file.seek(max(since, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        self._seen = size
        return next((words for words in map(words_of, reversed(lines)) if words), None)


def words_of(line: str) -> str | None:
    """What a line says of an end; None for any other line."""
    try:
        record = json.loads(line)
    except ValueError:
        found = _PLAIN.search(line)
        return found and (found["fatal"] or found["raised"])
    if not isinstance(record, dict) or record.get("level") != "critical":
        return None
    [cause, *_] = record.get("exception") or [{}]
    words = cause.get("words", MASK)
    return str(record.get("reason") or (cause.get("kind") if words == MASK else words) or record.get("event"))
