"""What a run left, as the checker takes it (pure): journals, the log's rows, the views' tables; and a broken promise.

Owns the shapes only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tests.faults.journal import Entry
from tests.folding import TERMINALS


@dataclass(frozen=True)
class Row:
    """A recorded event, as log.db has it. event: its body, read."""

    position: int
    version: int
    event: dict[str, Any]

    @property
    def type(self) -> str:
        return str(self.event["type"])

    @property
    def turn_id(self) -> str:
        return str(self.event.get("turn_id"))


@dataclass(frozen=True)
class Link:
    """A row of the log as its hash chain sees it. fields: its columns in the chain's order."""

    fields: tuple[str | int | None, ...]
    body: bytes
    body_hash: bytes
    hash: bytes


@dataclass(frozen=True)
class Evidence:
    """All that a run left. folded: the rows of each table of the views; replayed: of a fresh fold of the log."""

    journal: Sequence[Entry]
    rows: Sequence[Row]
    chain: Sequence[Link] = ()
    folded: dict[str, list[Any]] = field(default_factory=dict)
    replayed: dict[str, list[Any]] = field(default_factory=dict)

    @cached_property
    def sends(self) -> dict[str, list[Entry]]:
        """The answers to each key, in order."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.journal:
            if entry.get("op") == "send" and entry["kind"] != "invoke":
                found[entry["key"]].append(entry)
        return found

    @cached_property
    def by_event(self) -> dict[str, Row]:
        return {row.event["event_id"]: row for row in self.rows}

    @cached_property
    def ends(self) -> dict[str, Row]:
        """The last terminal of each turn."""
        return {row.turn_id: row for row in self.rows if row.type in TERMINALS}

    @cached_property
    def of_session(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            found[row.event["session_id"]].append(row)
        return found

    def entries_of(self, whose: str) -> dict[str, list[Entry]]:
        """The entries of each watch or stream, in order."""
        found: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.journal:
            if whose in entry:
                found[entry[whose]].append(entry)
        return found


@dataclass(frozen=True)
class Violation:
    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"
