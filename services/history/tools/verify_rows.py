"""Off the road, history/tools/verify: a stretch of the log, row by row: is each what was written, and does it fit?

Owns one walk over positions: they are dense, each row's hashes hold and join it to the one before, its columns say what
its body says, today's models read it, and its session's trail leads to it. A row that is just as our writers make it
passes by a short way; any other is asked one question after the other. Must never write.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from typing import Any

from contracts.base import data_hash as hash_of_data
from contracts.envelope import Event, read_event
from contracts.errors import ContractError
from contracts.quick import Fields
from services.history.log.bodies import read_data, take_apart
from services.history.log.port import FIRST_HASH, link
from services.history.tools.findings import Findings
from services.history.tools.trails import Trails

# What an envelope has a column for comes first, as take_apart wants it.
_SELECT = (
    "SELECT event_id, user_id, session_id, turn_id, type, schema_version,"
    " position, version, recorded_at, data_hash, body, body_hash, hash FROM events"
)
_ENVELOPE = ("event_id", "user_id", "session_id", "turn_id", "type", "schema_version")
_TELL_EVERY = 2000

Row = tuple[Any, ...]


class Walk:
    """The rows from one position to another. told: is called with how many more are done."""

    def __init__(self, connection: sqlite3.Connection, findings: Findings, told: Callable[[int], None]) -> None:
        self._connection = connection
        self._findings = findings
        self._told = told
        self._trails = Trails(connection)
        self._previous: bytes | None = None  # the hash before `_next`; None: not known
        self._next = 1

    def walk(self, first: int, last: int) -> None:
        """Check all rows from first to last."""
        self._previous, self._next = self._hash_before(first), first
        while self._next <= last:
            try:
                self._check_rows(last)
                self._skip_to(last + 1)
            except sqlite3.DatabaseError as error:
                readable = self._readable_after(last)
                upto = "" if readable == self._next + 1 else f" up to {readable - 1}"
                self._findings.add(self._next, f"cannot be read{upto}: {error}")
                self._previous, self._next = None, readable

    def _check_rows(self, last: int) -> None:
        began = self._next
        for row in self._connection.execute(f"{_SELECT} WHERE position BETWEEN ? AND ?", (self._next, last)):
            position = row[6]
            if position != self._next and not self._skip_to(position):
                continue
            wrong = self._wrong_with(row)
            if wrong is not None:
                self._findings.add(position, wrong)
            self._previous, self._next = row[12], position + 1
            if self._next - began >= _TELL_EVERY:
                self._told(self._next - began)
                began = self._next
        self._told(self._next - began)

    def _skip_to(self, position: int) -> bool:
        """Go on at this position; False where the walk was there already."""
        if position < self._next:
            self._findings.add(position, f"stands behind position {self._next - 1}")
            return False
        if position > self._next:
            upto = "" if position == self._next + 1 else f" up to {position - 1}"
            self._findings.add(self._next, f"is missing{upto}")
            self._previous, self._next = None, position
        return True

    def _readable_after(self, last: int) -> int:
        """Where rows can be read again, by growing steps: a page that is lost takes its neighbours along."""
        step = 1
        while self._next + step <= last:
            try:
                sql = f"{_SELECT} WHERE position BETWEEN ? AND ? LIMIT 1"
                found = self._connection.execute(sql, (self._next + step, last)).fetchone()
                return int(found[6]) if found and found[6] > self._next else last + 1
            except sqlite3.DatabaseError:
                step *= 2
        return last + 1

    def _hash_before(self, first: int) -> bytes | None:
        if first == 1:
            return FIRST_HASH
        try:
            row = self._connection.execute("SELECT hash FROM events WHERE position = ?", (first - 1,)).fetchone()
        except sqlite3.DatabaseError:
            return None  # told where that position is checked
        return row[0] if row else None

    def _wrong_with(self, row: Row) -> str | None:
        event_id, user_id, session_id, turn_id, event_type, schema_version = columns = row[:6]
        position, version, recorded_at, data_hash, body, body_hash, stored_hash = row[6:]
        try:
            parts = take_apart(body, columns)
            data = read_data(event_type, schema_version, parts[1]) if parts else None
            if parts is None or data is None or self._previous is None:
                return self._explain(row)
            fields = (b"%d" % position, event_id, user_id, session_id, b"%d" % version, turn_id, event_type,
                      b"%d" % schema_version, recorded_at, data_hash)  # fmt: skip
            if (
                hashlib.sha256(body).digest() != body_hash
                or hashlib.sha256(parts[1]).hexdigest().encode() != data_hash
                or link(self._previous, fields, body_hash) != stored_hash
            ):
                return self._explain(row)
        except (TypeError, AttributeError):  # a damaged cell is of another kind than its column
            return self._explain(row)
        return self._lost_on_trail(row, parts[0], data)

    def _explain(self, row: Row) -> str | None:
        """The first thing that is wrong with a row, asked in plain words; None where nothing is."""
        columns = row[:6]
        position, version, recorded_at, data_hash, body, body_hash, stored_hash = row[6:]
        if not all(isinstance(each, bytes) for each in (*columns[:3], columns[4], *row[8:])):
            return "a column is not of its kind"
        wrong = (
            None if hashlib.sha256(body).digest() == body_hash else "the body is not the one that its body_hash is of"
        )
        fields = [_raw(each) for each in (position, *columns[:3], version, *columns[3:], recorded_at, data_hash)]
        if self._previous is not None and link(self._previous, fields, body_hash) != stored_hash:
            wrong = wrong or "its hash does not join it to the position before it"
        try:
            event = read_event(body)
        except ContractError as error:
            return wrong or f"today's models do not read it: {error.reason}"
        wrong = wrong or _unlike(event, columns)
        if hash_of_data(event.envelope.data).encode() != data_hash:
            wrong = wrong or "its data is not the one that its data_hash is of"
        cause = event.envelope.causation_id
        lost = self._lost_on_trail(row, cause.encode() if cause else None, event.data.model_dump(mode="json"))
        return wrong or lost

    def _lost_on_trail(self, row: Row, cause: bytes | None, data: Fields) -> str | None:
        """What is wrong with the place of the event in its session."""
        key, ids = (row[1], row[2]), (row[0], row[3], cause)
        try:
            trail = self._trails.before(key, row[6], row[7])
            caused = self._trails.caused(trail, ids, key, row[6])
        except sqlite3.DatabaseError as error:
            return f"its session's earlier events cannot be read: {error}"
        wrong = trail.follow(row[7], row[4], ids, data)
        return wrong if caused else wrong or f"its cause {_raw(cause).decode()} is no earlier event of its session"


def _raw(value: Any) -> Any:
    return b"%d" % value if isinstance(value, int) else value


def _unlike(event: Event, columns: Row) -> str | None:
    """Which column does not say what the body says."""
    for name, column in zip(_ENVELOPE, columns, strict=True):
        said = getattr(event.envelope, name)
        if (said.encode() if isinstance(said, str) else said) != column:
            return f"{name} is not what its body says"
    return None
