"""What clients did and saw, one JSON line each: invoke, then ok, fail or unknown; and every frame, as it came.

Owns the form of an entry and the file. A line is written before what follows from it is done, so that a journal holds
all that a client knows. Must never decide whether something is right: the checker does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TextIO

Kind = Literal["invoke", "ok", "fail", "unknown", "open", "frame", "closed", "died", "note"]
Entry = dict[str, Any]


class Journal:
    """One run's journal, kept in memory for the checker and in a file for people."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._file: TextIO = path.open("w")
        self._began = time.monotonic()

    def write(self, kind: Kind, **fields: Any) -> None:
        entry = {"at": round(self.now(), 3), "kind": kind, **fields}
        self.entries.append(entry)
        self._file.write(json.dumps(entry, separators=(",", ":")) + "\n")

    def now(self) -> float:
        """Seconds since it was begun, as each entry has them."""
        return time.monotonic() - self._began

    def close(self) -> None:
        self._file.close()


def read_journal(lines: Iterable[str]) -> list[Entry]:
    """The entries of a journal that was kept."""
    return [json.loads(line) for line in lines if line.strip()]
